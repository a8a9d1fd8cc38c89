"""Batched updates against a real wire server: every kind of _id, crashes, concurrent writers, journal, refusals."""

from __future__ import annotations

import asyncio
import datetime
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import bson
import pymongo
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import batch_walk
from activities.batch_models import (
    AbortLimits,
    BatchSizes,
    IdRange,
    JournalRequest,
    Load,
    LoadLimits,
    Plan,
    PlanRequest,
    RangeOrder,
    RangeResult,
    TrialRequest,
    UpdateOrder,
)
from activities.batches import Batches
from activities.stage import Stage
from tests.workflows.bare_stage import bare_stage

Db = pymongo.database.Database[dict[str, Any]]
UNMIGRATED = {"schema": {"$exists": False}}
MIGRATE = {"$set": {"schema": 2}}
NO_LIMITS = dict.fromkeys(LoadLimits.model_fields)


class Resolver:
    def __init__(self, uri: str) -> None:
        self._uri = uri

    def resolve(self, ref: str) -> str:
        return self._uri


@pytest.fixture(scope="module")
def batches(wire_database: str) -> Batches:
    return Batches(Resolver(wire_database), None)  # type: ignore[arg-type]  # resolves as the real one does


@pytest.fixture
def db(wire_database: str) -> Iterator[Db]:
    with pymongo.MongoClient[dict[str, Any]](wire_database, tz_aware=True) as client:
        name = f"t{uuid.uuid4().hex[:10]}"
        yield client[name]
        client.drop_database(name)


def order(db: Db, query: Any = UNMIGRATED, update: Any = MIGRATE, **more: Any) -> UpdateOrder:
    stage = bare_stage("stage-x", {"database": {"uri": "env:NONE", "name": db.name}})
    return UpdateOrder(stage=stage, collection="items", filter=query, update=update, **more)


def range_order(what: UpdateOrder, stretch: IdRange, size: int = 50, **more: Any) -> RangeOrder:
    given: dict[str, Any] = {
        "order": what,
        "range": stretch,
        "sizes": BatchSizes(initial=size, min=size, max=size),
        "throttle": LoadLimits(**NO_LIMITS),
        "abort": AbortLimits(**NO_LIMITS),
    }
    return RangeOrder(**(given | more))


def plan(batches: Batches, what: UpdateOrder, **more: Any) -> tuple[IdRange, ...]:
    found: Plan = ActivityEnvironment().run(batches.plan, PlanRequest(order=what, **{"range_documents": 1000, **more}))
    return found.ranges


async def update(batches: Batches, what: RangeOrder, details: dict[str, Any] | None = None) -> RangeResult:
    environment = ActivityEnvironment()
    if details:
        environment.info = ActivityEnvironment.default_info()
        environment.info = environment.info.__class__(**{**environment.info.__dict__, "heartbeat_details": [details]})
    return await environment.run(batches.update_range, what)


def fill(db: Db, ids: list[Any], **fields: Any) -> None:
    if ids:
        db.items.insert_many([{"_id": one, **fields} for one in ids])


IDS: dict[str, list[Any]] = {
    "objectid": [ObjectId() for _ in range(230)],
    "string": [f"s{n:04}" for n in range(230)],
    "number": [*range(100), *(n + 0.5 for n in range(50)), *(Int64(2**40 + n) for n in range(50)), Decimal128("1e9")],
    "binary": [Binary(uuid.uuid4().bytes, 4) for _ in range(120)],
    "date": [datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=n) for n in range(120)],
    "object": [{"tenant": n % 5, "n": n} for n in range(120)],
    "one of each": [
        None,
        1,
        "a",
        {"k": 1},
        b"bytes",
        ObjectId(),
        True,
        False,
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        Timestamp(5, 1),
        MinKey(),
        MaxKey(),
    ],
}
IDS["mixed"] = [one for kind in ("objectid", "string", "number", "binary", "date", "object") for one in IDS[kind]]


@pytest.mark.parametrize(
    "wanted", [{"range_documents": 90, "at_least": 3}, {"range_documents": 90}, {"range_documents": 9000}], ids=str
)
@pytest.mark.parametrize("kind", IDS)
async def test_every_kind_of_id_is_updated_exactly_once(
    batches: Batches, db: Db, kind: str, wanted: dict[str, int]
) -> None:
    fill(db, IDS[kind])
    what = order(db)
    ranges = plan(batches, what, **wanted, first_number=4)
    assert [stretch.number for stretch in ranges] == list(range(4, 4 + len(ranges)))
    if wanted["range_documents"] > len(IDS[kind]):
        assert {(stretch.after, stretch.upto) for stretch in ranges} == {(None, None)}, "counted, and not cut"
    assert sum(stretch.documents for stretch in ranges) == len(IDS[kind])
    results = [await update(batches, range_order(what, stretch, 40)) for stretch in ranges]
    assert all(result.finished and result.ended == "finished" for result in results)
    assert sum(result.updated for result in results) == len(IDS[kind])
    assert db.items.count_documents(MIGRATE["$set"]) == len(IDS[kind])


