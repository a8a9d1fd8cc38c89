"""What the three runbooks of a symptom take."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field, model_validator

from workflows.model import RunbookInput
from workflows.symptom_remedies import Remedy

RECORDED = 5
"""Queries are recorded from a fifth of what counts as slow: many short ones of one form are slow together."""


class SymptomInput(RunbookInput):
    """How it is measured before and after, and for how long it has to be well."""

    window: timedelta = Field(
        timedelta(minutes=30),
        ge=timedelta(seconds=10),
        le=timedelta(hours=24),
        description="What is looked at: the last 30 minutes in the document",
    )
    remedy: Remedy | None = Field(
        None, description="What to try first. Refused, with the reason, when it cannot help with what was measured"
    )
    slow_query: timedelta = Field(
        timedelta(milliseconds=500),
        ge=timedelta(milliseconds=5),
        le=timedelta(seconds=60),
        description="Queries that take as long are slow: the document's 500 ms",
    )
    profile_for: timedelta = Field(
        timedelta(minutes=1),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="How long the database's profiler is switched on; PT0S: not at all",
    )
    suspect_within: timedelta = Field(
        timedelta(hours=24),
        gt=timedelta(0),
        le=timedelta(days=30),
        description="A deployment older than this is not suspected",
    )
    stable_for: timedelta = Field(
        timedelta(minutes=10),
        gt=timedelta(0),
        le=timedelta(hours=24),
        description="Mended means: measured well for this long",
    )
    look_every: timedelta = Field(
        timedelta(minutes=1), ge=timedelta(seconds=1), le=timedelta(hours=1), description="How often it is measured"
    )
    patience: timedelta = Field(
        timedelta(minutes=30),
        gt=timedelta(0),
        le=timedelta(days=1),
        description="Not well for so long after a remedy: it did not help, and the next is offered",
    )

    @model_validator(mode="after")
    def _fits(self) -> SymptomInput:
        if self.patience < self.stable_for:
            raise ValueError("patience: at least stable_for, or nothing could ever count as mended")
        if self.look_every > self.stable_for:
            raise ValueError("look_every: at most stable_for")
        return self


class PerformanceDegradationInput(SymptomInput):
    slower_than: timedelta = Field(
        timedelta(seconds=2),
        ge=timedelta(milliseconds=10),
        le=timedelta(seconds=60),
        description="Average response time above this is the symptom: the document's two seconds",
    )
    normal: timedelta = Field(
        timedelta(milliseconds=500),
        ge=timedelta(milliseconds=1),
        le=timedelta(seconds=60),
        description="What it is when all is well: the document's 500 ms",
    )


class HighMemoryUsageInput(SymptomInput):
    above_share: float = Field(
        400 / 512, gt=0, lt=1, description="Share of the function's memory above which it is the symptom: 400 of 512 MB"
    )


class HighErrorRateInput(SymptomInput):
    above: float = Field(0.01, gt=0, lt=1, description="Share of failed requests that is the symptom: 1 %")
    escalate_above: float = Field(0.05, gt=0, lt=1, description="More than this, for so long, opens an incident: 5 %")
    escalate_after: timedelta = Field(
        timedelta(minutes=10), gt=timedelta(0), le=timedelta(hours=24), description="How long: ten minutes"
    )

    @model_validator(mode="after")
    def _in_order(self) -> HighErrorRateInput:
        if self.escalate_above < self.above:
            raise ValueError("escalate_above: at least 'above'")
        return self
