"""Job registry: stores and resolves jobs by version (`v0, v1, …`) and alias; `latest` is always the highest version.

Concurrent writers lose no version, and the same content makes no second one. What is read is what was stored, or an
error. A cached version costs no request, an alias one small request. Files are written before the index names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from prefect_launch.core.names import check_name
from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.errors import ArtifactError, NotFoundError, unknown_name
from prefect_launch.jobs import outputs
from prefect_launch.jobs.archive import unpack
from prefect_launch.jobs.index import (
    LATEST,
    AliasEntry,
    JobIndex,
    VersionEntry,
    check_alias,
    check_own_alias,
    shorten,
    version_of,
)
from prefect_launch.jobs.model import (
    CODE_FILE,
    DOCUMENT_FILE,
    LISTING_FILE,
    MAX_LISTING_BYTES,
    METADATA_FILE,
    CodeJobSource,
    CodeListing,
    Job,
    JobDraft,
    JobReference,
    JobSummary,
    PutOutcome,
    PutResult,
    canonical_json,
    digest_of,
    parse_document,
    parse_metadata,
    parse_reference,
)
from prefect_launch.jobs.store import Blobs, JobStore
from prefect_launch.server.protocol import Server
from prefect_launch.spec.code_options import job_name


class JobRegistry:
    """The jobs of one server and one store.

    Args:
        server: where versions and aliases are known.
        store: where the files are.
        entity: the entity of names that say none.
        project: the project of names that say none.
    """

    def __init__(self, server: Server, store: JobStore, *, entity: str, project: str) -> None:
        self._index = JobIndex(server)
        self._store = store
        self._entity = entity
        self._project = project

    # --- storing ---

    async def put(self, draft: JobDraft, aliases: Sequence[str] = ()) -> PutResult:
        """Store a job as its next version, unless the latest version is the same.

        Args:
            draft: the job.
            aliases: that point to this version from now on, besides `latest`.

        Raises:
            InvalidNameError: when a name or an alias is no good one.
            InfrastructureError: when the storage fails; nothing is in the index then.
            ServerUnavailableError: when the server does not answer.
        """
        path = self._path(draft)
        moved = tuple(dict.fromkeys(check_alias(alias) for alias in aliases if alias != LATEST))
        contents = _contents(draft)
        highest = await self._index.highest(path)
        if highest is not None and await self._is_same(highest, contents):
            entry, outcome = highest, PutOutcome.UNCHANGED
        else:
            entry, outcome = await self._next_version(path, draft, contents, after=highest)
        await self._index.update_latest(path)
        for alias in moved:
            await self._index.set_alias(alias, entry)
        job = await self._job(entry)
        self._store.cache.add(job)
        return PutResult(job=_with_aliases(job, (*moved, LATEST)), outcome=outcome)

    async def find_same(self, draft: JobDraft) -> Job | None:
        """Return the newest version that has a draft's content, if there is one."""
        path, digest = self._path(draft), digest_of(draft.document.dump())
        versions, _ = await self._index.find(path=path)
        same = [entry for entry in versions if entry.digest == digest]
        return await self._job(max(same, key=lambda entry: entry.version)) if same else None

    async def preview(self, draft: JobDraft) -> Job:
        """Return a draft as the job that it would be now, to be looked at before it is stored."""
        highest = await self._index.highest(self._path(draft))
        version = highest.version + 1 if highest else 0
        path = parse_reference(self._path(draft), entity=self._entity, project=self._project)
        digest = digest_of(draft.document.dump())
        named = (path.entity, path.project, path.name, version, digest)
        return Job(*named, document=draft.document, metadata=draft.metadata)

    async def _is_same(self, entry: VersionEntry, contents: Mapping[str, bytes]) -> bool:
        """Say whether a version has this content, its files being whole, or repaired here and now."""
        if entry.digest != digest_of(contents[DOCUMENT_FILE]):
            return False
        blobs = await self._blobs()
        for name, file in entry.files.items():
            if digest_of(contents.get(name, b"")) == file.digest:
                await blobs.put(contents[name])
            elif not await blobs.holds(file):
                return False
        return True

    async def _next_version(
        self, path: str, draft: JobDraft, contents: Mapping[str, bytes], *, after: VersionEntry | None
    ) -> tuple[VersionEntry, PutOutcome]:
        blobs = await self._blobs()
        files = {name: await blobs.put(content) for name, content in contents.items()}
        number = after.version + 1 if after else 0
        while True:
            entry = VersionEntry(
                job=path,
                version=number,
                digest=files[DOCUMENT_FILE].digest,
                kind=draft.document.source_type,
                files=files,
                created=datetime.now(timezone.utc),
                description=shorten(draft.description),
            )
            if await self._index.create(entry):
                return entry, PutOutcome.UPDATED if number else PutOutcome.CREATED
            taken = await self._index.read_number(path, number)
            if taken is None:
                continue  # somebody deleted its variable: the number is free again
            if taken.digest == entry.digest and not taken.deleted:
                # Another writer was faster with the same, or our own request was sent twice.
                return taken, PutOutcome.UNCHANGED
            number += 1

    # --- changing ---

    async def set_alias(self, reference: str, alias: str) -> Job:
        """Point an alias to a version of a job; returns that version.

        Raises:
            InvalidNameError: when the alias is no good name, or `latest`, which always means the highest version.
            NotFoundError: for an unknown job, alias or version; names the nearest right one.
        """
        check_own_alias(alias)
        job = await self.resolve(reference)
        entry = await self._index.read(job.path, job.version)
        if entry is None:
            raise await self._unknown(parse_reference(job.reference, entity=self._entity, project=self._project))
        await self._index.set_alias(alias, entry)
        return job

    async def delete_alias(self, reference: str, alias: str) -> str:
        """Delete an alias of a job; its version stays. Returns the job's path.

        Raises:
            InvalidNameError: for `latest`.
            NotFoundError: when the job has no such alias.
        """
        check_own_alias(alias)
        path = parse_reference(reference, entity=self._entity, project=self._project).path
        if not await self._index.delete_alias(path, alias):
            raise await self._unknown(parse_reference(f"{path}:{alias}", entity=self._entity, project=self._project))
        return path

    async def named_by(self, reference: str) -> list[VersionEntry]:
        """Return the versions that a name means: one with an alias or a version in it, else all, the oldest first.

        Raises:
            NotFoundError: for an unknown job, alias or version; names the nearest right one.
        """
        wanted = parse_reference(reference, entity=self._entity, project=self._project)
        versions, aliases = await self._index.find(path=wanted.path)
        if ":" in reference:
            numbers = {version_of(wanted)} | {entry.version for entry in aliases if entry.alias == wanted.alias}
            versions = [entry for entry in versions if entry.version in numbers]
        if not versions:
            raise await self._unknown(wanted)
        return sorted(versions, key=lambda entry: entry.version)

    async def delete(self, deleted: Sequence[VersionEntry]) -> tuple[str, ...]:
        """Delete versions of one job, and the aliases that mean them; their files stay in the store.

        Returns:
            The aliases that are gone. `latest` is not among them while the job has a version.
        """
        path, numbers = deleted[0].job, {entry.version for entry in deleted}
        versions, aliases = await self._index.find(path=path)
        left = [entry for entry in versions if entry.version not in numbers]
        gone = {entry.alias for entry in aliases if entry.version in numbers}
        if left and LATEST in gone:  # First: no moment is without it.
            gone.remove(LATEST)
            await self._index.set_alias(LATEST, max(left, key=lambda entry: entry.version))
        for alias in gone:
            await self._index.delete_alias(path, alias)
        for entry in deleted:
            await self._index.delete(entry)
            self._store.cache.remove(path, entry.version)
        return tuple(sorted(gone))

    # --- finding ---

    async def resolve(self, reference: str) -> Job:
        """Find a job.

        Args:
            reference: `entity/project/name:alias`, or shorter; `v3` as the alias always means that version.

        Raises:
            InvalidNameError: when it is no job's name.
            NotFoundError: when there is no such job, alias or version. The nearest right one is named.
            ArtifactError: when its files are damaged or gone.
            ServerUnavailableError: when the server does not answer.
        """
        wanted = parse_reference(reference, entity=self._entity, project=self._project)
        version = version_of(wanted)
        digest = None
        if version is None:
            alias = await self._index.read_alias(wanted.path, wanted.alias)
            if alias is None:
                raise await self._unknown(wanted)
            version, digest = alias.version, alias.digest
        job = self._store.cache.get(wanted.path, version, digest=digest)
        if job is None:
            entry = await self._index.read(wanted.path, version)
            if entry is None:
                raise await self._unknown(wanted)
            job = await self._job(entry)
            self._store.cache.add(job)
        return job if version_of(wanted) is not None else _with_aliases(job, (wanted.alias,))

    async def aliases(self, job: Job) -> tuple[str, ...]:
        """List the aliases that mean this version now, `latest` included."""
        _, found = await self._index.find(path=job.path)
        return tuple(sorted(entry.alias for entry in found if entry.version == job.version))

    async def list_code(self, job: Job) -> CodeListing | None:
        """Return the paths of a job's code, without its code.

        Returns:
            The listing; `None` when none was stored with it: of an image, of very much code, of a commit that its host
            does not list, or of a job of an earlier version of this library.

        Raises:
            InfrastructureError: when the storage fails.
        """
        file = job.files.get(LISTING_FILE)
        if file is None:
            return None
        listing = self._store.cache.get_listing(file.digest)
        if listing is None:
            with suppress(ArtifactError):  # It is only a help: the agent has the code.
                content = await (await self._blobs()).get(file, name=LISTING_FILE, job=job.reference)
                listing = CodeListing.parse(content)
            if listing is not None:
                self._store.cache.add_listing(file.digest, listing)
        return listing

    async def fetch_code(self, job: Job, destination: Path) -> None:
        """Unpack the code of a code job.

        Args:
            job: the job.
            destination: the folder that is made; it must not exist yet, or be empty.

        Raises:
            ArtifactError: when the job has no code, or its archive is damaged or holds what must not be unpacked.
                Nothing is left behind.
            InfrastructureError: when the storage or the disk fails.
        """
        source, archive = await self._archive(job)
        await unpack(archive, destination, content_digest=source.content_digest, job=job.reference)

    async def read_code(self, job: Job) -> bytes:
        """Return the code archive of a code job.

        Raises:
            ArtifactError: when the job has no code, or its archive is damaged.
            InfrastructureError: when the storage fails.
        """
        return (await self._archive(job))[1]

    async def _archive(self, job: Job) -> tuple[CodeJobSource, bytes]:
        source, file = job.document.source, job.files.get(CODE_FILE)
        if not isinstance(source, CodeJobSource) or file is None:
            raise ArtifactError(f"The job {job.reference} is of kind {job.kind.name.lower()} and has no code archive.")
        return source, await (await self._blobs()).get(file, name=CODE_FILE, job=job.reference)

    # --- the outputs of runs ---

    async def put_outputs(
        self,
        item_id: str,
        attempt: int,
        folder: Path,
        *,
        extra: Mapping[str, Path] | None = None,
        limits: OutputLimits | None = None,
    ) -> outputs.KeptOutputs:
        """Store what an attempt at an item left behind. See `prefect_launch.jobs.outputs.put_outputs`."""
        files = await self._store.files()
        return await outputs.put_outputs(files, item_id, attempt, folder, extra=extra, limits=limits)

    async def get_outputs(self, item_id: str, attempt: int, folder: Path) -> list[str]:
        """Copy what an attempt left behind to a folder. See `prefect_launch.jobs.outputs.get_outputs`."""
        return await outputs.get_outputs(await self._store.files(), item_id, attempt, folder)

    async def list_outputs(self, item_id: str, attempt: int) -> dict[str, int]:
        """Return the sizes of what an attempt left behind. See `prefect_launch.jobs.outputs.list_outputs`."""
        return await outputs.list_outputs(await self._store.files(), item_id, attempt)

    async def fetch_outputs(self, item_id: str, attempt: int, names: Sequence[str], folder: Path) -> None:
        """Copy some files that an attempt left behind. See `prefect_launch.jobs.outputs.fetch_outputs`."""
        await outputs.fetch_outputs(await self._store.files(), item_id, attempt, names, folder)

    async def read_output(self, item_id: str, attempt: int, name: str) -> bytes | None:
        """Return one file that an attempt left behind, or `None`."""
        return await outputs.read_output(await self._store.files(), item_id, attempt, name)

    # --- inside ---

    def _path(self, draft: JobDraft) -> str:
        return JobReference(
            entity=check_name("entity", draft.entity or self._entity),
            project=check_name("project", draft.project or self._project),
            name=check_name("job", draft.name),
        ).path

    async def _blobs(self) -> Blobs:
        return Blobs(await self._store.files())

    async def _job(self, entry: VersionEntry) -> Job:
        blobs = await self._blobs()
        label = f"{entry.job}:v{entry.version}"

        async def read(name: str) -> bytes:
            if name not in entry.files:
                raise ArtifactError(f"The job {label} has no {name}. Create it again.")
            return await blobs.get(entry.files[name], name=name, job=label)

        entity, project, name = entry.job.split("/")
        metadata = parse_metadata(await read(METADATA_FILE), where=label)
        return Job(
            entity=entity,
            project=project,
            name=name,
            version=entry.version,
            digest=entry.digest,
            document=parse_document(await read(DOCUMENT_FILE), where=label),
            files=entry.files,
            description=metadata.pop("description", None),
            created_at=entry.created,
            metadata=metadata,
        )

    async def _unknown(self, wanted: JobReference) -> NotFoundError:
        versions, aliases = await self._index.find(path=wanted.path)
        if versions:
            known = [*(entry.alias for entry in aliases), *(f"v{entry.version}" for entry in versions)]
            return unknown_name("job alias or version", wanted.alias, known, where=f" of the job {wanted.path!r}")
        versions, _ = await self._index.find(entity=wanted.entity, project=wanted.project)
        if versions:
            names = [entry.job.rpartition("/")[2] for entry in versions]
            near = job_name(wanted.name)  # The name of a job of that folder, image or repository, by default.
            where = f" in {wanted.entity}/{wanted.project}"
            return unknown_name("job", wanted.name, names, where=where, near=near if near in names else None)
        versions, _ = await self._index.find()
        return unknown_name("job", wanted.path, [entry.job for entry in versions])

    async def list(self, entity: str | None = None, project: str | None = None) -> list[JobSummary]:
        """List the jobs of an entity and a project, of all when they are left out, by name."""
        versions, aliases = await self._index.find(entity=entity, project=project)
        return [
            _summary([entry for entry in versions if entry.job == path], aliases)
            for path in sorted({entry.job for entry in versions})
        ]


def _contents(draft: JobDraft) -> dict[str, bytes]:
    metadata: dict[str, Any] = {**draft.metadata, **({"description": draft.description} if draft.description else {})}
    contents = {DOCUMENT_FILE: draft.document.dump(), METADATA_FILE: canonical_json(metadata)}
    if draft.code is not None:
        contents[CODE_FILE] = draft.code
    listed = b"" if draft.listing is None else draft.listing.dump()
    return {**contents, LISTING_FILE: listed} if 0 < len(listed) <= MAX_LISTING_BYTES else contents


def _with_aliases(job: Job, aliases: tuple[str, ...]) -> Job:
    return replace(job, aliases=aliases)


def _summary(versions: Sequence[VersionEntry], aliases: Iterable[AliasEntry]) -> JobSummary:
    newest = max(versions, key=lambda entry: entry.version)
    entity, project, name = newest.job.split("/")
    return JobSummary(
        entity=entity,
        project=project,
        name=name,
        version_count=len(versions),
        latest_version=newest.version,
        aliases=tuple(sorted(entry.alias for entry in aliases if entry.job == newest.job)),
        kind=newest.kind,
        description=newest.description,
        updated_at=newest.created,
    )
