"""CanaryRollback against the real house: real versions, real traffic, bakes of seconds."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.database import Database
from temporalio.client import Client

from activities.releases import LedgerEntry
from sandbox import mongodb
from sandbox.house import House
from sandbox.state import State, Vault
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, failure, finished, progress, until
from workflows.model import Outcome, RunState
from workflows.model import State as StepState

RATE = 12.0
QUICK: dict[str, Any] = {
    "ladder": [30, 60, 100],
    "bake": "PT6S",
    "judge_every": "PT2S",
    "patience": "PT1M",
    "limits": {"min_sample": 15},
}
"""Rungs that give both versions enough of a dozen requests a second; the rest is as in production."""


@pytest.fixture(scope="module", autouse=True)
def traffic(house: House, worker: WorkerProcess) -> Iterator[None]:
    worker.start()
    running = house.traffic("production", RATE, 1800)
    yield
    running.stop()


@pytest.fixture
def canary(house: House, worker: WorkerProcess, runs: Client) -> Site:
    worker.start()
    return Site(house, runs)


def alias(site: Site) -> tuple[str, dict[str, float]]:
    found = site.aws("lambda").get_alias(FunctionName=site.stack, Name="live")
    return found["FunctionVersion"], found.get("RoutingConfig", {}).get("AdditionalVersionWeights", {})


@contextmanager
def administrator(site: Site) -> Iterator[Database[dict[str, Any]]]:
    """The stage's database, with every right."""
    layout = site.house.layout
    state = State.read(layout.state)
    assert state
    uri = mongodb.admin_uri(state.ports["mongodb"], Vault.open(layout.vault))
    with MongoClient[dict[str, Any]](uri) as client:
        yield client[mongodb.database(site.stage)]


@contextmanager
def without_rights(site: Site) -> Iterator[None]:
    """The API's user may read and write nothing meanwhile."""
    layout = site.house.layout
    state = State.read(layout.state)
    assert state
    port, vault = state.ports["mongodb"], Vault.open(layout.vault)
    with MongoClient[dict[str, Any]](mongodb.admin_uri(port, vault)) as client:
        client.admin.command("updateUser", f"api_{site.stage}", roles=[])
    try:
        yield
    finally:
        mongodb.ensure_users(port, vault)


_different = itertools.count(1)


def fresh(site: Site, **faults: Any) -> LedgerEntry:
    """Deploy a release that was never deployed before: the same template again would not move the alias."""
    return site.deploy("good", cold_start_ms=next(_different), **faults)


def looks(state: RunState) -> int:
    """How often the bake at 50 % was judged so far."""
    step = state.step("judge-50")
    return int(step.evidence.get("looks") or 0) if step else 0


