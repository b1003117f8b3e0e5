"""Job model, as frozen values: the document (`wandb-job.json`), a version, a reference, a row of a list.

The document has the reference's schema. It holds nothing of where or when it was made, so that the same content has
the same digest on every machine. No input or output here: `prefect_launch.jobs.registry` stores and finds jobs.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.names import check_name
from prefect_launch.errors import ArtifactError, InvalidNameError, SpecError
from prefect_launch.spec.input_styles import InputsAs
from prefect_launch.spec.scheduling import Retries

#: The file that describes a job, under the reference's name.
DOCUMENT_FILE: Final = "wandb-job.json"
#: The code of a code job, stored next to it.
CODE_FILE: Final = "code.tar.gz"
#: What is known about a version that is not its content: description, commit of the folder, who made it.
METADATA_FILE: Final = "metadata.json"
#: The paths of its code, so that an item's overrides can be checked before the item is queued.
LISTING_FILE: Final = "files.json"
#: A job of more code than this, in bytes of the listing (some 20,000 paths), is stored without one.
MAX_LISTING_BYTES: Final = 1024**2

#: The requirements of jobs alone, which count before those of the code.
JOB_FILE: Final = "requirements.launch.txt"
#: The reference's name for the job's own config, among the things that can have a schema.
CONFIG_INPUTS: Final = "@wandb.config"


class SourceKind(str, Enum):
    """What a job is made of (the reference's `source_type`)."""

    IMAGE = "image"
    CODE = "artifact"
    GIT = "repo"


class _Part(BaseModel):
    # Other programs' keys are ignored: the digest is that of the file's bytes, not of this model.
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class GitCommit(_Part):
    """A remote, without credentials, and the full id of a commit in it."""

    remote: str
    commit: str = Field(pattern=r"^[0-9a-f]{40}(?:[0-9a-f]{24})?$")


class _BuiltSource(_Part):
    entrypoint: tuple[str, ...] = ()
    notebook: bool = False
    build_context: str | None = Field(
        default=None, description="Folder of the code that its image is built in, or it is run in."
    )
    dockerfile: str | None = Field(default=None, description="Path of the Dockerfile, relative to the build context.")
    base_image: str | None = Field(default=None, description="Image that the code runs in as it is, without a build.")
    install: tuple[str, ...] | None = Field(
        default=None, description="Lines of a requirements file that count in place of the code's own requirements."
    )


def job_requirements(install: Collection[str] | None, build_context: str | None) -> dict[str, bytes]:
    """Return the file that is added to a job's code so that its `install` counts, by its path there."""
    path = posixpath.normpath(posixpath.join(build_context or ".", JOB_FILE))
    return {path: "".join(f"{line}\n" for line in install).encode()} if install else {}


class GitJobSource(_BuiltSource):
    """Code at a commit of a git remote."""

    git: GitCommit


class CodeJobSource(_BuiltSource):
    """An archive of a folder of code, kept in the job store."""

    artifact: str = Field(pattern=r"^launch-code://sha256/[0-9a-f]{64}$")

    @classmethod
    def artifact_of(cls, content_digest: str) -> str:
        """Return the `artifact` that names an archive by the digest of its bytes before compression."""
        return f"launch-code://{content_digest.replace(':', '/')}"

    @property
    def content_digest(self) -> str:
        """`sha256:<hex>` of the archive's bytes before compression, which differs between versions of zlib."""
        return self.artifact.removeprefix("launch-code://").replace("/", ":")


class ImageJobSource(_Part):
    """A container image to run as it is."""

    image: str
    entrypoint: tuple[str, ...] = ()


_SOURCE_CLASSES: Final = {
    SourceKind.GIT: GitJobSource,
    SourceKind.CODE: CodeJobSource,
    SourceKind.IMAGE: ImageJobSource,
}


class JobDocument(_Part):
    """The content of `wandb-job.json`."""

    version: str = Field(
        default="v0", alias="_version", description='"0.17.0" when a build context or Dockerfile is named.'
    )
    source_type: SourceKind
    source: GitJobSource | CodeJobSource | ImageJobSource
    input_types: dict[str, Any] = Field(default_factory=dict)
    output_types: dict[str, Any] = Field(default_factory=dict)
    runtime: str | None = Field(default=None, description='The Python it wants, such as "3.11".')
    input_schemas: dict[str, dict[str, Any]] | None = None
    retries: Retries | None = Field(default=None, description="When its items are run again, unless they say.")
    inputs_as: InputsAs | None = Field(default=None, description="How its program gets its inputs; None: as JSON.")
    keep: tuple[str, ...] | None = Field(
        default=None, description="Patterns of files that go from its code folder to the outputs of its runs."
    )

    def dump(self) -> bytes:
        """Return the document as its file's bytes: the same value always gives the same bytes."""
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))


