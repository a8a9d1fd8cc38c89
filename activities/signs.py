"""The vital signs of a stage, read in few calls: what an incident confirms, freezes as evidence and watches.

Each method is one source, so that a source that fails costs only itself. Figures that could not be measured are absent,
which is never zero.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, Field
from temporalio import activity

from activities.charts import Chart, Line
from activities.errors import classified, passing
from activities.evidence import Finding
from activities.functions import Functions
from activities.log_kinds import LogCounts, kind_of
from activities.logs import FINISHED, LOGGED, RAISED, Logs, TooMuchError, answered_5xx, field_of, record_of, shown
from activities.metrics import Window, fine_period
from activities.records import DeployLedger, Records
from activities.releases import LedgerEntry
from activities.stage import Facts, LogFields, Stage

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import MetricDataQueryTypeDef
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_logs import CloudWatchLogsClient

Points = list[tuple[datetime, float]]

_METRICS: tuple[tuple[str, str, str, str], ...] = (
    ("invocations", "AWS/Lambda", "Invocations", "Sum"),
    ("errors", "AWS/Lambda", "Errors", "Sum"),
    ("throttles", "AWS/Lambda", "Throttles", "Sum"),
    ("duration_sum", "AWS/Lambda", "Duration", "Sum"),
    ("duration_count", "AWS/Lambda", "Duration", "SampleCount"),
    ("duration_max", "AWS/Lambda", "Duration", "Maximum"),
    ("duration_p95", "AWS/Lambda", "Duration", "p95"),
    ("concurrent", "AWS/Lambda", "ConcurrentExecutions", "Maximum"),
    ("requests", "AWS/ApiGateway", "Count", "Sum"),
    ("gateway_5xx", "AWS/ApiGateway", "5XXError", "Sum"),
    ("gateway_4xx", "AWS/ApiGateway", "4XXError", "Sum"),
    ("gateway_sum", "AWS/ApiGateway", "Latency", "Sum"),
    ("gateway_count", "AWS/ApiGateway", "Latency", "SampleCount"),
    ("integration_sum", "AWS/ApiGateway", "IntegrationLatency", "Sum"),
    ("integration_count", "AWS/ApiGateway", "IntegrationLatency", "SampleCount"),
)
_SAMPLES = 5
_MOST_ROUTES = 10
_REPORT = re.compile(r"Max Memory Used: (?P<used>\d+) MB")
_INIT = re.compile(r"Init Duration: (?P<ms>[\d.]+) ms")
_IDENTIFIER = re.compile(r"(?<=/)(?:[0-9a-f]{8,}|\d+|[0-9a-f-]{36})(?=/|$)")


class VitalMetrics(Finding):
    """What CloudWatch and Lambda know of the last minutes."""

    invocations: int | None = None
    errors: int | None = None
    throttles: int | None = None
    duration_ms: float | None = None
    duration_max_ms: float | None = None
    duration_p95_ms: float | None = None
    concurrent: int | None = None
    requests: int | None = None
    gateway_5xx: int | None = None
    gateway_4xx: int | None = None
    gateway_ms: float | None = None
    integration_ms: float | None = None
    timeout_ms: float | None = Field(None, description="The function's time-out")
    memory_mb: int | None = Field(None, description="The function's memory")
    reserved: int | None = Field(None, description="Reserved concurrency; absent when it has none")


class VitalLogs(Finding):
    """The function's log: error lines by what they speak of, and what the REPORT lines say."""

    lines: LogCounts | None = Field(None, description="Absent when the log could not be read whole")
    samples: tuple[str, ...] = ()
    reports: int | None = None
    cold_starts: int | None = None
    init_ms: float | None = Field(None, description="Slowest cold start")
    memory_used_mb: float | None = None
    clients: dict[str, int] = Field(default_factory=dict, description="Failed requests by the id of the client's key")


class GatewayLog(Finding):
    """The gateway's access log: which routes answer 5xx."""

    routes: dict[str, int] = Field(default_factory=dict)


class DeploymentsQuery(Facts):
    stage: Stage
    since: AwareDatetime


class RecentDeployments(Finding):
    live: str = Field(description="Release that is live, for people")
    live_since: AwareDatetime | None = None
    entries: tuple[LedgerEntry, ...] = Field((), description="Newest first")
    problems: tuple[str, ...] = ()


class Series(Finding):
    """The metrics of an incident over time, for its charts."""

    charts: tuple[Chart, ...] = ()


