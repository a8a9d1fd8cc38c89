"""What ``BatchedUpdate`` takes. Plain models, so that other runbooks can ask for one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import AwareDatetime, Field, field_validator, model_validator

from activities.batch_models import AbortLimits, BatchSizes, LoadLimits
from activities.stage import Facts
from activities.update_rules import check_collection, check_filter, check_update
from workflows.model import By, RunbookInput


class OpenWindow(Facts):
    """A stretch of time in which the update may run."""

    opens: AwareDatetime
    closes: AwareDatetime

    @model_validator(mode="after")
    def _in_order(self) -> OpenWindow:
        if self.opens >= self.closes:
            raise ValueError("a window opens before it closes")
        return self


class BatchedUpdateInput(RunbookInput):
    """One update of many documents of one collection."""

    collection: str = Field(description="Collection of the stage's database", examples=["sessions"])
    filter: dict[str, Any] = Field(
        default_factory=dict,
        description="Which documents, in MongoDB Extended JSON. Best is a condition that the update makes false",
        examples=[{"schema": {"$exists": False}}],
    )
    update: dict[str, Any] | list[dict[str, Any]] = Field(
        description="Update operators, or a pipeline, in MongoDB Extended JSON", examples=[{"$set": {"schema": 2}}]
    )
    all_documents: bool = Field(False, description="Needed when the filter is empty")
    batch: BatchSizes = Field(BatchSizes(), description="Documents a batch, and the time that one should take")
    partitions: int = Field(2, ge=1, le=8, description="Ranges of _id that are updated side by side")
    throttle: LoadLimits = Field(LoadLimits(), description="Load beyond which batches wait")
    abort: AbortLimits = Field(AbortLimits(), description="Load beyond which the run stops and undoes by its journal")
    journal: bool = Field(
        False, description="Keep ids and former values of the touched fields, so that the update can be undone"
    )
    journal_limit: int = Field(
        1_000_000, ge=1, le=50_000_000, description="Most documents that a journal may hold; more are refused at once"
    )
    journal_keep: timedelta = Field(
        timedelta(days=7), ge=timedelta(hours=1), description="How long the journal stays after a success"
    )
    until: AwareDatetime | None = Field(
        None, description="Park at this time, with a zone. Signal go_on, or the next of 'windows', lets it go on"
    )
    windows: tuple[OpenWindow, ...] = Field(
        (), max_length=60, description="Later windows in which it goes on by itself, in order"
    )
    sweep_pause: timedelta = Field(
        timedelta(seconds=10), ge=timedelta(0), description="Time between the two last looks for late writers"
    )
    approved: bool = Field(
        False, description="Set by a runbook that has asked people already; no effect when a person starts this"
    )

    @field_validator("collection")
    @classmethod
    def _collection(cls, name: str) -> str:
        return check_collection(name)

    @field_validator("update")
    @classmethod
    def _update(cls, update: Any) -> Any:
        return check_update(update)

    @model_validator(mode="after")
    def _whole(self) -> BatchedUpdateInput:
        check_filter(self.filter, all_documents=self.all_documents)
        check_limits(self.throttle, self.abort)
        edges = [self.until] if self.until else []
        edges += [edge for window in self.windows for edge in (window.opens, window.closes)]
        if self.windows and self.until is None:
            raise ValueError("windows come after 'until': give the end of the first window as until")
        if edges != sorted(edges):
            raise ValueError("until and windows have to be in order, without overlap")
        return self


class Tune(By):
    """Operator message: other settings for the batches to come."""

    batch: BatchSizes | None = None
    partitions: int | None = Field(None, ge=1, le=8)
    throttle: LoadLimits | None = None
    abort: AbortLimits | None = None


class GoOn(By):
    """Message from people, or from the runbook that runs this one: work until then."""

    until: AwareDatetime | None = Field(None, description="Park again at this time; absent: no longer park")


def check_limits(throttle: LoadLimits, abort: AbortLimits) -> None:
    """Waiting has to begin before giving up does.

    Raises:
        ValueError: a limit to abort at is not above the limit to throttle at.
    """
    for name in LoadLimits.model_fields:
        wait, stop = getattr(throttle, name), getattr(abort, name)
        if wait is not None and stop is not None and stop <= wait:
            raise ValueError(f"abort.{name} ({stop:g}) has to be above throttle.{name} ({wait:g})")
