"""The pulse of a stage in one call: what an incident watches until it is over, without filling its history."""

from __future__ import annotations

from datetime import timedelta

from pydantic import AwareDatetime, Field
from temporalio import activity

from activities.api import Api, Confirm
from activities.errors import classified
from activities.evidence import Finding
from activities.metrics import Window
from activities.signs import Signs
from activities.stage import Facts, Stage

_MINUTE = timedelta(minutes=1)


class TakePulse(Facts):
    stage: Stage
    now: AwareDatetime
    since: AwareDatetime = Field(description="Metrics count from the first whole minute after this")


class Pulse(Finding):
    """How the service does just now. Absent figures could not be measured."""

    health_ok: bool
    health: str = Field(description="What /health answered, for people")
    ready_ok: bool
    ready: str
    error_rate: float | None = None
    throttled: int | None = None
    latency_ms: float | None = None
    invocations: int | None = None


class Pulses:
    def __init__(self, api: Api, signs: Signs) -> None:
        self._api, self._signs = api, signs

    @activity.defn(name="signs.pulse")
    @classified("look at the service")
    def take(self, asked: TakePulse) -> Pulse:
        """Health and readiness now, and the metrics of the whole minutes since then, if one has passed."""
        health = self._api.confirm(Confirm(stage=asked.stage))
        ready = self._api.confirm(Confirm(stage=asked.stage, path="/health/ready"))
        start = asked.since.replace(second=0, microsecond=0)
        start = start if start == asked.since else start + _MINUTE
        error_rate = throttled = latency = invocations = None
        told = "no whole minute of metrics yet"
        if start < asked.now:
            seen = self._signs.metrics(Window(stage=asked.stage, start=start, end=asked.now))
            pairs = ((seen.errors, seen.invocations), (seen.gateway_5xx, seen.requests))
            rates = [min(1.0, bad / of) for bad, of in pairs if of and bad is not None]
            error_rate = max(rates, default=None)
            throttled, invocations = seen.throttles, seen.invocations
            latency = seen.gateway_ms if seen.gateway_ms is not None else seen.duration_ms
            told = seen.summary
        return Pulse(
            summary=f"{health.summary}; {ready.summary}; {told}",
            health_ok=health.ok,
            health=health.problem or "HTTP 200",
            ready_ok=ready.ok,
            ready=ready.problem or "HTTP 200",
            error_rate=error_rate,
            throttled=throttled,
            latency_ms=latency,
            invocations=invocations,
        )