@pytest.mark.parametrize("at_least", [1, 4])
@pytest.mark.parametrize("count", [0, 1])
async def test_none_and_one(batches: Batches, db: Db, count: int, at_least: int) -> None:
    db.create_collection("items")
    fill(db, list(range(count)))
    check = ActivityEnvironment().run(batches.check, order(db))
    assert (check.documents, check.matching) == (count, count)
    ranges = plan(batches, order(db), at_least=at_least)
    assert len(ranges) == count
    assert [(await update(batches, range_order(order(db), r))).updated for r in ranges] == [1] * count


async def test_documents_of_16_megabytes(batches: Batches, db: Db) -> None:
    fill(db, [1, 2, 3], pad="x" * (16 * 1024 * 1024 - 100))
    (stretch,) = plan(batches, order(db))
    what = order(db, journal="_runbook_journal_big")
    assert (await update(batches, range_order(what, stretch))).updated == 3
    assert ActivityEnvironment().run(batches.revert, what).reverted == 3
    whole = order(db, update=[{"$replaceWith": {"$mergeObjects": ["$$ROOT", {"schema": 2}]}}], journal="_runbook_j2")
    refused = await update(batches, range_order(whole, stretch))
    assert (refused.ended, refused.kind, refused.updated) == ("failed", "TooLargeForJournal", 0)
    assert "do not fit into an entry of the journal" in (refused.why or "")
    assert db.items.count_documents({"schema": 2}) == 0, "nothing is updated without its entry"


@pytest.mark.parametrize("field", ["pad", None], ids=["a field", "whole documents"])
async def test_of_documents_ahead_a_journal_keeps_no_more_than_ids(batches: Batches, db: Db, field: str | None) -> None:
    fill(db, [{"tenant": n} for n in range(20)], pad="x" * 500_000)
    change = {"$set": {"pad": "y"}} if field else [{"$replaceWith": {"$mergeObjects": ["$$ROOT", {"pad": "y"}]}}]
    what = order(db, update=change, journal="_runbook_journal_ahead")
    (stretch,) = plan(batches, what)
    walk = batches.walk(range_order(what, stretch), {})
    walk._read_ahead(20)
    assert [walk._id_ahead(n) for n in range(20)] == [{"tenant": n} for n in range(20)]
    assert sum(len(kept) for kept, _ in walk._ahead) < 1000
    assert sum(length for _, length in walk._ahead) > 20 * 500_000
    walk.close()


class Crash(Exception):
    pass


