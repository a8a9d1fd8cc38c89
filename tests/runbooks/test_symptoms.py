"""The runbooks of a symptom against the real house: each symptom made for real, found, remedied, measured better."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from temporalio.client import Client

from sandbox.api import data
from sandbox.house import House
from sandbox.state import Vault
from sandbox.traffic import Traffic
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, finished, progress, until
from workflows.model import Outcome, RunbookResult

QUICK = {
    "window": "PT12S",
    "stable_for": "PT5S",
    "look_every": "PT2S",
    "patience": "PT2M",
    "profile_for": "PT0S",
}
"""The document's half hour and ten minutes, shortened."""

HURRY = {
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__ERROR_WINDOW": "PT4S",
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__METRICS_DELAY": "PT1S",
}


@pytest.fixture(scope="module")
def quick(house: House, worker: WorkerProcess) -> Iterator[None]:
    """A worker that does not let traffic run for long after a rollback."""
    before = dict(worker.environment)
    worker.stop()
    worker.environment |= HURRY
    worker.start()
    yield
    worker.stop()
    worker.environment.clear()
    worker.environment |= before
    worker.start()


@pytest.fixture
def place(house: House, worker: WorkerProcess, runs: Client, quick: None) -> Site:
    worker.start()
    built = Site(house, runs)
    built.deploy("good")
    return built


@contextmanager
def traffic(site: Site, rate: float, client: int = 0) -> Iterator[Traffic]:
    driving = site.house.traffic("production", rate, 300, client)
    try:
        yield driving
    finally:
        driving.stop()


def _count(driving: Traffic, statuses: str) -> int:
    return sum(n for status, n in driving.stats().statuses.items() if status.startswith(statuses))


async def answered(driving: Traffic, statuses: str, more: int, patience: float = 90) -> None:
    """Until clients were answered so many times more with statuses that begin so."""
    deadline, before = asyncio.get_running_loop().time() + patience, _count(driving, statuses)
    while _count(driving, statuses) < before + more:
        assert asyncio.get_running_loop().time() < deadline, driving.stats()
        await asyncio.sleep(0.2)


async def approve(site: Site, run: str, gate: str, patience: float = 120) -> dict[str, Any]:
    handle = site.client.get_workflow_handle(run)
    state = await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == gate, patience)
    await handle.signal("approve", {"by": "bob", "gate": gate})
    return dict(state.open_gate().plan)


def done(result: RunbookResult) -> dict[str, bool]:
    return {item.id: item.done for item in result.checklist}


async def test_a_bad_release_is_found_rolled_back_and_measured_well(place: Site) -> None:
    site = place
    with traffic(site, 8) as driving:
        await answered(driving, "2", 110)  # longer than the window before the deployment
        site.deploy("broken")
        await answered(driving, "5", 8)
        handle = await site.start("HighErrorRate", remedy="add_index", **QUICK | {"profile_for": "PT3S"})
        plan = await approve(site, handle.id, "apply-roll_back")
        assert "add_index (" in plan["cannot help"], "the remedy that was asked for is refused with the reason"
        await approve(site, f"{handle.id}/run-roll_back", "approve-rollback")
        result = await finished(handle, 150)
    assert result.outcome is Outcome.COMPLETED, result
    assert (result.facts["mended_by"], site.health()["label"]) == ("roll_back", "good")
    assert done(result) == dict.fromkeys(done(result), True), result.checklist
    said = [entry.text for entry in (await progress(handle)).timeline]
    assert any(text.startswith("REFUSED: add_index") for text in said)
    await keep(handle, "HighErrorRate", "real-bad-release")


async def test_one_hammering_client_is_limited_and_the_others_are_served(place: Site) -> None:
    site = place
    with traffic(site, 4) as driving:
        site.deploy("throttled")
        await answered(driving, "2", 55)
        with traffic(site, 14, client=1) as hammering:
            await answered(driving, "429", 10)  # in more than one of the slices in which the API counts
            handle = await site.start("HighErrorRate", **QUICK)
            key = Vault.open(site.house.layout.vault).stages["production"].api_keys[1]
            who = hashlib.sha256(key.encode()).hexdigest()[:8]
            plan = await approve(site, handle.id, "apply-limit_client")
            assert (plan["its client"], plan["by"]) == (who, "ClientRateLimit")
            assert "more_memory (only 64 of 512 MB" in plan["cannot help"]
            assert key not in str(plan)
            await approve(site, f"{handle.id}/run-limit_client", "approve-limit")
            result = await finished(handle, 150)
            assert hammering.stats(last_seconds=5).statuses.get("429", 0) > 0, "it hammers on, and is refused"
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "limit_client"
    await keep(handle, "HighErrorRate", "real-hammering-client")
    site.aws("ssm").delete_parameter(Name="/sst/state-api/production/ClientLimits")


async def test_a_missing_index_is_found_by_the_profiler_and_built(place: Site) -> None:
    site = place
    for stage in ("staging", "production"):
        data.seed(site.house._database_uri(stage), 40_000)
    with traffic(site, 3) as driving:
        await answered(driving, "2", 45)
        site.deploy("unindexed")
        await answered(driving, "2", 60)  # longer than the window, so that the deployment's own cold starts are past
        slow = QUICK | {"slower_than": "PT0.1S", "normal": "PT0.05S", "slow_query": "PT0.005S", "profile_for": "PT6S"}
        handle = await site.start("PerformanceDegradation", remedy="provisioned_concurrency", **slow)
        plan = await approve(site, handle.id, "apply-add_index")
        assert "owner: 1, created_at: -1" in plan["because"]
        assert "COLLSCAN" in plan["because"]
        assert "provisioned_concurrency (only" in plan["cannot help"]
        migration = f"{handle.id}/run-add_index"
        await approve(site, migration, "approve-migration")
        await approve(site, migration, "code-deployed")
        result = await finished(handle, 240)
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "add_index"
    await keep(handle, "PerformanceDegradation", "real-missing-index")


async def test_a_route_that_is_gone_and_memory_that_is_short_are_told_apart(place: Site) -> None:
    site = place
    with traffic(site, 6) as driving:
        await answered(driving, "2", 75)
        site.deploy("incomplete", memory_held_mb=370)
        await answered(driving, "404", 10)
        errors = await site.start("HighErrorRate", dry_run=True, **QUICK)
        memory = await site.start("HighMemoryUsage", dry_run=True, **QUICK)
        wrong, heavy = await finished(errors), await finished(memory)
    assert "GET /sessions/{id}" in str(wrong.facts["404"])
    assert any(
        line.startswith("offer roll_back by QuickRollback: routes that answered before") for line in wrong.would_change
    )
    assert not any("contact_clients" in line for line in wrong.would_change)
    assert any(line.startswith("offer more_memory by VerticalScaling") for line in heavy.would_change), heavy
    assert "512 MB" in str(heavy.facts["before"])
    assert "refused provisioned_concurrency" in heavy.facts or "provisioned" in str(heavy.would_change)
