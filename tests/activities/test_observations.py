"""What is only looked at: stages, stacks, metrics, logs, the API and the database."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from temporalio.exceptions import ApplicationError

from activities.api import Api, HealthCheck
from activities.clients import Aws
from activities.database import Database
from activities.logs import Logs, shown
from activities.metrics import Metrics, Window, fine_period, whole_period
from activities.scrub import scrub
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stacks import Stacks
from activities.stages import Stages
from tests.activities.site import Site, environment

if TYPE_CHECKING:
    from mypy_boto3_logs.type_defs import InputLogEventTypeDef


@pytest.fixture
def resolver(aws: Aws) -> SecretResolver:
    return SecretResolver(aws.ssm, aws.secretsmanager)


# --- stages and stacks ---------------------------------------------------------------------------------------------


def test_a_stage_is_resolved_by_name_and_an_unknown_one_lists_the_known(site: Site, settings: Settings) -> None:
    stage = site.stage()
    abroad = stage.model_copy(update={"region": "eu-west-1"})
    stages = Stages(settings.model_copy(update={"stages": {"staging": stage, "abroad": abroad}}))
    assert environment().run(stages.resolve, "staging").function == stage.function
    with pytest.raises(ApplicationError, match="Stages in the worker's settings: abroad, staging") as caught:
        environment().run(stages.resolve, "prod")
    assert caught.value.type == "UnknownStage"
    with pytest.raises(ApplicationError, match="eu-west-1") as caught:
        environment().run(stages.resolve, "abroad")
    assert caught.value.type == "WrongRegion"


def test_the_status_of_a_stack(site: Site, aws: Aws) -> None:
    stacks = Stacks(aws.cloudformation)
    found = environment().run(stacks.status, site.stage())
    assert (found.applicable, found.healthy, found.status) == (True, True, "UPDATE_COMPLETE")
    assert 0 < len(found.last_events) <= 10
    assert found.last_events[0].at >= found.last_events[-1].at
    evidence = found.evidence()
    assert evidence["status"] == "UPDATE_COMPLETE"
    assert "last_events" not in evidence
    assert "summary" not in evidence
    without = environment().run(stacks.status, site.stage().model_copy(update={"stack": None}))
    assert (without.applicable, without.healthy) == (False, None)
    with pytest.raises(ApplicationError) as caught:
        environment().run(stacks.status, site.stage().model_copy(update={"stack": "no-such-stack"}))
    assert caught.value.type == "NoStack"


# --- metrics and logs ----------------------------------------------------------------------------------------------


def window(site: Site) -> Window:
    now = datetime.now(UTC)
    return Window(stage=site.stage(), start=now - timedelta(minutes=10), end=now + timedelta(minutes=1))


def test_metrics_and_logs_of_real_invocations(site: Site, aws: Aws) -> None:
    metrics, logs = Metrics(aws.cloudwatch), Logs(aws.logs)
    quiet = environment().run(metrics.error_rate, window(site))
    assert (quiet.invocations, quiet.errors, quiet.rate) == (None, None, None)
    assert "not known" in quiet.summary
    assert environment().run(metrics.latency, window(site)).p50_ms is None
    # An event that is no request is an error of the function's own, and the runtime writes it into the log.
    good = {"httpMethod": "GET", "path": "/health", "headers": {}, "requestContext": {"requestId": "r-1"}}
    payloads: list[Any] = [good, good, good, ["no request"]]
    for payload in payloads:
        answer = aws.functions.invoke(FunctionName=site.service, Qualifier="live", Payload=json.dumps(payload))
        assert ("FunctionError" in answer) == (payload is not good), answer["Payload"].read()
    busy = environment().run(metrics.error_rate, window(site))
    assert (busy.invocations, busy.errors, busy.throttles, busy.rate) == (4, 1, 0, 0.25)
    assert "1 errors of 4 invocations" in busy.summary
    latency = environment().run(metrics.latency, window(site))
    assert latency.samples == 4
    assert latency.p50_ms is not None
    assert latency.p99_ms is not None
    assert 0 < latency.p50_ms <= latency.p99_ms
    seen = environment().run(logs.errors, window(site))
    assert (seen.errors, seen.requests, seen.rate) == (1, 4, 0.25)
    assert len(seen.samples) == 1


def test_error_lines_are_counted_once_each_over_many_pages(site: Site, aws: Aws) -> None:
    now, group = int(time.time() * 1000), site.stage().log_group
    aws.logs.create_log_stream(logGroupName=group, logStreamName="made")
    lines = [json.dumps({"level": "ERROR", "message": f"error {n}"}) for n in range(30)]
    lines += [json.dumps({"level": "ERROR", "message": "[ERROR] said twice, api_key=abc123"})]
    lines += ["2026-01-20 x Task timed out after 30.00 seconds", json.dumps({"level": "INFO", "message": "an error"})]
    ended = [f"REPORT RequestId: {n} Duration: 1 ms" for n in range(10_100)]  # a page has 10,000 at most
    for batch in (lines, ended[:5_000], ended[5_000:]):
        events: list[InputLogEventTypeDef] = [
            {"timestamp": now - 60_000 + number, "message": line} for number, line in enumerate(batch)
        ]
        aws.logs.put_log_events(logGroupName=group, logStreamName="made", logEvents=events)
    pages: list[Any] = []
    env = environment()
    env.on_heartbeat = pages.append
    seen = env.run(Logs(aws.logs).errors, window(site))
    assert (seen.errors, seen.requests) == (32, 10_100)
    assert max(page["page"] for page in pages) == 1
    assert seen.rate == pytest.approx(32 / 10_100)
    assert seen.samples[0].endswith("Task timed out after 30.00 seconds")
    assert seen.samples[1] == "[ERROR] said twice, api_key=***"
    assert len(seen.samples) == 5


NODE = "2026-01-20T14:02:11.123Z\t7f1c0000-0000-4000-8000-000000000000\tERROR\t"


def test_what_the_runtime_of_node_writes_is_an_error(site: Site, aws: Aws) -> None:
    now, group = int(time.time() * 1000), site.stage().log_group
    aws.logs.create_log_stream(logGroupName=group, logStreamName="node")
    lines = [
        f'{NODE}Invoke Error \t{{"errorType":"TypeError","errorMessage":"no such session","stack":["at handler"]}}',
        f'{NODE}Uncaught Exception \t{{"errorType":"Error","errorMessage":"token=abc123","stack":[]}}',
        f"{NODE}Unhandled Promise Rejection \t{{cut off",
        f"{NODE.replace('ERROR', 'INFO')}a request",
        *(f"REPORT RequestId: {number} Duration: 1 ms" for number in range(6)),
    ]
    events: list[InputLogEventTypeDef] = [
        {"timestamp": now - 60_000 + number, "message": line} for number, line in enumerate(lines)
    ]
    aws.logs.put_log_events(logGroupName=group, logStreamName="node", logEvents=events)
    seen = environment().run(Logs(aws.logs).errors, window(site))
    assert (seen.errors, seen.requests, seen.rate) == (3, 6, 0.5)
    assert seen.samples[1:] == ("token=***", "no such session")
    assert "Unhandled Promise Rejection {cut off" in seen.samples[0]


def test_a_missing_log_group_is_said_and_is_not_zero(site: Site, aws: Aws) -> None:
    nowhere = window(site)
    nowhere = nowhere.model_copy(update={"stage": nowhere.stage.model_copy(update={"log_group": "/no/such/group"})})
    seen = environment().run(Logs(aws.logs).errors, nowhere)
    assert (seen.errors, seen.rate, seen.complete) == (None, None, False)
    assert "does not exist" in seen.summary


@pytest.mark.parametrize(
    ("length", "age", "fine", "whole"),
    [
        (timedelta(minutes=10), timedelta(minutes=10), 60, 600),
        (timedelta(days=1), timedelta(days=1), 60, 86_400),
        (timedelta(days=7), timedelta(days=7), 420, 86_400),
        (timedelta(minutes=10), timedelta(days=20), 300, 600),
        (timedelta(minutes=10), timedelta(days=70), 3600, 600),
        (timedelta(seconds=61), timedelta(minutes=5), 60, 120),
    ],
)
def test_periods_that_cloudwatch_accepts(site: Site, length: timedelta, age: timedelta, fine: int, whole: int) -> None:
    now = datetime.now(UTC)
    made = Window(stage=site.stage(), start=now - age, end=now - age + length)
    assert (fine_period(made, now), whole_period(made)) == (fine, whole)
    assert length.total_seconds() / fine_period(made, now) <= 1440


# --- the API -------------------------------------------------------------------------------------------------------


class Service:
    """A service that answers with what it was told to, in order, the last for ever."""

    def __init__(self) -> None:
        self.answers: list[int] = [200]
        self.keys: list[str | None] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.keys.append(self.headers.get("X-Api-Key"))
                status = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                body = b'{"release": "r7"}'
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def api(resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("TEST_API_KEY", "the-key")
    with httpx.Client(timeout=2) as client:
        yield Api(client, resolver)


def check(site: Site, url: str, patience: float = 5) -> HealthCheck:
    return HealthCheck(
        stage=site.stage().model_copy(update={"url": url}),
        consecutive=3,
        interval=timedelta(seconds=0.02),
        patience=timedelta(seconds=patience),
    )


def test_health_counts_good_answers_in_a_row(new_site: Callable[[], Site], service: Service, api: Api) -> None:
    service.answers = [200, 200, 503, 200]
    beats: list[Any] = []
    env = environment()
    env.on_heartbeat = beats.append
    found = env.run(api.health, check(new_site(), service.url))
    assert (found.ok, found.consecutive, found.checks) == (True, 3, 6)
    assert (found.release, found.last_status) == ("r7", 200)
    assert found.latency_max_ms is not None
    assert [beat["consecutive"] for beat in beats] == [1, 2, 0, 1, 2]
    assert set(service.keys) == {"the-key"}
    assert "the-key" not in found.model_dump_json()


def test_a_service_that_stays_ill_or_away_is_not_healthy_and_no_error(
    new_site: Callable[[], Site], service: Service, api: Api
) -> None:
    site = new_site()
    service.answers = [500]
    ill = environment().run(api.health, check(site, service.url, 1))
    assert (ill.ok, ill.consecutive, ill.last_status, ill.last_problem) == (False, 0, 500, "HTTP 500")
    assert ill.checks > 1
    away = environment().run(api.health, check(site, "http://127.0.0.1:9", 0.1))
    assert (away.ok, away.last_status, away.latency_p50_ms) == (False, None, None)
    assert "no answer" in away.summary
    call = environment().run(api.sample_calls, site.stage().model_copy(update={"url": service.url}))
    assert (call.ok, call.status, call.problem) == (False, 500, "HTTP 500")


def test_the_health_of_what_was_deployed(site: Site, api: Api) -> None:
    found = environment().run(api.health, check(site, site.stage().url, 20))
    assert found.ok, found.summary
    assert found.release == site.live_release()


# --- the database --------------------------------------------------------------------------------------------------


def test_connections_of_the_database_and_a_reading_that_cannot_be(
    new_site: Callable[[], Site],
    resolver: SecretResolver,
    wire_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, database = new_site().stage(), Database(resolver)
    monkeypatch.setenv("TEST_MONGODB_URI", wire_database)
    found = environment().run(database.connections, stage)
    assert found.current is not None
    assert found.current > 0
    assert found.ping_ms > 0
    # This server always says that none is left, and takes one more connection all the same.
    assert found.available is None
    assert "not MongoDB" in found.server


def test_a_database_that_is_away_is_said_within_seconds_without_its_uri(
    new_site: Callable[[], Site], resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MONGODB_URI", "mongodb://user:hunter2@127.0.0.1:9/?directConnection=true")
    began = time.monotonic()
    with pytest.raises(ApplicationError) as caught:
        environment().run(Database(resolver).connections, new_site().stage())
    assert time.monotonic() - began < 15
    assert (caught.value.type, caught.value.non_retryable) == ("MongoUnreachable", False)
    assert "hunter2" not in str(caught.value)


# --- secrets in text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("X-Api-Key: abc-123 sent", "X-Api-Key: *** sent"),
        ('{"password": "a b", "user": "u"}', '{"password": ***, "user": "u"}'),
        ("mongodb+srv://u:p%40@host/db", "mongodb+srv://***@host/db"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("got eyJhbGciOi.eyJzdWIi.c2ln back", "got *** back"),
        ("key 6ba7b810-9dad-11d1-80b4-00c04fd430c8 refused", "key *** refused"),
        ("RequestId: 6ba7b810-9dad-11d1-80b4-00c04fd430c8", "RequestId: 6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("plain words: 500 in 12 ms", "plain words: 500 in 12 ms"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_a_sample_is_the_message_of_a_line_and_short() -> None:
    assert shown('{"level": "ERROR", "message": "boom", "error": "KeyError"}') == "boom - KeyError"
    assert shown("Traceback\n  File x") == "Traceback File x"
    assert len(shown("x" * 500)) == 200
