"""Counting what each version did: by hand-written log lines, and by real requests in the embedded AWS."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from temporalio.testing import ActivityEnvironment

from activities.canary import Canary, Measure, count
from activities.stage import LogFields
from tests.activities.site import Site


def line(at: int, message: str, stream: str = "a") -> Any:
    return {"timestamp": at, "message": message, "logStreamName": stream, "eventId": f"{stream}{at}{message}"}


def report(at: int, ms: float = 12.5, stream: str = "a", status: str = "") -> Any:
    return line(at, f"REPORT RequestId: 1-2\tDuration: {ms} ms\tBilled Duration: 13 ms{status}", stream)


def test_each_invocation_counts_once_however_it_failed() -> None:
    ended = [
        report(10),
        line(15, "[ERROR] ValueError: boom", "b"),  # another environment fails at the same time
        report(16, stream="b"),
        line(30, "[ERROR] KeyError: 'a'"),
        report(30),  # in the same millisecond as its error
        report(50, status="\tStatus: timeout"),
        report(60),
    ]
    answered = [line(14, '{"statusCode": 503}', "b"), line(59, '{"statusCode": 500}')]
    found = count("3", ended, answered, 0, 100)
    assert (found.invocations, found.errors, found.timed) == (5, 4, 1)


def test_lambdas_json_format_is_understood_too() -> None:
    def ended(at: int, status: str) -> Any:
        record = {"requestId": "1", "metrics": {"durationMs": 7.5}, "status": status}
        return line(at, json.dumps({"time": "t", "type": "platform.report", "record": record}))

    found = count("3", [ended(10, "success"), ended(20, "timeout"), line(30, '"platform.report" cut')], [], 0, 100)
    assert (found.invocations, found.errors, found.timed) == (2, 1, 1)


def test_what_began_before_the_weights_were_shifted_does_not_count() -> None:
    slow = [report(3000, 2500), report(3600, 2500), report(4000, 10)]
    assert count("3", slow, [], 1000, 5000, 1000).invocations == 2
    assert count("3", slow, [], 1000, 5000).invocations == 3


def test_an_invocation_belongs_to_the_look_in_which_it_ended() -> None:
    ended = [report(10), report(40)]
    answered = [line(5, '{"statusCode": 500}'), line(19, '{"statusCode": 500}')]
    first, second = (count("3", ended, answered, *look) for look in ((0, 20), (20, 40)))
    assert (first.invocations, first.errors) == (1, 1)
    assert second.invocations == 0, "the end of a look belongs to the next"
    third = count("3", ended, answered, 40, 60)
    assert (third.invocations, third.errors) == (1, 1), "its error was logged before the look began"


def test_real_requests_by_version(new_site: Callable[[], Site]) -> None:
    site = new_site()
    site.deploy("good")
    site.deploy("crashing")
    functions = site.aws.functions
    functions.update_alias(
        FunctionName=site.service, Name="live", RoutingConfig={"AdditionalVersionWeights": {"1": 0.5}}
    )
    stage = site.stage()
    start = datetime.now(UTC)
    with httpx.Client(timeout=30) as client:
        # Without a key to the database all else answers 500 by itself; the crash of the release is Lambda's own error.
        answers = [
            client.get(stage.url + path, headers={"X-Api-Key": "the-key"}) for path in ["/health", "/nowhere"] * 40
        ]
    statuses = Counter(answer.status_code for answer in answers)
    end = datetime.now(UTC) + timedelta(milliseconds=50)
    canary = Canary(site.aws.logs)
    asked = Measure(stage=stage, start=start, end=end, versions=("1", "2"))
    deadline = time.monotonic() + 10
    while True:
        found = ActivityEnvironment().run(canary.measure, asked)
        old, new = found.counts["1"], found.counts["2"]
        assert old
        assert new
        if old.invocations + new.invocations >= 80 or time.monotonic() > deadline:
            break
    assert old.invocations + new.invocations == 80
    assert (old.errors, new.errors) == (0, statuses[502])
    assert statuses[502] > 3
    assert (old.timed, new.timed) == (old.invocations, new.invocations - new.errors)
    assert f"version 2: {new.errors} errors of {new.invocations}" in found.summary


def test_the_apis_own_name_of_the_status_is_asked_for(new_site: Callable[[], Site]) -> None:
    """A failure that the code answers itself is in its own log only, under the name that the settings say."""
    site, now = new_site(), datetime.now(UTC)
    group, stream = f"/aws/lambda/own-{site.name}", f"{now:%Y/%m/%d}/[1]x"
    site.aws.logs.create_log_group(logGroupName=group)
    site.aws.logs.create_log_stream(logGroupName=group, logStreamName=stream)
    answers: list[int | str] = [200, 503, "502", 404, "200"]
    lines = [
        said
        for number, status in enumerate(answers)
        for said in (
            json.dumps({"statusCode": 500, "response": {"status": status}}),
            f"REPORT RequestId: {number}-2\tDuration: 5 ms\tBilled Duration: 6 ms",
        )
    ]
    began = round(now.timestamp() * 1000) - 1000
    events: Any = [{"timestamp": began + at, "message": line} for at, line in enumerate(lines)]
    site.aws.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    fields = LogFields(status="response.status")
    stage = site.stage().model_copy(update={"log_group": group, "log_fields": fields})
    asked = Measure(stage=stage, start=now - timedelta(minutes=1), end=now, versions=("1",))
    counts = ActivityEnvironment().run(Canary(site.aws.logs).measure, asked).counts["1"]
    assert counts is not None
    assert (counts.invocations, counts.errors) == (5, 2)


def test_not_measured_is_not_zero(new_site: Callable[[], Site]) -> None:
    site = new_site()
    site.deploy("good")
    stage = site.stage().model_copy(update={"log_group": "/aws/lambda/none"})
    now = datetime.now(UTC)
    asked = Measure(stage=stage, start=now - timedelta(minutes=1), end=now, versions=("1",))
    found = ActivityEnvironment().run(Canary(site.aws.logs).measure, asked)
    assert found.counts == {"1": None}
    assert "does not exist" in found.summary
    quiet = asked.model_copy(update={"stage": site.stage(), "versions": ("7",)})
    counts = ActivityEnvironment().run(Canary(site.aws.logs).measure, quiet).counts["7"]
    assert counts is not None
    assert counts.invocations == 0
