"""The vital signs of a real deployed stage: what the first look at an incident rests on."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from activities.api import Api, Confirm
from activities.clients import Aws
from activities.metrics import Window
from activities.secret_refs import SecretResolver
from activities.signs import DeploymentsQuery, Signs
from activities.stage import LogFields
from tests.activities.site import Site, environment


@pytest.fixture
def signs(site: Site, aws: Aws) -> Signs:
    return Signs(aws.cloudwatch, aws.logs, aws.functions, site.records)


def window(site: Site) -> Window:
    now = datetime.now(UTC)
    return Window(stage=site.stage(), start=now - timedelta(minutes=5), end=now + timedelta(minutes=1))


def test_a_stage_without_traffic_is_not_known(site: Site, signs: Signs) -> None:
    seen = environment().run(signs.metrics, window(site))
    assert (seen.invocations, seen.errors, seen.requests, seen.gateway_ms) == (None, None, None, None)
    assert "no traffic" in seen.summary
    assert (seen.timeout_ms, seen.memory_mb, seen.reserved) == (30_000, 512, None)
    logs = environment().run(signs.logs, window(site))
    assert (logs.reports, logs.cold_starts) in ((None, None), (0, 0))
    assert environment().run(signs.series, window(site)).charts == ()


def test_real_traffic_is_counted_and_told_apart(site: Site, aws: Aws, signs: Signs) -> None:
    good = {"httpMethod": "GET", "path": "/health", "headers": {}, "requestContext": {"requestId": "r-1"}}
    payloads: list[Any] = [good, good, good, ["no request"]]
    for payload in payloads:
        aws.functions.invoke(FunctionName=site.service, Qualifier="live", Payload=json.dumps(payload))
    aws.functions.put_function_concurrency(FunctionName=site.service, ReservedConcurrentExecutions=3)
    seen = environment().run(signs.metrics, window(site))
    assert (seen.invocations, seen.errors, seen.throttles, seen.reserved) == (4, 1, 0, 3)
    assert seen.duration_ms is not None
    assert seen.duration_max_ms is not None
    assert 0 < seen.duration_ms <= seen.duration_max_ms
    logs = environment().run(signs.logs, window(site))
    assert logs.lines is not None
    assert (logs.lines.total, logs.reports) == (1, 4)
    assert (logs.cold_starts or 0) >= 1
    assert (logs.memory_used_mb or 0) > 0
    charts = environment().run(signs.series, window(site)).charts
    assert [chart.title for chart in charts] == ["Errors a minute", "Duration of invocations"]


OWN_NAMES = {"gateway_status": "answer.code", "gateway_method": "verb", "gateway_path": "uri"}


@pytest.mark.parametrize("own", [{}, OWN_NAMES], ids=["usual names", "own names"])
def test_routes_of_the_access_log(site: Site, aws: Aws, signs: Signs, own: dict[str, str]) -> None:
    group = f"/aws/apigateway/{site.name}"
    aws.logs.create_log_group(logGroupName=group)
    aws.logs.create_log_stream(logGroupName=group, logStreamName="s")
    paths = ["/sessions", "/sessions/65f0c0ffee0123456789abcd", "/sessions/65f0c0ffee0123456789abce", "/health"]
    prefix, answers = f"/{window(site).stage.gateway.stage}", (502, "502", "504", 200)
    aws.logs.put_log_events(
        logGroupName=group,
        logStreamName="s",
        logEvents=[
            {
                "timestamp": int(time.time() * 1000),
                "message": json.dumps(
                    {"verb": "GET", "uri": prefix + path, "answer": {"code": status}}
                    if own
                    else {"method": "GET", "path": prefix + path, "status": status}
                ),
            }
            for path, status in zip(paths, answers, strict=True)
        ],
    )
    there = window(site)
    gateway = there.stage.gateway.model_copy(update={"log_group": group})
    named = {"gateway": gateway, "log_fields": LogFields.model_validate(own)}
    there = there.model_copy(update={"stage": there.stage.model_copy(update=named)})
    seen = environment().run(signs.gateway_log, there)
    assert seen.routes == {"GET /sessions/{id}": 2, "GET /sessions": 1}
    assert "no access log" in environment().run(signs.gateway_log, window(site)).summary


def test_clients_of_failed_requests_are_known_by_the_apis_own_name_for_them(site: Site, aws: Aws, signs: Signs) -> None:
    group, at = f"/aws/lambda/own-{site.name}", int(time.time() * 1000)
    aws.logs.create_log_group(logGroupName=group)
    aws.logs.create_log_stream(logGroupName=group, logStreamName="s")
    said = [{"level": "ERROR", "caller": {"id": name}} for name in ("web", "web", "ios", None)]
    lines: Any = [{"timestamp": at, "message": json.dumps(one)} for one in said]
    aws.logs.put_log_events(logGroupName=group, logStreamName="s", logEvents=lines)
    there = window(site)
    own = {"log_group": group, "log_fields": LogFields(client="caller.id")}
    seen = environment().run(signs.logs, there.model_copy(update={"stage": there.stage.model_copy(update=own)}))
    assert seen.clients == {"web": 2, "ios": 1}


def test_deployments_since(site: Site, signs: Signs) -> None:
    query = DeploymentsQuery(stage=site.stage(), since=datetime.now(UTC) - timedelta(hours=1))
    seen = environment().run(signs.deployments, query)
    assert [entry.label for entry in seen.entries] == ["broken", "good"]
    assert seen.live.startswith("broken")
    assert seen.live_since == seen.entries[0].deployed_at
    none = environment().run(signs.deployments, query.model_copy(update={"since": datetime.now(UTC)}))
    assert none.entries == ()
    assert none.live == seen.live


@pytest.mark.parametrize(
    ("answers", "ok", "failed", "status"),
    [
        ([200], True, 0, 200),
        ([500, 200], True, 1, 200),
        ([500, 503, 502], False, 3, 502),
        ([None, None, None], False, 3, None),
    ],
)
def test_one_good_answer_confirms(
    site: Site, monkeypatch: pytest.MonkeyPatch, answers: list[int | None], ok: bool, failed: int, status: int | None
) -> None:
    monkeypatch.setenv("TEST_API_KEY", "the-key")
    left = list(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["x-api-key"] == "the-key"
        code = left.pop(0)
        if code is None:
            raise httpx.ConnectTimeout("no answer", request=request)
        return httpx.Response(code, json={})

    api = Api(httpx.Client(transport=httpx.MockTransport(answer)), SecretResolver(None, None))  # type: ignore[arg-type]
    seen = environment().run(api.confirm, Confirm(stage=site.stage()))
    assert (seen.ok, seen.failed, seen.status) == (ok, failed, status)
    assert left == []
