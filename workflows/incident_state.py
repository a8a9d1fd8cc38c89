"""What an incident knows of itself, beside what every run knows: plain data that is carried from run to run."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, Field

from activities.incident_policy import IncidentPolicy, Milestone, SeverityName
from workflows import incident_clocks
from workflows.details import APART, clock, escape, length
from workflows.diagnosis_model import Conclusion, Readings
from workflows.incident_clocks import Book
from workflows.model import TimelineEntry

KEPT_ALERTS = 100
"""Ids of alerts that are remembered, so that a repeated delivery counts once."""

KEPT_LOOKS = 200


class Call(BaseModel):
    """A page that was sent and has not been ended."""

    key: str
    who: str
    taken_by: str | None


class Tried(BaseModel):
    """One recovery option: offered to people, started, and whether it helped."""

    runbook: str
    offered_at: datetime
    why: str
    state: Literal["offered", "declined", "withdrawn", "running", "failed", "done"] = "offered"
    began_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    helped: bool | None = Field(None, description="Whether the service was good after it; None while that is not known")


class Look(BaseModel):
    """One look of the watch."""

    at: datetime
    good: bool | None
    text: str


class Action(BaseModel):
    """What was decided so that it does not happen again."""

    id: str
    text: str
    owner: str | None = None
    due: datetime
    added_by: str
    remind_at: datetime
    reminders: int = 0
    done_at: datetime | None = None
    done_by: str | None = None
    handed_to: str | None = None
    ticket: str | None = None

    @property
    def open(self) -> bool:
        return self.done_at is None and self.handed_to is None


class Situation(BaseModel):
    """The incident as it stands. The answer of the query ``situation``."""

    headline: str
    stage: str
    drill: bool = False
    detected_at: datetime | None = None
    detected_by: str | None = None
    book: Book | None = None
    roles: dict[str, str] = Field(default_factory=dict)
    responders: list[str] = Field(default_factory=list, description="Who has acknowledged or held a role")
    cause: str | None = None
    evidence: Readings | None = Field(None, description="Frozen at the first look, before anything was changed")
    conclusion: Conclusion | None = None
    latest: Readings | None = Field(None, description="Of a later look, where the first explained nothing")
    was_bad: bool = Field(False, description="Whether any look ever showed that something is wrong")
    alerts: list[str] = Field(default_factory=list)
    repeats: int = 0
    calls: list[Call] = Field(default_factory=list)
    tried: list[Tried] = Field(default_factory=list)
    looks: list[Look] = Field(default_factory=list)
    good_since: datetime | None = None
    bad_row: int = 0
    actions: list[Action] = Field(default_factory=list)
    documents: dict[str, str] = Field(default_factory=dict, description="Where the post-mortem lies, by format")
    meeting_at: datetime | None = None
    ticket: str | None = None
    written_for: int = Field(0, description="Episode whose documents are written")
    holds_stage: bool = False
    earlier: list[TimelineEntry] = Field(default_factory=list, description="Timeline of the runs before this one")

    def looked(self, look: Look) -> None:
        self.looks.append(look)
        del self.looks[:-KEPT_LOOKS]

    def seen_alert(self, alert: str) -> bool:
        """Whether this alert has been counted; counts it when it has not."""
        if alert in self.alerts:
            return True
        self.alerts.append(alert)
        del self.alerts[:-KEPT_ALERTS]
        return False

    def responded(self, name: str) -> None:
        if name not in self.responders:
            self.responders.append(name)

    def may_close(self) -> bool:
        """Whether nothing is left to do: resolved, the post-mortem held where one is due, every action off the list."""
        book = self.book
        if book is None or not book.reached("resolved"):
            return False
        due = any(clock.met_by == "post_mortem" and not clock.dropped_at for clock in book.clocks)
        return (not due or book.reached("post_mortem")) and not any(action.open for action in self.actions)

    def next_reminder(self) -> datetime | None:
        return min((action.remind_at for action in self.actions if action.open), default=None)


def add_action(situation: Situation, text: str, by: str, owner: str | None, due: timedelta, now: datetime) -> Action:
    action = Action(
        id=f"A{len(situation.actions) + 1}",
        text=text,
        owner=owner,
        due=now + due,
        added_by=by,
        remind_at=now + due,
    )
    situation.actions.append(action)
    return action


def due_reminders(situation: Situation, policy: IncidentPolicy, now: datetime) -> list[Action]:
    """The open actions that people are reminded of now; each is next reminded of when people are at work."""
    found = [action for action in situation.actions if action.open and action.remind_at <= now]
    for action in found:
        action.reminders += 1
        action.remind_at = incident_clocks.in_business_hours(policy, now + policy.remind_every)
    return found


SCORED: tuple[tuple[Milestone, str], ...] = (
    ("declared", "time to declare"),
    ("alerted", "time to alert"),
    ("acknowledged", "time to acknowledge"),
    ("cause", "time to the cause"),
    ("mitigated", "time to mitigate"),
    ("stable", "time to stable"),
    ("resolved", "time to resolve"),
)


def score(situation: Situation) -> dict[str, str]:
    """How long each thing took, from when the incident began: the score of a drill, and the figures of a real one."""
    book = situation.book
    if book is None:
        return {}
    taken: dict[str, str] = {}
    if situation.evidence is not None:
        taken["time to confirm"] = length(situation.evidence.taken_at - book.opened_at)
    reached = book.first | book.milestones
    for milestone, name in SCORED:
        if milestone in reached:
            taken[name] = length(reached[milestone] - book.opened_at)
    return taken


# --- the page -------------------------------------------------------------------------------------------------------


def page(situation: Situation, policy: IncidentPolicy, workflow_id: str, *, over: bool = False) -> str:
    """The part of the run's page that only an incident has. Of a run that is ``over``, nothing is due any more."""
    book = situation.book
    mark = "**DRILL** · " if situation.drill else ""
    if book is None:
        return f"## {mark}{escape(situation.headline)}\n\nLooking: nothing is concluded yet."
    who = ", ".join(f"{escape(role)} {escape(person)}" for role, person in situation.roles.items()) or "nobody yet"
    on_it = f"{escape(book.responder)} is on it" if book.responder else "**nobody has acknowledged**"
    lines = [f"## {mark}{book.severity}: {escape(situation.headline)}", f"In command: {who} · {on_it}"]
    if situation.cause:
        lines.append(f"Cause: {escape(situation.cause)}")
    elif situation.conclusion is not None:
        lines.append(_concluded(situation.conclusion))
    if situation.tried:
        lines.append("\n".join(f"- {escape(_tried(tried))}" for tried in situation.tried))
    if book.reached("resolved"):
        lines.append(_after(situation))
    elif not over:
        if situation.looks:
            look = situation.looks[-1]
            lines.append(f"Last seen {clock(look.at)}: {'' if look.good else '**bad**, '}{escape(look.text)}")
        due = incident_clocks.upcoming(book, policy)[:1]
        lines.append("".join(f"Next, {clock(at)} UTC: {escape(what)}" for at, what in due) or "Nothing is due")
    lines.append(_clocks(book))
    if not over:
        lines.append(_ways(workflow_id, book))
    return "\n\n".join(lines)


