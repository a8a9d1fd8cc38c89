"""What a diagnosis measures: rows of Insights added up, and the whole way in the embedded AWS."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from activities.clients import Aws
from activities.metrics import Window
from activities.stage import Stage
from activities.symptom_logs import SymptomLogs, counted, reported
from activities.symptom_metrics import SymptomMetrics
from activities.symptom_models import RequestsAsked
from tests.activities.site import Site, environment

NAMES = ("statusCode", "method", "route", "apiKeyId")


def row(status: int, route: str, n: int, client: str = "k1", average: float = 10) -> dict[str, str]:
    return {
        "statusCode": str(status),
        "method": "GET",
        "route": route,
        "apiKeyId": client,
        "n": str(n),
        "average": str(average),
        "longest": str(average * 2),
    }


def test_rows_are_added_up_by_status_route_and_client() -> None:
    found = counted(
        [
            row(200, "/sessions", 70, "k1", 10),
            row(200, "/sessions", 10, "k2", 90),
            row(429, "/sessions", 15, "k1"),
            row(404, "/sessions/6b06b4da1fb8901ed0c1579e", 3, "k3"),
            row(404, "/sessions/6b06b4da1fb8901ed0c1579f", 2, "k3"),
            row(500, "/sessions", 5, "k2"),
        ],
        NAMES,
        "g",
    )
    assert (found.total, found.statuses) == (105, {"200": 80, "429": 15, "404": 5, "500": 5})
    first = found.routes[0]
    assert (first.status, first.route, first.requests, first.average_ms) == (200, "GET /sessions", 80, 20.0)
    assert next(one for one in found.routes if one.status == 404).requests == 5, "ids are one route"
    assert [(one.client, one.requests, one.limited) for one in found.clients] == [
        ("k1", 85, 15),
        ("k2", 15, 0),
        ("k3", 5, 0),
    ]
    assert (found.client_count, found.other_median) == (3, 10.0)


def test_no_line_with_a_status_is_not_known_and_not_zero() -> None:
    assert counted([], NAMES, "g").total is None


def test_a_gateways_own_prefix_is_taken_off() -> None:
    rows = [row(504, "/production/sessions", 1), row(504, "/productions", 1), row(200, "/production", 1)]
    assert {one.route for one in counted(rows, NAMES, "g", "/production").routes} == {
        "GET /sessions",
        "GET /productions",
        "GET /",
    }


def minute(at: str, n: int, cold: int, used: int, **more: Any) -> dict[str, str]:
    rows = {"minute": f"2026-01-20 {at}:00.000", "n": n, "average": 100, "cold": cold, "size": 512_000_000}
    return {
        name: str(value)
        for name, value in (rows | {"used": used * 1_000_000, "usual": used * 1_000_000} | more).items()
    }


def test_report_lines_are_weighed_by_their_number() -> None:
    found = reported(
        [minute("12:00", 90, 9, 400, init=1000, longest=1500), minute("12:01", 10, 1, 200, init=2000, longest=2000)],
        [{"n": "50", "low": "100000000", "high": "400000000"}, {"n": "2", "low": "1000000", "high": "500000000"}],
        3,
        1_000_000,
    )
    assert (found.invocations, found.cold_starts, found.init_average_ms) == (100, 10, 1100.0)
    assert (found.memory_used_mb, found.memory_size_mb, found.memory_average_mb) == (400.0, 512, 380.0)
    assert (found.growing, found.growth_mb, found.environments) == (1, 300.0, 2), (
        "an environment of two calls says nothing"
    )
    assert found.timeouts == 3
    assert [value for _, value in found.points] == [400.0, 200.0]


@pytest.fixture
def stage(site: Site) -> Stage:
    """Broken is live; its gateway is known by the name of its metrics."""
    made = site.stage()
    gateway = made.gateway.model_copy(
        update={"name": f"state-api-{site.name}", "log_group": f"/aws/apigateway/{site.service}"}
    )
    return made.model_copy(update={"gateway": gateway})


def test_the_whole_way_in_the_embedded_aws(stage: Stage, aws: Aws, site: Site) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    with httpx.Client(headers={"X-Api-Key": "the-key"}, timeout=60) as client:
        answers = [client.get(f"{stage.url}/health").status_code for _ in range(6)]
        answers += [client.get(f"{stage.url}/nothing/17").status_code for _ in range(2)]
    assert set(answers) == {200, 404}
    time.sleep(max(0.0, 1 - datetime.now(UTC).microsecond / 1e6))  # Insights counts in whole seconds
    window = Window(stage=stage, start=began, end=datetime.now(UTC) + timedelta(seconds=1))
    logs, metrics = SymptomLogs(aws.logs, poll=0.05), SymptomMetrics(aws.cloudwatch)
    for source in ("function", "gateway"):
        found = environment().run(logs.requests, RequestsAsked(window=window, source=source))
        assert found.total == 8, found
        assert found.average_ms is not None
        assert {(one.status, one.route) for one in found.routes} == {(200, "GET /health"), (404, "GET /nothing/{id}")}
    assert "the-key" not in found.model_dump_json()
    reports = environment().run(logs.reports, window)
    assert reports.invocations == 8
    assert reports.cold_starts is not None
    assert 1 <= reports.cold_starts <= 2
    assert reports.memory_size_mb == 512
    assert environment().run(metrics.latency_parts, window).latency_ms is None, "no whole minute, no metrics"
    minutes = {"start": began.replace(second=0), "end": began.replace(second=0) + timedelta(minutes=3)}
    window = window.model_copy(update=minutes)
    parts = environment().run(metrics.latency_parts, window)
    assert parts.requests == 8
    assert parts.latency_ms is not None
    assert parts.integration_ms is not None
    assert parts.duration_ms is not None
    assert parts.latency_ms + 1 >= parts.integration_ms
    errors = environment().run(metrics.error_minutes, window)
    assert (errors.requests, errors.failed, errors.refused, errors.rate) == (8, 0, 2, 0.0)
    kinds = environment().run(logs.errors, window)
    assert kinds.total == 0


def test_what_is_not_there_is_said(stage: Stage, aws: Aws) -> None:
    gone = stage.model_copy(update={"log_group": "/aws/lambda/none", "function": "none"})
    end = datetime.now(UTC)
    window = Window(stage=gone, start=end - timedelta(minutes=5), end=end)
    logs, metrics = SymptomLogs(aws.logs, poll=0.05), SymptomMetrics(aws.cloudwatch)
    assert environment().run(logs.requests, RequestsAsked(window=window)).total is None
    assert environment().run(logs.reports, window).invocations is None
    assert environment().run(logs.errors, window).total is None
    nobody = gone.model_copy(update={"gateway": gone.gateway.model_copy(update={"name": "none"})})
    window = window.model_copy(update={"stage": nobody})
    assert environment().run(metrics.latency_parts, window).latency_ms is None
    assert environment().run(metrics.error_minutes, window).rate is None


def test_lambdas_json_format_is_read_too(stage: Stage, aws: Aws) -> None:
    group = f"/aws/lambda/json-{stage.name}"
    aws.logs.create_log_group(logGroupName=group)
    aws.logs.create_log_stream(logGroupName=group, logStreamName="2026/01/20/[1]x")
    now = int(time.time() * 1000)
    figures = {"durationMs": 12.5, "memorySizeMB": 512, "maxMemoryUsedMB": 450}
    lines = [
        {"type": "platform.report", "record": {"metrics": figures | {"initDurationMs": 800}}},
        {"type": "platform.report", "record": {"metrics": figures}},
    ]
    aws.logs.put_log_events(
        logGroupName=group,
        logStreamName="2026/01/20/[1]x",
        logEvents=[{"timestamp": now, "message": json.dumps(line)} for line in lines],
    )
    end = datetime.now(UTC) + timedelta(seconds=2)
    window = Window(stage=stage.model_copy(update={"log_group": group}), start=end - timedelta(minutes=1), end=end)
    found = environment().run(SymptomLogs(aws.logs, poll=0.05).reports, window)
    assert (found.invocations, found.cold_starts, found.init_average_ms) == (2, 1, 800.0)
    assert (found.memory_used_mb, found.memory_size_mb) == (450.0, 512)


def test_what_the_runtimes_write_is_told_by_its_kind(stage: Stage, aws: Aws) -> None:
    group, stream = f"/aws/lambda/raised-{stage.name}", "2026/01/20/[1]x"
    aws.logs.create_log_group(logGroupName=group)
    aws.logs.create_log_stream(logGroupName=group, logStreamName=stream)
    node = "2026-01-20T14:02:11.123Z\t7f1c0000-0000-4000-8000-000000000000\tERROR\t"
    of_node = '{"errorType":"TypeError","errorMessage":"x is not a function","stack":["at handler (/var/task/a.js:1)"]}'
    lines = [
        f"{node}Invoke Error \t{of_node}",
        f"{node}Uncaught Exception \t{of_node}",
        f"{node}Unhandled Promise Rejection \tcut off",
        "[ERROR] ValueError: no such project\nTraceback (most recent call last):",
        "2026-01-20T14:02:12Z 7f Task timed out after 30.00 seconds",
        "RequestId: 7f Process exited before completing request",
        json.dumps({"level": "ERROR", "errorType": "Logged", "error": "Invoke Error of something"}),
        json.dumps({"level": "INFO", "message": "nothing"}),
    ]
    now = int(time.time() * 1000)
    events: Any = [{"timestamp": now, "message": line} for line in lines]
    aws.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    end = datetime.now(UTC) + timedelta(seconds=2)
    window = Window(stage=stage.model_copy(update={"log_group": group}), start=end - timedelta(minutes=1), end=end)
    found = environment().run(SymptomLogs(aws.logs, poll=0.05).errors, window)
    assert {(one.kind, one.count) for one in found.kinds} == {
        ("TypeError", 2),
        ("Unhandled Promise Rejection", 1),
        ("ValueError", 1),
        ("TimedOut", 1),
        ("ProcessExited", 1),
        ("Logged", 1),
    }
    assert found.total == 7, "none twice"
    assert (found.kinds[0].kind, found.kinds[0].text) == ("TypeError", "x is not a function")
