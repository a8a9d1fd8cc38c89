"""What is measured of a slow, heavy or failing API. What a source does not say is absent, never zero."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, Field

from activities.evidence import Finding
from activities.metrics import Window
from activities.stage import Facts, Stage

Points = tuple[tuple[datetime, float], ...]


class LatencyParts(Finding):
    """How long answers took, as the gateway, the integration and the function each measured it. Averages in ms."""

    requests: int | None = Field(None, description="Requests at the gateway")
    latency_ms: float | None = Field(None, description="Gateway: from request to answer; includes the integration")
    latency_max_ms: float | None = None
    integration_ms: float | None = Field(None, description="Gateway: what the function's answer was waited for")
    duration_ms: float | None = Field(None, description="Function: without the start of an environment")
    duration_max_ms: float | None = None
    duration_p99_ms: float | None = Field(None, description="Of the worst slice of the window")
    invocations: int | None = None
    throttles: int | None = None
    points: Points = Field((), description="Average latency a minute")


class Minute(Facts):
    """One minute of traffic."""

    at: AwareDatetime
    requests: int = Field(description="At the gateway, or invocations where the gateway says nothing")
    failed: int = Field(description="5xx answers or failed invocations, whichever are more")
    refused: int = Field(0, description="4xx answers")


class ErrorMinutes(Finding):
    """Errors minute by minute, oldest first. A minute without traffic is not in it."""

    requests: int | None = Field(None, description="Absent when CloudWatch has no data")
    failed: int | None = None
    refused: int | None = None
    rate: float | None = Field(None, description="Failed of requests, 0 to 1")
    minutes: tuple[Minute, ...] = ()


class RouteCount(Facts):
    """Answers of one status on one route."""

    status: int
    route: str = Field(description="Such as 'GET /sessions/{id}'")
    requests: int
    average_ms: float | None = None
    longest_ms: float | None = None
    first_at: AwareDatetime | None = Field(None, description="When the first of them was answered")
    last_at: AwareDatetime | None = None


class ClientCount(Facts):
    """One client, by the id of its key or its address; never the key."""

    client: str
    requests: int
    limited: int = Field(0, description="Answers of 429")
    missed: int = Field(0, description="Answers of 404")
    failed: int = Field(0, description="Answers of 5xx")


class RequestsAsked(Facts):
    window: Window
    source: Literal["function", "gateway"] = Field("function", description="Whose log")


class Requests(Finding):
    """Answers by status, by route and by client, from a log. Absent figures could not be read."""

    total: int | None = Field(None, description="Absent when there is no such log, or no line with a status in it")
    average_ms: float | None = Field(None, description="Of all answers, where the log has their time")
    statuses: dict[str, int] = Field(default_factory=dict)
    routes: tuple[RouteCount, ...] = Field((), description="The most frequent first; the rest is left out")
    clients: tuple[ClientCount, ...] = Field((), description="The busiest first; the rest is left out")
    client_count: int = Field(0, description="How many clients there were in all")
    other_median: float | None = Field(None, description="Requests of the median client beside the busiest one")
    complete: bool = Field(True, description="False when there were more combinations than Insights gives")


class Reports(Finding):
    """The REPORT lines that Lambda writes at the end of every invocation."""

    invocations: int | None = Field(None, description="Absent when there is no log, or no such line in it")
    average_ms: float | None = None
    cold_starts: int | None = Field(None, description="Invocations that had an Init Duration")
    init_average_ms: float | None = Field(None, description="Of the cold ones")
    init_longest_ms: float | None = None
    memory_size_mb: int | None = None
    memory_used_mb: float | None = Field(None, description="The most that one environment used")
    memory_average_mb: float | None = None
    environments: int | None = None
    growing: int | None = Field(None, description="Environments whose use grew by a tenth of the size or more")
    growth_mb: float | None = Field(None, description="The most that one environment's use grew")
    timeouts: int | None = Field(None, description="Invocations that Lambda ended for time")
    points: Points = Field((), description="Most memory used, a minute")


class ErrorKind(Facts):
    """Errors of one kind, as the code logged them."""

    kind: str
    text: str = Field(description="Shortened, without what looks like a secret")
    count: int


class ErrorKinds(Finding):
    total: int | None = Field(None, description="Absent when there is no log")
    kinds: tuple[ErrorKind, ...] = Field((), description="The most frequent first")


# --- the database ---------------------------------------------------------------------------------------------------


class ProfilerLevel(Finding):
    """How the database profiles, so that it can be put back."""

    level: int | None = Field(None, ge=0, le=2, description="Absent when it may not be asked or changed")
    slow_ms: int = 100
    sample_rate: float = 1.0
    server: str = "MongoDB"


class SetProfiler(Facts):
    """Absolute settings of the profiler of the stage's database."""

    stage: Stage
    level: int = Field(ge=0, le=2)
    slow_ms: int = Field(ge=0)
    sample_rate: float = Field(1.0, ge=0, le=1)


class SlowAsked(Facts):
    stage: Stage
    since: AwareDatetime
    until: AwareDatetime
    over: timedelta = Field(description="Queries that took as long or longer")


class SlowQuery(Facts):
    """Queries of one form, without the values that they asked for."""

    collection: str
    form: str = Field(description="Such as 'find {owner: =, created_at: <} sort {created_at: -1}'")
    count: int
    average_ms: float
    longest_ms: float
    total_ms: float
    plan: str | None = Field(None, description="COLLSCAN, IXSCAN ...; absent when it is not known")
    sorts_in_memory: bool = False
    examined: int | None = Field(None, description="Documents read for one of them")
    returned: int | None = None
    index: str | None = Field(None, description="Index that it uses")
    missing: tuple[tuple[str, int], ...] = Field((), description="Keys of the index that it lacks, if it lacks one")
    filter: dict[str, object] = Field(
        default_factory=dict, description="Its filter with other values, in Extended JSON: to measure with"
    )
    sort: tuple[tuple[str, int], ...] = ()
    note: str | None = Field(None, description="Why no index is proposed, where one would be expected")


class SlowQueries(Finding):
    """What the profiler or Atlas recorded."""

    source: Literal["profiler", "atlas", "none"]
    count: int | None = Field(None, description="Slow queries; absent when nothing could be read")
    total_ms: float | None = Field(None, description="Time in them, together")
    seconds: float | None = Field(None, description="How long was recorded")
    queries: tuple[SlowQuery, ...] = Field((), description="Those with the most time together first")
    server: str = "MongoDB"
