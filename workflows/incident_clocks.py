"""The clocks of an incident: what is due when, as pure functions of the policy and of what has happened.

One book holds it all: severity, milestones, clocks, paging, acknowledgement, status updates. Whatever happens is
entered with one of the functions here, and everything that depends on it is planned anew in the same moment.
:func:`next_due` says when to look again; :func:`take` gives what is due by then, each thing once.

An incident that is P1 is at least P2: a clock that runs goes on when the incident gets worse, beside the new ones, and
ends when it gets milder. A clock counts from when the incident became at least that severe.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, Field

from activities.incident_policy import SEVERITIES, Clock, IncidentPolicy, Level, Milestone, SeverityName, SeverityRule
from workflows import maintenance

IMPLIED: dict[Milestone, tuple[Milestone, ...]] = {"acknowledged": ("alerted",), "stable": ("mitigated",)}
"""Reaching the one is proof of the others."""


class RunningClock(BaseModel):
    """One clock of one severity. It ends in exactly one way: met, missed, or dropped."""

    key: str = Field(description="Names this clock for ever")
    id: str
    title: str
    severity: SeverityName
    met_by: Milestone
    begins: Literal["opened", "resolved"] = "opened"
    due: datetime
    met_at: datetime | None = None
    missed_at: datetime | None = None
    dropped_at: datetime | None = None

    @property
    def runs(self) -> bool:
        return self.met_at is None and self.missed_at is None and self.dropped_at is None


class Paging(BaseModel):
    """Where on the ladder the calling stands."""

    next_at: datetime
    level: int = 0
    round: int = 1


class Event(BaseModel):
    """Something that is due now."""

    kind: Literal["page", "missed", "ack_expired", "update"]
    at: datetime = Field(description="When it was due")
    clock: RunningClock | None = None
    level: Level | None = None
    round: int = 0
    number: int = Field(0, description="Counts the pages, or the updates, of the incident")


class Book(BaseModel):
    """Everything of an incident that time acts upon."""

    opened_at: datetime
    severity: SeverityName
    worst: SeverityName
    episode: int = Field(1, description="Counts the times it broke out: a relapse is the next one")
    became: dict[SeverityName, datetime] = Field(default_factory=dict, description="Since when at least that severe")
    milestones: dict[Milestone, datetime] = Field(default_factory=dict)
    first: dict[Milestone, datetime] = Field(
        default_factory=dict, description="When each was first reached in this episode, even if it was lost since"
    )
    clocks: list[RunningClock] = Field(default_factory=list)
    paging: Paging | None = None
    pages: int = 0
    responder: str | None = Field(None, description="Who has acknowledged")
    progress_at: datetime | None = Field(None, description="Last sign that somebody works on it")
    updated_at: datetime
    updates: int = 0

    def reached(self, milestone: Milestone) -> bool:
        return milestone in self.milestones


def at_least(severity: SeverityName) -> tuple[SeverityName, ...]:
    """The severity and all milder ones."""
    return SEVERITIES[SEVERITIES.index(severity) :]


def worse(one: SeverityName, other: SeverityName) -> bool:
    return SEVERITIES.index(one) < SEVERITIES.index(other)


# --- what happens --------------------------------------------------------------------------------------------------


def open_book(policy: IncidentPolicy, severity: SeverityName, now: datetime) -> Book:
    book = Book(opened_at=now, severity=severity, worst=severity, updated_at=now)
    _become(book, policy, severity, now)
    _call(book, policy, now)
    return book


def set_severity(book: Book, policy: IncidentPolicy, severity: SeverityName, now: datetime) -> None:
    """Another severity from now on: its clocks begin, those of worse ones are dropped.

    Getting worse calls people from the first level again; getting milder calls nobody anew.
    """
    if severity == book.severity:
        return
    before, book.severity = book.severity, severity
    for name in [name for name in book.became if name not in at_least(severity)]:
        del book.became[name]
    for clock in book.clocks:
        if clock.runs and clock.begins == "opened" and clock.severity not in at_least(severity):
            clock.dropped_at = now
    if worse(severity, book.worst):
        book.worst = severity
        if book.reached("resolved"):
            _begin(book, policy, severity, book.milestones["resolved"], begins="resolved")
    if book.reached("resolved"):
        return
    progress(book, now)
    _become(book, policy, severity, now)
    if worse(severity, before) or not _rule(book, policy).ladder:
        _call(book, policy, now)


def reach(book: Book, policy: IncidentPolicy, milestone: Milestone, now: datetime) -> None:
    """Something has happened: the clocks that waited for it stop, now and for good."""
    for proven in (*IMPLIED.get(milestone, ()), milestone):
        book.milestones.setdefault(proven, now)
        book.first.setdefault(proven, now)
        for clock in book.clocks:
            if clock.runs and (clock.met_by == proven or (proven == "resolved" and clock.begins == "opened")):
                clock.met_at = now
    if milestone in ("stable", "resolved"):
        book.paging = None  # nobody is got out of bed for a service that is well
    if milestone == "resolved":
        _begin(book, policy, book.worst, now, begins="resolved")


def acknowledge(book: Book, policy: IncidentPolicy, by: str, now: datetime) -> None:
    """Somebody is on it: the calling stops, until this acknowledgement expires without progress."""
    book.responder, book.progress_at, book.paging = by, now, None
    reach(book, policy, "acknowledged", now)


def progress(book: Book, now: datetime) -> None:
    """Somebody did something: an acknowledgement counts anew from here."""
    if book.progress_at is not None:
        book.progress_at = now


def updated(book: Book, now: datetime) -> None:
    """People were told how it stands: the next update is due a whole interval from now."""
    book.updated_at = now


def relapse(book: Book, policy: IncidentPolicy, now: datetime) -> None:
    """It broke out again: a new episode, in which every clock begins anew and people are called again."""
    for clock in book.clocks:
        if clock.runs:
            clock.dropped_at = now
    book.episode += 1
    book.milestones = {name: at for name, at in book.milestones.items() if name in ("declared", "cause")}
    book.first = dict(book.milestones)
    book.responder = book.progress_at = None
    book.became, book.worst, book.updated_at = {}, book.severity, now
    _become(book, policy, book.severity, now)
    _call(book, policy, now)


# --- what is due ----------------------------------------------------------------------------------------------------


def next_due(book: Book, policy: IncidentPolicy) -> datetime | None:
    """The next moment at which :func:`take` has something to give."""
    return min((at for at, _ in upcoming(book, policy)), default=None)


def upcoming(book: Book, policy: IncidentPolicy) -> list[tuple[datetime, str]]:
    """All that is due some time, soonest first, in words."""
    found = [
        (clock.due, f"{clock.severity} {clock.id}: {clock.title}, or it is missed")
        for clock in book.clocks
        if clock.runs
    ]
    others = (
        (_page_at(book), "the next person is called"),
        (_ack_expires_at(book, policy), "the acknowledgement expires without a sign of work"),
        (_update_at(book, policy), "a status update"),
    )
    return sorted([*found, *((at, what) for at, what in others if at is not None)])


def take(book: Book, policy: IncidentPolicy, now: datetime) -> list[Event]:
    """What is due by now, oldest first; each thing is given once, and afterwards everything due lies ahead."""
    events: list[Event] = []
    for clock in sorted((c for c in book.clocks if c.runs and c.due <= now), key=lambda c: c.due):
        clock.missed_at = now
        events.append(Event(kind="missed", at=clock.due, clock=clock.model_copy()))
        events += _escalate(book, policy, clock, now)
    expires = _ack_expires_at(book, policy)
    if expires is not None and expires <= now:
        events.append(Event(kind="ack_expired", at=expires))
        book.responder = book.progress_at = None
        book.milestones.pop("acknowledged", None)
        _call(book, policy, now)
    if book.paging is not None and book.paging.next_at <= now:
        events.append(_page(book, book.paging, _rule(book, policy), now))
    update = _update_at(book, policy)
    if update is not None and update <= now:
        book.updates += 1
        book.updated_at = now
        events.append(Event(kind="update", at=update, number=book.updates))
    return events


def _page_at(book: Book) -> datetime | None:
    return book.paging.next_at if book.paging else None


def _ack_expires_at(book: Book, policy: IncidentPolicy) -> datetime | None:
    after = _rule(book, policy).ack_expires
    if after is None or book.progress_at is None or book.reached("mitigated") or book.reached("resolved"):
        return None
    return book.progress_at + after


def _update_at(book: Book, policy: IncidentPolicy) -> datetime | None:
    rule = _rule(book, policy)
    if rule.update_every is None or book.reached("resolved"):
        return None
    due = book.updated_at + rule.update_every
    return in_business_hours(policy, due) if rule.business_hours else due


def _escalate(book: Book, policy: IncidentPolicy, clock: RunningClock, now: datetime) -> list[Event]:
    """A missed clock calls the next on the ladder at once; while nobody is being called, who answers for it.

    A post-mortem that is late wakes nobody: the channel hears of it.
    """
    if clock.begins == "resolved":
        return []
    if book.paging is not None:
        book.paging.next_at = min(book.paging.next_at, now)
        return []
    level = policy.rule(clock.severity).missed
    if level is None:
        return []
    book.pages += 1
    return [Event(kind="page", at=clock.due, level=level, number=book.pages, clock=clock.model_copy())]


def _page(book: Book, paging: Paging, rule: SeverityRule, now: datetime) -> Event:
    number = paging.level % len(rule.ladder)  # the ladder of this severity may be shorter than the one before
    level = rule.ladder[number]
    book.pages += 1
    event = Event(kind="page", at=paging.next_at, level=level, round=paging.round, number=book.pages)
    last = number + 1 == len(rule.ladder)
    book.paging = Paging(
        next_at=now + level.wait,
        level=0 if last else number + 1,
        round=paging.round + (1 if last else 0),
    )
    return event


def nobody_took_it(book: Book, now: datetime, pause: timedelta) -> None:
    """The page reached nobody: the next level is not made to wait for an answer that cannot come."""
    if book.paging is not None:
        book.paging.next_at = min(book.paging.next_at, now + pause)


def _call(book: Book, policy: IncidentPolicy, now: datetime) -> None:
    """Begin to call people, from the first level, unless somebody is on it or nobody is called at this severity."""
    if not _rule(book, policy).ladder or book.reached("acknowledged") or book.reached("stable"):
        book.paging = None
    else:
        book.paging = Paging(next_at=now)


def _become(book: Book, policy: IncidentPolicy, severity: SeverityName, now: datetime) -> None:
    for name in at_least(severity):
        book.became.setdefault(name, now)
    _begin(book, policy, severity, book.became[severity], begins="opened", at=now)


def _begin(
    book: Book,
    policy: IncidentPolicy,
    severity: SeverityName,
    since: datetime,
    *,
    begins: Literal["opened", "resolved"],
    at: datetime | None = None,
) -> None:
    """Enter the clocks of this severity that begin now, each once for the time since when they count."""
    for clock in policy.rule(severity).clocks:
        key = f"{severity}/{clock.id}/{since:%Y%m%dT%H%M%S.%f}"
        known = next((found for found in book.clocks if found.key == key), None)
        if clock.begins != begins or (known is not None and known.dropped_at is None):
            continue
        if known is not None:
            known.dropped_at = None
        else:
            known = RunningClock(
                key=key,
                id=clock.id,
                title=clock.title,
                severity=severity,
                met_by=clock.met_by,
                begins=begins,
                due=due_at(policy, clock, since),
            )
            book.clocks.append(known)
        if known.runs and known.met_by in book.first:
            known.met_at = at or since


def _rule(book: Book, policy: IncidentPolicy) -> SeverityRule:
    return policy.rule(book.severity)


# --- time by the office clock ----------------------------------------------------------------------------------------


def due_at(policy: IncidentPolicy, clock: Clock, since: datetime) -> datetime:
    """When a clock that counts from then runs out."""
    if clock.within is not None:
        return since + clock.within
    return add_business_days(policy, since, clock.business_days or 1)


def add_business_days(policy: IncidentPolicy, since: datetime, days: int) -> datetime:
    """So many days' worth of business hours later: Friday at four plus one day is Monday at four."""
    left = days * _day_length(policy)
    for opens, closes in maintenance.intervals(policy.business_hours, since):
        begin = max(opens, since)
        if closes - begin >= left:
            return begin + left
        left -= closes - begin
    return since + timedelta(days=maintenance.HORIZON_DAYS)  # holidays all year: not never


