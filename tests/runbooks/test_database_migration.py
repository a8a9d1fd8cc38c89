"""DatabaseMigration against the real house: an index that new code needs, and a backfill, on staging and production."""

from __future__ import annotations

from typing import Any

import pymongo
import pytest
from temporalio.client import Client

from sandbox.house import House
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, failure, finished, progress, until
from workflows.model import Outcome, RunState, State

INDEX = {
    "kind": "add_index",
    "collection": "sessions",
    "keys": {"owner": 1, "created_at": -1},
    "query": {"owner": "user-001"},
    "sort": {"created_at": -1},
}
NAME = "owner_1_created_at_-1"
BACKFILL = {"kind": "backfill_field", "collection": "sessions", "field": "environment", "value": "production"}
MISSING: dict[str, Any] = {"environment": {"$exists": False}}
SETTLED = 900
"""Seconds for a run that waits out, on a busy machine, what its stages' patience allows for."""


def sessions(site: Site, stage: str) -> pymongo.collection.Collection[dict[str, Any]]:
    """The real collection of a stage, as its operator sees it."""
    return pymongo.MongoClient[dict[str, Any]](site.database(stage)).get_default_database()["sessions"]


async def at_gate(handle: Any, gate: str, patience: float = 180) -> RunState:
    return await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == gate, patience)


async def answer(handle: Any, gate: str, word: str = "approve") -> None:
    await at_gate(handle, gate)
    await handle.signal(word, {"by": "bob", "gate": gate})


@pytest.fixture
def quiet(house: House, worker: WorkerProcess, runs: Client) -> Site:
    """The same site without traffic, so that counts can be exact."""
    worker.start()
    return Site(house, runs)


@pytest.fixture
def unindexed(site: Site) -> str:
    """A release whose list needs an index, built and recorded on both stages, and not live on either."""
    for stage in ("staging", "production"):
        for name in ("unindexed", "good"):
            site.house.deploy(stage, name)
        sessions(site, stage).drop_indexes()
    return "unindexed"


