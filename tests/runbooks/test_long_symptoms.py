"""Symptoms that take minutes to make and to mend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from temporalio.client import Client

from sandbox.house import House
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import STACK, Site, finished
from tests.runbooks.symptom_site import STAGES, approve, filled, logged, now, placed
from workflows.model import Outcome

pytestmark = pytest.mark.long

QUICK = {
    "window": "PT20S",
    "stable_for": "PT10S",
    "look_every": "PT3S",
    "patience": "PT4M",
    "profile_for": "PT0S",
}


@pytest.fixture
def place(request: pytest.FixtureRequest, house: House, worker: WorkerProcess, runs: Client) -> Iterator[Site]:
    """Production under its traffic: three requests a second, or as many as the test says."""
    with placed(house, worker, runs, getattr(request, "param", 3)) as site:
        yield site


@pytest.fixture
def crowded(place: Site) -> Iterator[Site]:
    with filled(place, 40_000):
        yield place


async def test_a_missing_index_is_found_by_the_profiler_and_built(crowded: Site) -> None:
    site = crowded
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
    await approve(site, migration, "deploy-code")
    result = await finished(handle, 240)
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "add_index"
    await keep(handle, "PerformanceDegradation", "real-missing-index")


async def test_short_memory_is_found_and_the_function_gets_more(place: Site) -> None:
    site = place
    for stage in STAGES:
        site.house.deploy(stage, "heavy")
    await logged(site, "2", 75, now())  # until the deployment's cold starts are out of the window
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


@pytest.fixture
def drowsy(place: Site) -> Iterator[Site]:
    """A release that starts slowly. What is kept ready for it at the end would outlast it."""
    for stage in STAGES:
        place.house.deploy(stage, "drowsy", cold_start_ms=2000)
    yield place
    for stage in STAGES:
        place.aws("lambda").delete_provisioned_concurrency_config(
            FunctionName=STACK.format(stage=stage), Qualifier="live"
        )


@pytest.mark.parametrize("place", [0.5], indirect=True)
async def test_cold_starts_are_found_and_environments_kept_ready(drowsy: Site) -> None:
    site = drowsy
    await logged(site, "2", 12, now())
    slow = QUICK | {"slower_than": "PT1S", "normal": "PT0.5S"}
    handle = await site.start("PerformanceDegradation", remedy="more_memory", **slow)
    plan = await approve(site, handle.id, "apply-provisioned_concurrency")
    assert "started cold" in plan["because"]
    assert "more_memory (" in plan["cannot help"]
    await approve(site, f"{handle.id}/run-provisioned_concurrency", "approve-scaling", patience=300)
    result = await finished(handle, 240)
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "provisioned_concurrency"
    await keep(handle, "PerformanceDegradation", "real-cold-starts")


@pytest.fixture
def cramped(place: Site) -> Iterator[Site]:
    """A release that asks eight things at once, a pool of one connection, and few enough environments for more."""
    functions = place.aws("lambda")
    with filled(place, 8_000):
        for stage in STAGES:
            place.house.deploy(stage, "chatty")
            name = STACK.format(stage=stage)
            functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=12)
            kept = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
            functions.update_function_configuration(
                FunctionName=name, Environment={"Variables": kept | {"MONGODB_MAX_POOL_SIZE": "1"}}
            )
            functions.get_waiter("function_updated_v2").wait(FunctionName=name)
            version = functions.publish_version(FunctionName=name)["Version"]
            functions.update_alias(FunctionName=name, Name="live", FunctionVersion=version)
        yield place
        for stage in STAGES:
            functions.delete_function_concurrency(FunctionName=STACK.format(stage=stage))


async def test_an_exhausted_pool_is_found_and_made_larger(cramped: Site) -> None:
    site = cramped
    await logged(site, "5", 20, now())
    handle = await site.start("HighErrorRate", remedy="connection_pool", **QUICK)
    plan = await approve(site, handle.id, "apply-connection_pool")
    assert "errors about connections, while the cluster has" in plan["because"]
    assert "more_memory (" in plan["cannot help"]
    assert int(plan["its max_pool_size"]) * 12 <= 1000
    await approve(site, f"{handle.id}/run-connection_pool", "approve-scaling", patience=300)
    result = await finished(handle, 240)
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "connection_pool"
    await keep(handle, "HighErrorRate", "real-exhausted-pool")
