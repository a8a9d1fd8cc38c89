"""What an incident of each severity asks for, as data: what makes it that severe, its clocks, who is called, how often.

The defaults are the document's table with its holes closed: P1 is a complete outage, P2 begins at 25 % of requests
failing, P3 ends there, and P3 and P4 have clocks of their own (P4's run in business hours). A policy with a gap or an
overlap, with a severity left out, or with a clock that says its time in two ways is refused when it is loaded.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Literal

from pydantic import Field, field_validator, model_validator

from activities.facts import Facts
from activities.windows import MaintenancePolicy

SeverityName = Literal["P1", "P2", "P3", "P4"]
SEVERITIES: tuple[SeverityName, ...] = ("P1", "P2", "P3", "P4")
"""Worst first."""

Milestone = Literal[
    "alerted", "acknowledged", "declared", "cause", "mitigated", "stable", "resolved", "post_mortem", "closed"
]
"""What can have happened in an incident, and so stop a clock."""


class Clock(Facts):
    """A promise: this milestone is reached within that time."""

    id: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="Short name, such as response")
    title: str = Field(description="What has to happen, for people")
    met_by: Milestone = Field(description="Reaching this stops the clock")
    within: timedelta | None = Field(None, gt=timedelta(0), description="Time by any clock, nights included")
    business_days: int | None = Field(None, ge=1, le=90, description="Instead: days of business hours")
    begins: Literal["opened", "resolved"] = Field(
        "opened", description="Counts from when the incident became that severe, or from its resolution"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Clock:
        if (self.within is None) == (self.business_days is None):
            raise ValueError("give either within or business_days")
        return self


class Level(Facts):
    """One step of the ladder of people who are called."""

    who: str = Field(description="For people: on-call engineer")
    page: tuple[str, ...] = Field((), description="Pagers that reach them, tried in order; the stage's when empty")
    wait: timedelta = Field(timedelta(minutes=5), gt=timedelta(0), description="Time to acknowledge, before the next")


class SeverityRule(Facts):
    impact: str = Field(description="The document's words")
    from_share: float = Field(ge=0, le=1, description="Share of requests that fail: from here")
    to_share: float = Field(ge=0, le=1, description="up to, but not including, here (1 is included)")
    clocks: tuple[Clock, ...] = ()
    ladder: tuple[Level, ...] = Field((), description="Who is paged, in order, round and round; empty pages nobody")
    missed: Level | None = Field(
        None, description="Who is called when a clock is missed; the channel hears of it anyway"
    )
    notify: tuple[str, ...] = Field((), description="Who is told at the declaration, besides the channel")
    ack_expires: timedelta | None = Field(
        None, gt=timedelta(0), description="An acknowledgement without any progress counts for this long"
    )
    update_every: timedelta | None = Field(None, gt=timedelta(0), description="Status update to the channel")
    watch_every: timedelta = Field(timedelta(minutes=1), gt=timedelta(0), description="Time between two looks")
    stable_for: timedelta = Field(timedelta(minutes=15), gt=timedelta(0), description="Good for so long is stable")
    business_hours: bool = Field(False, description="Whether people are told in business hours only")

    @field_validator("clocks")
    @classmethod
    def _ids_differ(cls, clocks: tuple[Clock, ...]) -> tuple[Clock, ...]:
        names = [clock.id for clock in clocks]
        if len(set(names)) != len(names):
            raise ValueError(f"two clocks have the same id: {', '.join(names)}")
        return clocks

    def clock(self, clock_id: str) -> Clock | None:
        return next((clock for clock in self.clocks if clock.id == clock_id), None)


_ON_CALL = Level(who="on-call engineer")
_LEAD = Level(who="engineering lead")
_LADDER = (_ON_CALL, _LEAD)


def _clock(clock_id: str, title: str, met_by: Milestone, **time: int) -> Clock:
    days = time.pop("business_days", None)
    within = timedelta(**time) if time else None
    begins: Literal["opened", "resolved"] = "resolved" if met_by == "post_mortem" else "opened"
    return Clock(id=clock_id, title=title, met_by=met_by, within=within, business_days=days, begins=begins)


def _defaults() -> dict[SeverityName, SeverityRule]:
    return {
        "P1": SeverityRule(
            impact="Complete outage, data loss risk",
            from_share=0.95,
            to_share=1,
            clocks=(
                _clock("response", "somebody has responded", "acknowledged", minutes=15),
                _clock("post-mortem", "the post-mortem was held", "post_mortem", hours=48),
            ),
            ladder=_LADDER,
            missed=_LEAD,
            notify=("engineering lead", "product and customer success"),
            ack_expires=timedelta(minutes=30),
            update_every=timedelta(minutes=30),
        ),
        "P2": SeverityRule(
            impact="Significant degradation, 25 % or more of the requests failing",
            from_share=0.25,
            to_share=0.95,
            clocks=(
                _clock("alert", "the team was alerted", "alerted", minutes=15),
                _clock("response", "somebody has responded", "acknowledged", hours=1),
                _clock("cause", "the root cause is known", "cause", hours=1),
                _clock("workaround", "a workaround or fix is in place", "mitigated", hours=2),
                _clock("stable", "the service is stable", "stable", hours=4),
                _clock("post-mortem", "the post-mortem was held", "post_mortem", weeks=1),
            ),
            ladder=_LADDER,
            missed=_LEAD,
            notify=("engineering lead",),
            ack_expires=timedelta(hours=1),
            update_every=timedelta(hours=1),
            watch_every=timedelta(minutes=2),
            stable_for=timedelta(minutes=30),
        ),
        "P3": SeverityRule(
            impact="Noticeable issues, less than 25 % of the requests affected",
            from_share=0.01,
            to_share=0.25,
            clocks=(
                _clock("response", "somebody has responded", "acknowledged", hours=4),
                _clock("workaround", "a workaround or fix is in place", "mitigated", business_days=2),
            ),
            missed=_ON_CALL,
            update_every=timedelta(hours=8),
            watch_every=timedelta(minutes=10),
            stable_for=timedelta(hours=1),
        ),
        "P4": SeverityRule(
            impact="Minor issues, minimal user impact",
            from_share=0,
            to_share=0.01,
            clocks=(_clock("response", "somebody has responded", "acknowledged", business_days=1),),
            watch_every=timedelta(hours=1),
            stable_for=timedelta(hours=4),
            business_hours=True,
        ),
    }


def _office() -> MaintenancePolicy:
    return MaintenancePolicy.model_validate(
        {"windows": [{"days": ("mon", "tue", "wed", "thu", "fri"), "opens": "09:00", "closes": "17:00"}]}
    )


class IncidentPolicy(Facts):
    """All severities, and when people are at work."""

    service: str = Field("Claude Projects State API", description="What people call the service, in declarations")
    severities: dict[SeverityName, SeverityRule] = Field(default_factory=_defaults)
    business_hours: MaintenancePolicy = Field(
        default_factory=_office, description="Time zone, hours of the week and holidays"
    )
    drill: tuple[str, ...] = Field((), description="Chat providers of a drill; the stage's own chat when empty")
    remind_every: timedelta = Field(timedelta(days=1), gt=timedelta(0), description="Reminder of an overdue action")
    action_due: timedelta = Field(timedelta(weeks=2), gt=timedelta(0), description="When an action is due by default")

    @field_validator("severities")
    @classmethod
    def _whole(cls, rules: dict[SeverityName, SeverityRule]) -> dict[SeverityName, SeverityRule]:
        missing = [name for name in SEVERITIES if name not in rules]
        if missing:
            raise ValueError(f"no rule for {', '.join(missing)}")
        mildest_first = [(name, rules[name]) for name in reversed(SEVERITIES)]
        for name, rule in mildest_first:
            if rule.from_share >= rule.to_share:
                raise ValueError(f"{name} ends at {rule.to_share:.0%}, where it has not begun")
        if mildest_first[0][1].from_share != 0 or mildest_first[-1][1].to_share != 1:
            raise ValueError("P4 has to begin at 0 and P1 to end at 1")
        for (mild, lower), (worse, upper) in pairwise(mildest_first):
            if lower.to_share < upper.from_share:
                raise ValueError(
                    f"a gap: {mild} ends at {lower.to_share:.0%}, {worse} begins at {upper.from_share:.0%}"
                )
            if lower.to_share > upper.from_share:
                raise ValueError(
                    f"an overlap: {mild} ends at {lower.to_share:.0%}, {worse} begins at {upper.from_share:.0%}"
                )
        return rules

    @model_validator(mode="after")
    def _hours_open(self) -> IncidentPolicy:
        hours = self.business_hours
        if not any(window.opens < window.closes for window in hours.windows):
            raise ValueError("business_hours: no window opens and closes on one day")
        return self

    def rule(self, severity: SeverityName) -> SeverityRule:
        return self.severities[severity]

    def severity_of(self, failing_share: float) -> SeverityName:
        """How severe it is when this share of the requests fails."""
        return next(name for name in SEVERITIES if failing_share >= self.severities[name].from_share)
