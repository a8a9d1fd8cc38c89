"""What the activities of batched updates take and give: plain data, with ``_id`` values as canonical Extended JSON."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import Field, model_validator

from activities.evidence import Finding
from activities.stage import Facts, Stage


class BatchSizes(Facts):
    """Documents a batch. The size adapts to the time that a batch should take, between two limits."""

    initial: int = Field(1000, ge=1, le=100_000, description="First batch")
    min: int = Field(50, ge=1, le=100_000)
    max: int = Field(20_000, ge=1, le=100_000)
    target_ms: int = Field(500, ge=10, le=60_000, description="How long a batch should take, in milliseconds")

    @model_validator(mode="after")
    def _in_order(self) -> BatchSizes:
        if not self.min <= self.initial <= self.max:
            raise ValueError("min <= initial <= max is needed")
        return self


class LoadLimits(Facts):
    """Load of the stage. A limit that is absent is not looked at; a reading that is not known breaks no limit."""

    ping_ms: float | None = Field(250, gt=0, description="Ping of the database, milliseconds")
    connections: int | None = Field(None, gt=0, description="Connections in use on the database server")
    queue: int | None = Field(50, gt=0, description="Operations that wait for a lock on the database server")
    lag_s: float | None = Field(10, gt=0, description="Seconds that the slowest secondary is behind")
    api_p95_ms: float | None = Field(2000, gt=0, description="95th percentile of the API's own time, milliseconds")
    api_error_rate: float | None = Field(0.01, gt=0, lt=1, description="Share of the API's answers that are 5xx")


class AbortLimits(LoadLimits):
    """Load beyond which an update stops for good: the document calls 5 % errors, and 5 s, an incident."""

    ping_ms: float | None = Field(5000, gt=0)
    queue: int | None = Field(500, gt=0)
    lag_s: float | None = Field(120, gt=0)
    api_p95_ms: float | None = Field(10_000, gt=0)
    api_error_rate: float | None = Field(0.05, gt=0, lt=1)


class Load(Finding):
    """One reading. What a source does not really say is absent, which is not zero."""

    ping_ms: float | None = None
    connections: int | None = None
    queue: int | None = None
    lag_s: float | None = None
    api_p95_ms: float | None = None
    api_error_rate: float | None = None
    unknown: dict[str, str] = Field(default_factory=dict, description="Why a figure is absent, by its name")


class IdRange(Facts):
    """Documents of one stretch of ``_id``, all of one kind of type: after (exclusive) up to (inclusive)."""

    number: int = Field(description="Place in the order of the plan")
    kind: str = Field(description="Type of these _id values as $type names it; numbers of all types are one kind")
    after: Any | None = Field(None, description="Extended JSON; absent: from the first of this kind")
    upto: Any | None = Field(None, description="Extended JSON; absent: to the last of this kind, later ones too")
    documents: int = Field(0, description="Documents that matched when it was planned")


class UpdateOrder(Facts):
    """What is updated where: the part that all activities of one run share."""

    stage: Stage
    collection: str
    filter: dict[str, Any]
    update: dict[str, Any] | list[dict[str, Any]]
    journal: str | None = Field(None, description="Collection of the undo journal, if one is kept")


class CollectionCheck(Finding):
    """What the collection is. One that cannot be updated in batches is an error, not a result."""

    documents: int = Field(description="As the server's metadata say; can be off after a crash of the server")
    matching: int = Field(description="Documents that match the filter now, counted")
    size_bytes: int | None = None
    average_bytes: int | None = None
    server: str = ""
    transactions: bool = Field(description="Whether a journal can be kept exactly")


class TrialRequest(Facts):
    order: UpdateOrder
    key: str = Field(description="Makes the name of the scratch collection; the run's own")
    documents: int = Field(20, ge=1, le=1000)


class Trial(Finding):
    """What the update did to copies of a few matching documents, in a collection of their own."""

    tried: int
    changed: int
    leaves_filter: bool | None = Field(None, description="No copy matches the filter any more. Absent: nothing to try")
    repeatable: bool | None = Field(None, description="A second application changed nothing")


class PlanRequest(Facts):
    order: UpdateOrder
    range_documents: int = Field(ge=1, description="Documents a range, about")
    at_least: int = Field(1, ge=1, description="Ranges wanted at least, so that every partition has work")
    first_number: int = 0


class Plan(Finding):
    documents: int = Field(description="Documents that matched, counted while planning")
    ranges: tuple[IdRange, ...]


class RangeOrder(Facts):
    """Update one range, from wherever an earlier attempt of this activity came to."""

    order: UpdateOrder
    range: IdRange
    sizes: BatchSizes
    throttle: LoadLimits
    abort: AbortLimits
    longest: timedelta = Field(timedelta(minutes=10), description="Hand back after this long, with the cursor")
    news_every: int = Field(10_000, ge=1, description="Documents after which the run's page is told")


Ended = Literal["finished", "asked", "time", "abort", "failed"]
"""Why an activity came back: done, asked to stop, has worked long enough, load, or a fault that will not pass."""


class RangeResult(Finding):
    """How far a range has come."""

    range: IdRange = Field(description="What is left of it: 'after' is the last committed boundary")
    finished: bool
    walked: int = Field(description="Documents that matched when they were read")
    updated: int = Field(description="Documents that the server reports as changed")
    batches: int
    next_size: int = Field(description="Batch size that the controller would use next")
    busy_s: float = Field(description="Seconds spent in batches")
    throttled_s: float = Field(0, description="Seconds spent waiting for load to fall")
    ended: Ended
    why: str | None = Field(None, description="What was beyond its limit, or what no further try would cure")
    kind: str | None = Field(None, description="Type of that failure")


class Reverted(Finding):
    reverted: int
    kept: int = Field(description="Documents that somebody has changed or deleted since: left alone")


class JournalRequest(Facts):
    order: UpdateOrder
    keep: timedelta
