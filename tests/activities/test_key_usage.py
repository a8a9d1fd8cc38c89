"""Who uses which key: counted by real queries of Logs Insights in the embedded AWS."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.key_usage import VERIFICATION, KeyLog
from activities.rotation_models import UsageQuery
from activities.stage import DatabaseFacts, DeployPolicy, GatewayFacts, Stage
from tests.activities.site import environment

OLD, NEW = "0123456789ab", "ba9876543210"


@pytest.fixture
def stage(aws: Aws) -> Stage:
    group = f"/aws/lambda/keys-{uuid.uuid4().hex[:8]}"
    aws.logs.create_log_group(logGroupName=group)
    aws.logs.create_log_stream(logGroupName=group, logStreamName="s")
    return Stage(
        name="t",
        function="f",
        url="http://api",
        api_key="env:TEST_API_KEY",
        log_group=group,
        gateway=GatewayFacts(name="g", stage="t"),
        database=DatabaseFacts(uri="env:NONE", name="d"),
        deploy=DeployPolicy(engine="cloudformation"),
    )


def say(aws: Aws, stage: Stage, *said: tuple[datetime, str, str, int]) -> None:
    """Write a line of the API's log for each time, key, client and status."""
    events: Any = [
        {
            "timestamp": int(at.timestamp() * 1000),
            "message": json.dumps({"apiKeyId": key, "client": client, "statusCode": status}),
        }
        for at, key, client, status in sorted(said)
    ]
    aws.logs.put_log_events(logGroupName=stage.log_group, logStreamName="s", logEvents=events)


def test_accepted_requests_are_counted_by_key_and_client_to_the_last_moment(aws: Aws, stage: Stage) -> None:
    end = datetime.now(UTC)
    start = end - timedelta(days=2)
    on_the_edge = start + timedelta(days=1)
    say(
        aws,
        stage,
        (start + timedelta(hours=1), OLD, "web", 200),
        (on_the_edge, OLD, "web", 404),
        (on_the_edge - timedelta(milliseconds=1), OLD, "web", 200),
        (on_the_edge + timedelta(milliseconds=1), OLD, "web", 200),
        (end - timedelta(hours=1), OLD, "web", 401),
        (end - timedelta(hours=1), NEW, VERIFICATION, 200),
        (end, NEW, "ios", 200),
        (end, "another", "web", 200),
    )
    asked = UsageQuery(stage=stage, keys=(OLD, NEW), start=start, end=end)
    found = environment().run(KeyLog(aws.logs, poll=0.02).look, asked)
    assert [(use.key, use.client, use.uses) for use in found.uses] == [(OLD, "web", 4), (NEW, "ios", 1)]
    assert (found.named, found.complete) == (8, True)


def test_too_many_queries_at_once_pass(aws: Aws, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    end = datetime.now(UTC)
    asked = UsageQuery(stage=stage, keys=(OLD,), start=end - timedelta(hours=1), end=end)
    answer: Any = {
        "Error": {
            "Code": "LimitExceededException",
            "Message": "Account maximum query concurrency limit of 30 reached.",
        },
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }

    def busy(**_asked: Any) -> None:
        raise aws.logs.exceptions.LimitExceededException(answer, "StartQuery")

    with monkeypatch.context() as patch:
        patch.setattr(aws.logs, "start_query", busy)
        with pytest.raises(ApplicationError) as refused:
            environment().run(KeyLog(aws.logs).look, asked)
    assert not refused.value.non_retryable, "the way back of a rotation asks this, and must not give up"
    assert environment().run(KeyLog(aws.logs).look, asked).uses == ()


def test_a_log_that_is_not_there_says_nothing_about_keys(aws: Aws, stage: Stage) -> None:
    end = datetime.now(UTC)
    nowhere = stage.model_copy(update={"log_group": "/aws/lambda/none"})
    with pytest.raises(ApplicationError, match="is not known") as refused:
        environment().run(KeyLog(aws.logs).look, UsageQuery(stage=nowhere, keys=(OLD,), start=end, end=end))
    assert (refused.value.type, refused.value.non_retryable) == ("NoLog", True)