def said(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


async def test_a_broken_release_is_replaced_step_by_step_though_the_worker_dies(
    canary: Site, worker: WorkerProcess
) -> None:
    good, broken = fresh(canary), fresh(canary, error_rate=0.3)
    handle = await canary.start("CanaryRollback", **QUICK)
    state = await until(handle, lambda s: s.open_gate() is not None)
    assert state.gates[0].plan["ladder"] == "30 % → 60 % → 100 %"
    await handle.signal("approve", {"by": "bob"})
    await until(handle, lambda s: any(wait.id == "bake-60" for wait in s.waits))
    assert alias(canary) == (broken.version, {good.version: 0.6})
    worker.kill()
    await asyncio.sleep(1)  # traffic goes on while nobody watches
    assert alias(canary) == (broken.version, {good.version: 0.6})
    worker.start()
    result = await finished(handle, 180)
    assert result.outcome is Outcome.COMPLETED, result
    assert alias(canary) == (good.version, {})
    assert {item.id for item in result.checklist if not item.done} == {"post-mortem"}
    state = await progress(handle)
    judged = state.step("judge-60")
    assert judged
    assert judged.state is StepState.DONE
    bucket, _, key = result.report["html"].removeprefix("s3://").partition("/")
    html = canary.aws("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    assert html.count("<svg") == 3
    await keep(handle, "CanaryRollback", "promoted")


@pytest.mark.long
async def test_a_worse_version_loses_its_traffic(canary: Site) -> None:
    broken, good = fresh(canary, error_rate=0.3), fresh(canary)
    handle = await canary.start("CanaryRollback", to=broken.version, **QUICK)
    await approve(handle)
    error = await failure(handle, 120)
    assert error.type == "Worse", error.message
    assert alias(canary) == (good.version, {})
    await keep(handle, "CanaryRollback", "worse")


@pytest.mark.long
async def test_latency_alone_is_reason_enough(canary: Site) -> None:
    good, slow = fresh(canary), fresh(canary, latency_ms=400)
    handle = await canary.start("CanaryRollback", **QUICK | {"ladder": [50, 100]})
    await approve(handle)
    result = await finished(handle, 180)
    assert result.outcome is Outcome.COMPLETED, result
    assert alias(canary) == (good.version, {})
    assert slow.version != good.version
    await keep(handle, "CanaryRollback", "latency")


@pytest.mark.long
async def test_a_fault_of_the_database_is_not_the_deploy(canary: Site) -> None:
    """The API's user has lost its rights, so both versions fail at the same time."""
    with without_rights(canary):  # the server looks at them at a login, which each new environment makes
        fresh(canary)
        live = fresh(canary)
        handle = await canary.start("CanaryRollback", **QUICK)
        await approve(handle)
        error = await failure(handle, 180)
    assert error.type == "NotTheDeploy", error.message
    assert "Look for the cause elsewhere" in error.message
    assert alias(canary) == (live.version, {})
    await keep(handle, "CanaryRollback", "not-the-deploy")


@pytest.mark.long
async def test_a_version_that_breaks_during_a_bake_is_out_within_one_interval(canary: Site) -> None:
    """Somebody takes the date off all sessions, and the version brought back, at half of the traffic, needs it.

    A dozen requests a second are few, so one judgement is told to be enough; a minute of production is certain at once.
    """
    with administrator(canary) as database:
        database.sessions.create_index([("owner", 1), ("created_at", -1)], name="of-owner")
        old = fresh(canary, unindexed_query=True)
        live = fresh(canary)
        slower = {
            "ladder": [50, 100],
            "bake": "PT2M",
            "judge_every": "PT8S",
            "limits": {"consecutive": 1, "latency_ratio": 10},
        }
        handle = await canary.start("CanaryRollback", **QUICK | slower)
        await approve(handle)
        await until(handle, lambda s: any(wait.id == "bake-50" for wait in s.waits))
        await until(handle, lambda s: looks(s) == 2)
        assert alias(canary) == (live.version, {old.version: 0.5})
        database.sessions.update_many({}, {"$unset": {"created_at": 1}})
        broke = time.monotonic()
        try:
            while alias(canary)[1]:
                assert time.monotonic() - broke < 30, said(await progress(handle))
                await asyncio.sleep(0.05)
            took = time.monotonic() - broke
            error = await failure(handle, 60)
        finally:
            dates = {"$set": {"created_at": datetime.now(UTC)}}
            database.sessions.update_many({"created_at": {"$exists": False}}, dates)
            database.sessions.drop_index("of-owner")
    assert error.type == "Worse", error.message
    assert alias(canary) == (live.version, {})
    # One interval, what CloudWatch is behind (2 s), and the time that the look itself takes.
    assert took < 8 + 2 + 3, took
    await keep(handle, "CanaryRollback", "breaks-in-the-bake")


@pytest.mark.long
async def test_too_few_errors_to_tell_is_asked_about(canary: Site) -> None:
    good, live = fresh(canary), fresh(canary, error_rate=0.005)
    handle = await canary.start("CanaryRollback", **QUICK | {"ladder": [50, 100], "patience": "PT10S"})
    await approve(handle)
    state = await until(handle, lambda s: any(gate.id == "undecided-50" for gate in s.gates), 90)
    assert alias(canary) == (live.version, {good.version: 0.5})
    assert "at 50 % is over, and waits for" in said(state), said(state)
    await handle.signal("reject", {"by": "bob", "reason": "not worth it"})
    error = await failure(handle)
    assert error.type == "Rejected"
    assert alias(canary) == (live.version, {})
    await keep(handle, "CanaryRollback", "undecided")
