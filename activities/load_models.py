"""What a load test is asked, and what it answers. Plain data: the generator is in ``activities/load.py``."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from activities.evidence import Evidence, Finding
from activities.stage import Facts, Stage

MOST_REQUESTS = 100_000
"""More than this is no test of a small API but an attack on it."""

LONGEST = timedelta(minutes=30)


class LoadPlan(BaseModel):
    """How much load, and of which kind. The defaults are the document's ``ab -n 1000 -c 100``."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    arrivals: Literal["closed", "open"] = Field(
        "closed",
        description="closed: so many clients, each asks again when it was answered (as ab does). open: requests begin "
        "at their rate whether or not earlier ones were answered, as real users do",
    )
    requests: int = Field(1000, ge=1, le=MOST_REQUESTS, description="How many requests in all")
    concurrency: int = Field(
        100, ge=1, le=500, description="closed: clients at the same time. open: most requests under way at once"
    )
    rate: float = Field(50, gt=0, le=1000, description="open: requests a second. Not used by the closed model")
    path: str = Field("/sessions", pattern=r"^/[\w./-]*(\?[\w.=&%+-]*)?$", description="What is asked for, by GET")
    at_most: timedelta = Field(
        timedelta(minutes=5), gt=timedelta(0), le=LONGEST, description="Ends here, whatever is left to ask"
    )

    @model_validator(mode="after")
    def _fits(self) -> LoadPlan:
        needed = timedelta(seconds=self.requests / self.rate)
        if self.arrivals == "open" and needed > self.at_most:
            raise ValueError(
                f"rate: {self.requests} requests at {self.rate:g}/s take {needed.total_seconds():.0f} s, longer than "
                "at_most; ask less, faster, or for longer"
            )
        return self

    def described(self) -> str:
        """The plan in a line, for people."""
        if self.arrivals == "closed":
            return f"{self.requests} GET {self.path} by {self.concurrency} clients at once (closed model)"
        return f"{self.requests} GET {self.path} at {self.rate:g}/s (open model)"


class LoadOrder(Facts):
    """One load test of one stage."""

    stage: Stage
    plan: LoadPlan
    production_allowed: bool = Field(False, description="Whether people allowed it at a gate; otherwise refused")


class Second(Facts):
    """What ended within one slice of the test: a second, or more where it was long."""

    at: datetime
    answered: int
    failed: int
    p95_ms: float | None = None


class LoadReport(Finding):
    """What the clients of the test saw.

    open: times are counted from when a request was due, not from when it was sent. closed: the requests that waiting
    clients left out are added to the percentiles.
    """

    began_at: datetime
    ended_at: datetime
    sent: int
    answered: int = Field(description="Requests that got any answer")
    dropped: int = Field(0, description="open: requests that were due while too many were under way; they count as bad")
    statuses: dict[str, int] = Field(default_factory=dict, description="Answers by HTTP status; 'none' is no answer")
    failed: int = Field(description="5xx, 429 and no answer, and those dropped")
    error_rate: float | None = Field(None, description="failed of all that were due, 0 to 1")
    throughput: float = Field(description="Answers a second")
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p95_low_ms: float | None = Field(None, description="The least that p95 is, with 95 % confidence")
    p95_high_ms: float | None = Field(None, description="The most that it is; none where too few requests ended to say")
    p99_ms: float | None = None
    max_ms: float | None = None
    service_p95_ms: float | None = Field(
        None, description="p95 from the moment of sending: what a generator that forgets the queue would report"
    )
    cut_short: bool = Field(False, description="Whether at_most ended it")
    interrupted: int = Field(0, description="Requests asked by an attempt that died: they are asked again, not counted")
    seconds: tuple[Second, ...] = ()

    def evidence(self) -> Evidence:
        return {k: v for k, v in super().evidence().items() if k not in ("began_at", "ended_at")} | {
            f"status_{status}": count for status, count in sorted(self.statuses.items())
        }
