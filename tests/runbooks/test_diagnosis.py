"""The four branches of the decision tree, each produced for real in the sandbox, and diagnosed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from sandbox.api.stack import service_name
from tests.runbooks.site import Site, finished
from workflows.diagnosis_model import Branch, Conclusion

PATIENCE = 60.0


@pytest.fixture
def broken(site: Site) -> Iterator[Site]:
    """Production with its broken release under traffic; both stages are good again afterwards."""
    yield site
    site.aws("lambda").delete_function_concurrency(FunctionName=service_name("staging"))
    site.house.deploy("staging", "good")
    site.deploy("good")


async def diagnosed(site: Site, stage: str, branch: Branch, cause: str, *refused: str) -> Conclusion:
    """The diagnosis, as soon as enough of the fault shows in the figures of the last minute."""
    deadline = time.monotonic() + PATIENCE
    while True:
        handle = await site.start("Diagnosis", stage=stage, window="PT1M")
        result = await finished(handle)
        found = Conclusion.model_validate(await handle.query("verdict"))
        assert result.facts["branch"] == found.branch.value
        first, never = found.causes[0].id if found.causes else None, {remedy.runbook for remedy in found.refused}
        if (found.branch, first) == (branch, cause) and never >= set(refused):
            return found
        assert time.monotonic() < deadline, found.model_dump_json(indent=1)
        await asyncio.sleep(1)


async def test_errors_then_a_dead_function_and_latency_then_throttling(broken: Site) -> None:
    await asyncio.gather(_production(broken), _staging(broken))


async def _production(site: Site) -> None:
    errors = await diagnosed(site, "production", Branch.ERRORS, "deployment", "ServiceRestart", "VerticalScaling")
    assert errors.next is not None
    assert errors.next.runbook == "QuickRollback"
    assert errors.deployments[0].startswith("broken (version ")
    assert errors.checks["Identify affected endpoints"] != "none known"

    await asyncio.to_thread(site.deploy, "dead")
    dead = await diagnosed(site, "production", Branch.NOT_RESPONDING, "deployment")
    assert dead.next is not None
    assert dead.next.runbook == "QuickRollback"


async def _staging(site: Site) -> None:
    functions, name = site.aws("lambda"), service_name("staging")
    await asyncio.to_thread(site.house.deploy, "staging", "slow", latency_ms=9000)
    traffic = site.house.traffic("staging", 1, 300)
    try:
        slow = await diagnosed(site, "staging", Branch.LATENCY, "deployment", "ServiceRestart", "VerticalScaling")
        assert slow.next is not None
        assert slow.next.runbook == "QuickRollback"

        functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=1)
        crowd = site.house.traffic("staging", 8, 300, 1)
        try:
            wrong = ("QuickRollback", "ServiceRestart", "ProvisionedConcurrency")
            throttled = await diagnosed(site, "staging", Branch.THROTTLING, "concurrency", *wrong)
        finally:
            crowd.stop()
        assert throttled.next is None, "only people raise the limit"
        assert "raise its reserved concurrency" in (throttled.causes[0].by_hand or "")
    finally:
        traffic.stop()
