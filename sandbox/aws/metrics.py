"""CloudWatch: metrics by exact dimensions, percentiles, metric math, and what Lambda and API Gateway report.

Corrected: dimensions are matched exactly (leaving them out is no wildcard), a percentile is refused where AWS refuses
it, at most 1,440 datapoints an answer, newest first, expressions are evaluated, and points recorded by worker threads
are never lost to the eviction of old ones.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ministack.services import cloudwatch as cw

from sandbox.aws.metric_math import ExpressionError, Series, evaluate
from sandbox.aws.responses import Response, refused

_BASIC = frozenset({"SampleCount", "Average", "Sum", "Minimum", "Maximum"})
_PERCENTILE = re.compile(r"p(\d{1,2}(\.\d+)?|100)")
_QUERY_ID = re.compile(r"[a-z][A-Za-z0-9_]*")
_MAX_DATAPOINTS = 1440
_EVICT_EVERY_S = 60.0

_lock = threading.Lock()
_next_eviction = 0.0
_builtin_statistics = cw._get_metric_statistics
_builtin_data = cw._get_metric_data
_builtin_evict = cw._evict_old_metrics


def record(
    namespace: str,
    name: str,
    value: float,
    unit: str = "None",
    dimensions: dict[str, str] | None = None,
    *,
    at: float | None = None,
) -> None:
    """Add one sample to the metric with exactly these dimensions. ``at`` is epoch seconds, default now.

    Samples of the same second and value are kept as one with a count: traffic records many zeroes and ones.
    """
    second = float(int(time.time() if at is None else at))
    dimensions = dimensions or {}
    with _lock:
        points = _bucket((namespace, name, cw._dims_key(dimensions)))
        for point in points[-3:]:
            if point["Timestamp"] == second and point["Value"] == value and "_stat" not in point:
                point["Count"] = point.get("Count", 1.0) + 1.0
                return
        points.append({"Timestamp": second, "Value": float(value), "Unit": unit, "Dimensions": dimensions})


def record_invocation(
    name: str, qualifier: str | None, version: str, *, started: float, duration_ms: float, failed: bool
) -> None:
    """What Lambda reports of one invocation that ran. The timestamp of every sample is its start.

    Args:
        qualifier: the alias or version that was asked for, None for the bare function.
        version: the version that ran.
    """
    for dimensions in _lambda_dimensions(name, qualifier, version):
        record("AWS/Lambda", "Invocations", 1, "Count", dimensions, at=started)
        record("AWS/Lambda", "Errors", 1 if failed else 0, "Count", dimensions, at=started)
        record("AWS/Lambda", "Throttles", 0, "Count", dimensions, at=started)
        record("AWS/Lambda", "Duration", round(duration_ms, 2), "Milliseconds", dimensions, at=started)


def record_throttle(name: str, qualifier: str | None) -> None:
    """A refused invocation: it is in Throttles and in nothing else, and no version ran."""
    for dimensions in _lambda_dimensions(name, qualifier, None):
        record("AWS/Lambda", "Throttles", 1, "Count", dimensions)


def record_request(
    api: str, stage: str, *, started: float, status: int, latency_ms: float, integration_ms: float | None
) -> None:
    """What API Gateway reports of one request. ``integration_ms`` is None when it never reached the backend."""
    for dimensions in ({"ApiName": api}, {"ApiName": api, "Stage": stage}):
        record("AWS/ApiGateway", "Count", 1, "Count", dimensions, at=started)
        record("AWS/ApiGateway", "4XXError", 1 if 400 <= status < 500 else 0, "Count", dimensions, at=started)
        record("AWS/ApiGateway", "5XXError", 1 if status >= 500 else 0, "Count", dimensions, at=started)
        record("AWS/ApiGateway", "Latency", round(latency_ms), "Milliseconds", dimensions, at=started)
        if integration_ms is not None:
            record(
                "AWS/ApiGateway", "IntegrationLatency", round(integration_ms), "Milliseconds", dimensions, at=started
            )


def points_of(namespace: str, name: str, dimensions: list[dict[str, str]] | None) -> list[dict[str, Any]]:
    """A copy of the samples of exactly this metric."""
    key = (namespace, name, cw._dims_key(cw._dims_from_list(dimensions or [])))
    with _lock:
        return list(cw._metrics.get(key) or ())


def statistic(points: list[dict[str, Any]], stat: str) -> float | None:
    """``Sum``, ``p99`` ... of these samples; None when there is none."""
    stats = cw._calc_stats(points)
    value = cw._stat_value(stats, stat, points) if stats else None
    return None if value is None else float(value)


def by_period(points: Iterable[dict[str, Any]], period: int) -> dict[int, list[dict[str, Any]]]:
    """The samples by the start of their period, epoch seconds, aligned to the clock."""
    buckets: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        buckets[int(point["Timestamp"] // period) * period].append(point)
    return buckets


def supported(stat: str) -> bool:
    return stat in _BASIC or _PERCENTILE.fullmatch(stat) is not None


def _lambda_dimensions(name: str, qualifier: str | None, version: str | None) -> list[dict[str, str]]:
    resource = f"{name}:{qualifier}" if qualifier else name
    sets = [{"FunctionName": name}, {"FunctionName": name, "Resource": resource}]
    if version and qualifier and qualifier != version:  # an alias: AWS says which of its versions ran
        sets.append({"FunctionName": name, "Resource": resource, "ExecutedVersion": version})
    return sets


def _bucket(key: tuple[str, str, str]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = cw._metrics.setdefault(key, [])
    return points


def _evict() -> None:
    """Drop what is older than two weeks, now and then: ministack did it on every request, without a lock."""
    global _next_eviction
    with _lock:
        if time.monotonic() < _next_eviction:
            return
        _next_eviction = time.monotonic() + _EVICT_EVERY_S
        _builtin_evict()


def _window(request: dict[str, Any]) -> tuple[float, float]:
    """The asked-for time range, its start rounded down to the minute as CloudWatch does."""
    start = cw._parse_ts(request.get("StartTime")) or 0.0
    end = cw._parse_ts(request.get("EndTime")) or time.time()
    return start // 60 * 60, end


def _within(points: list[dict[str, Any]], start: float, end: float) -> list[dict[str, Any]]:
    return [point for point in points if start <= point["Timestamp"] < end]


def get_metric_statistics(
    params: dict[str, Any], request: dict[str, Any], is_cbor: bool, is_json: bool = False
) -> Response:
    if not (is_cbor or is_json):
        return _as_builtin(_builtin_statistics, params, request, is_cbor, is_json)

    def invalid(code: str, message: str) -> Response:
        return _as_error(code, message, is_cbor)

    basic, extended = request.get("Statistics") or [], request.get("ExtendedStatistics") or []
    unknown = [stat for stat in basic if stat not in _BASIC]
    if unknown:
        return invalid("InvalidParameterValue", f"Statistics must be in {sorted(_BASIC)}, not {unknown}")
    unknown = [stat for stat in extended if not _PERCENTILE.fullmatch(stat)]
    if unknown:
        return invalid("InvalidParameterValue", f"ExtendedStatistics must be percentiles such as p99, not {unknown}")
    if bool(basic) == bool(extended):
        return invalid("InvalidParameterCombination", "Specify either Statistics or ExtendedStatistics")
    period = int(request["Period"])
    if period < 1 or (period % 60 and period not in (1, 5, 10, 20, 30)):
        return invalid("InvalidParameterValue", "Period must be 1, 5, 10, 20, 30 or a multiple of 60 seconds")
    start, end = _window(request)
    if end <= start:
        return invalid("InvalidParameterCombination", "EndTime must be after StartTime")
    if (end - start) / period > _MAX_DATAPOINTS:
        asked = int((end - start) / period)
        return invalid(
            "InvalidParameterCombination",
            f"You have requested up to {asked} datapoints, which exceeds the limit of 1,440. "
            "Reduce the time range or increase the period",
        )
    points = _within(points_of(request["Namespace"], request["MetricName"], request.get("Dimensions")), start, end)
    datapoints = []
    for timestamp, samples in by_period(points, period).items():
        datapoint: dict[str, Any] = {"Timestamp": cw._ts_iso(timestamp), "Unit": samples[0]["Unit"]}
        datapoint |= {stat: statistic(samples, stat) for stat in basic}
        percentiles = {stat: value for stat in extended if (value := statistic(samples, stat)) is not None}
        if percentiles:
            datapoint["ExtendedStatistics"] = percentiles
        datapoints.append(datapoint)
    if is_cbor:
        datapoints = [cw._cbor_datapoint(datapoint) for datapoint in datapoints]
    return _as_answer({"Label": request["MetricName"], "Datapoints": datapoints}, is_cbor)


def get_metric_data(params: dict[str, Any], request: dict[str, Any], is_cbor: bool, is_json: bool = False) -> Response:
    if not (is_cbor or is_json):
        return _as_builtin(_builtin_data, params, request, is_cbor, is_json)
    queries = {query["Id"]: query for query in request["MetricDataQueries"]}
    start, end = _window(request)
    try:
        if len(queries) != len(request["MetricDataQueries"]) or not all(map(_QUERY_ID.fullmatch, queries)):
            raise ExpressionError("every Id must be unique and match ^[a-z][a-zA-Z0-9_]*$")
        stored = {id: _series(query, start, end) for id, query in queries.items() if "MetricStat" in query}
        expressions = {id: query["Expression"] for id, query in queries.items() if "Expression" in query}
        values = evaluate(expressions, stored)
    except ExpressionError as error:
        return _as_error("ValidationError", str(error), is_cbor)
    newest_first = request.get("ScanBy", "TimestampDescending") == "TimestampDescending"
    results = []
    for id, query in queries.items():
        if not query.get("ReturnData", True):
            continue
        ordered = sorted(values[id].items(), reverse=newest_first)
        metric = query.get("MetricStat", {}).get("Metric", {})
        result = {
            "Id": id,
            "Label": query.get("Label") or metric.get("MetricName") or id,
            "Timestamps": [cw._ts_iso(timestamp) for timestamp, _ in ordered],
            "Values": [value for _, value in ordered],
            "StatusCode": "Complete",
        }
        results.append(cw._cbor_metric_data_result(result) if is_cbor else result)
    return _as_answer({"MetricDataResults": results}, is_cbor)


def _series(query: dict[str, Any], start: float, end: float) -> Series:
    wanted = query["MetricStat"]
    metric, period, stat = wanted["Metric"], int(wanted["Period"]), wanted["Stat"]
    if not supported(stat):
        raise ExpressionError(f"the statistic {stat} of {query['Id']} is not supported here")
    points = _within(points_of(metric["Namespace"], metric["MetricName"], metric.get("Dimensions")), start, end)
    found = {timestamp: statistic(samples, stat) for timestamp, samples in by_period(points, period).items()}
    return {timestamp: value for timestamp, value in found.items() if value is not None}


def _as_builtin(operation: Any, *arguments: Any) -> Response:
    answer: Response = operation(*arguments)
    return answer


def _as_answer(data: dict[str, Any], is_cbor: bool) -> Response:
    return _as_builtin(cw._cbor_ok if is_cbor else cw._json_ok, data)


def _as_error(code: str, message: str, is_cbor: bool) -> Response:
    if is_cbor:
        return _as_builtin(lambda: cw._error(code, message, 400, use_cbor=True))
    return refused(code, message)


def install() -> None:
    cw.record_metric = record
    cw._metric_bucket = _bucket
    cw._evict_old_metrics = _evict
    cw._get_metric_statistics = get_metric_statistics
    cw._get_metric_data = get_metric_data