class Recorder:
    """Stands where a worker dies: raises at chosen moments, keeps what Temporal would have, counts what is repeated."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.stored: dict[str, Any] | None = None
        self.repeated = 0
        self.crashes = 0

    async def beat(self, details: dict[str, Any]) -> bool:
        self.maybe()
        self.stored = details
        self.maybe()
        return False

    def maybe(self) -> None:
        if self.crashes < 6 and self.random.random() < 0.15:
            self.crashes += 1
            raise Crash


async def crashing_update(batches: Batches, what: RangeOrder, recorder: Recorder, patch: pytest.MonkeyPatch) -> int:
    """The range, with a worker that dies at random moments; returns how many batches were begun more than once."""
    begun: list[str] = []
    write = batch_walk.RangeWalk._write

    def counted(walk: Any, condition: Any) -> int:
        begun.append(str(condition))
        recorder.maybe()
        done = write(walk, condition)
        recorder.maybe()
        return done

    with patch.context() as inner:
        inner.setattr(batch_walk.RangeWalk, "_write", counted)
        inner.setattr("activities.batches.Heart.beat", lambda _self, details: recorder.beat(details))
        while True:
            try:
                result = await update(batches, what, recorder.stored)
                break
            except Crash:
                continue
    assert result.finished
    assert len(begun) - len(set(begun)) <= recorder.crashes
    return len(begun) - len(set(begun))


@pytest.mark.parametrize("seed", range(20))
async def test_crashes_and_writers_leave_every_document_right(
    batches: Batches, db: Db, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes first wins: a document is migrated by the update or by the application, and never twice."""
    total = 400
    journal = "_runbook_journal_x" if seed % 2 else None
    fill(db, list(range(total)), n=0)
    what = order(db, update={"$set": {"schema": 2}, "$inc": {"n": 1}}, journal=journal)
    (stretch,) = plan(batches, what)
    stop = threading.Event()
    written: set[int] = set()

    def writer() -> None:
        """An application that migrates documents itself, with its own value, and adds new ones."""
        source = random.Random(seed)
        while not stop.is_set():
            one = source.randrange(total)
            if db.items.update_one({"_id": one, **UNMIGRATED}, {"$set": {"schema": "own"}}).modified_count:
                written.add(one)
            source.random()

    thread = threading.Thread(target=writer)
    thread.start()
    recorder = Recorder(seed)
    try:
        await crashing_update(batches, range_order(what, stretch, 40), recorder, monkeypatch)
    finally:
        stop.set()
        thread.join()
    found = {doc["_id"]: doc for doc in db.items.find()}
    assert len(found) == total
    for one, doc in found.items():
        expected = ("own", 0) if one in written else (2, 1)
        assert (doc["schema"], doc["n"]) == expected, "a writer's value was overwritten, or an update made twice"
    if journal:
        entries = {entry["_id"] for entry in db[journal].find()}
        assert entries == set(found) - written
        db.items.update_many({"_id": {"$lt": 40}}, {"$set": {"schema": 3}})
        undone = ActivityEnvironment().run(batches.revert, what)
        assert undone.reverted == len(entries - set(range(40)))
        assert undone.kept == len(entries & set(range(40)))
        assert db.items.count_documents({"schema": 2}) == 0
        assert db.items.count_documents({"schema": 3}) == 40
        assert db.items.count_documents({"n": 1}) == undone.kept


JOURNALLED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "set": (MIGRATE, UNMIGRATED, {"a": 1}),
    "unset": ({"$unset": {"a": ""}}, {"a": {"$exists": True}}, {"a": {"b": [1, 2.0, Int64(3)]}}),
    "rename": ({"$rename": {"a": "b"}}, {"a": {"$exists": True}}, {"a": None}),
    "nested": ({"$set": {"a.b.c": 1}}, {"a.b.c": {"$exists": False}}, {"a": {"x": 5}}),
    "pipeline": ([{"$set": {"full": {"$concat": ["$a", "!"]}}}], {"full": {"$exists": False}}, {"a": "x"}),
    "whole": ([{"$replaceWith": {"v": "$a"}}], {"v": {"$exists": False}}, {"a": 1.0, "b": Decimal128("1")}),
}


@pytest.mark.parametrize("name", JOURNALLED)
async def test_the_journal_puts_every_kind_of_update_back(batches: Batches, db: Db, name: str) -> None:
    change, query, document = JOURNALLED[name]
    db.items.insert_many([{"_id": n, **document} for n in range(60)])
    before = [bson.encode(doc) for doc in db.items.find().sort("_id")]
    what = order(db, query, change, journal="_runbook_journal_y")
    ActivityEnvironment().run(batches.open_journal, JournalRequest(order=what, keep=datetime.timedelta(days=1)))
    (stretch,) = plan(batches, what)
    assert (await update(batches, range_order(what, stretch, 25))).updated == 60
    assert db.items.count_documents(query) == 0
    assert ActivityEnvironment().run(batches.revert, what).reverted == 60
    after = [bson.encode(doc) for doc in db.items.find().sort("_id")]
    assert [sorted(bson.decode(doc).items(), key=str) for doc in after] == [
        sorted(bson.decode(doc).items(), key=str) for doc in before
    ]
    assert "_runbook_journal_y" not in db.list_collection_names()
    assert ActivityEnvironment().run(batches.revert, what).reverted == 0, "undoing twice harms nothing"


async def journalled(batches: Batches, db: Db, name: str) -> UpdateOrder:
    """Sixty documents, updated with a journal."""
    db.items.insert_many([{"_id": n} for n in range(60)])
    what = order(db, journal=name)
    ActivityEnvironment().run(batches.open_journal, JournalRequest(order=what, keep=datetime.timedelta(days=1)))
    (stretch,) = plan(batches, what)
    assert (await update(batches, range_order(what, stretch, 25))).updated == 60
    return what


