"""Fixtures for every test. What costs time (servers, engine, images) starts once a run, when a test first asks for it.

The environment is set before Prefect is first imported: the tests see neither the machine's Prefect profile nor its
settings, and no client starts an ephemeral server unasked. Unit tests ask for none of the servers.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

_HOME = Path(tempfile.mkdtemp(prefix="launch-test-home-"))
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
os.environ.pop("COLUMNS", None)  # Set by those who run tests in parallel: tables would be cut to it.
os.environ["PREFECT_HOME"] = str(_HOME)
os.environ["XDG_STATE_HOME"] = str(_HOME / "state")  # What the tests run stays out of the user's own register.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"

import pytest  # noqa: E402  # the environment comes first
from _pytest.faulthandler import fault_handler_stderr_fd_key  # noqa: E402

from tests.support.processes import MARK, kill_all, wait_until_gone  # noqa: E402

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.docker_registry import DockerRegistry
    from tests.support.kubernetes_cluster import KubernetesCluster
    from tests.support.postgres import PostgresServer
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.ray import RayHead
    from tests.support.slurm import SlurmCluster

#: A shared server fails no expired pause by itself: that would race with what a test asks of one.
_SHARED_SERVER = {"PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false"}
LEFTOVER_SECONDS = 5.0
#: A test that its time limit cuts off may leave an event loop that never closes.
TEARDOWN_SECONDS = 300.0


def engine_required() -> bool:
    """Whether a missing engine or database fails the tests (in CI) instead of skipping them."""
    return os.environ.get("CI") == "true" or os.environ.get("LAUNCH_TEST_REQUIRE_ENGINE") == "1"


# A shell starts what it puts into the background with SIGINT ignored, and that is inherited: the programs that tests
# interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """End a process whose teardown hangs, with all its stacks.

    pytest-timeout's alarm rings once, and pytest's own `faulthandler_timeout` is called off by the failure.
    """
    stderr = item.config.stash[fault_handler_stderr_fd_key]
    faulthandler.dump_traceback_later(TEARDOWN_SECONDS, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session", autouse=True)
def _nothing_outlives_the_tests() -> Iterator[None]:
    """Fail the run when a process that it started, directly or not, is still there at its end; kill it by its id."""
    mark = uuid4().hex
    os.environ[MARK] = mark
    yield
    if (servers := sys.modules.get("tests.support.prefect_server")) is not None:
        servers.close_warm_prefect()
    left = wait_until_gone(mark, LEFTOVER_SECONDS)
    kill_all(left)
    assert not left, f"the tests left processes behind, now killed: {left}"


@pytest.fixture(scope="session")
def session_folder() -> Iterator[Path]:
    """A folder that every user of the machine may pass through, removed at the end of the run."""
    folder = Path(tempfile.mkdtemp(prefix="launch-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _sqlite_server(session_folder: Path) -> Iterator[PrefectServerProcess]:
    from tests.support.prefect_server import server_on_sqlite

    server = server_on_sqlite(session_folder / "server-sqlite", _SHARED_SERVER)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; `.create_database()` gives the URL of an empty database."""
    from tests.support.postgres import PostgresMissingError, PostgresServer

    try:
        server = PostgresServer()
    except PostgresMissingError as missing:
        _missing(missing)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _postgres_server(postgres: PostgresServer, session_folder: Path) -> Iterator[PrefectServerProcess]:
    from tests.support.prefect_server import PrefectServerProcess

    home, url = session_folder / "server-postgres", postgres.create_database()
    server = PrefectServerProcess(home, database_url=url, settings=_SHARED_SERVER)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def prefect_server(_sqlite_server: PrefectServerProcess) -> Iterator[PrefectServerProcess]:
    """The run's Prefect server on SQLite; inside the test PREFECT_API_URL leads to it."""
    from tests.support.prefect_server import client_settings

    with client_settings(_sqlite_server):
        yield _sqlite_server


@pytest.fixture
def postgres_prefect_server(_postgres_server: PrefectServerProcess) -> Iterator[PrefectServerProcess]:
    """The run's Prefect server on PostgreSQL; inside the test PREFECT_API_URL leads to it."""
    from tests.support.prefect_server import client_settings

    with client_settings(_postgres_server):
        yield _postgres_server