def in_business_hours(policy: IncidentPolicy, moment: datetime) -> datetime:
    """The moment, or the next opening when nobody is at work then."""
    if maintenance.open_at(policy.business_hours, moment):
        return moment
    return maintenance.next_opening(policy.business_hours, moment) or moment


def _day_length(policy: IncidentPolicy) -> timedelta:
    window = next(window for window in policy.business_hours.windows if window.opens < window.closes)
    opens, closes = (timedelta(hours=t.hour, minutes=t.minute, seconds=t.second) for t in (window.opens, window.closes))
    return closes - opens


def post_mortem_slot(policy: IncidentPolicy, resolved_at: datetime, deadline: datetime | None) -> datetime:
    """When to meet: an hour into the first business day after the resolution, and in any case before the deadline.

    A meeting begins at a full quarter of an hour.
    """
    later = _quarter(add_business_days(policy, resolved_at, 1))
    for opens, closes in maintenance.intervals(policy.business_hours, resolved_at + timedelta(hours=4)):
        slot = _quarter(max(opens + timedelta(hours=1), resolved_at + timedelta(hours=4)))
        if slot + timedelta(hours=1) <= closes:
            later = slot
            break
    if deadline is not None and later + timedelta(hours=1) > deadline:
        return _quarter(deadline - timedelta(hours=1), before=True)
    return later


def _quarter(moment: datetime, *, before: bool = False) -> datetime:
    """The full quarter of an hour that the moment is, or the next one, or the one before."""
    past = timedelta(minutes=moment.minute % 15, seconds=moment.second, microseconds=moment.microsecond)
    return moment - past + (timedelta(minutes=15) if past and not before else timedelta(0))
