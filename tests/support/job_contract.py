"""What every job store must do, whichever server and storage are behind it.

A test module subclasses it and gives the fixtures `server` and `storage`.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import anyio
import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from prefect_launch.errors import ArtifactError, InvalidNameError, NotFoundError
from prefect_launch.jobs.archive import pack
from prefect_launch.jobs.model import CODE_FILE, CodeJobSource, ImageJobSource, JobDocument, JobDraft, SourceKind
from prefect_launch.jobs.outputs import KeptOutputs
from prefect_launch.jobs.registry import JobRegistry
from prefect_launch.jobs.store import JobStore
from prefect_launch.jobs.store import _blob_path as blob_path
from prefect_launch.server.protocol import Server


def unique(stem: str) -> str:
    """Return a name that no other test uses: tests share a server."""
    return f"{stem}-{uuid4().hex[:8]}"


def image_draft(name: str, image: str = "team/train:1", description: str | None = None) -> JobDraft:
    """Return a small job."""
    document = JobDocument(source_type=SourceKind.IMAGE, source=ImageJobSource(image=image))
    return JobDraft(name=name, document=document, description=description)


async def code_draft(name: str, folder: Path, **files: str) -> JobDraft:
    """Return a code job of a folder that is made with these files (`main="print(1)"` makes `main.py`)."""
    await anyio.Path(folder).mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        await anyio.Path(folder, f"{stem}.py").write_text(text)
    archive = await pack(folder)
    source = CodeJobSource(artifact=CodeJobSource.artifact_of(archive.content_digest), entrypoint=("python", "main.py"))
    return JobDraft(name=name, document=JobDocument(source_type=SourceKind.CODE, source=source), code=archive.content)


class JobStoreContract:
    """Jobs, stored and found."""

    @pytest.fixture
    def store(self, storage: LocalFileSystem | RemoteFileSystem) -> JobStore:
        return JobStore(storage=storage, prefix="launch")

    @pytest.fixture
    def registry(self, server: Server, store: JobStore) -> JobRegistry:
        return JobRegistry(server, store, entity=unique("team"), project="demo")

    async def test_first_version_is_v0_and_latest_and_the_next_one_is_v1(self, registry: JobRegistry) -> None:
        first = await registry.put(image_draft("train", "team/train:1"))
        second = await registry.put(image_draft("train", "team/train:2"))

        assert (first.outcome.value, first.job.version) == ("Created", 0)
        assert (second.outcome.value, second.job.version) == ("Updated", 1)
        assert (await registry.resolve("train")).image == "team/train:2"
        assert (await registry.resolve("train:v0")).image == "team/train:1"

    async def test_same_content_makes_no_new_version_but_moves_aliases(self, registry: JobRegistry) -> None:
        await registry.put(image_draft("train"))
        again = await registry.put(image_draft("train"), aliases=["best"])

        assert (again.outcome.value, again.job.version) == ("No changes detected for", 0)
        assert (await registry.resolve("train:best")).version == 0
        assert (await registry.list(project="demo", entity=again.job.entity))[0].version_count == 1

    async def test_alias_moves_to_the_version_that_took_it_last(self, registry: JobRegistry) -> None:
        await registry.put(image_draft("train", "a:1"), aliases=["best", "first"])
        await registry.put(image_draft("train", "a:2"), aliases=["best"])

        assert (await registry.resolve("train:best")).version == 1
        assert (await registry.resolve("train:first")).version == 0

    async def test_full_middle_and_short_names_mean_the_same_job(self, registry: JobRegistry) -> None:
        job = (await registry.put(image_draft("train"))).job

        for name in (f"{job.path}:latest", "demo/train:v0", "train:latest", "train", job.reference):
            assert (await registry.resolve(name)).reference == job.reference

    async def test_job_comes_back_as_it_was_put(self, registry: JobRegistry, server: Server, store: JobStore) -> None:
        put = (await registry.put(image_draft("train", description="Trains. " * 400))).job
        other = JobRegistry(server, JobStore(storage=store.storage, prefix="launch"), entity=put.entity, project="demo")

        found = await other.resolve("train")

        assert (found.document, found.digest, found.description) == (put.document, put.digest, "Trains. " * 400)
        assert found.aliases == ("latest",)

    async def test_unknown_job_alias_and_version_are_refused_with_the_nearest(self, registry: JobRegistry) -> None:
        await registry.put(image_draft("train-digits"), aliases=["production"])

        with pytest.raises(NotFoundError, match=r"Unknown job 'train-digit'.*Did you mean 'train-digits'"):
            await registry.resolve("train-digit")
        with pytest.raises(NotFoundError, match=r"Did you mean 'production'.*Known: latest, production, v0"):
            await registry.resolve("train-digits:produktion")
        with pytest.raises(NotFoundError, match=r"'v7' of the job .*/train-digits'"):
            await registry.resolve("train-digits:v7")

    async def test_alias_that_would_hide_a_version_is_refused(self, registry: JobRegistry) -> None:
        with pytest.raises(InvalidNameError, match="name of a version"):
            await registry.put(image_draft("train"), aliases=["v3"])
        with pytest.raises(InvalidNameError, match="For example 'a-b'"):
            await registry.put(image_draft("train"), aliases=["a b"])

    async def test_two_writers_with_different_content_lose_no_version(
        self, registry: JobRegistry, server: Server, store: JobStore
    ) -> None:
        entity = unique("team")
        numbers: list[int] = []

        async def write(number: int) -> None:
            writer = JobRegistry(
                server, JobStore(storage=store.storage, prefix="launch"), entity=entity, project="demo"
            )
            numbers.append((await writer.put(image_draft("train", f"team/train:{number}"))).job.version)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(write, number)

        reader = JobRegistry(server, store, entity=entity, project="demo")
        images = {(await reader.resolve(f"train:v{number}")).image for number in range(6)}
        assert sorted(numbers) == list(range(6))
        assert images == {f"team/train:{number}" for number in range(6)}
        assert (await reader.resolve("train")).version == 5

    async def test_two_writers_with_the_same_content_make_one_version(
        self, registry: JobRegistry, server: Server, store: JobStore
    ) -> None:
        entity = unique("team")
        versions: list[int] = []

        async def write() -> None:
            writer = JobRegistry(
                server, JobStore(storage=store.storage, prefix="launch"), entity=entity, project="demo"
            )
            versions.append((await writer.put(image_draft("train"))).job.version)

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(write)

        assert versions == [0] * 6

    async def test_code_comes_back_file_by_file(self, registry: JobRegistry, tmp_path: Path) -> None:
        draft = await code_draft("train", tmp_path / "code", main="print(1)", other="x = 2")
        job = (await registry.put(draft)).job

        await registry.fetch_code(job, tmp_path / "fetched")

        assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == ["main.py", "other.py"]
        assert (tmp_path / "fetched" / "main.py").read_text() == "print(1)"

    @pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
    async def test_damaged_archive_is_refused_by_its_digest_and_repaired_by_creating_again(
        self, registry: JobRegistry, store: JobStore, tmp_path: Path, damage: str
    ) -> None:
        draft = await code_draft("train", tmp_path / "code", main=f"print({uuid4().hex!r})")
        job = (await registry.put(draft)).job
        whole = draft.code or b""
        content = {"truncated": whole[:-7], "changed": b"\0" + whole[1:], "empty": b""}[damage]
        files = await store.files()
        await files.write(blob_path(job.files[CODE_FILE].digest), content)

        with pytest.raises(
            ArtifactError, match=rf"code.tar.gz of the job {job.reference} is damaged.*expected sha256:.*"
        ):
            await registry.fetch_code(job, tmp_path / "fetched")
        assert not (tmp_path / "fetched").exists()

        repaired = await registry.put(draft)
        assert repaired.job.version == 0
        await registry.fetch_code(job, tmp_path / "fetched")

    async def test_damaged_document_is_refused_by_its_digest(
        self, registry: JobRegistry, server: Server, store: JobStore
    ) -> None:
        job = (await registry.put(image_draft("train", unique("team/train")))).job
        await (await store.files()).write(blob_path(job.digest), b'{"source_type": "image"}')
        fresh = JobRegistry(server, JobStore(storage=store.storage, prefix="launch"), entity=job.entity, project="demo")

        with pytest.raises(ArtifactError, match=r"wandb-job.json of the job .* is damaged"):
            await fresh.resolve("train")

    async def test_lists_show_jobs_of_one_entity_with_versions_and_aliases(self, registry: JobRegistry) -> None:
        await registry.put(image_draft("train", "a:1", description="Trains"), aliases=["best"])
        job = (await registry.put(image_draft("train", "a:2", description="Trains more"))).job
        await registry.put(image_draft("evaluate"))

        found = await registry.list(entity=job.entity)

        assert [(each.name, each.version_count, each.latest_version) for each in found] == [
            ("evaluate", 1, 0),
            ("train", 2, 1),
        ]
        assert (found[1].aliases, found[1].description) == (("best", "latest"), "Trains more")
        assert await registry.aliases(job) == ("latest",)

    async def test_outputs_of_a_run_come_back_and_links_are_left_out(
        self, registry: JobRegistry, tmp_path: Path
    ) -> None:
        item, outputs = str(uuid4()), tmp_path / "outputs"
        (outputs / "models").mkdir(parents=True)
        (outputs / "outputs.json").write_text('{"accuracy": 0.9}')
        (outputs / "models" / "best.bin").write_bytes(b"\0" * 1000)
        (outputs / "stolen").symlink_to("/etc/hostname")
        (outputs / "folder").symlink_to("/etc")
        log = tmp_path / "job.log"
        log.write_text("line\n")

        stored = await registry.put_outputs(item, 1, outputs, extra={"job.log": log})

        assert stored.paths == ("job.log", "models/best.bin", "outputs.json")
        why = "it is a link that leads out of the outputs folder"
        assert stored.left_out.named == (f"folder: {why}", f"stolen: {why}")
        assert await registry.get_outputs(item, 1, tmp_path / "back") == list(stored.paths)
        assert await registry.read_output(item, 1, "outputs.json") == b'{"accuracy": 0.9}'
        assert await registry.list_outputs(item, 1) == {"job.log": 5, "models/best.bin": 1000, "outputs.json": 17}
        await registry.fetch_outputs(item, 1, ["models/best.bin"], tmp_path / "some")
        assert [path for path in (tmp_path / "some").rglob("*") if path.is_file()] == [
            tmp_path / "some/models/best.bin"
        ]
        assert (tmp_path / "some" / "models" / "best.bin").read_bytes() == b"\0" * 1000
        with pytest.raises(ArtifactError, match=r"'gone' of the item .* is not in the job store"):
            await registry.fetch_outputs(item, 1, ["gone"], tmp_path / "some")
        with pytest.raises(ArtifactError, match="would be written outside"):
            await registry.fetch_outputs(item, 1, ["../1/job.log"], tmp_path / "some")
        assert await registry.read_output(item, 1, "stolen") is None
        assert await registry.put_outputs(item, 2, tmp_path / "nothing") == KeptOutputs()
        with pytest.raises(NotFoundError, match="Attempt 2 of the item"):
            await registry.get_outputs(item, 2, tmp_path / "none")
        with pytest.raises(NotFoundError, match="Attempt 2 of the item"):
            await registry.list_outputs(item, 2)