class Signs:
    def __init__(
        self, cloudwatch: CloudWatchClient, logs: CloudWatchLogsClient, functions: LambdaClient, records: Records
    ) -> None:
        self._cloudwatch = cloudwatch
        self._lambda = functions
        self._logs = Logs(logs)
        self._functions = Functions(functions)
        self._ledger = DeployLedger(records)
        self._no_such_group = logs.exceptions.ResourceNotFoundException

    @activity.defn(name="signs.metrics")
    @classified("read the metrics")
    def metrics(self, window: Window) -> VitalMetrics:
        """Errors, throttles, duration and latency over the window, and the limits that they run into."""
        found = self._read(window)
        sums = {name: sum(value for _, value in points) for name, points in found.items() if points}
        counts = {name: round(value) for name, value in sums.items()}
        most = {name: max(value for _, value in points) for name, points in found.items() if points}
        configuration = self._lambda.get_function_configuration(FunctionName=window.stage.function)
        reserved = self._lambda.get_function_concurrency(FunctionName=window.stage.function)
        if "gateway_5xx" not in counts and "requests" in counts:
            counts["gateway_5xx"] = 0
        seen = VitalMetrics(
            summary="",
            invocations=counts.get("invocations"),
            errors=counts.get("errors"),
            throttles=counts.get("throttles"),
            duration_ms=_average(sums, "duration"),
            duration_max_ms=most.get("duration_max"),
            duration_p95_ms=most.get("duration_p95"),
            concurrent=round(most["concurrent"]) if "concurrent" in most else None,
            requests=counts.get("requests"),
            gateway_5xx=counts.get("gateway_5xx"),
            gateway_4xx=counts.get("gateway_4xx"),
            gateway_ms=_average(sums, "gateway"),
            integration_ms=_average(sums, "integration"),
            timeout_ms=1000.0 * configuration["Timeout"] if "Timeout" in configuration else None,
            memory_mb=configuration.get("MemorySize"),
            reserved=reserved.get("ReservedConcurrentExecutions"),
        )
        return seen.model_copy(update={"summary": _told(seen, window.length)})

    @activity.defn(name="signs.logs")
    @classified("read the function's log")
    def logs(self, window: Window) -> VitalLogs:
        """Error lines by kind, cold starts and memory. A log group that does not exist yet is said, not an error."""
        group = window.stage.log_group
        try:
            events = {e["eventId"]: e for pattern in (LOGGED, RAISED) for e in self._logs.events(window, pattern)}
            reports = [event["message"] for event in self._logs.events(window, FINISHED)]
        except self._no_such_group:
            return VitalLogs(summary=f"log group {group} does not exist: nothing is known")
        except TooMuchError:
            return VitalLogs(summary=f"{group} holds more lines than can be read at once: take a shorter window")
        newest = sorted(events.values(), key=lambda event: event["timestamp"], reverse=True)
        kinds = Counter(kind_of(event["message"]) for event in newest)
        used = [float(seen["used"]) for line in reports if (seen := _REPORT.search(line))]
        starts = [float(seen["ms"]) for line in reports if (seen := _INIT.search(line))]
        worst = f"{max(used):.0f} MB used at most" if used else "memory not known"
        by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
        return VitalLogs(
            summary=f"error lines: {by_kind}; {len(reports)} invocations, {len(starts)} cold starts, {worst}",
            lines=LogCounts.model_validate(kinds),
            samples=tuple(shown(event["message"]) for event in newest[:_SAMPLES]),
            reports=len(reports),
            cold_starts=len(starts),
            init_ms=max(starts, default=None),
            memory_used_mb=max(used, default=None),
            clients=_most(field_of(record_of(event["message"]), window.stage.log_fields.client) for event in newest),
        )

    @activity.defn(name="signs.gateway_log")
    @classified("read the gateway's log")
    def gateway_log(self, window: Window) -> GatewayLog:
        """Which routes answer 5xx, by the access log of the gateway. A stage without such a log says so."""
        group, fields = window.stage.gateway.log_group, window.stage.log_fields
        if group is None:
            return GatewayLog(summary="the stage's settings name no access log of the gateway")
        there = window.model_copy(update={"stage": window.stage.model_copy(update={"log_group": group})})
        try:
            lines = [event["message"] for event in self._logs.events(there, answered_5xx(fields.gateway_status))]
        except self._no_such_group:
            return GatewayLog(summary=f"log group {group} does not exist")
        except TooMuchError:
            return GatewayLog(summary=f"{group} holds more lines than can be read at once: take a shorter window")
        routes = _most(_route(line, fields, window.stage.gateway.stage) for line in lines)
        told = ", ".join(f"{route} ({count})" for route, count in routes.items()) or "none"
        return GatewayLog(summary=f"routes that answered 5xx: {told}", routes=routes)

    @activity.defn(name="signs.deployments")
    @classified("look for recent deployments")
    def deployments(self, query: DeploymentsQuery) -> RecentDeployments:
        """What is live, and what was deployed since then: by the deploy ledger and the function itself."""
        live = self._functions.live(query.stage)
        page = self._ledger.list(query.stage)
        same = [e for e in page.entries if e.release == live.release and e.status == "succeeded"]
        name = same[0].facts().name if same else live.facts().name
        recent = tuple(entry for entry in page.entries if entry.deployed_at >= query.since)
        told = "; ".join(f"{e.facts().name} at {e.deployed_at.astimezone(UTC):%d %b %H:%M}" for e in recent[:3])
        return RecentDeployments(
            summary=f"live is {name}; deployed since {query.since:%d %b %H:%M}: {told or 'nothing'}",
            live=name,
            live_since=same[0].deployed_at if same else None,
            entries=recent,
            problems=page.problems,
        )

    @activity.defn(name="signs.series")
    @classified("read the metrics for the charts")
    def series(self, window: Window) -> Series:
        """Errors and latency minute by minute over the incident."""
        found = self._read(window)
        counted = {
            name: Line(name=label, points=tuple(found[name]))
            for name, label in (("errors", "failed"), ("gateway_5xx", "5xx"), ("throttles", "refused"))
        }
        count = dict(found["duration_count"])
        average = tuple((at, value / count[at]) for at, value in found["duration_sum"] if count.get(at))
        charts = (
            Chart(title="Errors a minute", unit="", lines=tuple(line for line in counted.values() if line.points)),
            Chart(
                title="Duration of invocations",
                unit="ms",
                lines=(
                    Line(name="average", points=average),
                    Line(name="p95", points=tuple(found["duration_p95"])),
                ),
            ),
        )
        drawn = tuple(chart for chart in charts if any(line.points for line in chart.lines))
        return Series(summary=f"{len(drawn)} charts", charts=drawn)

    def _read(self, window: Window) -> dict[str, Points]:
        """Every metric's points by name, oldest first, over whole periods.

        Raises:
            MetricsIncomplete: CloudWatch could not answer in full; retryable.
        """
        period = fine_period(window, datetime.now(UTC))
        start = datetime.fromtimestamp(window.start.timestamp() // period * period, UTC)
        stage = window.stage
        dimensions = {
            "AWS/Lambda": [{"Name": "FunctionName", "Value": stage.function}],
            "AWS/ApiGateway": [
                {"Name": "ApiName", "Value": stage.gateway.name},
                {"Name": "Stage", "Value": stage.gateway.stage},
            ],
        }
        queries: list[Any] = [
            {
                "Id": name,
                "MetricStat": {
                    "Metric": {"Namespace": namespace, "MetricName": metric, "Dimensions": dimensions[namespace]},
                    "Period": period,
                    "Stat": statistic,
                },
            }
            for name, namespace, metric, statistic in _METRICS
        ]
        found: dict[str, Points] = {query["Id"]: [] for query in queries}
        typed: list[MetricDataQueryTypeDef] = queries
        pages = self._cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=typed, StartTime=start, EndTime=window.end
        )
        for page in pages:
            for result in page["MetricDataResults"]:
                if result.get("StatusCode") not in ("Complete", "PartialData"):
                    raise passing(
                        f"CloudWatch answered {result.get('StatusCode')} for {stage.function}", type="MetricsIncomplete"
                    )
                found[result["Id"]] += zip(result["Timestamps"], result["Values"], strict=True)
        return {name: sorted(points) for name, points in found.items()}


