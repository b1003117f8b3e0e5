"""Settings of who an agent is in the clouds, the part `clouds` of its config.

    clouds:
      aws: {profile: training, region: eu-west-1, role_arn: "arn:aws:iam::123456789012:role/launch"}
      gcp: {project: team-ml, region: europe-west4, credentials: my-gcp-block}

What is left out is as the cloud's own client finds it on the machine. `credentials` names a block of the type
`AwsCredentials` (prefect-aws) or `GcpCredentials` (prefect-gcp). Nothing here is a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_launch.errors import AgentConfigError, unknown_name

_REGION: Final = re.compile(r"[a-z][a-z0-9-]+\Z")
_ROLE: Final = re.compile(r"arn:[a-z-]+:iam::[0-9]{12}:role/\S+\Z")
_ACCOUNT: Final = re.compile(r"[^\s@/]+@[^\s@/]+\Z")

#: By a setting's name: its rule, in a pattern and in words.
_RULES: Final = {
    "profile": (re.compile(r"\S(.*\S)?\Z"), "the name of a profile in ~/.aws/config"),
    "region": (_REGION, "a region's name, such as eu-west-1 at AWS or europe-west4 at Google"),
    "role_arn": (_ROLE, "a role's ARN, such as 'arn:aws:iam::123456789012:role/launch'"),
    "project": (re.compile(r"[a-z0-9][a-z0-9:.-]+\Z"), "a project's id, such as 'team-ml'"),
    "service_account": (_ACCOUNT, "a service account's address, such as 'launch@team-ml.iam.gserviceaccount.com'"),
    "credentials": (re.compile(r"[a-z0-9-]+(/[a-z0-9-]+)?\Z"), "the name of a block on the Prefect server"),
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _validate_keys(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            if isinstance(data, cls):
                return data
            raise AgentConfigError(
                f"The agent's 'clouds' and its parts must be mappings of settings, not a {type(data).__name__}."
            )
        for key in data:
            if key not in cls.model_fields:
                raise AgentConfigError(str(unknown_name("cloud setting", key, cls.model_fields)))
        return {key: value for key, value in data.items() if value is not None}

    @field_validator("*", mode="before")
    @classmethod
    def _validate_text(cls, value: Any, info: Any) -> Any:
        if info.field_name not in _RULES or value is None:
            return value
        pattern, rule = _RULES[info.field_name]
        if not isinstance(value, str):  # Perhaps the keys themselves, which no log may show.
            raise AgentConfigError(
                f"The cloud setting {info.field_name!r} must be {rule}, not a {type(value).__name__}."
            )
        if not pattern.match(value):
            raise AgentConfigError(f"The cloud setting {info.field_name!r} must be {rule}; got {value!r}.")
        return value


class AwsSettings(_Part):
    """Who the agent is at AWS."""

    profile: str | None = Field(default=None, description="The profile of the machine's AWS config files.")
    region: str | None = Field(default=None, description="The AWS region; default: as the machine's AWS config says.")
    role_arn: str | None = Field(default=None, description="The IAM role that it assumes.")
    credentials: str | None = Field(default=None, description="AwsCredentials block with its keys.")

    @model_validator(mode="after")
    def _validate_one_source(self) -> AwsSettings:
        if self.profile and self.credentials:
            raise AgentConfigError(
                f"clouds.aws names both a profile ({self.profile!r}) and a block ({self.credentials!r}), and only one"
                " can say who the agent is. Leave one of them out."
            )
        return self


class GcpSettings(_Part):
    """Who the agent is at Google Cloud."""

    project: str | None = Field(default=None, description="The Google Cloud project; default: that of its identity.")
    region: str | None = Field(default=None, description="The Google Cloud region.")
    service_account: str | None = Field(default=None, description="The service account that it impersonates.")
    credentials: str | None = Field(default=None, description="GcpCredentials block with its key.")


class CloudSettings(_Part):
    """Who the agent is in each cloud."""

    aws: AwsSettings = AwsSettings()
    gcp: GcpSettings = GcpSettings()
