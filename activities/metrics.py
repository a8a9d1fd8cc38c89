"""CloudWatch metrics of the stage's function.

A metric's time is the start of the invocation, and an invocation is counted when it ends. So a window should end at
least one function time-out before now, or its last invocations are missing; the window is taken as it is given.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field, model_validator
from temporalio import activity

from activities.errors import classified, passing
from activities.evidence import Finding
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import DimensionTypeDef, MetricDataQueryTypeDef

_MOST_POINTS = 1440
"""More points a metric than this are refused."""


class Window(Facts):
    """A stretch of time in which a stage is looked at."""

    stage: Stage
    start: AwareDatetime
    end: AwareDatetime
    version: str | None = Field(
        None, description="Count only what this version of the function ran for the alias; absent means all versions"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        if self.start >= self.end:
            raise ValueError("start must be before end")
        return self

    @property
    def length(self) -> timedelta:
        return self.end - self.start


class ErrorRate(Finding):
    """Invocations of the function and how many failed. Absent figures could not be measured, which is not zero."""

    invocations: int | None = Field(None, description="Absent when CloudWatch has no data: no traffic, or no metrics")
    errors: int | None = None
    throttles: int | None = Field(None, description="Refused calls; they count neither as invocations nor as errors")
    gateway_requests: int | None = Field(None, description="Over the whole minutes of the window; absent if none")
    gateway_errors: int | None = Field(None, description="5xx answers: also those that the code gives without failing")
    rate: float | None = Field(None, description="The worse of errors of invocations and 5xx of requests, 0 to 1")
    period_s: int = Field(description="Length of one data point in seconds")


class Latency(Finding):
    """How long invocations took, in milliseconds: of each figure the worst slice of the window."""

    average_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    samples: int | None = Field(None, description="Invocations behind the figures; absent when there is no data")
    period_s: int = Field(description="Length of one slice in seconds; percentiles of slices can't be joined")


class Metrics:
    def __init__(self, cloudwatch: CloudWatchClient) -> None:
        self._cloudwatch = cloudwatch

    @activity.defn(name="metrics.error_rate")
    @classified("read the error metrics")
    def error_rate(self, window: Window) -> ErrorRate:
        """Errors of invocations of the function, and 5xx answers of the gateway, over the window.

        An answer of 500 that the code gives itself is no error to Lambda, so the gateway is asked too. Its points are
        minutes and tell no versions apart, so only minutes that lie wholly in the window count.
        """
        period = fine_period(window, datetime.now(UTC))
        found = self._read(window, period, {"Invocations": "Sum", "Errors": "Sum", "Throttles": "Sum"})
        totals = {name: round(sum(values)) if values else None for name, values in found.items()}
        invocations, errors, throttles = totals["Invocations"], totals["Errors"], totals["Throttles"]
        requests, failed = self._gateway(window)
        minutes = window.length.total_seconds() / 60
        rates = [bad / of for bad, of in ((errors, invocations), (failed, requests)) if of and bad is not None]
        parts = [f"{throttles or 0} throttled"] if throttles else []
        if invocations and errors is not None:
            parts.insert(0, f"{errors} errors of {invocations} invocations")
        if requests and failed is not None:
            parts.append(f"{failed} of {requests} requests answered 5xx")
        if rates:
            summary = f"{', '.join(parts)} in {minutes:.1f} min ({max(rates):.2%})"
        else:
            summary = f"{', '.join([*parts, 'no invocations measured'])} in {minutes:.1f} min: the rate is not known"
        return ErrorRate(
            summary=summary,
            invocations=invocations,
            errors=errors,
            throttles=throttles,
            gateway_requests=requests,
            gateway_errors=failed,
            rate=max(rates) if rates else None,
            period_s=period,
        )

    def _gateway(self, window: Window) -> tuple[int | None, int | None]:
        """Requests and 5xx answers of the gateway in the whole minutes of the window; None when there are none."""
        start = window.start.replace(second=0, microsecond=0)
        whole = start if start == window.start else start + timedelta(minutes=1)
        end = window.end.replace(second=0, microsecond=0)
        if whole >= end:
            return None, None
        inner = window.model_copy(update={"start": whole, "end": end})
        period = fine_period(inner, datetime.now(UTC))
        found = self._read(inner, period, {"Count": "Sum", "5XXError": "Sum"}, gateway=True)
        requests = round(sum(found["Count"])) if found["Count"] else None
        return requests, round(sum(found["5XXError"])) if requests else None

    @activity.defn(name="metrics.latency")
    @classified("read the function's duration metrics")
    def latency(self, window: Window) -> Latency:
        """Duration of invocations over the window: average and percentiles."""
        period = whole_period(window)
        found = self._read(
            window, period, {"Duration": "Average", "p50": "p50", "p95": "p95", "p99": "p99", "samples": "SampleCount"}
        )
        samples = round(sum(found["samples"])) if found["samples"] else None
        worst = {name: max(values) if values else None for name, values in found.items()}
        minutes = window.length.total_seconds() / 60
        if worst["p50"] is None or worst["p95"] is None or worst["p99"] is None:
            summary = f"no durations measured in {minutes:.0f} min"
        else:
            summary = (
                f"p50 {worst['p50']:.0f} ms, p95 {worst['p95']:.0f} ms, p99 {worst['p99']:.0f} ms "
                f"({samples} invocations in {minutes:.0f} min)"
            )
        return Latency(
            summary=summary,
            average_ms=worst["Duration"],
            p50_ms=worst["p50"],
            p95_ms=worst["p95"],
            p99_ms=worst["p99"],
            samples=samples,
            period_s=period,
        )

    def _read(
        self, window: Window, period: int, statistics: dict[str, str], *, gateway: bool = False
    ) -> dict[str, list[float]]:
        """Values by name. A name that is no statistic of ``Duration`` is the metric's own.

        Raises:
            MetricsIncomplete: CloudWatch could not answer in full; retryable.
        """
        names = list(statistics)
        namespace, dimensions = _of_gateway(window.stage) if gateway else _of_function(window)
        queries: list[MetricDataQueryTypeDef] = [
            {
                "Id": f"m{number}",
                "MetricStat": {
                    "Metric": {
                        "Namespace": namespace,
                        "MetricName": name if statistics[name] == "Sum" else "Duration",
                        "Dimensions": dimensions,
                    },
                    "Period": period,
                    "Stat": statistics[name],
                },
            }
            for number, name in enumerate(names)
        ]
        found: dict[str, list[float]] = {name: [] for name in names}
        pages = self._cloudwatch.get_paginator("get_metric_data").paginate(
            MetricDataQueries=queries, StartTime=window.start, EndTime=window.end
        )
        for page in pages:
            for result in page["MetricDataResults"]:
                if result.get("StatusCode") not in ("Complete", "PartialData"):
                    raise passing(
                        f"CloudWatch answered {result.get('StatusCode')} for {window.stage.function}",
                        type="MetricsIncomplete",
                    )
                found[names[int(result["Id"][1:])]] += result["Values"]
        return found


def _of_function(window: Window) -> tuple[str, list[DimensionTypeDef]]:
    stage = window.stage
    dimensions: list[DimensionTypeDef] = [{"Name": "FunctionName", "Value": stage.function}]
    if window.version is not None:
        dimensions += [
            {"Name": "Resource", "Value": f"{stage.function}:{stage.alias}"},
            {"Name": "ExecutedVersion", "Value": window.version},
        ]
    return "AWS/Lambda", dimensions


def _of_gateway(stage: Stage) -> tuple[str, list[DimensionTypeDef]]:
    return "AWS/ApiGateway", [
        {"Name": "ApiName", "Value": stage.gateway.name},
        {"Name": "Stage", "Value": stage.gateway.stage},
    ]


def fine_period(window: Window, now: datetime) -> int:
    """The finest period, in seconds, that CloudWatch still keeps for the window and whose points it gives at once."""
    age = now - window.start
    step = 60 if age < timedelta(days=15) else 300 if age < timedelta(days=63) else 3600
    return _rounded_up(window.length.total_seconds() / _MOST_POINTS, step)


def whole_period(window: Window) -> int:
    """The period, in seconds, that covers the window in as few slices as CloudWatch allows: at most a day each."""
    return min(_rounded_up(window.length.total_seconds(), 60), 86_400)


def _rounded_up(seconds: float, step: int) -> int:
    return max(step, -(-int(seconds) // step) * step)