def parse_document(content: bytes, *, where: str) -> JobDocument:
    """Read a job's document.

    Raises:
        ArtifactError: when it is no JSON, or not of the schema.
    """
    try:
        document = JobDocument.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ArtifactError(
            f"{DOCUMENT_FILE} of the job {where} cannot be used: {place}: {first['msg']}. Create the job again."
        ) from None
    if not isinstance(document.source, _SOURCE_CLASSES[document.source_type]):
        raise ArtifactError(
            f"{DOCUMENT_FILE} of the job {where} says source_type {document.source_type.value!r}, but its source has"
            f" the fields {sorted(document.source.model_fields_set)}. Create the job again."
        )
    return document


class StoredFile(_Part):
    """How a file's bytes are found in the job store, and known to be whole."""

    digest: str = Field(description="sha256:<hex>")
    size: int = Field(description="In bytes.")


def parse_metadata(content: bytes, *, where: str) -> dict[str, Any]:
    """Read a job's metadata file.

    Raises:
        ArtifactError: when it is no JSON object.
    """
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ArtifactError(f"{METADATA_FILE} of the job {where} is no JSON object. Create the job again.")
    return value


class CodeListing(_Part):
    """Paths of a job's code, as relative POSIX paths."""

    files: tuple[str, ...] = Field(description="Its files, and its links.")
    unlisted: tuple[str, ...] = Field(default=(), description="Folders whose files are not listed: submodules.")

    def dump(self) -> bytes:
        """Return it as its file's bytes. A path that is no UTF-8 is escaped."""
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":")).encode()

    @classmethod
    def parse(cls, content: bytes) -> CodeListing | None:
        """Read a listing; `None` when it cannot be read: it is only a help."""
        try:
            return cls.model_validate(json.loads(content))
        except ValueError:
            return None


@dataclass(frozen=True)
class Job:
    """One version of a job.

    A dataclass, not a model: pydantic's own `BaseModel.schema` would be in the way of the name that users expect.
    """

    entity: str
    project: str
    name: str
    version: int
    digest: str  # of its document, which names the digest of its code
    document: JobDocument
    files: Mapping[str, StoredFile] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    description: str | None = None
    created_at: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """`entity/project/name`."""
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def reference(self) -> str:
        """The full name of this very version: `entity/project/name:v3`. It never changes its meaning."""
        return f"{self.path}:v{self.version}"

    def __str__(self) -> str:
        return self.reference

    @property
    def kind(self) -> SourceKind:
        """What it is made of."""
        return self.document.source_type

    @property
    def entry_point(self) -> tuple[str, ...]:
        """The command; empty for an image that brings its own."""
        return self.document.source.entrypoint

    @property
    def image(self) -> str | None:
        """The image of an image job."""
        return self.document.source.image if isinstance(self.document.source, ImageJobSource) else None

    @property
    def base_image(self) -> str | None:
        """The image that the code of a code or git job runs in without a build."""
        return self.document.source.base_image if isinstance(self.document.source, _BuiltSource) else None

    @property
    def build_context(self) -> str | None:
        """The folder of its code that it is built, or run, in; None: the code's top."""
        return self.document.source.build_context if isinstance(self.document.source, _BuiltSource) else None

    @property
    def dockerfile(self) -> str | None:
        """The Dockerfile that its image is built of, relative to its build context; None: one is generated."""
        return self.document.source.dockerfile if isinstance(self.document.source, _BuiltSource) else None

    @property
    def install(self) -> tuple[str, ...]:
        """What is installed for it in place of its code's requirements; empty: these."""
        source = self.document.source
        return (source.install or ()) if isinstance(source, _BuiltSource) else ()

    @property
    def is_notebook(self) -> bool:
        """Whether its command runs a program that was converted from a notebook."""
        return isinstance(self.document.source, _BuiltSource) and self.document.source.notebook

    @property
    def runtime(self) -> str | None:
        """The Python it wants, such as "3.11"."""
        return self.document.runtime

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of its inputs, if it has one."""
        return (self.document.input_schemas or {}).get(CONFIG_INPUTS)

    @property
    def inputs_as(self) -> InputsAs:
        """How its program gets its inputs, besides `$LAUNCH_CONFIG`."""
        return self.document.inputs_as or "json"


class PutOutcome(str, Enum):
    """What storing a job came to, in the reference's words."""

    CREATED = "Created"
    UPDATED = "Updated"
    UNCHANGED = "No changes detected for"


