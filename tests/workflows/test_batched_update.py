"""BatchedUpdate end to end: a real Temporal server, a real wire server, workers that are killed, writers that write."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy

from activities.batch_models import Load
from activities.batch_walk import RangeWalk
from activities.batches import Batches
from tests.activities.conftest import wire_database  # noqa: F401  # a fixture
from tests.histories import keep
from tests.workflows.batch_world import BatchWorld, batches, updating
from tests.workflows.probe import at_gate, failure, going_on, outcome, progress, until
from workflows import policy
from workflows.model import Outcome, RunbookResult, RunState

Db = pymongo.database.Database[dict[str, Any]]
ENTRIES = {"before": {"$exists": True}}
QUICK = {"target_ms": 20, "initial": 50, "min": 20, "max": 100}


class Site:
    """A stage with its database, and a way to start updates of it."""

    def __init__(self, client: Client, queue: str, db: Db, system: Batches) -> None:
        self.client, self.queue, self.db, self.system = client, queue, db, system

    def fill(self, count: int, **fields: Any) -> None:
        self.db.items.insert_many([{"_id": number, "n": 0, **fields} for number in range(count)])

    async def start(self, workflow: str = "BatchedUpdate", **inp: Any) -> WorkflowHandle[Any, Any]:
        given = {
            "stage": self.db.name,
            "reason": "test",
            "requested_by": "ann",
            "collection": "items",
            "filter": {"schema": {"$exists": False}},
            "update": {"$set": {"schema": 2}, "$inc": {"n": 1}},
            "batch": QUICK,
            "sweep_pause": "PT0S",
            **inp,
        }
        return await self.client.start_workflow(workflow, given, id=f"update-{uuid.uuid4()}", task_queue=self.queue)

    def counts(self) -> dict[str, int]:
        found = self.db.items.aggregate([{"$group": {"_id": ["$schema", "$n"], "count": {"$sum": 1}}}])
        return {str(tuple(group["_id"])): group["count"] for group in found}


@pytest.fixture
def db(wire_database: str) -> Iterator[Db]:  # noqa: F811
    with pymongo.MongoClient[dict[str, Any]](wire_database) as client:
        name = f"s{uuid.uuid4().hex[:10]}"
        yield client[name]
        client.drop_database(name)


@pytest_asyncio.fixture
async def site(client: Client, wire_database: str, db: Db) -> AsyncIterator[Site]:  # noqa: F811
    queue, system = f"batches-{uuid.uuid4()}", batches(wire_database)
    async with updating(client, queue, BatchWorld(), system):
        yield Site(client, queue, db, system)


@contextlib.contextmanager
def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.05) -> Iterator[None]:
    """Batches that take a while, so that there is time to do something to the run."""
    write = RangeWalk._write
    pause = threading.Event()

    def slow(walk: RangeWalk, condition: Any) -> int:
        pause.wait(seconds)
        return write(walk, condition)

    with monkeypatch.context() as patch:
        patch.setattr(RangeWalk, "_write", slow)
        yield


async def finished(handle: WorkflowHandle[Any, Any], patience: float = 30) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), patience))


def shown(state: RunState) -> str:
    """The line of the update on the run's page."""
    step = state.step("update")
    return (step.summary or "") if step else ""


async def written(site: Site, least: int = 1) -> None:
    """Until the database holds that many updated documents."""
    deadline = asyncio.get_running_loop().time() + 15
    while site.db.items.count_documents({"schema": 2}) < least:
        assert asyncio.get_running_loop().time() < deadline, "nothing was updated"
        await asyncio.sleep(0.02)


