"""CloudWatch metrics, alarms and logs over the API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.sandbox.aws_helpers import Aws, refusal, unique, until

MESSAGES = [
    "ERROR something broke",
    "error lower",
    "INFO cold start detected",
    "x Task timed out after 30.00 seconds",
    "foo ERROR bar timeout",
    '{"statusCode": 500, "error": "boom", "level": "ERROR", "dur": 12}',
    '{"statusCode": 200, "level": "INFO", "dur": 5}',
    '{"statusCode": 500, "error": "bam", "level": "ERROR", "dur": 30}',
    '{"statusCode": 429, "level": "WARN"}',
    "REPORT RequestId: r1\tDuration: 20.50 ms\tBilled Duration: 21 ms\tMemory Size: 512 MB\tMax Memory Used: 90 MB"
    "\tInit Duration: 310.00 ms",
]

Ask = Callable[..., list[dict[str, Any]]]


# --- metrics ----------


@pytest.fixture(scope="module")
def latency(aws: Aws) -> tuple[str, datetime]:
    """A metric ``Latency`` of one API: in each of ten minutes 1 ... 100 ms; and the start of the first minute."""
    name = unique("metric")
    first = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=10)
    for minute in range(10):
        aws.cloudwatch.put_metric_data(
            Namespace="Test",
            MetricData=[
                {
                    "MetricName": "Latency",
                    "Dimensions": [{"Name": "Api", "Value": name}],
                    "Timestamp": first + timedelta(minutes=minute, seconds=7),
                    "Values": [float(value) for value in range(1, 101)],
                    "Unit": "Milliseconds",
                }
            ],
        )
    return name, first


@pytest.fixture
def statistics(aws: Aws, latency: tuple[str, datetime]) -> Ask:
    name, first = latency

    def ask(**changes: Any) -> list[dict[str, Any]]:
        request = {
            "Namespace": "Test",
            "MetricName": "Latency",
            "Dimensions": [{"Name": "Api", "Value": name}],
            "StartTime": first,
            "EndTime": first + timedelta(minutes=10),
            "Period": 60,
            **changes,
        }
        points = aws.cloudwatch.get_metric_statistics(**request)["Datapoints"]
        return sorted(points, key=lambda point: point["Timestamp"])

    return ask


def test_statistics_by_aligned_period(statistics: Ask, latency: tuple[str, datetime]) -> None:
    points = statistics(Statistics=["Sum", "Average", "SampleCount", "Maximum"])
    assert [point["Timestamp"] for point in points] == [latency[1] + timedelta(minutes=n) for n in range(10)]
    assert (points[0]["Sum"], points[0]["Average"], points[0]["SampleCount"]) == (5050.0, 50.5, 100.0)
    assert all(point["Timestamp"].timestamp() % 300 == 0 for point in statistics(Statistics=["Sum"], Period=300))


def test_percentiles(statistics: Ask) -> None:
    assert statistics(ExtendedStatistics=["p99"])[0]["ExtendedStatistics"]["p99"] == pytest.approx(99, abs=1)
    assert refusal(statistics, Statistics=["p99"]) == "InvalidParameterValue"
    assert refusal(statistics, ExtendedStatistics=["p101"]) == "InvalidParameterValue"
    both = {"Statistics": ["Sum"], "ExtendedStatistics": ["p99"]}
    assert refusal(statistics, **both) == "InvalidParameterCombination"


def test_dimensions_are_exact_and_datapoints_limited(statistics: Ask, latency: tuple[str, datetime]) -> None:
    assert statistics(Statistics=["Sum"], Dimensions=[]) == []
    more = [{"Name": "Api", "Value": latency[0]}, {"Name": "Stage", "Value": "production"}]
    assert statistics(Statistics=["Sum"], Dimensions=more) == []
    long = {"Statistics": ["Sum"], "StartTime": latency[1] - timedelta(days=1, minutes=1)}
    assert refusal(statistics, **long) == "InvalidParameterCombination"


def test_metric_data_newest_first_with_math(aws: Aws, latency: tuple[str, datetime]) -> None:
    name, first = latency

    def query(id: str, stat: str) -> dict[str, Any]:
        metric = {"Namespace": "Test", "MetricName": "Latency", "Dimensions": [{"Name": "Api", "Value": name}]}
        return {"Id": id, "MetricStat": {"Metric": metric, "Period": 60, "Stat": stat}}

    def ask(*queries: dict[str, Any]) -> dict[str, list[float]]:
        answer = aws.cloudwatch.get_metric_data(
            MetricDataQueries=list(queries), StartTime=first, EndTime=first + timedelta(minutes=10)
        )
        for result in answer["MetricDataResults"]:
            assert result["Timestamps"] == sorted(result["Timestamps"], reverse=True)
            assert result["StatusCode"] == "Complete"
        return {result["Id"]: result["Values"] for result in answer["MetricDataResults"]}

    found = ask(
        {**query("s", "Sum"), "ReturnData": False},
        query("n", "SampleCount"),
        query("p", "p99"),
        {"Id": "mean", "Expression": "s / n"},
        {"Id": "twice", "Expression": "-(mean - 2 * mean) + FILL(mean, 0)"},
    )
    assert found.keys() == {"n", "p", "mean", "twice"}
    assert found["mean"] == [50.5] * 10
    assert found["twice"] == [101.0] * 10
    assert found["p"][0] == pytest.approx(99, abs=1)
    for expression in ("absent * 2", "SEARCH('x', 'Sum', 60)", "s +", "mean"):
        assert refusal(ask, query("s", "Sum"), {"Id": "mean", "Expression": expression}) == "ValidationError"


def test_alarms(aws: Aws, latency: tuple[str, datetime]) -> None:
    name = unique("alarm")
    dimensions = [{"Name": "Api", "Value": name}]

    def put(suffix: str, threshold: float) -> str:
        aws.cloudwatch.put_metric_alarm(
            AlarmName=name + suffix,
            Namespace="Test",
            MetricName="Latency",
            Dimensions=dimensions,
            Statistic="Sum",
            Period=300,
            EvaluationPeriods=2,
            DatapointsToAlarm=1,
            Threshold=threshold,
            ComparisonOperator="GreaterThanThreshold",
        )
        found = aws.cloudwatch.describe_alarms(AlarmNames=[name + suffix])["MetricAlarms"][0]
        return str(found["StateValue"])

    assert put("-none", 1) == "INSUFFICIENT_DATA", "other dimensions of the metric are not this alarm's"
    data = {"MetricName": "Latency", "Dimensions": dimensions, "Value": 5.0}
    aws.cloudwatch.put_metric_data(Namespace="Test", MetricData=[data])
    assert put("-high", 1) == "ALARM"
    assert put("-low", 10) == "OK"
    aws.cloudwatch.set_alarm_state(AlarmName=f"{name}-low", StateValue="ALARM", StateReason="by hand")
    listed = aws.cloudwatch.describe_alarms(AlarmNamePrefix=name, StateValue="ALARM")["MetricAlarms"]
    assert [alarm["AlarmName"] for alarm in listed] == [f"{name}-high", f"{name}-low"]
    assert aws.cloudwatch.describe_alarm_history(AlarmName=f"{name}-low")["AlarmHistoryItems"]
    aws.cloudwatch.put_composite_alarm(AlarmName=f"{name}-both", AlarmRule=f'ALARM("{name}-high")')
    aws.cloudwatch.put_dashboard(DashboardName=name, DashboardBody='{"widgets": []}')
    assert aws.cloudwatch.get_dashboard(DashboardName=name)["DashboardBody"]


# --- logs ----------


@pytest.fixture(scope="module")
def group(aws: Aws) -> str:
    """Two streams: ``MESSAGES`` two milliseconds apart, and one line of another stream between them."""
    name, now = unique("/group"), int(time.time() * 1000) - 60_000
    aws.logs.create_log_group(logGroupName=name)
    for stream in ("a1", "b1"):
        aws.logs.create_log_stream(logGroupName=name, logStreamName=stream)
    events = [{"timestamp": now + 2 * n, "message": message} for n, message in enumerate(MESSAGES)]
    aws.logs.put_log_events(logGroupName=name, logStreamName="a1", logEvents=events)
    between = [{"timestamp": now + 1, "message": "WARN from b1"}]
    aws.logs.put_log_events(logGroupName=name, logStreamName="b1", logEvents=between)
    return name


def found(aws: Aws, group: str, **request: Any) -> list[str]:
    events = aws.logs.filter_log_events(logGroupName=group, **request)["events"]
    assert [one["timestamp"] for one in events] == sorted(one["timestamp"] for one in events)
    return [one["message"] for one in events]


def test_filtering(aws: Aws, group: str) -> None:
    def count(pattern: str) -> int:
        return len(found(aws, group, filterPattern=pattern))

    assert count("ERROR") == 4
    assert count('"cold start"') == 1
    assert count("{ $.statusCode >= 400 }") == 3
    assert count("?ERROR ?WARN") == 6
    assert count('"ERROR" "timeout"') == 1
    assert found(aws, group, filterPattern="[a, b=ERROR, ...]") == ["foo ERROR bar timeout"]
    assert len(found(aws, group)) == len(MESSAGES) + 1
    assert found(aws, group, logStreamNamePrefix="b") == ["WARN from b1"]
    assert found(aws, group, logStreamNames=["b1"]) == ["WARN from b1"]
    for pattern in ("{ $.a = }", "cold-start", "%(%"):
        assert refusal(found, aws, group, filterPattern=pattern) == "InvalidParameterException"


def test_pages_neither_repeat_nor_skip(aws: Aws, group: str) -> None:
    pages = aws.logs.get_paginator("filter_log_events").paginate(logGroupName=group, PaginationConfig={"PageSize": 3})
    events = [event for page in pages for event in page["events"]]
    assert len({event["eventId"] for event in events}) == len(events) == len(MESSAGES) + 1
    assert [event["message"] for event in events] == found(aws, group)


def rows(aws: Aws, group: str, query: str) -> list[dict[str, str]]:
    now = int(time.time())
    started = aws.logs.start_query(logGroupName=group, startTime=now - 600, endTime=now + 5, queryString=query)[
        "queryId"
    ]
    assert aws.logs.get_query_results(queryId=started)["status"] == "Running", "a query takes its time"

    def complete() -> Any:
        answer = aws.logs.get_query_results(queryId=started)
        return answer if answer["status"] == "Complete" else None

    results = until(complete, "the end of the query")["results"]
    return [{one["field"]: one["value"] for one in row if one["field"] != "@ptr"} for row in results]


def test_insights(aws: Aws, group: str) -> None:
    by_status = rows(aws, group, "fields statusCode | filter ispresent(statusCode) | stats count(*) as n by statusCode")
    assert {row["statusCode"]: row["n"] for row in by_status} == {"500": "2", "429": "1", "200": "1"}
    assert (
        len(rows(aws, group, "fields @timestamp, @message | filter @message like /cold start|absent/ | limit 3")) == 1
    )
    (spread,) = rows(aws, group, "stats pct(dur, 50) as p, avg(dur) as a, max(dur) by bin(1d)")
    assert spread | {"bin(1d)": ""} == {"bin(1d)": "", "p": "12", "a": "15.6667", "max(dur)": "30"}
    (report,) = rows(
        aws,
        group,
        "filter @type = 'REPORT' and ispresent(@initDuration) | stats max(@maxMemoryUsed / 1000 / 1000) as mb, "
        "max(@initDuration) as init, avg(@duration) as took, count(*)",
    )
    assert report == {"mb": "90", "init": "310", "took": "20.5", "count(*)": "1"}
    newest, *_ = rows(aws, group, "fields dur | filter level = 'ERROR' | sort dur desc | limit 1")
    assert newest == {"dur": "30"}
    for query in ("stats nonsense(dur)", "teleport", "filter dur >", "fields a | limit many"):
        assert refusal(rows, aws, group, query) == "MalformedQueryException"


def test_metric_filter(aws: Aws, group: str) -> None:
    metric = {"metricName": unique("Errors"), "metricNamespace": "App", "metricValue": "1"}
    aws.logs.put_metric_filter(
        logGroupName=group, filterName="errors", filterPattern="BROKEN", metricTransformations=[metric]
    )
    now = int(time.time() * 1000)
    events = [{"timestamp": now, "message": message} for message in ("BROKEN a", "BROKEN b", "fine")]
    aws.logs.put_log_events(logGroupName=group, logStreamName="b1", logEvents=events)
    points = aws.cloudwatch.get_metric_statistics(
        Namespace="App",
        MetricName=metric["metricName"],
        StartTime=datetime.now(UTC) - timedelta(minutes=5),
        EndTime=datetime.now(UTC) + timedelta(minutes=1),
        Period=3600,
        Statistics=["Sum"],
    )["Datapoints"]
    assert sum(point["Sum"] for point in points) == 2


def test_live_tail(aws: Aws) -> None:
    name = unique("/tail")
    aws.logs.create_log_group(logGroupName=name)
    aws.logs.create_log_stream(logGroupName=name, logStreamName="s")
    arn = f"arn:aws:logs:us-east-1:123456789012:log-group:{name}"
    session = aws.logs.start_live_tail(logGroupIdentifiers=[arn])["responseStream"]
    heard: list[str] = []
    done = threading.Event()

    def listen() -> None:
        for update in session:
            heard.extend(one["message"] for one in update.get("sessionUpdate", {}).get("sessionResults", []))
            if heard or done.is_set():
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()

    def said() -> bool:
        event = {"timestamp": int(time.time() * 1000), "message": "said"}
        aws.logs.put_log_events(logGroupName=name, logStreamName="s", logEvents=[event])
        return "said" in heard

    until(said, "the event on the live tail")
    done.set()
    session.close()
