"""The four branches of the decision tree: each produced for real, diagnosed, and ended by the remedy it names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from temporalio.client import Client

from sandbox.house import House
from tests.patience import eventually
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, finished
from workflows.diagnosis_model import Branch, Conclusion

pytestmark = pytest.mark.long

WINDOW = "PT1M"
"""What of the past is looked at. The fault of the test before has to be out of it."""

ROUNDS = 120.0
"""Seconds until enough of a fault shows in the figures of the window."""


@pytest.fixture
def place(site: Site) -> Iterator[Site]:
    """Production under its traffic; good again afterwards."""
    yield site
    site.aws("lambda").delete_function_concurrency(FunctionName=site.stack)
    site.deploy("good")


@pytest.fixture
def calm(house: House, worker: WorkerProcess, runs: Client) -> Iterator[Site]:
    """Production under so little traffic that it can be slow and yet have room for every request."""
    worker.start()
    site = Site(house, runs)
    traffic = house.traffic(site.stage, 1, 600)
    yield site
    traffic.stop()
    site.deploy("good")


async def concluded(site: Site) -> Conclusion:
    handle = await site.start("Diagnosis", window=WINDOW)
    result = await finished(handle)
    found = Conclusion.model_validate(await handle.query("verdict"))
    assert result.facts["branch"] == found.branch.value
    return found


async def diagnosed(site: Site, branch: Branch, cause: str, *refused: str) -> Conclusion:
    """The conclusion, as soon as it names this branch and this cause first, and refuses these remedies."""
    last: Conclusion | None = None

    async def look() -> Conclusion | None:
        nonlocal last
        last = await concluded(site)
        first, never = last.causes[0].id if last.causes else None, {remedy.runbook for remedy in last.refused}
        return last if (last.branch, first) == (branch, cause) and never >= set(refused) else None

    return await eventually(look, lambda: last.model_dump_json(indent=1) if last else "nothing", ROUNDS, every=1)


async def gone(site: Site, branch: Branch) -> None:
    """As soon as the conclusion names the branch no more."""

    async def look() -> bool:
        return (await concluded(site)).branch is not branch

    await eventually(look, f"nothing of {branch}", ROUNDS, every=1)


async def remedied(site: Site, found: Conclusion, runbook: str) -> None:
    """By the remedy that the conclusion names, with the input that it has filled in."""
    assert found.next is not None
    assert found.next.runbook == runbook
    handle = await site.start(runbook, **found.next.input)
    await approve(handle)
    result = await finished(handle)
    assert result.outcome == "completed", result


async def test_errors_and_then_a_dead_function(place: Site) -> None:
    errors = await diagnosed(place, Branch.ERRORS, "deployment", "ServiceRestart", "VerticalScaling")
    assert errors.deployments[0].startswith("broken (version ")
    assert errors.checks["Identify affected endpoints"] != "none known"
    await remedied(place, errors, "QuickRollback")
    assert place.health()["label"] == "good"
    await gone(place, Branch.ERRORS)

    place.deploy("dead")
    dead = await diagnosed(place, Branch.NOT_RESPONDING, "deployment")
    await remedied(place, dead, "QuickRollback")
    assert place.health()["code"] == 200
    await gone(place, Branch.NOT_RESPONDING)


async def test_latency(calm: Site) -> None:
    calm.deploy("good")
    calm.deploy("slow", latency_ms=6500)
    slow = await diagnosed(calm, Branch.LATENCY, "deployment", "ServiceRestart", "VerticalScaling")
    await remedied(calm, slow, "QuickRollback")
    await gone(calm, Branch.LATENCY)


async def test_throttling(place: Site) -> None:
    place.deploy("good", latency_ms=1500)
    functions = place.aws("lambda")
    functions.put_function_concurrency(FunctionName=place.stack, ReservedConcurrentExecutions=1)
    wrong = ("QuickRollback", "ServiceRestart", "ProvisionedConcurrency")
    throttled = await diagnosed(place, Branch.THROTTLING, "concurrency", *wrong)
    assert throttled.next is None, "only people raise the limit"
    assert "raise its reserved concurrency" in (throttled.causes[0].by_hand or "")
    functions.delete_function_concurrency(FunctionName=place.stack)
    await gone(place, Branch.THROTTLING)