async def test_a_run_from_plan_to_last_look(site: Site) -> None:
    site.fill(1000)
    site.db.items.update_many({"_id": {"$lt": 100}}, {"$set": {"schema": "own"}})
    handle = await site.start(partitions=3, journal=True)
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert site.counts() == {"(2, 1)": 900, "('own', 0)": 100}
    assert (result.facts["matching"], result.facts["updated"], result.facts["leaves_filter"]) == (900, 900, True)
    assert site.db[str(result.facts["journal"])].count_documents(ENTRIES) == 900
    assert [item.done for item in result.checklist] == [True] * 4
    state = await progress(handle)
    assert "100 % · 900 of 900" in shown(state)
    assert state.percent == 100
    assert not [name for name in site.db.list_collection_names() if "trial" in name]
    await keep(handle, "BatchedUpdate", "journalled")


async def test_in_production_people_are_asked_and_a_no_changes_nothing(site: Site, wire_database: str) -> None:  # noqa: F811
    stage = f"production-{site.db.name}"
    with pymongo.MongoClient[dict[str, Any]](wire_database) as client:
        client[stage].items.insert_many([{"_id": n} for n in range(10)])
        handle = await site.start(stage=stage, approved=True)
        state = await until(handle, at_gate)
        assert state.gates[0].plan["documents"] == 10
        assert state.gates[0].plan["filter"] == '{"schema": {"$exists": false}}'
        await handle.signal("reject", {"by": "bob"})
        error = await failure(handle)
        assert (error.type, error.message) == ("Rejected", "bob said no at 'approve-update'. Nothing had been changed")
        assert client[stage].items.count_documents({"schema": 2}) == 0
        client.drop_database(stage)


async def test_a_dry_run_counts_and_changes_nothing(site: Site) -> None:
    site.fill(300)
    result = await finished(await site.start(dry_run=True, journal=True))
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary == "would update 300 of 300 documents of items"
    assert len(result.would_change) == 3
    assert site.counts() == {"(None, 0)": 300} or site.counts() == {"(0,)": 300}
    assert site.db.list_collection_names() == ["items"]


