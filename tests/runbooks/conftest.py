"""The whole house for the tests that run real procedures: sandbox, worker process, client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.service import RPCError

from activities import calls
from sandbox.house import House
from tests import permissions
from tests.runbooks.site import Site
from tests.runbooks.stores import Stores
from workflows.plugin import RunbooksPlugin

PORTS = dict.fromkeys(("temporal", "temporal-ui", "aws", "alerts", "mongodb", "hub"), 0)


class WorkerProcess:
    """``python -m worker`` as a process of its own, so that it can be killed like one."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.environment, self.folder, self._log = environment, log.parent, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is None or self._process.poll() is not None:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "worker"], env=os.environ | self.environment, stdout=log, stderr=log
                )

    def kill(self) -> None:
        """As the machine dying: no signal handler runs."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As an orchestrator stops it; returns the exit code."""
        if self._process is None or self._process.poll() is not None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    @contextlib.contextmanager
    def set(self, settings: Mapping[str, str]) -> Iterator[None]:
        """A worker with other settings for a while, and then none: who needs one starts it."""
        before = dict(self.environment)
        self.stop()
        self.environment |= settings
        self.start()
        yield
        self.stop()
        self.environment.clear()
        self.environment |= before

    def log(self) -> str:
        return self._log.read_text(errors="replace")


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house"), say=lambda line: None) as built:
        built.up(ports=PORTS)
        yield built


@pytest.fixture(scope="package")
def worker(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    folder = tmp_path_factory.mktemp("worker")
    seen = folder / "calls"
    environment = house.environment() | dict.fromkeys(
        (f"RUNBOOKS_STAGES__{stage}__ROLLBACK__ERROR_WINDOW" for stage in ("PRODUCTION", "STAGING")), "PT5S"
    )
    tokens = "RUNBOOKS_STAGES__STAGING__ROTATION__TOKENS"  # as the release of that test has them
    environment |= {f"{tokens}__LIFE": "PT3S", f"{tokens}__PATIENCE": "PT3S"}
    (folder / "written").mkdir()
    environment |= {"RUNBOOKS_CALLS": str(seen), "TMPDIR": str(folder / "written")}
    process = WorkerProcess(environment, folder / "worker.log")  # the first who needs it starts it
    yield process
    process.stop()
    permissions.settle(calls.read(seen))


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def runs(house: House) -> AsyncIterator[Client]:
    """A client of the sandbox's own Temporal."""
    yield await Client.connect(house.environment()["TEMPORAL_ADDRESS"], plugins=[RunbooksPlugin()])


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def stores(house: House, runs: Client, worker: WorkerProcess) -> AsyncIterator[Stores]:
    """What is secret. At the end it is looked for in all that the tests of this process have left behind."""
    noted = Stores(house, runs, worker.folder)
    with noted.commands:
        yield noted
    worker.start()
    leaks = await noted.leaks()
    assert not leaks, f"secrets have travelled: {leaks}"


@pytest.fixture(autouse=True)
def _secrets_are_noted(request: pytest.FixtureRequest) -> Iterator[None]:
    """A rotation makes others, and the next one takes them away."""
    if not {"house", "worker"} <= set(request.fixturenames):
        yield
        return
    stores: Stores = request.getfixturevalue("stores")
    stores.note()
    yield
    stores.note()


@pytest_asyncio.fixture(autouse=True)
async def _nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """What a failed test leaves running would hold the stage's lock against all tests after it."""
    yield
    if "runs" in request.fixturenames:
        client: Client = request.getfixturevalue("runs")
        async for left in client.list_workflows('ExecutionStatus = "Running"'):
            with contextlib.suppress(RPCError):  # it has just ended
                await client.get_workflow_handle(left.id).terminate("its test is over")


_broken: dict[House, Any] = {}


@pytest.fixture
def site(house: House, worker: WorkerProcess, runs: Client) -> Iterator[Site]:
    """Production with a good release and then a broken one, and a worker that runs."""
    worker.start()
    built = Site(house, runs)
    if built.deployed() != _broken.get(house):  # a test that changes nothing leaves it as it was made
        built.deploy("good")
        built.deploy("broken")
        _broken[house] = built.deployed()
    traffic = house.traffic("production", 4, 600)
    yield built
    traffic.stop()