async def test_a_journal_whose_first_entries_have_expired_is_not_called_whole(batches: Batches, db: Db) -> None:
    what = await journalled(batches, db, "_runbook_journal_z")
    gone = [entry["_id"] for entry in db["_runbook_journal_z"].find().sort("at").limit(11)]
    db["_runbook_journal_z"].delete_many({"_id": {"$in": gone}})  # as the server does, the oldest first
    with pytest.raises(ApplicationError, match="50 documents put back, but the oldest entries") as told:
        ActivityEnvironment().run(batches.revert, what)
    assert (told.value.type, told.value.non_retryable) == ("JournalExpired", True)
    assert db.items.count_documents({"schema": 2}) == 10


async def test_a_journal_of_an_older_version_is_put_back_as_it_is(batches: Batches, db: Db) -> None:
    name = "_runbook_journal_old"
    db[name].create_index("at", name="expires", expireAfterSeconds=86400)
    what = await journalled(batches, db, name)
    ActivityEnvironment().run(batches.close_journal, JournalRequest(order=what, keep=datetime.timedelta(days=3)))
    assert db[name].index_information()["expires"]["expireAfterSeconds"] == 86400
    db[name].delete_many({"before": {"$exists": False}})
    assert ActivityEnvironment().run(batches.revert, what).reverted == 60


async def test_closing_a_journal_twice_is_closing_it_once(batches: Batches, db: Db) -> None:
    what = await journalled(batches, db, "_runbook_journal_c")
    request = JournalRequest(order=what, keep=datetime.timedelta(days=3))
    for _ in range(2):
        ActivityEnvironment().run(batches.close_journal, request)
        indexes = db["_runbook_journal_c"].index_information().values()
        assert [i["expireAfterSeconds"] for i in indexes if "expireAfterSeconds" in i] == [3 * 86400]
    assert ActivityEnvironment().run(batches.revert, what).reverted == 60


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda db: db.create_collection("others"), "no collection 'items'; there are: others"),
        (lambda db: db.create_collection("items", viewOn="base", pipeline=[]), "view of 'base': update 'base'"),
        (lambda db: db.create_collection("items", timeseries={"timeField": "t"}), "time-series"),
        (lambda db: db.create_collection("items", capped=True, size=100_000), "capped"),
    ],
)
def test_what_cannot_be_updated_in_batches_is_refused(
    batches: Batches, db: Db, make: Callable[[Db], Any], text: str
) -> None:
    make(db)
    with pytest.raises(ApplicationError, match=text) as refused:
        ActivityEnvironment().run(batches.check, order(db))
    assert refused.value.non_retryable


def test_a_field_of_the_shard_key_is_refused(batches: Batches, db: Db) -> None:
    db.create_collection("items")
    entries = db.client["config"]["collections"]
    entries.insert_one({"_id": f"{db.name}.items", "key": {"schema": 1, "tenant": 1}})
    try:
        with pytest.raises(ApplicationError, match="sharded by schema, tenant"):
            ActivityEnvironment().run(batches.check, order(db))
        ActivityEnvironment().run(batches.check, order(db, update={"$set": {"free": 1}}))
    finally:
        entries.delete_one({"_id": f"{db.name}.items"})


@pytest.mark.parametrize(
    ("query", "change", "leaves"),
    [
        (UNMIGRATED, {"$inc": {"n": 1}, "$set": {"schema": 2}}, True),
        ({}, {"$set": {"a": 1}}, False),
        ({}, {"$set": {"a": 1}, "$currentDate": {"seen": True}}, False),
        ({}, {"$inc": {"n": 1}}, None),
        ({"n": {"$gte": 0}}, [{"$set": {"n": {"$add": ["$n", 1]}}}], None),
    ],
)
def test_an_update_that_must_not_be_repeated_is_found_on_copies(
    batches: Batches, db: Db, query: Any, change: Any, leaves: bool | None
) -> None:
    fill(db, list(range(50)), n=1)
    request = TrialRequest(order=order(db, query, change), key="k1")
    if leaves is None:
        with pytest.raises(ApplicationError, match="Add a mark") as refused:
            ActivityEnvironment().run(batches.try_on_copies, request)
        assert refused.value.type == "NotRepeatable"
    else:
        trial = ActivityEnvironment().run(batches.try_on_copies, request)
        assert (trial.tried, trial.leaves_filter, trial.repeatable) == (20, leaves, True)
    assert db.list_collection_names() == ["items"], "the copies are gone"
    assert db.items.count_documents({"n": 1}) == 50


@pytest.mark.parametrize("change", [{"$set": {"n": 1, "n.b": 2}}, [{"$set": {"a": {"$nonsense": 1}}}]])
def test_an_update_that_the_server_refuses_fails_on_copies(batches: Batches, db: Db, change: Any) -> None:
    fill(db, list(range(5)), n=1)
    with pytest.raises(ApplicationError, match="could not try the update on copies: MongoDB error") as refused:
        ActivityEnvironment().run(batches.try_on_copies, TrialRequest(order=order(db, {}, change), key="k2"))
    assert refused.value.non_retryable
    assert db.list_collection_names() == ["items"]


