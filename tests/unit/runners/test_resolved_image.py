"""A container of the image that its tag meant at the enqueue, and of what has the name where that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.core.states import ItemState
from prefect_launch.errors import AgentConfigError, ImagePullError, UnreachableError
from prefect_launch.registries.base import Credentials, Registry
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker import runner as container_image
from prefect_launch.runners.docker.engine import Image
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing import InMemoryDocker, InMemoryEngine

OLD, NEW = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
NAME = "registry.example:5000/team/train:1"
WANTED = f"registry.example:5000/team/train@{OLD}"


class Bench:
    """A runner on an engine."""

    def __init__(self, folder: Path, **docker: dict[str, dict[str, bytes]]) -> None:
        self.docker = InMemoryDocker(**docker)  # type: ignore[arg-type]
        self.runner = LocalContainerRunner(folder, InMemoryEngine(self.docker))
        self.folder = folder
        self.count = 0

    def plan(self, **more: object) -> RunPlan:
        self.count += 1
        run_dir = self.folder / str(self.count)
        run_dir.mkdir()
        named = {"image": NAME, "resolved_image": WANTED, **more}
        return RunPlan.model_validate({"item_id": f"i{self.count}", "run_id": "r", "run_dir": run_dir, **named})

    async def made(self, plan: RunPlan) -> tuple[ItemState | None, str | None]:
        """Do what an agent does; return what was waited for, and which image it is a container of."""
        waited_for = await self.runner.missing(plan)
        if waited_for is not None:
            await self.runner.prepare(plan)
        await self.runner.create(plan)
        container = next(one for one in self.docker.containers.values() if one.about.name == plan.name)
        return waited_for, container.about.image


async def test_image_of_the_enqueue_runs_though_another_has_its_name_here(tmp_path: Path) -> None:
    bench = Bench(tmp_path, images={NAME: {}}, registry={NAME: {}, WANTED: {}})

    assert await bench.made(bench.plan()) == (ItemState.PULLING, WANTED)
    assert await bench.made(bench.plan()) == (None, WANTED)
    assert bench.docker.pulled == [WANTED]


async def test_image_of_that_name_here_will_do_where_the_one_of_the_enqueue_cannot_be_pulled(tmp_path: Path) -> None:
    bench = Bench(tmp_path, images={NAME: {}})

    assert await bench.made(bench.plan()) == (ItemState.PULLING, NAME)


async def test_pull_that_failed_is_not_tried_again_by_each_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, images={NAME: {}})
    await bench.made(bench.plan())

    assert await bench.made(bench.plan()) == (None, NAME)
    monkeypatch.setattr(container_image, "PULL_BACKOFF_SECONDS", 0.0)
    bench.runner = LocalContainerRunner(tmp_path, InMemoryEngine(bench.docker))
    await bench.made(bench.plan())
    bench.docker.registry[WANTED] = {}
    assert await bench.made(bench.plan()) == (ItemState.PULLING, WANTED)


async def test_what_has_the_name_at_its_registry_will_do_when_the_digest_is_gone_from_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path, registry={NAME: {}})

    assert await bench.made(bench.plan()) == (ItemState.PULLING, NAME)


async def test_image_that_is_nowhere_fails_with_its_own_name(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    with pytest.raises(ImagePullError, match=NAME):
        await bench.made(bench.plan())


async def test_pinned_image_has_no_other_in_its_place(tmp_path: Path) -> None:
    bench = Bench(tmp_path, images={NAME: {}}, registry={NAME: {}})

    with pytest.raises(ImagePullError, match=OLD):
        await bench.made(bench.plan(image=WANTED, resolved_image=None))


async def test_credentials_that_cannot_be_had_are_no_worse_than_no_digest(tmp_path: Path) -> None:
    class Broken(Registry):
        async def digest_of(self, reference: str) -> str | None:
            return None

        async def credentials_for(self, reference: str) -> Credentials | None:
            raise AgentConfigError("There is no block.")

    bench = Bench(tmp_path, images={NAME: {}}, registry={WANTED: {}})
    bench.runner.registry = Broken()

    assert await bench.made(bench.plan()) == (ItemState.PULLING, NAME)


async def test_engine_that_is_away_is_no_reason_for_another_image(tmp_path: Path) -> None:
    bench = Bench(tmp_path, images={NAME: {}}, registry={WANTED: {}})
    plan = bench.plan()
    bench.docker.reachable = False

    with pytest.raises(UnreachableError):
        await bench.runner.prepare(plan)
    bench.docker.reachable = True
    assert await bench.made(plan) == (ItemState.PULLING, WANTED)


async def test_preview_shows_the_image_of_the_enqueue(tmp_path: Path) -> None:
    bench = Bench(tmp_path)

    assert LocalContainerRunner.preview(bench.plan())["Image"] == WANTED
    assert LocalContainerRunner.preview(bench.plan(resolved_image=None))["Image"] == NAME


@pytest.mark.parametrize(
    ("name", "digests", "reference"),
    [
        (f"r:5000/a@{OLD}", (f"r:5000/a@{NEW}", f"r:5000/a@{OLD}"), f"r:5000/a@{OLD}"),
        (f"docker.io/library/a@{OLD}", (f"b@{NEW}", f"a@{OLD}"), f"a@{OLD}"),
        ("r:5000/a:1", (f"b@{OLD}", f"r:5000/a@{NEW}"), f"r:5000/a@{NEW}"),
        ("r:5000/a", (f"b@{OLD}", f"r:5000/a@{NEW}"), f"r:5000/a@{NEW}"),
        (f"r:5000/a@{OLD}", (f"b@{NEW}",), f"b@{NEW}"),
        ("a:1", (), "sha256:id"),
    ],
)
def test_image_is_recorded_by_the_digest_that_it_was_asked_for_by(
    name: str, digests: tuple[str, ...], reference: str
) -> None:
    assert Image(id="sha256:id", digests=digests).reference(name) == reference
