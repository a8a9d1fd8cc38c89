"""What was measured of a symptom, put together, and latency taken apart. Pure functions, no clock.

API Gateway's ``Latency`` includes ``IntegrationLatency``, and that includes the function's ``Duration``:

    gateway         = Latency - IntegrationLatency
    init + network  = IntegrationLatency - Duration
    function        = Duration, of which the database has its part

A reading that cannot be is a data problem: it is said, and nothing is concluded from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from activities.database import Connections
from activities.function_capacity import FunctionState
from activities.symptom_models import (
    ErrorKinds,
    ErrorMinutes,
    LatencyParts,
    Reports,
    Requests,
    SlowQueries,
)

SLACK_MS, SLACK_SHARE = 5.0, 0.05
"""Two averages of the same requests, measured at two places, differ by this much without anything being wrong."""


@dataclass(frozen=True)
class Headline:
    """The one measurement that says whether the symptom is there."""

    value: float | None
    limit: float
    text: str

    @property
    def well(self) -> bool | None:
        """None when it could not be measured."""
        return None if self.value is None else self.value <= self.limit


@dataclass(frozen=True)
class Suspect:
    """The deployment that is live, and whether the trouble began with it."""

    current: str
    target: str | None
    """The release that a rollback would go to; None when there is none."""
    deployed_at: datetime | None
    recent: bool
    """Whether it was deployed so lately that it can be the cause."""
    worse_since: bool | None
    """Whether it was well before and is not since; None when that could not be measured."""
    before: str = "not measured"


@dataclass(frozen=True)
class Readings:
    """Everything that was looked at. None is 'not known', never 'fine'."""

    window: timedelta
    latency: LatencyParts | None = None
    errors: ErrorMinutes | None = None
    reports: Reports | None = None
    slow: SlowQueries | None = None
    connections: Connections | None = None
    settings: FunctionState | None = None
    requests: Requests | None = None
    earlier: Requests | None = None
    """The same, over as long a time just before."""
    gateway: Requests | None = None
    kinds: ErrorKinds | None = None
    suspect: Suspect | None = None

    @property
    def answered(self) -> bool:
        """Whether metrics and logs could be read, whatever was in them."""
        return None not in (self.latency, self.errors, self.reports, self.requests, self.kinds)

    @property
    def throttles(self) -> int | None:
        return self.latency.throttles if self.latency else None


@dataclass(frozen=True)
class Apart:
    """Average milliseconds of one answer by where they were spent; None where that is not known."""

    total_ms: float | None = None
    gateway_ms: float | None = None
    init_ms: float | None = None
    network_ms: float | None = None
    function_ms: float | None = None
    database_ms: float | None = None
    problems: tuple[str, ...] = field(default=())
    """Readings that cannot be."""

    def parts(self) -> dict[str, float]:
        named = {
            "gateway": self.gateway_ms,
            "start of environments": self.init_ms,
            "network": self.network_ms,
            "code": self.function_ms,
            "database": self.database_ms,
        }
        return {name: value for name, value in named.items() if value is not None}

    def share(self, part: float | None) -> float | None:
        """A part's share of the whole, 0 to 1."""
        return part / self.total_ms if part is not None and self.total_ms else None

    def largest(self) -> str | None:
        parts = self.parts()
        return max(parts, key=lambda name: parts[name]) if parts else None

    def described(self) -> str:
        if self.total_ms is None:
            return "; ".join(("latency is not known", *self.problems))
        shown = ", ".join(f"{name} {value:.0f} ms" for name, value in self.parts().items())
        return "; ".join((f"{self.total_ms:.0f} ms on average: {shown or 'parts not known'}", *self.problems))


def average_ms(
    latency: LatencyParts | None, gateway: Requests | None, requests: Requests | None
) -> tuple[float | None, str]:
    """How long an average answer took, and whose word it is: the gateway's metrics or its log, else the function's.

    The logs stand in where the window has no whole minute, and so no metrics.
    """
    for value, source in (
        (latency.latency_ms if latency else None, "the gateway's metrics"),
        (gateway.average_ms if gateway else None, "the gateway's log"),
        (latency.duration_ms if latency else None, "the function's metrics"),
        (requests.average_ms if requests else None, "the function's log"),
    ):
        if value is not None:
            return value, source
    return None, "nothing"


def take_apart(seen: Readings) -> Apart:
    """Where the time of an average answer goes."""
    latency = seen.latency or LatencyParts(summary="")
    total, _ = average_ms(seen.latency, seen.gateway, seen.requests)
    if total is None:
        return Apart()
    problems: list[str] = []
    gateway = _between(latency.latency_ms, latency.integration_ms)
    if gateway is not None and gateway < 0:
        problems.append(
            f"data problem: the gateway's integration ({latency.integration_ms:.0f} ms) is longer than its whole "
            f"latency ({latency.latency_ms:.0f} ms)"
        )
        gateway = None
    outside = _between(latency.integration_ms, latency.duration_ms)
    duration = measured = _duration(seen)
    if outside is not None and outside < 0:
        problems.append(
            f"data problem: the function's duration ({duration:.0f} ms) is longer than the gateway waited for it "
            f"({latency.integration_ms:.0f} ms); calls beside the gateway are in it"
        )
        outside = duration = None
    init = _init(seen)
    if init is not None and outside is not None:
        init = min(init, outside)
    network = None if outside is None else outside - (init or 0.0)
    database = _database(seen)
    if database is not None and measured is not None and not _fits(database, measured):
        problems.append(
            f"data problem: {database:.0f} ms of slow queries a request are more than the function took "
            f"({measured:.0f} ms); others than this API query the database"
        )
        database = None
    code = None if duration is None else max(duration - (database or 0.0), 0.0)
    return Apart(total, gateway, init, network, code, database, tuple(problems))


def _between(outer: float | None, inner: float | None) -> float | None:
    """What is in the outer and not in the inner; below zero only when that is more than the slack of two averages."""
    if outer is None or inner is None:
        return None
    return max(outer - inner, 0.0) if _fits(inner, outer) else outer - inner


def _fits(inner: float, outer: float) -> bool:
    return inner <= outer + max(SLACK_MS, SLACK_SHARE * outer)


def _duration(seen: Readings) -> float | None:
    """The function's own time: by its metrics, or by the REPORT lines where there are none."""
    if seen.latency is not None and seen.latency.duration_ms is not None:
        return seen.latency.duration_ms
    return seen.reports.average_ms if seen.reports else None


def _init(seen: Readings) -> float | None:
    """Milliseconds of an average invocation that went into starting environments."""
    reports = seen.reports
    if reports is None or not reports.invocations or reports.cold_starts is None:
        return None
    return reports.cold_starts / reports.invocations * (reports.init_average_ms or 0.0)


def _database(seen: Readings) -> float | None:
    """Milliseconds of slow queries an average request: at least so much of its time is the database's."""
    slow = seen.slow
    counts = (
        seen.latency.requests if seen.latency else None,
        seen.gateway.total if seen.gateway else None,
        seen.latency.invocations if seen.latency else None,
        seen.requests.total if seen.requests else None,
    )
    requests = next((count for count in counts if count), None)
    if slow is None or slow.total_ms is None or not slow.seconds or not requests:
        return None
    per_second = requests / seen.window.total_seconds()
    return slow.total_ms / (per_second * slow.seconds)
