"""Environment of the job's containers: variables in the manifest, and variables with secrets in a Secret."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from prefect_launch.core.masking import Mask
from prefect_launch.errors import SpecError
from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners.base import RunPlan, with_default_variables
from prefect_launch.runners.remote.kubernetes.fields import walk

#: Where `$LAUNCH_OUTPUT_DIR` points in every container; the folder above is for nothing else.
OUTPUT_DIR: Final = "/launch/outputs"
_KEY: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}", re.ASCII)


class SecretValues:
    """The secret values of a run, taken out of its manifest.

    Args:
        name: of the Secret that holds them.
        mask: knows the secrets.
    """

    def __init__(self, name: str, mask: Mask) -> None:
        self.name = name
        self._mask = mask
        self._values: dict[str, str] = {}

    def entry(self, name: str, value: str) -> dict[str, Any]:
        """Return the entry of a container's `env` for a variable; a secret's value is kept apart.

        Args:
            name: of the variable.
            value: that the job is to see, as it is.
        """
        if self._mask.text(value) == value:
            return {"name": name, "value": literal(value)}
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": self.name, "key": self._keep(name, value)}}}

    def _keep(self, name: str, value: str) -> str:
        key = name if _KEY.fullmatch(name) and self._values.get(name, value) == value else f"value-{len(self._values)}"
        self._values[key] = value
        return key

    def take_out(self, container: dict[str, Any]) -> None:
        """Take secrets out of the variables that a manifest's owner gave a container."""
        container["env"] = [
            {**one, **self.entry(one["name"], one["value"])} | {}
            if isinstance(one.get("value"), str) and self._mask.text(one["value"]) != one["value"]
            else one
            for one in container.get("env") or ()
        ]
        for one in container["env"]:
            if "valueFrom" in one:
                one.pop("value", None)

    def check_none_left(self, value: Any, what: str) -> None:
        """Refuse a manifest in which a secret stands somewhere else than in a variable.

        Raises:
            SpecError: with its place, without the secret.
        """
        for entry in walk(value):
            texts = (entry.key, entry.value) if isinstance(entry.value, str) else (entry.key,)
            if any(self._mask.text(text) != text for text in texts):
                raise SpecError(
                    f"{what} has a secret's value at {self._mask.text(entry.path)}, where everybody who may read the"
                    " cluster's objects sees it. Put it into env, which keeps it in a Secret."
                )

    def secret(self) -> dict[str, Any] | None:
        """Return the Secret that holds the values; None where there are none."""
        if not self._values:
            return None
        data = {key: base64.b64encode(value.encode()).decode() for key, value in self._values.items()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": self.name}, "type": "Opaque", "data": data}


def literal(text: str) -> str:
    """Return a text that Kubernetes hands on as it is: `$(NAME)` would be replaced, and `$$` be one `$`."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text


def job_variables(plan: RunPlan, env: Mapping[str, str], container: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables that a container of the job gets from its run.

    Args:
        plan: of the run; what it says wins.
        env: of the options.
        container: whose own variables are known too, so that no default takes their place.
    """
    own = {one["name"]: one.get("value") or "" for one in container.get("env") or ()}
    given = {**env, **plan.env, OUTPUT_DIR_VARIABLE: OUTPUT_DIR}
    whole = with_default_variables({**own, **given}, OUTPUT_DIR)
    return {name: value for name, value in whole.items() if name in given or name not in own}
