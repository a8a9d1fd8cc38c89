"""Scaling and the restart against the real house: real load, a real function, and traffic that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from sandbox.house import House
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, failure, finished, progress, until
from workflows.model import Outcome, RunbookResult, State

LOAD: dict[str, Any] = {"requests": 30, "concurrency": 3}


@pytest.fixture(scope="module")
def site(house: House, worker: WorkerProcess, runs: Client) -> Iterator[Site]:
    """Production with a good release, whatever was tried on it before, and traffic."""
    worker.start()
    built = Site(house, runs)
    built.deploy("good")
    traffic = house.traffic("production", 4, 600)
    yield built
    traffic.stop()


@pytest.mark.long
async def test_memory_by_a_load_test_of_staging_and_back_by_an_abort(site: Site) -> None:
    handle = await site.start("VerticalScaling", memory_mb=1024, load=LOAD, window="PT5M", reason="slow")
    await until(handle, lambda s: s.open_gate() is not None, 150)
    await approve(handle)
    await until(handle, lambda s: s.step("watch").state is State.WAITING, 150)
    assert sizes(site) == {"production": 1024, "staging": 1024}
    await handle.signal("abort", {"by": "bob"})
    assert (await failure(handle)).type == "Aborted"
    assert sizes(site) == {"production": 512, "staging": 512}
    rehearsal = site.client.get_workflow_handle(f"{handle.id}/rehearse")
    assert {item.id for item in (await progress(rehearsal)).checklist if item.done} >= {"load-test", "staging"}


async def test_the_documents_larger_pool_is_refused_with_the_arithmetic(site: Site) -> None:
    error = await failure(await site.start("ConnectionPoolScaling", max_pool_size=150, reason="exhausted"))
    assert error.type == "WouldBeWorse"


async def changed(site: Site, runbook: str, **inp: Any) -> RunbookResult:
    """A change of staging, approved where somebody has to."""
    handle = await site.start(runbook, stage="staging", load=LOAD, window="PT10S", reason="for an evening", **inp)
    gated = await until(handle, lambda s: s.outcome is not None or s.open_gate() is not None, 150)
    if gated.open_gate():
        await approve(handle)
    result = await finished(handle, 180)
    assert result.outcome is Outcome.COMPLETED, result
    # Nothing was short, so nothing need be better afterwards; and 12 x 1000 environments would not fit the database.
    assert {item.id for item in result.checklist if not item.done} <= {"improvement", "headroom"}, result.checklist
    return result


@pytest.mark.long
@pytest.mark.parametrize(
    ("runbook", "earlier", "change"),
    [
        ("ConnectionPoolScaling", {}, {"max_pool_size": 12}),
        ("ProvisionedConcurrency", {}, {"executions": 2}),
        ("ProvisionedConcurrency", {"executions": 1}, {"executions": 2}),
    ],
)
async def test_a_temporary_change_is_made_and_ends_by_itself(
    site: Site, runbook: str, earlier: dict[str, int], change: dict[str, int]
) -> None:
    if earlier:
        await changed(site, runbook, **earlier)
    before = capacity(site)
    result = await changed(site, runbook, **change, expires_after="PT8S")
    assert capacity(site) == before | ({"pool": "12"} if runbook == "ConnectionPoolScaling" else {"provisioned": 2})
    expiry = site.client.get_workflow_handle(str(result.facts["ends by"]))
    assert (await finished(expiry, 120)).outcome is Outcome.COMPLETED
    assert capacity(site) == before
    if earlier:
        await changed(site, runbook, executions=0)


@pytest.mark.long
async def test_a_terminated_restart_gives_traffic_back(site: Site) -> None:
    handle = await site.start("ServiceRestart", drain="PT5M", reason="it hangs")
    await approve(handle)
    await until(handle, lambda s: s.step("drain").state is State.WAITING)
    assert limit(site) == 0
    await handle.terminate("to see what happens")
    watchdog = await watchdog_of(site, handle)
    result = await finished(watchdog, 60)
    assert "ended without giving traffic back" in result.summary
    assert limit(site) is None
    assert site.health()["code"] == 200
    await keep(watchdog, "ServiceRestartWatchdog", "terminated")


def capacity(site: Site) -> dict[str, Any]:
    functions, name = site.aws("lambda"), "claude-projects-state-api-staging"
    live = functions.get_function_configuration(FunctionName=name, Qualifier="live")
    kept = functions.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]
    return {
        "pool": live["Environment"]["Variables"].get("MONGODB_MAX_POOL_SIZE"),
        "provisioned": sum(each["RequestedProvisionedConcurrentExecutions"] for each in kept),
    }


def sizes(site: Site) -> dict[str, int]:
    functions = site.aws("lambda")
    names = {stage: f"claude-projects-state-api-{stage}" for stage in ("production", "staging")}
    return {
        stage: functions.get_function_configuration(FunctionName=name, Qualifier="live")["MemorySize"]
        for stage, name in names.items()
    }


def limit(site: Site) -> Any:
    return site.aws("lambda").get_function_concurrency(FunctionName=site.stack).get("ReservedConcurrentExecutions")


async def watchdog_of(site: Site, handle: WorkflowHandle[Any, Any]) -> WorkflowHandle[Any, Any]:
    run_id = (await handle.describe()).raw_description.workflow_execution_info.first_run_id
    found = site.client.get_workflow_handle(f"{handle.id}/watchdog-{run_id[:8]}")
    for _ in range(50):
        try:
            await found.describe()
            return found
        except RPCError:
            await asyncio.sleep(0.1)
    raise AssertionError("it has no watchdog")
