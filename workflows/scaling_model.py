"""What the scaling runbooks and the restart take. Other runbooks start them as children with these models."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from activities.load_models import LoadPlan
from workflows.model import Name, RunbookInput

Way = Literal["merge", "direct"]


class ScalingInput(RunbookInput):
    """What every change of capacity takes: where it is tried first, how it is made, how it is measured, when it ends.

    ``merge``: the change belongs in the repository. The run shows the diff of the file, waits for the merged commit
    (``commit`` here, or update ``merged`` later) and deploys it to staging and then to the stage. ``direct``: the run
    changes the function itself and records the drift that the repository has to catch up with.
    """

    way: Way = Field(
        "direct", description="merge: shown as a diff, deployed from the merged commit. direct: made, recorded as drift"
    )
    commit: Name | None = Field(None, description="merge: the commit that has the change, when it is merged already")
    merge_within: timedelta = Field(
        timedelta(days=7), gt=timedelta(0), le=timedelta(days=90), description="merge: how long to wait for the commit"
    )
    staging: Name = Field(
        "staging",
        description="Stage that has the change first, with a load test before and after; itself when that is meant",
    )
    load: LoadPlan = Field(LoadPlan(), description="The load test of staging")
    window: timedelta = Field(
        timedelta(minutes=30),
        ge=timedelta(seconds=10),
        le=timedelta(hours=24),
        description="Metrics of this long before the change are compared with as long after it",
    )
    expires_after: timedelta | None = Field(
        None,
        gt=timedelta(0),
        le=timedelta(days=90),
        description="A temporary change: after this long it is put back by a run of its own. Absent: it stays",
    )


class VerticalScalingInput(ScalingInput):
    """More (or less) memory for the function, which brings CPU with it."""

    memory_mb: int = Field(1024, ge=128, le=10_240, description="Memory to give the function; the document's 1024")


class ConnectionPoolScalingInput(ScalingInput):
    """Another size of the connection pool that every execution environment of the function opens.

    On Lambda each environment has a pool of its own: pool x environments has to fit the cluster. A larger pool is
    therefore refused where it does not fit, with the arithmetic; a smaller one is often the cure.
    """

    max_pool_size: int = Field(ge=1, le=1000, description="maxPoolSize of each execution environment")
    min_pool_size: int | None = Field(None, ge=0, le=1000, description="minPoolSize; as it is when absent")

    @model_validator(mode="after")
    def _in_order(self) -> ConnectionPoolScalingInput:
        if self.min_pool_size is not None and self.min_pool_size > self.max_pool_size:
            raise ValueError("min_pool_size: at most max_pool_size")
        return self


class ProvisionedConcurrencyInput(ScalingInput):
    """Execution environments that are kept ready for the alias, so that nobody waits for a cold start."""

    executions: int = Field(
        5, ge=0, le=1000, description="How many are kept ready; the document's 5, or 10 under load. 0 ends it"
    )


class LoadTestInput(LoadPlan, RunbookInput):
    """The document's load test. Staging unless a gate allows production."""

    max_error_rate: float = Field(0.01, ge=0, le=1, description="Passed when no more than this share failed")
    max_p95_ms: float = Field(2000, gt=0, description="Passed when p95 is no higher; the document's two seconds")

    def plan(self) -> LoadPlan:
        return LoadPlan.model_validate(self.model_dump(include=set(LoadPlan.model_fields)))


Concurrency = Annotated[int, Field(ge=1, le=1000)]


class ServiceRestartInput(RunbookInput):
    """Last resort: every execution environment of the function is started anew, while no traffic comes in."""

    stop_traffic: bool = Field(True, description="Whether no call is let in meanwhile. Clients see 500 for as long")
    drain: timedelta = Field(
        timedelta(seconds=30),
        ge=timedelta(0),
        le=timedelta(minutes=15),
        description="How long to wait for what is under way; the document's 30 seconds",
    )
    ladder: tuple[Concurrency, ...] = Field(
        (2, 10, 50),
        max_length=10,
        description="Calls let in at the same time, step by step, before the former limit is back; rising",
    )
    hold: timedelta = Field(
        timedelta(minutes=1), gt=timedelta(0), le=timedelta(hours=1), description="How long each step is watched"
    )
    patience: timedelta = Field(
        timedelta(minutes=2),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="How much longer a step waits for calls or for errors to end",
    )
    max_error_rate: float = Field(0.01, gt=0, lt=1, description="A step is good when fewer of its invocations fail")
    longest: timedelta = Field(
        timedelta(minutes=30),
        gt=timedelta(0),
        le=timedelta(hours=12),
        description="The watchdog gives traffic back after this long, even when this run hangs or is paused",
    )

    @field_validator("ladder")
    @classmethod
    def _rises(cls, ladder: tuple[int, ...]) -> tuple[int, ...]:
        if any(low >= high for low, high in itertools.pairwise(ladder)):
            raise ValueError("each step has to let in more than the one before it")
        return ladder

    @model_validator(mode="after")
    def _fits(self) -> ServiceRestartInput:
        if self.drain + len(self.ladder) * (self.hold + self.patience) >= self.longest:
            raise ValueError("longest: the drain and every step with its patience have to fit in, with time to deploy")
        return self