def _concluded(found: Conclusion) -> str:
    """What was found, the likeliest causes with both sides, and what is no way out."""
    lines = [escape("; ".join(found.symptoms) or found.summary), ""]
    for cause in [cause for cause in found.causes if cause.supports][:2]:
        against = f"; against it: {'; '.join(cause.against)}" if cause.against else ""
        lines.append(f"- **{escape(cause.text)}** ({cause.score:.0%}): {escape('; '.join(cause.supports) + against)}")
    lines += [f"- deployed: {escape(text)}" for text in found.deployments[:2]]
    lines += [f"- cannot help: {escape(refused.runbook)}, {escape(refused.why)}" for refused in found.refused]
    lines += [f"- **not read**: {escape(text)}" for text in found.failed]
    lines += [f"- **a data problem**: {escape(text)}" for text in found.impossible]
    return "\n".join(lines)


def _tried(tried: Tried) -> str:
    helped = {True: ", helped", False: ", did not help", None: ""}[tried.helped]
    return f"{tried.runbook} ({tried.why}): {tried.state}{helped}" + (f". {tried.outcome}" if tried.outcome else "")


def _clocks(book: Book) -> str:
    rows = []
    for one in book.clocks:
        if one.dropped_at is not None:
            continue
        if one.met_at is not None:
            state = f"✔ {clock(one.met_at)}"
        elif one.missed_at is not None:
            state = "✘ **missed**"
        else:
            state = "⏳"
        due = f"{one.due:%d %b} {clock(one.due)}"
        rows.append(f"| {one.severity}{APART} | {escape(one.title)}{APART} | {due}{APART} | {state} |")
    return "| | clock | due (UTC) | |\n|---|---|---|---|\n" + "\n".join(rows) if rows else "No clock runs."


def _after(situation: Situation) -> str:
    open_actions = [action for action in situation.actions if action.open]
    listed = "".join(
        f"\n- {action.id} {escape(action.text)} ({escape(action.owner or 'nobody')}, due {action.due:%d %b})"
        for action in open_actions
    )
    meeting = f"Post-mortem {situation.meeting_at:%d %b %H:%M} UTC. " if situation.meeting_at else ""
    return f"{meeting}Open actions: {len(open_actions)}{listed}"


def _ways(workflow_id: str, book: Book) -> str:
    if book.reached("resolved"):
        return (
            f"- `runbooks incident action {workflow_id} add 'what has to be done' --owner NAME`\n"
            f"- `runbooks incident held {workflow_id}`\n"
            '- in the UI: update `post_mortem` with `{"by": "your name"}`, or `action`, which says what it takes'
        )
    return (
        f"- `runbooks incident ack {workflow_id}`\n- `runbooks incident command {workflow_id}`\n"
        f"- `runbooks incident severity {workflow_id} P2 --reason WHY`\n- `runbooks incident resolve {workflow_id}`\n"
        '- in the UI: update `acknowledge` with `{"by": "your name"}`; the others say there what they take'
    )


def worst_of(one: SeverityName, other: SeverityName | None) -> SeverityName:
    return other if other is not None and incident_clocks.worse(other, one) else one
