"""What a gradual rollback takes, and what it keeps of one bake. Plain data and pure functions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from activities.charts import Chart, Line, Mark
from activities.stage import Stage
from activities.version_counts import VersionCounts
from workflows.canary_judge import Decision, Judgement, Limits, Look
from workflows.canary_split import SplitSeen, split_seen
from workflows.model import By, Kind, StepSpec
from workflows.model import Line as Text
from workflows.rollback_model import RollbackInput

Percent = Annotated[int, Field(ge=1, le=100)]
DEFAULT_LADDER = (10, 50, 100)
MOST_LOOKS = 240
"""Looks that are judged together: the judge weighs each of them anew at every look."""


class CanaryRollbackInput(RollbackInput):
    ladder: tuple[Percent, ...] = Field(
        DEFAULT_LADDER,
        min_length=1,
        max_length=10,
        description="Share of traffic in percent that the restored version gets at each rung; rising, the last is 100",
    )
    bake: timedelta = Field(
        timedelta(minutes=15), gt=timedelta(0), le=timedelta(days=1), description="How long each rung is watched"
    )
    judge_every: timedelta = Field(
        timedelta(minutes=1), ge=timedelta(seconds=1), le=timedelta(hours=1), description="Time between two judgements"
    )
    patience: timedelta = Field(
        timedelta(minutes=30),
        ge=timedelta(0),
        le=timedelta(days=1),
        description="How much longer a rung waits for enough requests, before people are asked",
    )
    on_recovery: Literal["ladder", "full_rollback"] = Field(
        "ladder",
        description="Once the replaced version is proven to be the broken one: go on rung by rung, or give all to the "
        "restored one at once. A restored version that is worse always loses its traffic at once",
    )
    limits: Limits | None = Field(None, description="What the judge goes by, where it differs from the stage's policy")

    @field_validator("ladder")
    @classmethod
    def _rises_to_all(cls, ladder: tuple[int, ...]) -> tuple[int, ...]:
        if any(low >= high for low, high in itertools.pairwise(ladder)) or ladder[-1] != 100:
            raise ValueError("each rung has to be higher than the one before it, and the last one 100")
        return ladder

    @model_validator(mode="after")
    def _judged_not_too_often(self) -> CanaryRollbackInput:
        if self.bake / self.judge_every > MOST_LOOKS:
            raise ValueError(f"judge_every: a bake is judged at most {MOST_LOOKS} times; judge less often")
        return self


class Steer(By):
    """What an operator sends to a live bake: who, and why."""

    reason: Text


def limits_of(stage: Stage, inp: CanaryRollbackInput) -> Limits:
    """The stage's policy, and above it what this run was started with."""
    policy = {
        "max_error_rate": stage.rollback.error_rate_below,
        "max_latency_ms": stage.canary.max_latency_ms,
        "min_sample": stage.canary.min_sample,
    }
    own = inp.limits.model_dump(exclude_unset=True) if inp.limits else {}
    return Limits.model_validate(policy | own)


def shift_id(percent: int) -> str:
    return "promote" if percent == 100 else f"shift-{percent}"


def rung_steps(ladder: tuple[int, ...]) -> tuple[StepSpec, ...]:
    """The steps of each rung, as the screen lists them before they run."""
    steps: list[StepSpec] = []
    for percent in ladder:
        title = "Promote the restored version" if percent == 100 else f"Shift {percent} % to the restored version"
        steps += [
            StepSpec(
                id=shift_id(percent), title=title, kind=Kind.CHANGE, undo="the routing that was found is put back"
            ),
            StepSpec(id=f"bake-{percent}", title=f"Bake at {percent} %", kind=Kind.WAIT),
            StepSpec(id=f"judge-{percent}", title=f"Judge at {percent} %", kind=Kind.LOOK),
        ]
    return tuple(steps)


@dataclass
class Bake:
    """One rung while it is watched."""

    percent: int
    replaced: str
    restored: str
    began: datetime
    seen_until: datetime
    proof: bool
    """Whether recovery has to be shown before the next rung: in the last one where both versions have traffic."""
    earlier: VersionCounts | None = None
    """Set when the restored version has all of the traffic: what the replaced one did before."""
    looks: list[Look] = field(default_factory=list)
    judgements: list[Judgement] = field(default_factory=list)
    decision: Decision = Decision.WAIT
    totals: dict[str, VersionCounts] = field(default_factory=dict)

    def add(self, look: Look) -> None:
        if len(self.looks) >= MOST_LOOKS:  # held, or asked about, for hours: judge the hours to come by themselves
            self.looks, self.judgements = [], []
        self.looks.append(look)
        for side in (look.replaced, look.restored):
            if side is not None:
                self.totals[side.version] = self.total(side.version).plus(side)

    def total(self, version: str) -> VersionCounts:
        """What a version did in all looks of the bake."""
        return self.totals.get(version) or VersionCounts(version=version, invocations=0, errors=0)

    def split(self) -> SplitSeen:
        restored, replaced = self.total(self.restored), self.total(self.replaced)
        return split_seen(self.percent, restored=restored.invocations, replaced=replaced.invocations)

    @property
    def reasons(self) -> str:
        """Why the last judgement is what it is."""
        return "; ".join(self.judgements[-1].reasons) if self.judgements else "nothing was measured yet"

    @property
    def may_end(self) -> bool:
        return self.decision is Decision.GO_ON and not self.split().far


@dataclass
class Record:
    """The figures of all bakes, for the charts."""

    errors: dict[str, list[tuple[datetime, float]]] = field(default_factory=dict)
    latency: dict[str, list[tuple[datetime, float]]] = field(default_factory=dict)
    share: list[tuple[datetime, float]] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def looked(self, at: datetime, *sides: VersionCounts | None) -> None:
        for side in sides:
            if side is None or not side.invocations:
                continue
            self.errors.setdefault(f"version {side.version}", []).append((at, 100 * side.errors / side.invocations))
            if (p95 := side.percentile_ms(0.95)) is not None:
                self.latency.setdefault(f"version {side.version}", []).append((at, round(p95, 1)))

    def charts(self) -> list[Chart]:
        marks = tuple(self.marks)
        return [
            Chart(title="Errors by version", unit="%", lines=_lines(self.errors), marks=marks),
            Chart(title="Latency by version (p95 of good answers)", unit="ms", lines=_lines(self.latency), marks=marks),
            Chart(
                title="Share of the restored version",
                unit="%",
                lines=(Line(name="wanted", points=tuple(self.share)),),
                marks=marks,
                steps=True,
            ),
        ]


def _lines(series: dict[str, list[tuple[datetime, float]]]) -> tuple[Line, ...]:
    return tuple(Line(name=name, points=tuple(points)) for name, points in series.items())
