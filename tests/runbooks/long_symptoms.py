"""Symptoms that take minutes to make and to mend. By hand: ``python -m pytest tests/runbooks/long_symptoms.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from temporalio.client import Client

from sandbox.house import House
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, finished
from tests.runbooks.symptom_site import approve, logged, now, placed
from workflows.model import Outcome

QUICK = {
    "window": "PT20S",
    "stable_for": "PT10S",
    "look_every": "PT3S",
    "patience": "PT4M",
    "profile_for": "PT0S",
}


@pytest.fixture(scope="module")
def place(house: House, worker: WorkerProcess, runs: Client) -> Iterator[Site]:
    with placed(house, worker, runs, 3) as site:
        yield site


async def test_a_missing_index_is_found_by_the_profiler_and_built(place: Site) -> None:
    site = place
    for stage in ("staging", "production"):
        site.house.fill(stage, 40_000)
    site.deploy("unindexed")
    await logged(site, "2", 60, now())  # longer than the window, so that the deployment's own cold starts are past
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


async def test_short_memory_is_found_and_the_function_gets_more(place: Site) -> None:
    site = place
    for stage in ("staging", "production"):
        site.house.deploy(stage, "good", memory_held_mb=370)
    await logged(site, "2", 30, now())
    handle = await site.start("HighMemoryUsage", remedy="provisioned_concurrency", **QUICK)
    plan = await approve(site, handle.id, "apply-more_memory")
    assert "provisioned_concurrency (only" in plan["cannot help"]
    assert plan["its memory_mb"] == "1024"
    await approve(site, f"{handle.id}/run-more_memory", "approve-scaling", patience=300)
    result = await finished(handle, 240)
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "more_memory"
    assert "1024 MB" in str(result.facts["after"])
    await keep(handle, "HighMemoryUsage", "real-short-memory")