def _average(sums: dict[str, float], name: str) -> float | None:
    count = sums.get(f"{name}_count")
    return round(sums[f"{name}_sum"] / count, 1) if count else None


def _told(seen: VitalMetrics, length: timedelta) -> str:
    minutes = f"in {length.total_seconds() / 60:.0f} min"
    if seen.invocations is None and seen.requests is None and not seen.throttles:
        return f"no traffic measured {minutes}"
    parts = [f"{seen.errors or 0} errors of {seen.invocations or 0} invocations, {seen.throttles or 0} throttled"]
    if seen.duration_ms is not None and seen.duration_max_ms is not None:
        parts.append(f"duration {seen.duration_ms:.0f} ms on average, {seen.duration_max_ms:.0f} ms at most")
    if seen.requests is not None:
        waits = f" in {seen.gateway_ms:.0f} ms on average" if seen.gateway_ms is not None else ""
        parts.append(f"{seen.gateway_5xx or 0} of {seen.requests} requests answered 5xx{waits}")
    return f"{'; '.join(parts)} {minutes}"


def _most(names: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(name for name in names if name is not None).most_common(_MOST_ROUTES))


def _route(line: str, fields: LogFields, prefix: str | None) -> str | None:
    """``GET /sessions/{id}`` of an access log line, without the stage; identifiers in the path are one route."""
    if not (record := record_of(line)):
        return None
    path = (field_of(record, fields.gateway_path) or "?").removeprefix(f"/{prefix}")
    return _IDENTIFIER.sub("{id}", f"{field_of(record, fields.gateway_method) or '?'} {path}")
