"""The receiver: who may post, what is genuine, and that nothing is lost while Temporal is away."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from temporalio.client import Client

from activities.incidents import OpenIncident, incident_id
from activities.keyring import Key, Keyring
from activities.settings import AlarmRule, ConfigError, Receiver, Settings, load_settings
from sandbox.ports import any_free
from tests.hostile import VALUES, WORDS, Sent
from tests.patience import soon
from tests.workflows.incident_world import World, situation, working
from worker.receiver import Desk, deliver, receive
from worker.sns import Sns, signed_text
from worker.spool import Spool
from workflows.connection import ConnectionProblem
from workflows.plugin import RunbooksPlugin

TOPIC = "arn:aws:sns:us-east-1:123456789012:alarms"
CERTIFICATE = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NOW = datetime.now(UTC)


def certificate(key: rsa.RSAPrivateKey = KEY) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    built = built.serial_number(1).not_valid_before(NOW - timedelta(days=1)).not_valid_after(NOW + timedelta(days=1))
    return built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def message(version: str = "2", key: rsa.RSAPrivateKey = KEY, **changes: Any) -> dict[str, Any]:
    alarm = {"AlarmName": "errors-production", "NewStateValue": "ALARM", "NewStateReason": "Threshold Crossed"}
    found = {
        "Type": "Notification",
        "MessageId": "m-1",
        "TopicArn": TOPIC,
        "Subject": 'ALARM: "errors-production"',
        "Message": json.dumps(alarm | {"StateChangeTime": "2026-01-20T14:02:11.123+0000"}),
        "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "SignatureVersion": version,
        "SigningCertURL": CERTIFICATE,
        **changes,
    }
    algorithm = hashes.SHA1() if version == "1" else hashes.SHA256()
    found.setdefault(
        "Signature", base64.b64encode(key.sign(signed_text(found), padding.PKCS1v15(), algorithm)).decode()
    )
    return found


def aws(request: httpx.Request) -> httpx.Response:
    if str(request.url).endswith(".pem"):
        return httpx.Response(200, content=certificate())
    return httpx.Response(200 if request.url.host == "sns.us-east-1.amazonaws.com" else 500)


@pytest_asyncio.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[httpx.AsyncClient, Spool]]:
    monkeypatch.setenv("ALERT_TOKEN", "s3cret")
    receiver = Receiver(
        spool=tmp_path / "spool",
        token="env:ALERT_TOKEN",
        topics=(TOPIC,),
        alarms=(AlarmRule(alarm="errors-*", stage="production", severity="P1"),),
    )
    from activities.secret_refs import SecretResolver

    spool = Spool(receiver.spool)
    async with httpx.AsyncClient(transport=httpx.MockTransport(aws)) as outside:
        resolver = SecretResolver(None, None)  # type: ignore[arg-type]
        made: Starlette = Desk(
            frozenset({"production"}), receiver, spool, resolver, Sns(receiver, outside)
        ).application()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://receiver") as inside:
            yield inside, spool


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_genuine_alarm_is_kept(desk: tuple[httpx.AsyncClient, Spool], version: str) -> None:
    client, spool = desk
    answer = await client.post("/sns", json=message(version))
    assert (answer.status_code, answer.json()["alert"]) == (202, "sns-m-1"), answer.text
    (_, kept), *more = spool.waiting()
    assert more == []
    assert (kept.stage, kept.severity, kept.key, kept.source) == (
        "production",
        "P1",
        "errors-production",
        "alarm errors-production",
    )
    assert kept.reason == "errors-production: Threshold Crossed"
    described = json.loads(message()["Message"]) | {"AlarmDescription": "requests fail"}
    assert (await client.post("/sns", json=message(version, MessageId="m-2", Message=json.dumps(described)))).is_success
    assert [problem.reason for _, problem in spool.waiting()][1:] == ["requests fail"]
    assert kept.detected_at == datetime(2026, 1, 20, 14, 2, 11, 123000, tzinfo=UTC)
    assert (await client.get("/health")).json() == {"status": "ok", "waiting": 2}


OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OK = json.dumps({"AlarmName": "errors-production", "NewStateValue": "OK"})


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (message(key=OTHER), "the signature is wrong"),
        ({**message(), "Message": OK}, "the signature is wrong"),
        (message(Signature="not base64"), "the signature is wrong"),
        (message(TopicArn="arn:aws:sns:us-east-1:666666666666:alarms"), "none of receiver.topics"),
        (message(SigningCertURL="https://sns.us-east-1.amazonaws.com.evil.example/x.pem"), "does not lead to SNS"),
        (message(SigningCertURL="http://sns.us-east-1.amazonaws.com/x.pem"), "does not lead to SNS"),
        (message(SigningCertURL="https://sns.us-east-1.amazonaws.com@evil.example/x.pem"), "does not lead to SNS"),
        (message(SigningCertURL="https://sns.eu-west-1.amazonaws.com/x.pem"), "does not lead to SNS"),
        (message(SigningCertURL="https://sns.us-east-1.amazonaws.com/x.html"), "not one of SNS"),
        (message(Timestamp="2026-01-20T14:02:11.123Z"), "a recording"),
        (message(SignatureVersion="3", Signature="x"), "is not known"),
        (message(Message="hello"), "no CloudWatch alarm"),
        (message(Message=json.dumps({"AlarmName": "disk", "NewStateValue": "ALARM"})), "no rule"),
        ({"Type": "Notification"}, "none of receiver.topics"),
    ],
)
async def test_what_is_not_genuine_is_refused(
    desk: tuple[httpx.AsyncClient, Spool], sent: dict[str, Any], why: str
) -> None:
    client, spool = desk
    answer = await client.post("/sns", json=sent)
    assert (answer.status_code, why in answer.json()["error"]) == (403, True), answer.text
    assert spool.count() == 0


async def test_all_well_again_opens_nothing_and_a_subscription_is_confirmed(
    desk: tuple[httpx.AsyncClient, Spool],
) -> None:
    client, spool = desk
    assert (await client.post("/sns", json=message(Message=OK))).json() == {"taken": False}
    wanted = {"Type": "SubscriptionConfirmation", "Token": "t", "Message": "You have chosen to subscribe"}
    url = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription"
    assert (await client.post("/sns", json=message(**wanted, SubscribeURL=url))).json() == {"confirmed": True}
    elsewhere = message(**wanted, SubscribeURL="https://evil.example/?Action=ConfirmSubscription")
    assert (await client.post("/sns", json=elsewhere)).status_code == 403
    assert spool.count() == 0


GENERIC = {"stage": "production", "text": "checkout fails", "id": "a-1", "source": "probe"}


@pytest.mark.parametrize(
    ("token", "body", "status"),
    [
        ("s3cret", GENERIC, 202),
        ("wrong", GENERIC, 401),
        ("", GENERIC, 401),
        ("s3cret", {**GENERIC, "stage": "prod"}, 400),
        ("s3cret", {**GENERIC, "surprise": 1}, 400),
        ("s3cret", {**GENERIC, "severity": "P9"}, 400),
        ("s3cret", "hello", 400),
        ("s3cret", {**GENERIC, "text": "x" * 300_000}, 400),
    ],
)
async def test_the_generic_door(desk: tuple[httpx.AsyncClient, Spool], token: str, body: Any, status: int) -> None:
    client, spool = desk
    answer = await client.post("/alerts", json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == status, answer.text
    assert "s3cret" not in answer.text
    assert spool.count() == (status == 202)


async def test_an_alert_for_no_stage_of_ours_stands_in_the_log(
    desk: tuple[httpx.AsyncClient, Spool], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = desk
    await client.post("/alerts", json={**GENERIC, "stage": "prod"}, headers={"Authorization": "Bearer s3cret"})
    assert "alert a-1 was not taken: there is no stage prod" in caplog.text


def test_a_rule_for_a_stage_that_there_is_not_is_refused_with_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At night SNS takes its refusal for final, and nobody hears of the alarm."""
    file = tmp_path / "runbooks.toml"
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(file))
    rule = '[[receiver.alarms]]\nalarm = "errors-*"\nstage = "prod"\n'
    file.write_text(f'[receiver]\nspool = "{tmp_path}"\n{rule}')
    with pytest.raises(ConfigError, match=r"receiver.alarms: the rule for 'errors-\*' names a stage 'prod'"):
        load_settings()