@pytest.fixture
def own_prefect_server(tmp_path: Path) -> Iterator[PrefectServerProcess]:
    """A Prefect server on SQLite for this test alone, which may stop, kill and restart it; PREFECT_API_URL is its."""
    from tests.support.prefect_server import client_settings, server_on_sqlite

    server = server_on_sqlite(tmp_path / "server")
    server.start()
    with client_settings(server):
        yield server
    server.stop()


@pytest.fixture
def own_postgres_prefect_server(postgres: PostgresServer, tmp_path: Path) -> Iterator[PrefectServerProcess]:
    """A Prefect server on PostgreSQL for this test alone; PREFECT_API_URL is its."""
    from tests.support.prefect_server import PrefectServerProcess, client_settings

    server = PrefectServerProcess(tmp_path / "server", database_url=postgres.create_database())
    server.start()
    with client_settings(server):
        yield server
    server.stop()


@pytest.fixture(scope="session")
def _engine() -> Iterator[DockerEngine]:
    from tests.support.docker_engine import DockerEngine, EngineMissingError

    try:
        engine = DockerEngine.find_or_start()
    except EngineMissingError as missing:
        _missing(missing)
    yield engine
    running = engine.running_containers()
    engine.stop()
    assert not running, f"the tests left containers running, now gone with their engine: {running}"


@pytest.fixture
def engine(_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> DockerEngine:
    """The run's Docker Engine; inside the test DOCKER_HOST leads to it."""
    monkeypatch.setenv("DOCKER_HOST", _engine.host)
    return _engine


@pytest.fixture(scope="session")
def _image(_engine: DockerEngine) -> Callable[[str], str]:
    from tests.support import images

    def ensure(kind: str) -> str:
        client = _engine.client()
        try:
            return images.ensure_shell_image(client) if kind == "shell" else images.ensure_python_image(client)
        finally:
            client.close()

    return ensure


@pytest.fixture
def shell_image(engine: DockerEngine, _image: Callable[[str], str]) -> str:
    """Name of a 2 MB image with a shell, on the run's engine."""
    return _image("shell")


@pytest.fixture
def python_image(engine: DockerEngine, _image: Callable[[str], str]) -> str:
    """Name of an image with this machine's Python, on the run's engine."""
    return _image("python")


@pytest.fixture(scope="session")
def kubernetes_cluster() -> Iterator[KubernetesCluster]:
    """The run's Kubernetes: the caller's own when one is named, else one node with a Docker Engine of its own."""
    from tests.support.kubernetes_cluster import KubernetesCluster
    from tests.support.kubernetes_programs import KubernetesMissingError

    try:
        cluster = KubernetesCluster.find_or_start(build=engine_required())
    except KubernetesMissingError as missing:
        _missing(missing)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def open_registry(session_folder: Path) -> Iterator[DockerRegistry]:
    """A registry that anybody may use."""
    registry = _registry(session_folder / "registry-open", has_password=False)
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def closed_registry(session_folder: Path) -> Iterator[DockerRegistry]:
    """A registry that asks for a user and a password."""
    registry = _registry(session_folder / "registry-closed", has_password=True)
    yield registry
    registry.stop()


def _registry(folder: Path, *, has_password: bool) -> DockerRegistry:
    from tests.support.docker_registry import DockerRegistry, RegistryMissingError

    try:
        return DockerRegistry(folder, has_password=has_password)
    except RegistryMissingError as missing:
        _missing(missing)


@pytest.fixture(scope="session")
def _ray_head() -> Iterator[RayHead]:
    from tests.support.ray import RayHead, RayMissingError

    try:
        head = RayHead()
    except RayMissingError as missing:
        _missing(missing)
    yield head
    head.stop()


@pytest.fixture
def ray_head(_ray_head: RayHead, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    """The run's Ray head; inside the test RAY_ADDRESS leads to it."""
    monkeypatch.setenv("RAY_ADDRESS", _ray_head.address)
    return _ray_head


@pytest.fixture(scope="session")
def _slurm() -> Iterator[SlurmCluster]:
    from tests.support.slurm import SlurmCluster, SlurmMissingError

    try:
        cluster = SlurmCluster()
    except SlurmMissingError as missing:
        _missing(missing)
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm_cluster(_slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The run's Slurm cluster, with no job and idle nodes; inside the test SLURM_CONF leads to it."""
    monkeypatch.setenv("SLURM_CONF", str(_slurm.config))
    yield _slurm
    _slurm.revive()


def _missing(reason: Exception) -> NoReturn:
    if engine_required():
        pytest.fail(str(reason), pytrace=False)
    pytest.skip(str(reason))