@pytest.mark.long
async def test_an_index_and_then_the_code_that_needs_it(site: Site, unindexed: str) -> None:
    documents = {stage: sessions(site, stage).count_documents({}) for stage in ("staging", "production")}
    handle = await site.start("DatabaseMigration", change=INDEX, release=unindexed)
    state = await at_gate(handle, "approve-migration")
    assert NAME in sessions(site, "staging").index_information()
    assert NAME not in sessions(site, "production").index_information()
    assert site.health()["label"] == "good"
    assert state.open_gate().plan["query now"] == "COLLSCAN"
    await answer(handle, "approve-migration")
    result = await finished(handle, SETTLED)
    assert result.outcome is Outcome.COMPLETED, result
    assert {item.id: item.done for item in result.checklist} == dict.fromkeys(
        ("migrated", "data", "performance", "api", "database", "backup"), True
    ), [item for item in result.checklist if not item.done]
    assert NAME in sessions(site, "production").index_information()
    assert site.health()["label"] == unindexed
    assert str(result.facts["query_before"]).startswith("COLLSCAN")
    assert str(result.facts["query_after"]).startswith(f"IXSCAN of {NAME}")
    assert sessions(site, "staging").count_documents({}) == documents["staging"]
    assert sessions(site, "production").count_documents({}) >= documents["production"], "traffic adds some"
    steps = [step.id for step in (await progress(handle)).steps if step.state is State.DONE]
    assert steps.index("verify-index") < steps.index("deploy")
    bucket, _, key = str(result.facts["migration_log"]).removeprefix("s3://").partition("/")
    assert b'"add_index"' in site.aws("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    await keep(handle, "DatabaseMigration", "add-index")
    await keep(site.client.get_workflow_handle(f"{handle.id}/rehearse"), "DatabaseMigration", "rehearsal")


async def test_a_backfill(quiet: Site) -> None:
    site = quiet
    for stage in ("staging", "production"):
        sessions(site, stage).update_many({}, {"$unset": {"environment": ""}})
        sessions(site, stage).insert_many([{"owner": f"user-{n % 50:03d}", "status": "active"} for n in range(2000)])
    before = sessions(site, "production").count_documents(MISSING)
    assert before >= 4000
    # The minutes before this test may have been an outage, as CloudWatch tells it: that is what other tests make.
    calm: dict[str, Any] = {"api_error_rate": None, "api_p95_ms": None}
    handle = await site.start("DatabaseMigration", change=BACKFILL, late_writers="PT0.5S", throttle=calm, abort=calm)
    await at_gate(handle, "approve-migration")
    assert sessions(site, "staging").count_documents(MISSING) == 0
    assert sessions(site, "production").count_documents(MISSING) == before
    await answer(handle, "approve-migration")
    await answer(handle, "code-deployed")
    result = await finished(handle, SETTLED)
    assert result.outcome is Outcome.COMPLETED, result
    assert sessions(site, "production").count_documents(MISSING) == 0
    assert sessions(site, "production").count_documents({"environment": "production"}) == before
    assert result.facts["change_documents"] == before
    undone = {item.id: item.note for item in result.checklist if not item.done}
    assert undone.keys() <= {"performance"}, undone  # the same query as before: its time is the machine's
    await keep(handle, "DatabaseMigration", "backfill")


async def hurry(site: Site, run: str, wait: str) -> None:
    """End a wait of a run as soon as it waits."""
    handle = site.client.get_workflow_handle(run)
    await until(handle, lambda state: any(found.id == wait for found in state.waits), 120)
    await handle.execute_update("end_wait", {"by": "bob", "wait": wait, "reason": "nobody writes here"})


async def test_an_abort_in_production_goes_back_by_the_journal(quiet: Site) -> None:
    site, environment = quiet, sessions(quiet, "production")
    for stage in ("staging", "production"):
        sessions(site, stage).update_many({}, {"$unset": {"environment": ""}})
    before = environment.count_documents(MISSING)
    calm: dict[str, Any] = {"api_error_rate": None, "api_p95_ms": None}
    handle = await site.start("DatabaseMigration", change=BACKFILL, late_writers="PT5M", throttle=calm, abort=calm)
    await hurry(site, f"{handle.id}/rehearse/change", "sweep-pause")
    await hurry(site, f"{handle.id}/rehearse", "late-writers-wait")
    await answer(handle, "approve-migration")
    await answer(handle, "code-deployed")
    await hurry(site, f"{handle.id}/change", "sweep-pause")
    await until(handle, lambda state: any(wait.id == "late-writers-wait" for wait in state.waits), 120)
    assert environment.count_documents({"environment": "production"}) == before
    owned = environment.find_one_and_update({"environment": "production"}, {"$set": {"environment": "theirs"}})
    await handle.signal("abort", {"by": "bob", "reason": "the wrong value"})
    error = await failure(handle, 120)
    assert error.type == "Aborted"
    assert "NOT put back" not in error.message
    assert environment.count_documents(MISSING) == before - 1
    assert owned is not None
    kept = environment.find_one({"_id": owned["_id"]})
    assert kept is not None
    assert kept["environment"] == "theirs", "what somebody else wrote since is not ours to take back"
    await keep(handle, "DatabaseMigration", "aborted-after-the-update")


async def test_a_rejected_migration_leaves_production_alone(quiet: Site) -> None:
    site = quiet
    for stage in ("staging", "production"):
        sessions(site, stage).drop_indexes()
    handle = await site.start("DatabaseMigration", change=INDEX)
    await answer(handle, "approve-migration", "reject")
    error = await failure(handle)
    assert error.type == "Rejected"
    assert "production is as it was; staging keeps the change" in error.message
    assert set(sessions(site, "production").index_information()) == {"_id_"}
    await keep(handle, "DatabaseMigration", "rejected")


async def test_a_dry_run_changes_nothing(quiet: Site) -> None:
    site = quiet
    before = site.snapshot()
    indexes = {stage: set(sessions(site, stage).index_information()) for stage in ("staging", "production")}
    handle = await site.start("DatabaseMigration", change={**INDEX, "keys": {"status": 1, "owner": 1}}, dry_run=True)
    result = await finished(handle, 120)
    assert result.outcome is Outcome.DRY_RUN
    assert any(line.startswith("on staging: add the index") for line in result.would_change)
    assert {stage: set(sessions(site, stage).index_information()) for stage in indexes} == indexes
    assert site.snapshot() == before
    await keep(handle, "DatabaseMigration", "dry-run")