@dataclass(frozen=True)
class PutResult:
    """A stored job, and whether it is new."""

    job: Job
    outcome: PutOutcome


@dataclass(frozen=True)
class JobDraft:
    """A job that is to be stored."""

    name: str
    document: JobDocument
    entity: str | None = None
    project: str | None = None
    code: bytes | None = field(default=None, repr=False)
    listing: CodeListing | None = field(default=None, repr=False)
    description: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JobSummary:
    """A job as a list shows it."""

    entity: str
    project: str
    name: str
    version_count: int
    latest_version: int
    aliases: tuple[str, ...]
    kind: SourceKind
    description: str | None = None
    updated_at: datetime | None = None

    @property
    def path(self) -> str:
        """`entity/project/name`."""
        return f"{self.entity}/{self.project}/{self.name}"


def canonical_json(value: Any) -> bytes:
    """Return the one way to write a JSON value as bytes: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(content: bytes) -> str:
    """Return `sha256:<hex>` of the bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


# --- references ---


class JobReference(BaseModel):
    """A job's full name and the alias (or version, `v3`) that is meant."""

    model_config = ConfigDict(frozen=True)

    entity: str
    project: str
    name: str
    alias: str = "latest"

    @property
    def path(self) -> str:
        """`entity/project/name`, without the alias."""
        return f"{self.entity}/{self.project}/{self.name}"

    def __str__(self) -> str:
        return f"{self.path}:{self.alias}"


def parse_reference(text: object, *, entity: str, project: str) -> JobReference:
    """Read a job reference.

    Args:
        text: `entity/project/name:alias`, `project/name:alias`, `name:alias` or `name`; the alias defaults to `latest`.
        entity: the entity when the text names none.
        project: the project when the text names none.

    Raises:
        InvalidNameError: when it is not of that form, or a part is no good name.
    """
    if not isinstance(text, str):
        raise InvalidNameError(f"A job must be named as text, not {type(text).__name__} ({text!r}).")
    path, colon, alias = text.partition(":")
    parts = path.split("/")
    if len(parts) > 3:
        raise InvalidNameError(
            f"Invalid job {text[:80]!r}: it has {len(parts)} parts between slashes;"
            " use entity/project/name:alias, or less."
        )
    if colon and not alias:
        raise InvalidNameError(f"Invalid job {text!r}: the alias after ':' is empty. Leave out the ':' for 'latest'.")
    full = [entity, project][: 3 - len(parts)] + parts
    return JobReference(
        entity=check_name("entity", full[0]),
        project=check_name("project", full[1]),
        name=check_name("job", full[2]),
        alias=check_name("job alias", alias or "latest"),
    )


#: As many characters of a commit's id as people write.
_SHORT_COMMIT_CHARS: Final = 7


def check_version(job: Job, version: str | None, *, named: str | None = None) -> None:
    """Refuse a version that is not the one that the job is at.

    Args:
        job: as it was resolved.
        version: the version that the spec names with the job, if any: `v3`, `3`, the alias in the job's name, a git
        job's commit.
        named: the job, as the spec names it.

    Raises:
        SpecError: naming the version, the job, and how its version is chosen.
    """
    if version is None:
        return
    commit = _commit(job)
    own = {f"v{job.version}", str(job.version), (named or "").partition(":")[2]} - {""}
    if version in own or (len(version) >= _SHORT_COMMIT_CHARS and commit.startswith(version)):
        return
    at = f"v{job.version}, commit {commit[:12]}" if commit else f"v{job.version}"
    raise SpecError(
        f"version={version!r} does not agree with the job {named or job.reference!r}, which is at {at}. version chooses"
        f" what a git uri is taken at; choose a job's version in its name, such as job='{job.name}:v{job.version}'."
    )


def _commit(job: Job) -> str:
    git = getattr(job.document.source, "git", None)
    return git.commit if git is not None else ""
