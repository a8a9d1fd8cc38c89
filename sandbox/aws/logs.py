"""CloudWatch Logs: filter patterns, paging, Insights, metric filters, and a way in for Lambda's own lines."""

from __future__ import annotations

import base64
import binascii
import itertools
import threading
import time
from collections.abc import Iterable
from typing import Any

from ministack.core.responses import json_response, new_uuid
from ministack.services import cloudwatch_logs as cwl

from sandbox.aws import metrics
from sandbox.aws.filter_patterns import InvalidPattern, compile_pattern
from sandbox.aws.insights import compile_query
from sandbox.aws.insights_expressions import MalformedQuery
from sandbox.aws.responses import Response, refused

_PAGE_SIZE = 10_000

_streams_lock = threading.Lock()
_event_numbers = itertools.count()
_builtin_query_results = cwl._get_query_results
_builtin_put_metric_filter = cwl._put_metric_filter


def write(group_name: str, stream_name: str, events: list[dict[str, Any]]) -> None:
    """Add a service's own lines, creating group and stream when they are missing. Safe from any thread."""
    with _streams_lock:
        group = cwl._log_groups.get(group_name)
        if group is None:
            cwl._create_log_group({"logGroupName": group_name})
            group = cwl._log_groups[group_name]
        if stream_name not in group["streams"]:
            # A copy, because the server's own thread may be walking through the old one.
            group["streams"] = {**group["streams"], stream_name: _new_stream()}
    put_log_events({"logGroupName": group_name, "logStreamName": stream_name, "logEvents": events})


def _new_stream() -> dict[str, Any]:
    return {
        "events": [],
        "uploadSequenceToken": "1",
        "creationTime": int(time.time() * 1000),
        "firstEventTimestamp": None,
        "lastEventTimestamp": None,
        "lastIngestionTime": None,
    }


def put_log_events(data: dict[str, Any]) -> Response:
    group_name, stream_name = data.get("logGroupName", ""), data.get("logStreamName", "")
    group = cwl._log_groups.get(group_name)
    if group is None:
        return refused("ResourceNotFoundException", "The specified log group does not exist.")
    stream = group["streams"].get(stream_name)
    if stream is None:
        return refused("ResourceNotFoundException", "The specified log stream does not exist.")
    now_ms = int(time.time() * 1000)
    stored = []
    for event in data.get("logEvents", []):
        timestamp = int(event["timestamp"])
        # Ids sort by time, then by arrival, so that an id alone says where a page ended.
        event_id = f"{timestamp:020d}{next(_event_numbers):036d}"
        message = event["message"]
        stored.append({"timestamp": timestamp, "message": message, "ingestionTime": now_ms, "eventId": event_id})
        cwl._log_records[event_id] = cwl._build_log_record(
            ptr=event_id, timestamp_ms=timestamp, message=message, log_group=group_name, log_stream=stream_name
        )
    cwl._append_log_events(stream, stored)
    cwl._fanout_to_subscription_filters(group_name, stream_name, stored)
    cwl._fanout_to_live_tail_sessions(group_name, stream_name, stored)
    _feed_metric_filters(group_name, stored)
    stream["uploadSequenceToken"] = str(int(stream["uploadSequenceToken"]) + 1)
    return _json({"nextSequenceToken": stream["uploadSequenceToken"]})


def _feed_metric_filters(group_name: str, events: list[dict[str, Any]]) -> None:
    for (filtered_group, _), metric_filter in cwl._metric_filters.items():
        if filtered_group != group_name:
            continue
        matches = compile_pattern(metric_filter["filterPattern"])
        for event in events:
            if matches(event["message"]):
                for target in metric_filter["metricTransformations"]:
                    metrics.record(
                        target["metricNamespace"],
                        target["metricName"],
                        float(target["metricValue"]),
                        target.get("unit", "None"),
                        at=event["timestamp"] / 1000,
                    )


def put_metric_filter(data: dict[str, Any]) -> Response:
    try:
        compile_pattern(data.get("filterPattern", ""))
        for target in data.get("metricTransformations", []):
            float(target["metricValue"])
    except InvalidPattern as error:
        return refused("InvalidParameterException", f"Invalid filter pattern: {error}")
    except ValueError:
        return refused("InvalidParameterException", "Only a number is supported here as metricValue")
    answer: Response = _builtin_put_metric_filter(data)
    return answer