async def test_whatever_is_posted_is_kept_or_refused(desk: tuple[httpx.AsyncClient, Spool], sent: Sent) -> None:
    client, spool = desk
    token = {"Authorization": "Bearer s3cret"}
    fields = [*GENERIC, "key", "severity", "at", "surprise"]
    bodies = [GENERIC | {field: value} for field in fields for value in (*WORDS, *VALUES)] + [*WORDS, *VALUES]
    raw = [json.dumps(body).encode() for body in bodies]
    raw += [b"", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"null", b"NaN", b"1" * 5_000]
    raw += [json.dumps(message() | {field: word}).encode() for field in message() for word in (*WORDS, *VALUES)]
    refused = 0
    for door in ("/alerts", "/sns"):
        for body in raw:
            before = spool.count()
            answer = await client.post(door, content=body, headers=token)
            assert answer.status_code < 500, (door, body[:200])
            assert len(answer.text) < 2500
            assert "s3cret" not in answer.text
            assert spool.count() - before <= (answer.status_code == 202)
            refused += answer.status_code >= 400
    sent("receiver", refused)


async def test_what_arrives_while_temporal_is_away_is_kept_and_delivered_once(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALERT_TOKEN", "s3cret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(tmp_path / "none.toml"))
    port = any_free()
    away = True

    async def reach() -> Client:
        if away:
            raise ConnectionProblem("Temporal does not answer")
        return client

    world, spool = World("errors"), Spool(tmp_path / "spool")
    async with working(client, world) as queue:
        facts = (await world.resolve(queue)).model_dump(mode="json")
        settings = Settings.model_validate(
            {
                "task_queue": queue,
                "stages": {queue: facts},
                "receiver": {"listen": f"127.0.0.1:{port}", "spool": tmp_path / "spool", "token": "env:ALERT_TOKEN"},
            }
        )
        alert = {**GENERIC, "stage": queue, "severity": "P1"}
        serving = asyncio.create_task(receive(settings, reach))
        async with httpx.AsyncClient(headers={"Authorization": "Bearer s3cret"}) as http:

            async def post(body: dict[str, Any]) -> int:
                for _ in range(100):
                    try:
                        return (await http.post(f"http://127.0.0.1:{port}/alerts", json=body)).status_code
                    except httpx.ConnectError:
                        await asyncio.sleep(0.05)
                raise AssertionError("the receiver does not answer")

            assert await post(alert) == 202
            assert await post(alert) == 202, "sent twice"
            assert await post({**alert, "id": "a-2"}) == 202
            assert spool.count() == 3
            serving.cancel()  # as if the process died: what it took is on the disk
            await asyncio.gather(serving, return_exceptions=True)
            away = False
            serving = asyncio.create_task(receive(settings, reach))
            await soon(lambda: spool.count() == 0, 30)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        handle = client.get_workflow_handle(incident_id(queue, "checkout fails"))
        await soon(lambda: bool(world.pages), 30)
        seen = await situation(handle)
        assert (seen.alerts, seen.repeats) == (["a-1", "a-2"], 1)
        assert len(world.pages) == 1
        await handle.terminate()


