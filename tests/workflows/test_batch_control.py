"""The decisions of a batched update as tables and properties: sizes, limits, ranges, progress, windows, rules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.codec_options import CodecOptions
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from temporalio.exceptions import ApplicationError

from activities.batch_models import AbortLimits, BatchSizes, Load, LoadLimits
from activities.batch_pacing import STRIKES, LoadJudge, Pacer
from activities.batch_ranges import MOST_CUTS, Cutter, bounds, documents_in, id_of, kind_of, whole_kinds
from activities.update_rules import decode, encode, touched_fields
from workflows.batch_control import Opening, Progress, opening
from workflows.batched_update_model import BatchedUpdateInput, OpenWindow

T0 = datetime(2024, 6, 1, 22, tzinfo=UTC)


# --- batch size ----------------------------------------------------------------------------------------------------


def settled(pacer: Pacer, fixed: float, each: float, batches: int = 40) -> int:
    for _ in range(batches):
        pacer.finished(pacer.size, fixed + each * pacer.size)
    return pacer.size


@given(each=st.floats(1e-5, 2e-3), target=st.integers(100, 2000))
@example(each=0.001, target=282)  # whole batches that take the target time and the rounding of a float
def test_size_settles_at_the_target_time(each: float, target: int) -> None:
    sizes = BatchSizes(initial=1000, min=1, max=100_000, target_ms=target)
    size = settled(Pacer(sizes), 0.0, each)
    assert size * each * 1000 == pytest.approx(target, rel=0.1) or size in (sizes.min, sizes.max)


@given(fixed=st.floats(0.01, 5), each=st.floats(1e-5, 1e-3))
def test_a_batch_is_never_mostly_its_fixed_cost(fixed: float, each: float) -> None:
    sizes = BatchSizes(initial=1000, min=1, max=100_000, target_ms=500)
    size = settled(Pacer(sizes), fixed, each)
    takes = fixed + each * size
    assert takes <= 0.5 * 1.15 or fixed <= 0.6 * takes or size == sizes.max


@given(fixed=st.floats(0.6, 5), each=st.floats(1e-6, 1e-4))
def test_time_outs_do_not_leave_it_small_for_ever(fixed: float, each: float) -> None:
    pacer = Pacer(BatchSizes(initial=1000, min=50, max=20_000, target_ms=500))
    while pacer.timed_out():
        pass
    size = settled(pacer, fixed, each)
    assert size * each >= 0.2 * fixed or size == 20_000


def test_documents_that_are_slow_themselves_keep_it_small() -> None:
    pacer = Pacer(BatchSizes(initial=50, min=50, max=20_000, target_ms=500))
    seen = []
    for _ in range(100):
        pacer.finished(pacer.size, 0.02 * pacer.size)
        seen.append(pacer.size)
    assert max(seen) == 75
    assert seen.count(50) > 85


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.one_of(st.none(), st.floats(1e-4, 30))), max_size=60),
    st.integers(1, 500),
    st.integers(500, 50_000),
)
def test_size_stays_between_its_limits_and_moves_by_halves(seen: Any, least: int, most: int) -> None:
    pacer = Pacer(BatchSizes(initial=500, min=min(least, 500), max=most))
    for documents, seconds in seen:
        before = pacer.size
        if seconds is None:
            pacer.timed_out()
            assert pacer.size == max(before // 2, min(least, 500))
        else:
            pacer.finished(documents, seconds)
            assert before // 2 <= pacer.size <= before * 2
        assert min(least, 500) <= pacer.size <= most


def test_a_time_out_at_the_smallest_size_cannot_shrink() -> None:
    pacer = Pacer(BatchSizes(initial=100, min=50, max=100))
    assert pacer.timed_out()
    assert pacer.size == 50
    assert not pacer.timed_out()


# --- load ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "word", "text"),
    [
        ({}, "go", ""),
        ({"ping_ms": 250}, "go", ""),
        ({"ping_ms": 251}, "wait", "the database answers a ping in 251 ms (limit 250 ms)"),
        ({"queue": 80}, "wait", "80 operations queue in the database (limit 50)"),
        ({"lag_s": 11}, "wait", "a secondary is 11 s behind (limit 10 s)"),
        ({"api_p95_ms": 3000}, "wait", "the API's p95 is 3000 ms (limit 2000 ms)"),
        ({"api_error_rate": 0.02}, "wait", "2.00% of the API's answers are errors (limit 1.00%)"),
        ({"connections": 10_000}, "go", ""),
    ],
)
def test_each_limit_says_why(load: dict[str, Any], word: str, text: str) -> None:
    verdict = LoadJudge(LoadLimits(), AbortLimits()).see(Load(summary="", **load))
    assert (verdict.word, verdict.why) == (word, text)


def test_waiting_ends_well_below_the_limit() -> None:
    judge = LoadJudge(LoadLimits(), AbortLimits())
    assert [judge.see(Load(summary="", ping_ms=ping)).word for ping in (300, 240, 201, 200, 240)] == [
        "wait",
        "wait",
        "wait",
        "go",
        "go",
    ]


def test_only_several_readings_in_a_row_abort() -> None:
    judge = LoadJudge(LoadLimits(), AbortLimits())
    words = [judge.see(Load(summary="", queue=queue)).word for queue in (600, 600, 10, *[600] * STRIKES)]
    assert words == ["wait", "wait", "go", "wait", "wait", "abort"]


# --- ranges --------------------------------------------------------------------------------------------------------

IDS = st.one_of(
    st.integers(-(2**31), 2**31),
    st.text(max_size=8).filter(lambda text: "\x00" not in text),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.dates().map(lambda d: datetime(d.year, d.month, d.day, tzinfo=UTC)),
)
ORDER = ["number", "string", "objectId", "date"]
AS_READ: CodecOptions[Any] = CodecOptions(tz_aware=True)


def read(one: Any) -> bytes:
    """A document as the server sends it."""
    return bson.encode({"_id": one})


@given(
    st.lists(IDS, unique_by=lambda one: bson.encode({"v": one}), max_size=300), st.integers(1, 80), st.integers(1, 8)
)
def test_ranges_cover_each_id_exactly_once(ids: list[Any], size: int, at_least: int) -> None:
    ids.sort(key=lambda one: (ORDER.index(kind_of(read(one))), one))
    cutter = Cutter(AS_READ, stride=7)
    for one in ids:
        cutter.take(read(one))
    ranges = cutter.ranges(size, at_least)
    assert sum(stretch.documents for stretch in ranges) == len(ids)
    for one in ids:
        found = [r for r in ranges if r.kind == kind_of(read(one)) and within(one, *bounds(r))]
        assert len(found) == 1, "in no range, or in two"
    assert [stretch.number for stretch in ranges] == list(range(len(ranges)))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "bool"),
        (1, "number"),
        (Int64(1), "number"),
        (1.5, "number"),
        (Decimal128("1"), "number"),
        ("a", "string"),
        (ObjectId(), "objectId"),
        (Binary(b"a", 4), "binData"),
        (datetime(2024, 6, 1, tzinfo=UTC), "date"),
        (Timestamp(1, 1), "timestamp"),
        (None, "null"),
        (MinKey(), "minKey"),
        (MaxKey(), "maxKey"),
        ({"a": 1}, "object"),
    ],
)
def test_ids_are_of_the_kind_that_the_server_compares_them_within(value: Any, kind: str) -> None:
    assert kind_of(read(value)) == kind
    assert id_of(read(value), AS_READ) == value


def test_an_id_of_a_type_that_no_range_can_be_of_is_refused() -> None:
    with pytest.raises(ApplicationError, match=r"BSON type 11 .* by hand"):
        kind_of(read(Regex("a")))


def test_counted_kinds_need_no_cut_where_none_is_too_large() -> None:
    counted = {"int": 3, "double": 4, "objectId": 5}
    ranges = whole_kinds(counted, 7, first_number=2)
    assert ranges is not None
    assert [(one.number, one.kind, one.documents) for one in ranges] == [(2, "number", 7), (3, "objectId", 5)]
    assert whole_kinds(counted, 6) is None
    assert whole_kinds({}, 6) == ()
    with pytest.raises(ApplicationError, match=r"of type regex .* by hand"):
        whole_kinds(counted | {"regex": 1}, 7)


@given(st.lists(IDS, max_size=20))
def test_an_answer_is_taken_apart_into_its_documents(ids: list[Any]) -> None:
    documents = [read(one) for one in ids]
    assert list(documents_in(b"".join(documents))) == documents


def within(one: Any, after: Any, upto: Any) -> bool:
    return (after is None or one > after) and (upto is None or one <= upto)


def test_planning_keeps_memory_and_history_small() -> None:
    cutter = Cutter(AS_READ)
    for number in range(1_000_000):
        cutter.take(read(number))
        assert len(cutter._cuts) <= MOST_CUTS
    ranges = cutter.ranges(100_000, 2)
    assert 10 <= len(ranges) <= 20
    assert sum(stretch.documents for stretch in ranges) == 1_000_000
    assert all(stretch.documents <= 100_000 for stretch in ranges)


def test_long_ids_are_cut_less_finely() -> None:
    cutter = Cutter(AS_READ, stride=1)
    for number in range(2000):
        cutter.take(read(f"{number:06}" + "x" * 5000))
    ranges = cutter.ranges(10, 1)
    assert sum(len(stretch.model_dump_json()) for stretch in ranges) <= 400_000
    assert sum(stretch.documents for stretch in ranges) == 2000


@given(IDS)
def test_ids_survive_the_history(one: Any) -> None:
    assert decode(encode(one)) == one
    assert type(decode(encode(Int64(5)))) is Int64


# --- progress ------------------------------------------------------------------------------------------------------


def test_progress_rate_and_time_left() -> None:
    progress = Progress(total=10_000)
    for second in range(11):
        progress.flying = {0: second * 100, 1: second * 100}
        progress.note(T0 + timedelta(seconds=second))
    assert (progress.done, progress.percent) == (2000, 20.0)
    assert progress.rate() == pytest.approx(200)
    left = progress.time_left()
    assert left is not None
    assert left.likely == left.best == left.worst == timedelta(seconds=40)
    assert progress.described("the disk is slow") == (
        "████░░░░░░░░░░░░░░░░ 20 % · 2,000 of 10,000 · 200 a second · about 40 s left (40 s to 40 s)"
        " · WAITS: the disk is slow"
    )


@given(st.lists(st.tuples(st.floats(0.6, 100), st.integers(0, 5000)), min_size=1, max_size=80), st.integers(1, 10**7))
def test_the_likely_time_lies_in_its_range(steps: list[tuple[float, int]], total: int) -> None:
    progress, now = Progress(total=total), T0
    progress.note(now)
    for seconds, documents in steps:
        now += timedelta(seconds=seconds)
        progress.landed += documents
        progress.note(now)
    assert 0 <= progress.percent <= 100
    assert len(progress.samples) <= 40
    if left := progress.time_left():
        assert left.best <= left.likely
        assert left.worst is None or left.likely <= left.worst
    assert Progress.model_validate_json(progress.model_dump_json()) == progress


def test_nothing_to_do_is_all_done() -> None:
    assert Progress().percent == 100
    assert Progress(total=5).time_left() is None


# --- windows -------------------------------------------------------------------------------------------------------


def hours(number: float) -> datetime:
    return T0 + timedelta(hours=number)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0, Opening(True, hours(3))),
        (3, Opening(False, hours(24))),
        (23.9, Opening(False, hours(24))),
        (24, Opening(True, hours(27))),
        (27, Opening(False, hours(48))),
        (50, Opening(True, hours(51))),
        (51, Opening(False, None)),
    ],
)
def test_windows(now: float, expected: Opening) -> None:
    later = [OpenWindow(opens=hours(24), closes=hours(27)), OpenWindow(opens=hours(48), closes=hours(51))]
    assert opening(hours(now), hours(3), later) == expected
    assert opening(hours(now), None, []) == Opening(True, None)


# --- what is refused at once ---------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "stage": "x",
    "reason": "r",
    "collection": "sessions",
    "filter": {"a": {"$exists": False}},
    "update": {"$set": {"a": 1}},
}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"filter": {}}, 'Say "all_documents": true'),
        ({"all_documents": True}, "for an empty filter"),
        ({"filter": {"$where": "sleep(1)"}}, "$where, which runs code"),
        ({"filter": {"$or": [{"a": 1}, {"$expr": {"$function": {}}}]}}, "$function, which runs code"),
        ({"filter": {"_id": {"$oid": "xyz"}}}, "the filter is not Extended JSON (InvalidId)"),
        ({"filter": {"n": 2**70}}, "not Extended JSON (OverflowError)"),
        ({"update": {}}, "the update is empty"),
        ({"update": {"a": 1}}, "'a' is not an operator"),
        ({"update": {"$set": {"a": 1}, "b": 1}}, "'b' is not an operator"),
        ({"update": {"$setOnInsert": {"a": 1}}}, "$setOnInsert is not allowed"),
        ({"update": {"$set": {"_id": 1}}}, "touches _id"),
        ({"update": {"$unset": {"_id": ""}}}, "touches _id"),
        ({"update": {"$rename": {"a": "_id"}}}, "touches _id"),
        ({"update": {"$set": {"_id.tenant": 1}}}, "touches _id"),
        ({"update": {"$set": {}}}, "at least one field"),
        ({"update": {"$set": {"a..b": 1}}}, "is no path"),
        ({"update": {"$set": {"a.$[x].b": 1}}}, "needs array filters"),
        ({"update": []}, "the update is empty"),
        ({"update": [{"$match": {}}]}, "$match is no stage"),
        ({"update": [{"$lookup": {}}]}, "$lookup is no stage"),
        ({"update": [{"$set": {"a": 1}, "$unset": "b"}]}, "exactly one field"),
        ({"update": [{"$set": {"a": {"$accumulator": {}}}}]}, "$accumulator, which runs code"),
        ({"update": [{"$unset": "_id"}]}, "touches _id"),
        ({"update": [{"$set": {"_id": 1}}]}, "touches _id"),
        ({"update": [{"$project": {"_id": "$other"}}]}, "touches _id"),
        ({"update": "x"}, "valid dictionary"),
        ({"collection": "system.users"}, "belongs to the server"),
        ({"collection": "_runbook_journal_1"}, "belongs to the server"),
        ({"collection": "a$b"}, "cannot be the name"),
        ({"batch": {"min": 500, "initial": 100}}, "min <= initial <= max"),
        ({"abort": {"ping_ms": 100}}, "abort.ping_ms (100) has to be above throttle.ping_ms (250)"),
        ({"partitions": 9}, "less than or equal to 8"),
        ({"until": "2030-01-01T00:00:00"}, "timezone"),
        ({"windows": [{"opens": hours(1), "closes": hours(2)}]}, "give the end of the first window"),
        ({"until": hours(3), "windows": [{"opens": hours(2), "closes": hours(4)}]}, "in order, without overlap"),
    ],
)
def test_bad_input_is_refused_at_once(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        BatchedUpdateInput.model_validate(GOOD | given)
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("update", "fields"),
    [
        ({"$set": {"a.b": 1, "a.c": 2}, "$unset": {"d": ""}}, ("a", "d")),
        ({"$rename": {"a.x": "b.y"}}, ("a", "b")),
        ({"$push": {"list": {"$each": [1]}}, "$currentDate": {"at": True}}, ("list", "at")),
        ([{"$set": {"a": 1}}, {"$unset": ["b", "c.d"]}], ("a", "b", "c")),
        ([{"$set": {"a": 1}}, {"$replaceWith": "$a"}], ("*",)),
        ([{"$project": {"a": 1}}], ("*",)),
    ],
)
def test_what_an_undo_needs(update: Any, fields: tuple[str, ...]) -> None:
    assert touched_fields(BatchedUpdateInput.model_validate(GOOD | {"update": update}).update) == fields