@pytest.mark.parametrize(
    ("inp", "kind", "text"),
    [
        ({"collection": "nothing"}, "NoCollection", "there are: items"),
        ({"update": {"$inc": {"n": 1}}}, "NotRepeatable", "Add a mark"),
        ({"journal": True, "journal_limit": 5}, "JournalTooSmall", "may hold 5"),
        ({"update": {"$set": {"_id": 1}}}, "BadInput", "touches _id"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything(
    site: Site, inp: dict[str, Any], kind: str, text: str
) -> None:
    site.fill(30)
    error = await failure(await site.start(**inp))
    assert error.type == kind
    assert text in error.message
    assert site.db.items.count_documents({"schema": {"$exists": False}}) == 30


async def test_no_document_is_no_work(site: Site) -> None:
    site.db.create_collection("items")
    result = await finished(await site.start())
    assert result.summary == "no document of items matches: nothing was to be done"
    assert all(item.done for item in result.checklist)


async def test_pause_stops_within_a_batch_resume_goes_on_and_tune_is_live(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fill(2000)
    with slowed(monkeypatch, 0.1):
        handle = await site.start(partitions=2)
        await written(site)
        await handle.signal("pause", {"by": "bob"})
        state = await until(handle, lambda s: s.phase == "paused")
        done = site.db.items.count_documents({"schema": 2})
        step = state.step("update")
        assert step is not None
        assert step.evidence["done"] == done, "the page says exactly what is done"
        await asyncio.sleep(0.3)
        assert site.db.items.count_documents({"schema": 2}) == done, "nothing is updated while paused"
        said = await handle.execute_update(
            "tune", {"by": "bob", "partitions": 4, "batch": {"initial": 200, "max": 400, "target_ms": 400}}
        )
        assert said == "50 to 400 documents a batch for 400 ms, 4 partitions"
        for bad, text in (
            ({"partitions": 4}, "nothing of it is new"),
            ({"partitions": 99}, "less than or equal to 8"),
            ({"throttle": {"ping_ms": 9000}}, "has to be above"),
        ):
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await handle.execute_update("tune", {"by": "bob", **bad})
            assert text in str(refused.value.cause)
        await handle.signal("resume", {"by": "bob"})
        result = await finished(handle)
    assert site.counts() == {"(2, 1)": 2000}
    assert result.facts["updated"] == 2000
    await keep(handle, "BatchedUpdate", "paused-and-tuned")


async def test_a_pause_while_the_database_is_away_ends_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts nobody is there to say how far a range came."""
    site.fill(1000)
    write, failed, away = RangeWalk._write, threading.Event(), threading.Event()
    away.set()

    def refused(walk: RangeWalk, condition: Any) -> int:
        if walk.walked and away.is_set():
            failed.set()
            raise pymongo.errors.AutoReconnect("away")
        return write(walk, condition)

    monkeypatch.setattr(RangeWalk, "_write", refused)
    handle = await site.start(partitions=1)
    assert await asyncio.to_thread(failed.wait, 15)
    await handle.signal("pause", {"by": "bob"})
    await until(handle, lambda s: s.phase == "paused")
    away.clear()
    await handle.signal("resume", {"by": "bob"})
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert site.counts() == {"(2, 1)": 1000}
    await keep(handle, "BatchedUpdate", "paused-between-attempts")


async def test_abort_undoes_by_the_journal_but_not_what_others_wrote(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fill(1500)
    with slowed(monkeypatch):
        handle = await site.start(journal=True)
        await written(site, 100)
        theirs = [doc["_id"] for doc in site.db.items.find({"schema": 2}).limit(30)]
        site.db.items.update_many({"_id": {"$in": theirs}}, {"$set": {"n": 77}})
        await handle.signal("abort", {"by": "bob", "reason": "wrong value"})
        error = await failure(handle)
    assert error.type == "Aborted"
    assert "documents had been updated; undone:" in error.message
    assert "30 left alone, because they have changed since" in error.message
    assert site.db.items.count_documents({"schema": 2}) == 30
    assert site.db.items.count_documents({"schema": {"$exists": False}, "n": 0}) == 1470
    assert outcome(error).outcome is Outcome.ABORTED


async def test_the_journal_stays_for_the_whole_run_and_its_time_after_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def life() -> timedelta:
        name = next(name for name in site.db.list_collection_names() if name.startswith("_runbook_journal_"))
        indexes = site.db[name].index_information().values()
        return timedelta(seconds=next(i["expireAfterSeconds"] for i in indexes if "expireAfterSeconds" in i))

    site.fill(400)
    with slowed(monkeypatch):
        handle = await site.start(journal=True, journal_keep="P2D")
        await written(site)
        assert life() >= timedelta(days=90)
        result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert timedelta(days=2) <= life() <= timedelta(days=2, minutes=5)
    await keep(handle, "BatchedUpdate", "journal-stays")


async def test_a_database_that_is_away_from_the_start_ends_the_run(
    client: Client, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rehearsal would never say so otherwise."""
    monkeypatch.setitem(policy.SCAN, "retry_policy", RetryPolicy(maximum_attempts=2))
    queue, system = f"batches-{uuid.uuid4()}", batches("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=100")
    async with updating(client, queue, BatchWorld(), system):
        error = await failure(await Site(client, queue, db, system).start(dry_run=True))
    assert error.type == "MongoUnreachable"
    assert "the database did not answer" in error.message


async def test_without_a_journal_an_abort_says_what_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.fill(1500)
    with slowed(monkeypatch):
        handle = await site.start()
        await written(site)
        await handle.signal("abort", {"by": "bob"})
        error = await failure(handle)
    done = site.db.items.count_documents({"schema": 2})
    assert 0 < done < 1500
    assert error.message == (
        f"aborted by bob. {done:,} documents had been updated and stay so: there was no undo journal. Started again, "
        "it goes on with the rest"
    )


async def test_a_document_that_the_server_refuses_ends_the_run_and_says_how_far_it_came(site: Site) -> None:
    site.fill(500)
    site.db.command("collMod", "items", validator={"n": {"$lte": 5}}, validationLevel="strict")
    site.db.items.update_many({"_id": {"$gte": 400}}, {"$set": {"n": 5}})  # one more is one too many
    error = await failure(await site.start(partitions=1, batch={"initial": 100, "min": 100, "max": 100}))
    assert error.type == "Mongo121"
    assert "could not update a batch: MongoDB error 121" in error.message
    assert "400 documents had been updated (perhaps some of the batch that failed, too) and stay so" in error.message
    assert site.db.items.count_documents({"schema": 2}) == 400


async def test_load_is_waited_for_with_the_reason_on_screen_and_a_crisis_ends_the_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fill(600)
    load = {"now": Load(summary="", ping_ms=900)}
    monkeypatch.setattr(site.system._load, "read", lambda _stage: load["now"])
    monkeypatch.setattr("activities.batches.LOOK_AGAIN", 0.1)
    handle = await site.start(journal=True, partitions=1)
    state = await until(handle, lambda s: "WAITS" in shown(s))
    assert any(e.text == "waits: the database answers a ping in 900 ms (limit 250 ms)" for e in state.timeline)
    assert site.db.items.count_documents({"schema": 2}) == 0
    with slowed(monkeypatch):
        load["now"] = Load(summary="", ping_ms=100)
        await written(site)
        load["now"] = Load(summary="", api_error_rate=0.2)
        error = await failure(handle)
    assert error.type == "LoadAbort"
    assert "20.00% of the API's answers are errors (limit 5.00%), 3 times in a row" in error.message
    assert site.db.items.count_documents({"schema": {"$exists": False}, "n": 0}) == 600


async def test_it_parks_when_the_window_closes_and_goes_on_by_itself_or_when_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.fill(1200)
    now = datetime.now(UTC)
    edges = [now + timedelta(seconds=s) for s in (4.5, 9, 10.8)]
    window = {"opens": edges[1].isoformat(), "closes": edges[2].isoformat()}
    with slowed(monkeypatch, 0.45):
        handle = await site.start(until=edges[0].isoformat(), windows=[window], partitions=1)
        state = await until(handle, lambda s: s.phase == "waiting" and "parked until" in shown(s))
        done = site.db.items.count_documents({"schema": 2})
        assert 0 < done < 1200
        state = await until(handle, lambda s: any("until somebody sends" in e.text for e in s.timeline))
        assert done < site.db.items.count_documents({"schema": 2}) < 1200
        assert any(e.text == "the window is open: goes on" for e in state.timeline)
    await handle.signal("go_on", {"by": "bob", "until": "2020-01-01T00:00:00Z"})
    await until(handle, lambda s: any("that time is over" in e.text for e in s.timeline))
    await handle.signal("go_on", {"by": "bob"})
    assert (await finished(handle)).facts["updated"] == 1200
    assert site.counts() == {"(2, 1)": 1200}


async def test_late_writers_are_swept_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.fill(400)
    plan, looks = Batches._cut, []

    def late(system: Batches, request: Any) -> Any:
        looks.append(site.db.items.count_documents({"schema": {"$exists": False}}))
        if len(looks) in (2, 4):
            site.db.items.insert_many([{"_id": 1000 * len(looks) + n, "n": 0} for n in range(25)])
        return plan(system, request)

    monkeypatch.setattr(Batches, "_cut", late)
    result = await finished(await site.start())
    assert result.facts["passes"] == 3
    assert result.facts["updated"] == 450
    assert looks == [400, 0, 0, 0, 0, 0][: len(looks)]
    assert site.counts() == {"(2, 1)": 450}


async def test_all_documents_without_a_mark_are_walked_once(site: Site) -> None:
    site.fill(300)
    result = await finished(await site.start(filter={}, all_documents=True, update={"$set": {"seen": True}}))
    assert result.facts["leaves_filter"] is False
    assert site.db.items.count_documents({"seen": True}) == 300
    assert next(item for item in result.checklist if item.id == "late").note == (
        "the filter finds updated documents too, so late ones cannot be told apart"
    )


async def test_a_long_run_continues_as_new_and_loses_nothing(site: Site) -> None:
    site.fill(3000)
    handle = await site.start("ShortHistories", partitions=2, journal=True)
    result = await finished(handle)
    latest = site.client.get_workflow_handle(handle.id)
    assert (await latest.describe()).run_id != handle.result_run_id
    assert result.facts["updated"] == 3000
    assert site.counts() == {"(2, 1)": 3000}
    assert site.db[str(result.facts["journal"])].count_documents(ENTRIES) == 3000


async def test_what_is_sent_before_a_long_run_goes_on_counts(site: Site) -> None:
    site.fill(1500)
    handle = await site.start("ShortHistories", partitions=2)
    await finished(handle)
    latest = await going_on(site.client, f"{site.queue}-before", handle)
    await latest.signal("go_on", {"by": "bob", "until": "2099-01-01T00:00:00Z"})
    async with updating(site.client, f"{site.queue}-before-next", BatchWorld(), site.system):
        await finished(latest)
        said = [entry.text for entry in (await progress(latest)).timeline]
    assert "lets the update go on until 01 Jan 00:00 UTC" in said


class Killable:
    """Workers in processes of their own, killed as a machine dies."""

    def __init__(self, *argv: str) -> None:
        self._argv = argv
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.workflows.batch_world",
            *self._argv,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"ready\n"

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()


@pytest.mark.long
async def test_killed_workers_and_writers_leave_every_document_right(
    client: Client,
    wire_database: str,  # noqa: F811
) -> None:
    """kill -9 at random moments, four updates at once, each with an application that writes at the same time."""
    queue, source = f"killed-{uuid.uuid4()}", random.Random(4)
    worker = Killable(client.service_client.config.target_host, queue, wire_database)
    names = [f"k{uuid.uuid4().hex[:10]}" for _ in range(4)]
    total, stop, theirs = 1200, threading.Event(), {name: set[int]() for name in names}
    with pymongo.MongoClient[dict[str, Any]](wire_database) as mongo:
        sites = [Site(client, queue, mongo[name], batches(wire_database)) for name in names]

        def write() -> None:
            rng = random.Random(7)
            while not stop.wait(0.005):
                name, one = rng.choice(names), rng.randrange(total)
                own = {"_id": one, "schema": {"$exists": False}}
                if mongo[name].items.update_one(own, {"$set": {"schema": "own"}}).modified_count:
                    theirs[name].add(one)

        for one in sites:
            one.fill(total)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            small = {"initial": 40, "min": 20, "max": 60, "target_ms": 50}
            handles = [
                await one.start(partitions=2, journal=number % 2 == 1, batch=small) for number, one in enumerate(sites)
            ]
            kills = 0
            while kills < 3:
                await worker.start()
                await asyncio.sleep(source.uniform(0.5, 2.5))  # when to kill, not what to wait for
                await worker.kill()
                kills += 1
            await worker.start()
            results = [await finished(handle, 60) for handle in handles]
        finally:
            stop.set()
            writer.join()
            await worker.kill()
        for one, result in zip(sites, results, strict=True):
            own = theirs[one.db.name]
            assert result.outcome is Outcome.COMPLETED
            found = {doc["_id"]: (doc["schema"], doc["n"]) for doc in one.db.items.find()}
            wrong = {key: seen for key, seen in found.items() if seen != (("own", 0) if key in own else (2, 1))}
            assert not wrong, f"{len(wrong)} of {total}"
            if "journal" in result.facts:
                entries = {entry["_id"] for entry in one.db[str(result.facts["journal"])].find(ENTRIES)}
                assert entries == found.keys() - own
            mongo.drop_database(one.db.name)
