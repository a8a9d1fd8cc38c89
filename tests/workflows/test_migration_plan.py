"""Estimates and verdicts of a migration: the document's figures, tables, and properties."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.migration_models import MigrationState, QueryCost
from workflows import migration_plan
from workflows.database_migration_model import DatabaseMigrationInput
from workflows.migration_plan import GIGABYTE, Rehearsal


def state(**more: Any) -> MigrationState:
    known = {"summary": "", "server": "MongoDB 8.0", "kind": "collection", "documents": 1000, "cost": QueryCost()}
    return MigrationState.model_validate({**known, **more})


def test_the_documents_rule_is_five_minutes_a_gigabyte() -> None:
    assert migration_plan.by_rule(state(collection_bytes=3 * GIGABYTE)) == timedelta(minutes=15)
    assert migration_plan.by_rule(state()) is None


def test_the_measured_rate_is_of_documents_to_migrate() -> None:
    rehearsal = Rehearsal(summary="", seconds=10, documents=1000)
    assert migration_plan.measured(state(documents=9000, remaining=5000), rehearsal) == timedelta(seconds=50)
    assert migration_plan.measured(state(documents=9000), rehearsal) == timedelta(seconds=90)
    for unknown in (None, Rehearsal(summary=""), Rehearsal(summary="", seconds=3, documents=0)):
        assert migration_plan.measured(state(), unknown) is None


def test_the_longer_estimate_is_reckoned_with() -> None:
    rehearsal = Rehearsal(summary="", seconds=10, documents=1000)
    large = state(collection_bytes=GIGABYTE, remaining=1000)
    assert migration_plan.estimate(large, rehearsal) == timedelta(minutes=5)
    assert migration_plan.estimate(state(collection_bytes=1, remaining=100_000), rehearsal) == timedelta(seconds=1000)
    assert migration_plan.eta_line(state(), None) == "size not known, no rate measured"


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_counts_that_hardly_moved_are_the_same_plan(before: int, now: int) -> None:
    seen = migration_plan.steady(state(documents=before), state(documents=now)).documents
    moved = abs(now - before) > max(migration_plan.STEADY_DOCUMENTS, migration_plan.STEADY_SHARE * before)
    assert seen == (now if moved else before)


def test_what_is_not_a_count_is_always_as_seen_now() -> None:
    before, now = state(index_ready=False, remaining=5), state(index_ready=True, remaining=None)
    seen = migration_plan.steady(before, now)
    assert (seen.index_ready, seen.remaining) == (True, None)


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        (80.0, 2.0, True),
        (80.0, 99.0, True),
        (80.0, 101.0, False),
        (1.0, 5.9, True),  # within the noise
        (1.0, 6.1, False),
        (None, 3.0, True),  # too slow to be measured before
        (3.0, None, False),
        (None, None, False),
    ],
)
def test_performance(before: float | None, after: float | None, good: bool) -> None:
    assert migration_plan.performance(QueryCost(latency_ms=before), QueryCost(latency_ms=after))[0] is good


@pytest.mark.parametrize(
    ("before", "after", "good"), [(2000, 20, True), (2000, 1000, False), (20, 2000, False), (None, 20, False)]
)
def test_a_slower_query_that_does_far_less_is_slow_for_another_reason(
    before: int | None, after: int | None, good: bool
) -> None:
    costs = (QueryCost(latency_ms=5, docs_examined=before), QueryCost(latency_ms=60, docs_examined=after))
    told = migration_plan.performance(*costs)
    assert told[0] is good
    assert ("the database is busier" in told[1]) is good


@pytest.mark.parametrize(("before", "after", "there"), [(5, 5, True), (5, 9, True), (5, 4, False), (0, 0, True)])
def test_documents_do_not_vanish(before: int, after: int, there: bool) -> None:
    assert migration_plan.count_change(before, after)[0] is there


@pytest.mark.parametrize(
    ("change", "journal", "text"),
    [
        ({"kind": "add_index", "keys": {"a": 1}, "query": {"a": 1}}, True, "dropIndexes"),
        ({"kind": "backfill_field", "field": "a", "value": 1}, True, "by the journal"),
        ({"kind": "backfill_field", "field": "a", "value": 1}, False, "there is no journal"),
    ],
)
def test_the_way_back_is_written_down(change: dict[str, Any], journal: bool, text: str) -> None:
    inp = DatabaseMigrationInput.model_validate(
        {"stage": "p", "reason": "r", "change": {"collection": "sessions", **change}, "journal": journal}
    )
    plan = migration_plan.rollback_plan(inp, "s3://b/1")
    assert text in plan
    assert "s3://b/1" in plan
    assert [line[:2] for line in plan.splitlines()] == ["1.", "2.", "3.", "4."]