# --- FilterLogEvents ----------


def filter_log_events(data: dict[str, Any]) -> Response:
    group = cwl._log_groups.get(cwl._resolve_log_group_name(data))
    if group is None:
        return refused("ResourceNotFoundException", "The specified log group does not exist.")
    names, prefix = data.get("logStreamNames"), data.get("logStreamNamePrefix")
    if names and prefix:
        return refused("InvalidParameterException", "Give logStreamNames or logStreamNamePrefix, not both")
    try:
        matches = compile_pattern(data.get("filterPattern") or "")
        after = base64.b64decode(data.get("nextToken") or "", validate=True).decode("ascii")
    except InvalidPattern as error:
        return refused("InvalidParameterException", f"Invalid filter pattern: {error}")
    except (binascii.Error, UnicodeDecodeError):
        return refused("InvalidParameterException", "The specified nextToken is invalid.")
    start, end = data.get("startTime", 0), data.get("endTime", float("inf"))
    limit = min(int(data.get("limit") or _PAGE_SIZE), _PAGE_SIZE)
    found = [
        {**event, "logStreamName": stream_name}
        for stream_name, event in _events(group, names, prefix)
        if start <= event["timestamp"] <= end and event["eventId"] > after and matches(event["message"])
    ]
    found.sort(key=lambda event: event["eventId"])
    answer: dict[str, Any] = {"events": found[:limit], "searchedLogStreams": []}
    if len(found) > limit:
        answer["nextToken"] = base64.b64encode(found[limit - 1]["eventId"].encode()).decode()
    return _json(answer)


def _events(
    group: dict[str, Any], names: list[str] | None = None, prefix: str | None = None
) -> Iterable[tuple[str, dict[str, Any]]]:
    for stream_name, stream in list(group["streams"].items()):
        if (names is None or stream_name in names) and stream_name.startswith(prefix or ""):
            for event in list(stream["events"]):
                yield stream_name, event


# --- Insights ----------


def start_query(data: dict[str, Any]) -> Response:
    names = cwl._resolve_query_log_groups(data)
    missing = [name for name in names if name not in cwl._log_groups]
    if not names or missing:
        return refused("ResourceNotFoundException", f"Log group does not exist: {', '.join(missing) or 'none given'}")
    start_ms, end_ms = int(data["startTime"]) * 1000, int(data["endTime"]) * 1000
    if start_ms > end_ms:
        return refused("InvalidParameterException", "End time should not be less than start time")
    try:
        query = compile_query(data.get("queryString", ""))
    except MalformedQuery as error:
        return refused("MalformedQueryException", str(error))
    if data.get("limit"):
        query.limit = min(query.limit, int(data["limit"]))
    records = [
        cwl._log_records.get(event["eventId"])
        for name in names
        for _, event in _events(cwl._log_groups[name])
        if start_ms <= event["timestamp"] <= end_ms
    ]
    scanned = [record for record in records if record]
    results, matched = query.run(scanned)
    query_id = new_uuid()
    cwl._queries[query_id] = {
        "logGroupNames": names,
        "queryId": query_id,
        "startTime": data["startTime"],
        "endTime": data["endTime"],
        "queryString": data.get("queryString", ""),
        "status": "Running",
        "results": results,
        "statistics": {
            "recordsMatched": float(matched),
            "recordsScanned": float(len(scanned)),
            "bytesScanned": float(sum(len(record["@message"]) for record in scanned)),
        },
    }
    return _json({"queryId": query_id})


def get_query_results(data: dict[str, Any]) -> Response:
    """A query is never complete the first time it is asked for, so that nobody forgets to poll."""
    query = cwl._queries.get(data.get("queryId"))
    if query and query["status"] == "Running":
        query["status"] = "Complete"
        empty = {"recordsMatched": 0.0, "recordsScanned": 0.0, "bytesScanned": 0.0}
        return _json({"status": "Running", "results": [], "statistics": empty})
    answer: Response = _builtin_query_results(data)
    return answer


def _json(data: dict[str, Any]) -> Response:
    answer: Response = json_response(data)
    return answer


def install() -> None:
    cwl._compile_filter_pattern = compile_pattern
    cwl._put_log_events = put_log_events
    cwl._put_metric_filter = put_metric_filter
    cwl._filter_log_events = filter_log_events
    cwl._start_query = start_query
    cwl._get_query_results = get_query_results
