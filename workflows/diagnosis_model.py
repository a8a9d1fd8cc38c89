"""What a diagnosis takes, what it rests on, and what it concludes. Plain data, no clock, no I/O."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, Field

from activities.facts import Facts
from activities.log_kinds import LogCounts
from activities.releases import LedgerEntry
from workflows.model import RunbookInput


class DiagnosisInput(RunbookInput):
    """Input of the runbook ``Diagnosis``: it only looks."""

    window: timedelta = Field(
        timedelta(minutes=5),
        ge=timedelta(minutes=1),
        le=timedelta(hours=6),
        description="How far metrics and logs go back",
    )
    deployments_within: timedelta = Field(
        timedelta(hours=24), ge=timedelta(0), le=timedelta(days=30), description="Deployments that are looked at"
    )


class Branch(StrEnum):
    """The branches of the document's decision tree, in its order, and the two ways to be on none of them."""

    NOT_RESPONDING = "not_responding"
    ERRORS = "errors"
    LATENCY = "latency"
    THROTTLING = "throttling"
    HEALTHY = "healthy"
    UNKNOWN = "unknown"


class Readings(Facts):
    """All that was seen of a stage, in plain figures. None is 'not known', which is never zero."""

    taken_at: AwareDatetime
    window: timedelta = timedelta(minutes=5)

    health_ok: bool | None = Field(None, description="/health answered 200")
    health_status: int | None = Field(None, description="HTTP status of /health; None without any answer")
    health_ms: float | None = None
    ready_ok: bool | None = Field(None, description="/health/ready answered 200: the API reaches its database")
    ready_status: int | None = Field(None, description="None without any answer")
    ready_ms: float | None = None

    invocations: int | None = None
    errors: int | None = Field(None, description="Invocations that Lambda counts as failed")
    throttles: int | None = Field(None, description="Refused calls: neither invocations nor errors")
    duration_ms: float | None = Field(None, description="Average duration of an invocation")
    duration_max_ms: float | None = None
    duration_p95_ms: float | None = None
    concurrent: int | None = Field(None, description="Most execution environments busy at once")
    timeout_ms: float | None = Field(None, description="The function's time-out")
    memory_mb: int | None = Field(None, description="The function's memory")
    reserved: int | None = Field(None, description="Reserved concurrency of the function; None when it has none")

    requests: int | None = Field(None, description="Requests that reached the gateway")
    gateway_5xx: int | None = None
    gateway_4xx: int | None = None
    gateway_ms: float | None = Field(None, description="Average latency at the gateway, integration included")
    integration_ms: float | None = Field(None, description="Average latency behind the gateway")

    log_lines: LogCounts | None = Field(None, description="Error lines by what they speak of")
    log_samples: tuple[str, ...] = ()
    reports: int | None = Field(None, description="REPORT lines: invocations that ended")
    cold_starts: int | None = None
    init_ms: float | None = Field(None, description="Slowest cold start")
    memory_used_mb: float | None = Field(None, description="Most memory that an invocation used")
    routes: dict[str, int] = Field(default_factory=dict, description="Failing requests by 'METHOD path'")
    clients: dict[str, int] = Field(default_factory=dict, description="Requests by client, the busiest ones")

    database_ok: bool | None = Field(None, description="The database answers this project's own ping")
    database_ping_ms: float | None = None
    database_problem: str | None = None
    connections: int | None = None
    connections_left: int | None = None

    live: str | None = Field(None, description="Release that is live, as people call it")
    live_since: AwareDatetime | None = None
    deployments: tuple[LedgerEntry, ...] = Field((), description="Deployments in the window, newest first")
    failed_sources: dict[str, str] = Field(default_factory=dict, description="Source that could not be read: why")

    @property
    def error_rate(self) -> float | None:
        """The worse of failed invocations and 5xx answers, 0 to 1."""
        pairs = ((self.errors, self.invocations), (self.gateway_5xx, self.requests))
        rates = [min(1.0, bad / of) for bad, of in pairs if of and bad is not None]
        if not rates and "metrics" in self.failed_sources and self.log_lines is not None and self.reports:
            # The log knows, too, which invocations have failed.
            rates = [min(1.0, (self.lines_of_failures or 0) / self.reports)]
        return max(rates) if rates else None

    @property
    def lines_of_failures(self) -> int | None:
        """Error lines of the log without those of refused requests, which are no failures."""
        return None if self.log_lines is None else self.log_lines.total - self.log_lines.validation

    @property
    def throttle_rate(self) -> float | None:
        """Refused calls of all calls, 0 to 1."""
        if self.throttles is None:
            return None
        calls = self.throttles + (self.invocations or 0)
        return self.throttles / calls if calls else 0.0

    @property
    def latency_ms(self) -> float | None:
        """What a client waits on average: at the gateway where that is known, else in the function."""
        return self.gateway_ms if self.gateway_ms is not None else self.duration_ms

    @property
    def failing_share(self) -> float | None:
        """Share of the requests that fail, for the severity: all of them when the service does not answer."""
        if self.health_ok is False:
            return 1.0
        known = [rate for rate in (self.error_rate, self.throttle_rate) if rate is not None]
        return max(known) if known else None


class Remedy(Facts):
    """A runbook to start next, with its input filled in."""

    runbook: str
    input: dict[str, Any]
    why: str


class Cause(Facts):
    """A likely cause with the evidence on both sides."""

    id: str
    text: str
    score: float = Field(description="0 to 1: how much of the evidence that bears on it speaks for it")
    supports: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    remedy: Remedy | None = None
    by_hand: str | None = Field(None, description="What a person does where no runbook cures it")


class RefusedRemedy(Facts):
    """A plausible runbook that cannot work for what was measured."""

    runbook: str
    why: str


class Conclusion(Facts):
    """The conclusion: where on the tree, why, and what to do next."""

    branch: Branch
    symptoms: tuple[str, ...] = Field((), description="Every branch's condition that holds, in words")
    summary: str
    checks: dict[str, str] = Field(
        default_factory=dict, description="The document's checks of this branch: what was seen"
    )
    causes: tuple[Cause, ...] = Field((), description="Most likely first")
    next: Remedy | None = None
    options: tuple[Remedy, ...] = Field((), description="Every remedy that could work, best first")
    refused: tuple[RefusedRemedy, ...] = ()
    impossible: tuple[str, ...] = Field((), description="Readings that cannot be: a problem of the data")
    failed: tuple[str, ...] = Field((), description="Sources that could not be read")
    deployments: tuple[str, ...] = Field((), description="Deployments in the window, in words, newest first")