async def test_a_batch_that_times_out_is_halved(batches: Batches, db: Db, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(db, list(range(200)))
    sizes: list[int] = []
    write = batch_walk.RangeWalk._write

    def slow(walk: Any, condition: Any) -> int:
        sizes.append(walk.size)
        if walk.size > 25:
            error = pymongo.errors.NetworkTimeout("timed out")
            raise error
        return write(walk, condition)

    monkeypatch.setattr(batch_walk.RangeWalk, "_write", slow)
    (stretch,) = plan(batches, order(db))
    sized = range_order(order(db), stretch, sizes=BatchSizes(initial=100, min=10, max=100))
    result = await update(batches, sized)
    assert sizes[:3] == [100, 50, 25]
    assert result.updated == 200
    db.items.update_many({}, {"$unset": {"schema": ""}})
    with pytest.raises(ApplicationError, match="even 100 documents took longer") as failed:
        await update(batches, range_order(order(db), stretch, 100))
    assert not failed.value.non_retryable


async def test_load_beyond_a_limit_waits_and_then_stops(
    batches: Batches, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db, list(range(100)))
    (stretch,) = plan(batches, order(db))
    readings = iter([Load(summary="", ping_ms=900)] + [Load(summary="", ping_ms=9000)] * 3)
    monkeypatch.setattr(batches._load, "read", lambda _stage: next(readings))
    monkeypatch.setattr("activities.batches.LOOK_AGAIN", 0.01)
    limited = range_order(order(db), stretch, throttle=LoadLimits(ping_ms=250), abort=AbortLimits(ping_ms=5000))
    result = await update(batches, limited)
    assert (result.ended, result.updated) == ("abort", 0)
    assert result.why == "the database answers a ping in 9000 ms (limit 5000 ms), 3 times in a row"


async def test_a_reading_that_takes_long_is_no_dead_worker_and_counts(
    batches: Batches, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db, list(range(100)))
    (stretch,) = plan(batches, order(db))
    beats: list[dict[str, Any]] = []

    async def beat(_heart: Any, details: dict[str, Any]) -> bool:
        beats.append(details)
        return False

    def slow(_stage: Stage) -> Load:
        """It ends after two heartbeats."""
        before, deadline = len(beats), time.monotonic() + 30
        while len(beats) < before + 2:
            assert time.monotonic() < deadline, "no heartbeat while the load was read"
            time.sleep(0.02)
        return Load(summary="", ping_ms=9000)

    monkeypatch.setattr("activities.batches.Heart.beat", beat)
    monkeypatch.setattr("activities.batches.STILL_ALIVE", 0.05)
    monkeypatch.setattr("activities.batches.LOOK_AGAIN", 0.01)
    monkeypatch.setattr(batches._load, "read", slow)
    result = await update(batches, range_order(order(db), stretch, abort=AbortLimits(ping_ms=5000)))
    assert (result.ended, result.updated) == ("abort", 0)
    assert "3 times in a row" in (result.why or "")


async def test_cancelled_it_finishes_its_batch_and_says_how_far_it_came(
    batches: Batches, db: Db, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(db, list(range(300)))
    (stretch,) = plan(batches, order(db))
    environment = ActivityEnvironment()
    loop = asyncio.get_running_loop()
    write = batch_walk.RangeWalk._write

    def interrupting(walk: Any, condition: Any) -> int:
        if walk.batches == 2:
            loop.call_soon_threadsafe(environment.cancel)
        return write(walk, condition)

    monkeypatch.setattr(batch_walk.RangeWalk, "_write", interrupting)
    result: RangeResult = await environment.run(batches.update_range, range_order(order(db), stretch, 50))
    assert (result.ended, result.finished) == ("asked", False)
    assert result.walked < 300
    assert db.items.count_documents({"schema": 2}) == result.walked
    assert result.range.documents == 300 - result.walked
    rest = await update(batches, range_order(order(db), result.range, 50))
    assert rest.updated == 300 - result.walked


def test_load_of_a_server_that_says_little_is_unknown_not_zero(batches: Batches, db: Db) -> None:
    load = ActivityEnvironment().run(batches.load, order(db).stage)
    assert load.ping_ms is not None
    assert load.ping_ms > 0
    assert load.queue is None
    assert load.lag_s is None
    assert {"queue", "lag_s"} <= load.unknown.keys()
