"""The clocks of an incident: tables for what people expect, properties for whatever may happen in whatever order.

The world of the properties wakes exactly when :func:`next_due` says, as the workflow does, so what holds here about
moments holds for the workflow's timers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.incident_policy import SEVERITIES, Clock, IncidentPolicy
from workflows import incident_clocks as clocks
from workflows.incident_clocks import Book, Event

POLICY = IncidentPolicy()
START = datetime(2026, 1, 20, 10, 0, tzinfo=UTC)  # a Tuesday
MINUTE = timedelta(minutes=1)


@dataclass
class World:
    """An incident whose time passes exactly as its book asks."""

    severity: Any = "P1"
    now: datetime = START
    policy: IncidentPolicy = POLICY
    events: list[tuple[datetime, Event]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.book = clocks.open_book(self.policy, self.severity, self.now)
        self.wake()

    def wake(self) -> None:
        self.events += [(self.now, event) for event in clocks.take(self.book, self.policy, self.now)]

    def pass_time(self, length: timedelta) -> None:
        until = self.now + length
        while (due := clocks.next_due(self.book, self.policy)) is not None and due <= until:
            self.now = max(due, self.now)
            self.wake()
        self.now = until

    def do(self, name: str) -> None:
        book, now = self.book, self.now
        match name:
            case "ack":
                clocks.acknowledge(book, self.policy, "ann", now)
            case "progress":
                clocks.progress(book, now)
            case "relapse":
                clocks.relapse(book, self.policy, now)
            case "P1" | "P2" | "P3" | "P4":
                clocks.set_severity(book, self.policy, name, now)
            case _:
                clocks.reach(book, self.policy, name, now)  # type: ignore[arg-type]
        self.wake()

    def missed(self) -> list[str]:
        return [f"{e.clock.severity}/{e.clock.id}" for _, e in self.events if e.kind == "missed" and e.clock]

    def minutes(self, kind: str) -> list[float]:
        return [(at - START) / MINUTE for at, event in self.events if event.kind == kind]

    def called(self) -> list[tuple[float, str, int]]:
        return [
            ((at - START) / MINUTE, event.level.who, event.round)
            for at, event in self.events
            if event.kind == "page" and event.level
        ]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_p1_is_called_level_after_level_and_round_again_until_somebody_acknowledges() -> None:
    world = World("P1")
    world.pass_time(12 * MINUTE)
    assert world.called() == [(0, "on-call engineer", 1), (5, "engineering lead", 1), (10, "on-call engineer", 2)]
    world.do("ack")
    world.pass_time(20 * MINUTE)
    assert len(world.called()) == 3
    assert world.missed() == []


def test_a_missed_response_calls_the_next_at_once() -> None:
    world = World("P1")
    world.pass_time(16 * MINUTE)
    assert world.missed() == ["P1/response"]
    assert [minute for minute, _, _ in world.called()] == [0, 5, 10, 15]


def test_an_acknowledgement_without_progress_expires_and_people_are_called_again() -> None:
    world = World("P1")
    world.do("ack")
    world.pass_time(20 * MINUTE)
    world.do("progress")
    world.pass_time(29 * MINUTE)
    assert world.minutes("ack_expired") == []
    world.pass_time(2 * MINUTE)
    assert world.minutes("ack_expired") == [50]
    assert world.called()[1:] == [(50, "on-call engineer", 1)]
    assert world.missed() == [], "the response was in time, whatever came of it"


def test_p2_by_the_document() -> None:
    world = World("P2")
    world.pass_time(timedelta(hours=5))
    assert world.missed() == ["P2/alert", "P2/response", "P2/cause", "P2/workaround", "P2/stable"]
    assert world.minutes("missed") == [15, 60, 60, 120, 240]


def test_p2_in_time_misses_nothing_but_a_post_mortem_that_nobody_holds() -> None:
    world = World("P2")
    for minutes, what in ((5, "ack"), (45, "cause"), (60, "mitigated"), (100, "stable"), (10, "resolved")):
        world.pass_time(minutes * MINUTE)
        world.do(what)
    assert world.missed() == []
    resolved = world.now
    world.pass_time(timedelta(days=8))
    assert world.missed() == ["P2/post-mortem"]
    assert world.events[-1][0] == resolved + timedelta(weeks=1)


def test_a_change_of_severity_plans_anew() -> None:
    world = World("P3")
    world.pass_time(timedelta(hours=3))
    world.do("P1")
    assert world.called() == [(180, "on-call engineer", 1)]
    running = {clock.key.rpartition("/")[0]: (clock.due - START) / MINUTE for clock in world.book.clocks if clock.runs}
    assert running["P1/response"] == 195, "counts from when it became a P1"
    assert running["P3/response"] == 240, "goes on: a P1 is at least a P3"
    world.do("P3")
    assert {c.severity for c in world.book.clocks if c.runs} == {"P3"}
    assert world.book.paging is None, "a P3 calls nobody by itself"


def test_milder_counts_from_when_it_was_at_least_that_severe() -> None:
    world = World("P1")
    world.do("ack")
    world.pass_time(90 * MINUTE)
    world.do("P2")
    assert world.missed() == ["P2/cause"], "a cause within one hour, and an hour and a half have passed"


def test_a_relapse_begins_anew() -> None:
    world = World("P1")
    for what in ("ack", "mitigated"):
        world.pass_time(5 * MINUTE)
        world.do(what)
    world.pass_time(5 * MINUTE)
    world.do("relapse")
    assert world.called()[-1] == (15, "on-call engineer", 1)
    world.pass_time(14 * MINUTE)
    assert world.missed() == []
    world.pass_time(2 * MINUTE)
    assert world.missed() == ["P1/response"], "the new outbreak wants a response of its own"


def test_the_post_mortem_is_that_of_the_worst_severity() -> None:
    world = World("P1")
    world.do("ack")
    world.do("P3")
    world.do("resolved")
    assert [(c.severity, c.id) for c in world.book.clocks if c.runs] == [("P1", "post-mortem")]


@pytest.mark.parametrize(
    ("opened", "due"),
    [
        ("2026-01-20T10:00", "2026-01-21T10:00"),
        ("2026-01-23T16:00", "2026-01-26T16:00"),  # Friday at four, Monday at four
        ("2026-01-24T12:00", "2026-01-26T17:00"),  # Saturday: within Monday
        ("2026-01-20T20:00", "2026-01-21T17:00"),
        ("2026-01-20T07:00", "2026-01-20T17:00"),
    ],
)
def test_p4_responds_the_next_business_day(opened: str, due: str) -> None:
    moment = datetime.fromisoformat(opened).replace(tzinfo=UTC)
    world = World("P4", now=moment)
    assert [clock.due for clock in world.book.clocks] == [datetime.fromisoformat(due).replace(tzinfo=UTC)]


def test_time_zone_and_holidays_count() -> None:
    hours = {
        "time_zone": "Europe/Berlin",
        "windows": [{"days": ["mon", "tue", "wed", "thu", "fri"], "opens": "09:00", "closes": "17:00"}],
        "holidays": ["2026-04-03", "2026-04-06"],  # Good Friday and Easter Monday
    }
    policy = IncidentPolicy.model_validate({"business_hours": hours})
    clock = Clock(id="x", title="x", met_by="cause", business_days=1)
    thursday = datetime(2026, 4, 2, 14, 0, tzinfo=UTC)  # four in Berlin
    assert clocks.due_at(policy, clock, thursday) == datetime(2026, 4, 7, 14, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("resolved", "deadline", "slot"),
    [
        ("2026-01-20T10:00", timedelta(hours=48), "2026-01-20T14:00"),
        ("2026-01-20T10:07:31.500000", timedelta(hours=48), "2026-01-20T14:15"),
        ("2026-01-20T11:50:10", timedelta(hours=48), "2026-01-20T16:00"),
        ("2026-01-20T12:00:01", timedelta(hours=48), "2026-01-21T10:00"),  # a quarter past four is too late for an hour
        ("2026-01-20T14:00", timedelta(hours=48), "2026-01-21T10:00"),
        ("2026-01-23T18:00", timedelta(weeks=1), "2026-01-26T10:00"),
        ("2026-01-23T18:00", timedelta(hours=48), "2026-01-25T17:00"),  # nobody is at work before it is due
        ("2026-01-23T18:05:01", timedelta(hours=48), "2026-01-25T17:00"),
    ],
)
def test_when_the_post_mortem_is_held(resolved: str, deadline: timedelta, slot: str) -> None:
    moment = datetime.fromisoformat(resolved).replace(tzinfo=UTC)
    found = clocks.post_mortem_slot(POLICY, moment, moment + deadline)
    assert found == datetime.fromisoformat(slot).replace(tzinfo=UTC)


# --- properties -----------------------------------------------------------------------------------------------------

OPS = st.sampled_from(
    ["P1", "P2", "P3", "P4", "ack", "progress", "alerted", "cause", "mitigated", "stable", "resolved", "relapse"]
)
PASSES = st.one_of(st.integers(0, 90), st.integers(0, 60 * 24 * 10)).map(lambda minutes: minutes * MINUTE)
STORIES = st.lists(st.tuples(PASSES, OPS), max_size=25)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEVERITIES), STORIES)
def test_no_clock_is_lost_none_fires_twice_none_fires_after_it_was_met(severity: Any, story: list[Any]) -> None:
    world = World(severity)
    seen: dict[str, datetime] = {}
    for length, op in story:
        world.pass_time(length)
        world.do(op)
        book = world.book
        for key in seen:
            assert any(clock.key == key for clock in book.clocks), "a clock is never forgotten"
        for clock in book.clocks:
            assert seen.setdefault(clock.key, clock.due) == clock.due, "and never moved"
            ends = [end for end in (clock.met_at, clock.missed_at, clock.dropped_at) if end is not None]
            assert len(ends) <= 1, "it ends in one way"
            assert not clock.runs or clock.due > world.now, "what is due has been given"
        due = clocks.next_due(book, POLICY)
        assert due is None or due > world.now
        assert all(due is not None and due <= clock.due for clock in book.clocks if clock.runs), "all are waited for"
        expected = {clock.id for clock in POLICY.rule(book.severity).clocks if clock.begins == "opened"}
        if not book.reached("resolved"):
            here = {c.id for c in book.clocks if c.severity == book.severity and c.dropped_at is None}
            assert expected <= here, "every clock of the severity is there: running, met or missed"
    fired = [event.clock.key for _, event in world.events if event.kind == "missed" and event.clock]
    assert len(set(fired)) == len(fired), "none fires twice"
    for at, event in world.events:
        if event.kind == "missed" and event.clock:
            ended = next(clock for clock in world.book.clocks if clock.key == event.clock.key)
            assert (ended.missed_at, ended.met_at) == (at, None), "none fires after it was met"


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SEVERITIES), STORIES)
def test_nobody_is_called_while_somebody_is_on_it(severity: Any, story: list[Any]) -> None:
    world = World(severity)
    for length, op in story:
        before = len(world.events)
        world.pass_time(length)
        world.do(op)
        for _, event in world.events[before:]:
            if event.kind == "page" and event.clock is None:
                assert POLICY.rule(world.book.severity).ladder or op in SEVERITIES
        assert world.book.paging is None or not world.book.reached("acknowledged")
        rule = POLICY.rule(world.book.severity)
        unanswered = not any(world.book.reached(name) for name in ("acknowledged", "stable", "resolved"))
        assert (world.book.paging is not None) == (bool(rule.ladder) and unanswered), "called for as long as it takes"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SEVERITIES), STORIES)
def test_a_book_that_is_carried_goes_on_the_same(severity: Any, story: list[Any]) -> None:
    one, other = World(severity), World(severity)
    for length, op in story:
        for world in (one, other):
            world.pass_time(length)
            world.do(op)
        other.book = Book.model_validate_json(other.book.model_dump_json())
    assert one.events == other.events


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60 * 24 * 600), st.integers(1, 10))
def test_business_days_are_counted_in_business_hours(minutes: int, days: int) -> None:
    since = START + minutes * MINUTE
    end = clocks.add_business_days(POLICY, since, days)
    worked = timedelta(0)
    day = since.replace(hour=0, minute=0, second=0, microsecond=0)
    while day < end:
        if day.weekday() < 5:
            opens, closes = day + timedelta(hours=9), day + timedelta(hours=17)
            worked += max(timedelta(0), min(end, closes) - max(since, opens))
        day += timedelta(days=1)
    assert worked == days * timedelta(hours=8)