async def test_nothing_ends_the_delivery_and_its_log_quotes_nothing(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, spool = World("none"), Spool(tmp_path / "spool")
    wrong = [ConfigError("encryption.keys: AWS answered ThrottlingException"), RuntimeError("Bearer s3cret")]

    async def reach() -> Client:
        if wrong:
            raise wrong.pop(0)
        return client

    async with working(client, world) as queue:
        spool.keep(OpenIncident(stage=queue, reason="errors", key="errors", alert="a-1", source="alarm", severity="P4"))
        delivering = asyncio.create_task(deliver(spool, asyncio.Event(), queue, reach))
        await soon(lambda: spool.count() == 0 or delivering.done())
        assert not delivering.done()
        assert "alerts wait on the disk (1): encryption.keys: AWS answered ThrottlingException" in caplog.text
        assert "alerts wait on the disk (1): RuntimeError" in caplog.text
        assert "s3cret" not in caplog.text
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
        await client.get_workflow_handle(incident_id(queue, "errors")).terminate()


async def test_a_key_that_was_promoted_since_is_read_before_the_next_try(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker answers under a key that the receiver did not have when it connected."""
    world, spool = World("none"), Spool(tmp_path / "spool")
    target = client.service_client.config.target_host
    old, new = Key.new("old"), Key.new("new")
    rings = [Keyring((old,)), Keyring((new, old))]

    async def reach() -> Client:
        return await Client.connect(target, plugins=[RunbooksPlugin(rings.pop(0) if len(rings) > 1 else rings[0])])

    promoted = await Client.connect(target, plugins=[RunbooksPlugin(rings[1])])
    async with working(promoted, world) as queue:
        spool.keep(OpenIncident(stage=queue, reason="errors", key="errors", alert="a-1", source="alarm", severity="P4"))
        delivering = asyncio.create_task(deliver(spool, asyncio.Event(), queue, reach))
        await soon(lambda: spool.count() == 0 or delivering.done())
        assert not delivering.done()
        assert f"alert a-1 waits: this process lacks the key {new.id}" in caplog.text
        handle = promoted.get_workflow_handle(incident_id(queue, "errors"))
        assert ((await situation(handle)).alerts, list((tmp_path / "spool/refused").iterdir())) == (["a-1"], [])
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
        await handle.terminate()


async def test_an_alert_to_a_closing_incident_waits_and_holds_no_other_up(client: Client, tmp_path: Path) -> None:
    world, spool = World("none"), Spool(tmp_path / "spool")
    world.hold["report"] = asyncio.Event()

    async def reach() -> Client:
        return client

    def problem(key: str, alert: str) -> OpenIncident:
        return OpenIncident(stage=queue, reason=key, key=key, alert=alert, source="alarm", severity="P4")

    async with working(client, world) as queue:
        arrived = asyncio.Event()
        spool.keep(problem("errors", "a-1"))
        delivering = asyncio.create_task(deliver(spool, arrived, queue, reach))
        await soon(lambda: spool.count() == 0)
        handle = client.get_workflow_handle(incident_id(queue, "errors"))
        await handle.execute_update("resolve", {"by": "ann"})
        await soon(lambda: "report" in world.held)
        for waiting in (problem("errors", "a-2"), problem("latency", "a-3")):
            spool.keep(waiting)
        arrived.set()
        await soon(lambda: spool.count() == 1)
        assert [kept.alert for _, kept in spool.waiting()] == ["a-2"]
        world.hold.pop("report").set()
        await soon(lambda: spool.count() == 0)
        assert list((tmp_path / "spool" / "refused").iterdir()) == []
        assert (await situation(handle)).alerts == ["a-2"], "a new incident"
        delivering.cancel()
        await asyncio.gather(delivering, return_exceptions=True)
        for key in ("errors", "latency"):
            await client.get_workflow_handle(incident_id(queue, key)).terminate()
