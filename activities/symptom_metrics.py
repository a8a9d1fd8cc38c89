"""CloudWatch metrics for a diagnosis: where the time goes, and errors minute by minute.

An average over a window is the sum of its minutes' sums by the sum of their samples; averages of averages are none.
CloudWatch's points are minutes, so only minutes that lie wholly in the window count; in a shorter one nothing is known.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from temporalio import activity

from activities.errors import classified, passing
from activities.metrics import Window, fine_period, whole_period
from activities.stage import Stage
from activities.symptom_models import ErrorMinutes, LatencyParts, Minute

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import DimensionTypeDef, MetricDataQueryTypeDef

Series = dict[datetime, float]


class _Wanted(NamedTuple):
    source: str
    """``gateway``, ``alias`` or ``function``."""
    metric: str
    statistic: str


class SymptomMetrics:
    def __init__(self, cloudwatch: CloudWatchClient) -> None:
        self._cloudwatch = cloudwatch

    @activity.defn(name="metrics.latency_parts")
    @classified("read the latency metrics")
    def latency_parts(self, window: Window) -> LatencyParts:
        """Gateway, integration and function, over the same window.

        The function's duration is that of calls through the alias, as the gateway makes them; of all calls where the
        alias has no figures.
        """
        inner = whole_minutes(window)
        if inner is None:
            return LatencyParts(summary="no whole minute in the window: metrics tell nothing")
        window = inner
        period = fine_period(window, datetime.now(UTC))
        found = self._read(
            window,
            period,
            {
                **_averaged("latency", "gateway", "Latency"),
                **_averaged("integration", "gateway", "IntegrationLatency"),
                **_averaged("alias", "alias", "Duration"),
                **_averaged("all", "function", "Duration"),
                "invocations": _Wanted("function", "Invocations", "Sum"),
                "throttles": _Wanted("function", "Throttles", "Sum"),
            },
        )
        of = "alias" if found["alias_n"] else "all"
        p99 = self._read(
            window,
            whole_period(window),
            {"p99": _Wanted("alias" if of == "alias" else "function", "Duration", "p99")},
        )["p99"]
        parts = LatencyParts(
            summary="",
            requests=_total(found["latency_n"]),
            latency_ms=_average(found, "latency"),
            latency_max_ms=_most(found["latency_max"]),
            integration_ms=_average(found, "integration"),
            duration_ms=_average(found, of),
            duration_max_ms=_most(found[f"{of}_max"]),
            duration_p99_ms=_most(p99),
            invocations=_total(found["invocations"]),
            throttles=_total(found["throttles"]),
            points=tuple(
                (at, round(found["latency_sum"].get(at, 0.0) / n, 1))
                for at, n in sorted(found["latency_n"].items())
                if n
            ),
        )
        return parts.model_copy(update={"summary": _latency_line(parts)})

    @activity.defn(name="metrics.error_minutes")
    @classified("read the error metrics minute by minute")
    def error_minutes(self, window: Window) -> ErrorMinutes:
        """5xx answers of requests, or failed invocations where the gateway has no figures or fewer of them."""
        inner = whole_minutes(window)
        if inner is None:
            return ErrorMinutes(summary="no whole minute in the window: metrics tell nothing")
        window = inner
        period = fine_period(window, datetime.now(UTC))
        found = self._read(
            window,
            period,
            {
                "requests": _Wanted("gateway", "Count", "Sum"),
                "5xx": _Wanted("gateway", "5XXError", "Sum"),
                "4xx": _Wanted("gateway", "4XXError", "Sum"),
                "invocations": _Wanted("function", "Invocations", "Sum"),
                "errors": _Wanted("function", "Errors", "Sum"),
            },
        )
        of = "requests" if found["requests"] else "invocations"
        minutes = tuple(
            Minute(
                at=at,
                requests=round(count),
                failed=min(round(count), round(max(found["5xx"].get(at, 0.0), found["errors"].get(at, 0.0)))),
                refused=round(found["4xx"].get(at, 0.0)),
            )
            for at, count in sorted(found[of].items())
            if round(count)
        )
        if not minutes:
            return ErrorMinutes(summary="no requests measured: the error rate is not known")
        requests, failed = sum(one.requests for one in minutes), sum(one.failed for one in minutes)
        refused = sum(one.refused for one in minutes)
        length = window.length.total_seconds() / 60
        return ErrorMinutes(
            summary=f"{failed} of {requests} requests failed ({failed / requests:.2%}), {refused} answered 4xx, "
            f"in {length:.1f} min",
            requests=requests,
            failed=failed,
            refused=refused,
            rate=failed / requests,
            minutes=minutes,
        )

    def _read(self, window: Window, period: int, wanted: dict[str, _Wanted]) -> dict[str, Series]:
        """Points by name and time.

        Raises:
            MetricsIncomplete: CloudWatch could not answer in full; retryable.
        """
        names = list(wanted)
        queries: list[MetricDataQueryTypeDef] = [
            {
                "Id": f"m{number}",
                "MetricStat": {
                    "Metric": {
                        "Namespace": "AWS/ApiGateway" if wanted[name].source == "gateway" else "AWS/Lambda",
                        "MetricName": wanted[name].metric,
                        "Dimensions": _dimensions(window.stage, wanted[name].source),
                    },
                    "Period": period,
                    "Stat": wanted[name].statistic,
                },
            }
            for number, name in enumerate(names)
        ]
        found: dict[str, Series] = defaultdict(dict)
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
                series = found[names[int(result["Id"][1:])]]
                series.update(zip(result["Timestamps"], result["Values"], strict=True))
        return found


def whole_minutes(window: Window) -> Window | None:
    """The whole minutes of the window; None when there is none."""
    start = window.start.replace(second=0, microsecond=0)
    start = start if start == window.start else start + timedelta(minutes=1)
    end = window.end.replace(second=0, microsecond=0)
    return window.model_copy(update={"start": start, "end": end}) if start < end else None


def _averaged(name: str, source: str, metric: str) -> dict[str, _Wanted]:
    return {
        f"{name}_sum": _Wanted(source, metric, "Sum"),
        f"{name}_n": _Wanted(source, metric, "SampleCount"),
        f"{name}_max": _Wanted(source, metric, "Maximum"),
    }


def _dimensions(stage: Stage, source: str) -> list[DimensionTypeDef]:
    if source == "gateway":
        return [{"Name": "ApiName", "Value": stage.gateway.name}, {"Name": "Stage", "Value": stage.gateway.stage}]
    dimensions: list[DimensionTypeDef] = [{"Name": "FunctionName", "Value": stage.function}]
    if source == "alias":
        dimensions.append({"Name": "Resource", "Value": f"{stage.function}:{stage.alias}"})
    return dimensions


def _average(found: dict[str, Series], name: str) -> float | None:
    samples = sum(found[f"{name}_n"].values())
    return round(sum(found[f"{name}_sum"].values()) / samples, 1) if samples else None


def _most(series: Series) -> float | None:
    return round(max(series.values()), 1) if series else None


def _total(series: Series) -> int | None:
    return round(sum(series.values())) if series else None


def _latency_line(parts: LatencyParts) -> str:
    if parts.latency_ms is None and parts.duration_ms is None:
        return "no latency measured"
    shown = [
        f"{name} {value:.0f} ms"
        for name, value in (
            ("gateway", parts.latency_ms),
            ("integration", parts.integration_ms),
            ("function", parts.duration_ms),
            ("function p99", parts.duration_p99_ms),
        )
        if value is not None
    ]
    return f"average {', '.join(shown)} ({parts.requests or 0} requests)"
