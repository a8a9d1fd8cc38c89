"""SNS over HTTP: a subscription that is confirmed, and messages whose signature the receiver's own check accepts."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from activities.settings import Receiver
from tests.sandbox.aws_helpers import Aws, unique
from worker.sns import NotGenuineError, Sns, of_alarm

PATIENCE = 30.0


@pytest.fixture
def inbox() -> Iterator[tuple[str, queue.Queue[dict[str, Any]]]]:
    """Address of a receiver, and what it took."""
    taken: queue.Queue[dict[str, Any]] = queue.Queue()

    class Post(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Post)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/sns", taken
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("version", ["1", "2"])
async def test_what_is_sent_is_signed_and_can_be_checked(
    aws: Aws, inbox: tuple[str, queue.Queue[dict[str, Any]]], tmp_path: Path, version: str
) -> None:
    address, taken = inbox
    topic = aws.sns.create_topic(Name=unique("alarms"), Attributes={"SignatureVersion": version})["TopicArn"]
    aws.sns.set_topic_attributes(TopicArn=topic, AttributeName="SignatureVersion", AttributeValue=version)
    aws.sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=address)
    receiver = Receiver(spool=tmp_path, topics=(topic,), certificates=aws.endpoint)
    async with httpx.AsyncClient(trust_env=False) as http:
        sns = Sns(receiver, http)
        asked = taken.get(timeout=PATIENCE)
        assert (asked["Type"], asked["SignatureVersion"]) == ("SubscriptionConfirmation", version)
        await sns.check(asked, datetime.now(UTC))
        await sns.confirm(asked)
        aws.cloudwatch.put_metric_alarm(
            AlarmName=(alarm := unique("alarm")),
            Namespace="AWS/ApiGateway",
            MetricName="5XXError",
            Statistic="Average",
            Period=60,
            EvaluationPeriods=1,
            Threshold=0.05,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData="ignore",
            AlarmActions=[topic],
        )
        aws.cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="more than 5 % fail")
        while (message := taken.get(timeout=PATIENCE))["Type"] != "Notification":
            pass  # it is asked to confirm until it has
        await sns.check(message, datetime.now(UTC))
        content = json.loads(message["Message"])
        assert (content["AlarmName"], content["NewStateValue"]) == (alarm, "ALARM")
        with pytest.raises(NotGenuineError, match="the signature is wrong"):
            await sns.check({**message, "Message": message["Message"].replace("ALARM", "OK")}, datetime.now(UTC))
        with pytest.raises(NotGenuineError, match="does not lead to SNS"):
            await Sns(receiver.model_copy(update={"certificates": None}), http).check(message, datetime.now(UTC))
        with pytest.raises(NotGenuineError, match="no rule"):
            of_alarm(message, ())
