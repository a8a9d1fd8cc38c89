"""SNS over HTTP as its receivers know it: messages with a signature that can be checked, and deliveries tried again.

ministack signs with the word FAKE and tries once. Here each server has a key and a certificate of its own, which it
serves where ``SigningCertURL`` says; a receiver that is not of this sandbox trusts neither.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import urllib.error
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from ministack import app
from ministack.services import sns

from sandbox.aws.responses import Response

_PATH = "/SimpleNotificationService-sandbox.pem"
_SIGNED = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
"""What the signature covers, in this order; Subject only when there is one."""

_RETRIES = (20.0, 20.0, 20.0)
"""SNS's own default for HTTP: three more tries, 20 seconds apart."""

_CONFIRM_EVERY = 1.0
_CONFIRM_FOR = timedelta(days=3)
"""So long SNS takes the token of a confirmation. It is sent more often than SNS would: the receiver comes up later."""

_builtin_envelope = sns._build_envelope
_builtin_pre_body = app._handle_elasticache_ca_request


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@cache
def certificate() -> bytes:
    """The certificate of this server's key, signed by itself, as PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.sandbox")])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
    )
    return built.sign(_key(), SHA256()).public_bytes(Encoding.PEM)


def _here() -> str:
    return f"http://{os.environ.get('BIND_HOST', '127.0.0.1')}:{sns._PORT}"


def signed(message: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The message with a signature of this version (1 is SHA-1, 2 is SHA-256) and the certificate's address."""
    names = [name for name in _SIGNED[message["Type"]] if name != "Subject" or message.get("Subject")]
    text = "".join(f"{name}\n{message[name]}\n" for name in names).encode()
    algorithm = SHA256() if version == "2" else SHA1()  # what SNS's version 1 is
    signature = base64.b64encode(_key().sign(text, padding.PKCS1v15(), algorithm)).decode()
    return {**message, "SignatureVersion": version, "Signature": signature, "SigningCertURL": _here() + _PATH}


def _version(topic_arn: str) -> str:
    topic = sns._topic_by_arn_any_scope(topic_arn) or {}
    return str(topic.get("attributes", {}).get("SignatureVersion", "1"))


def _envelope(topic_arn: str, msg_id: str, message: str, subject: str, attributes: dict[str, Any], raw: bool) -> str:
    built: str = _builtin_envelope(topic_arn, msg_id, message, subject, attributes, raw)
    return built if raw else json.dumps(signed(json.loads(built), _version(topic_arn)))


async def _post(endpoint: str, payload: str, kind: str) -> bool:
    """Whether this is over: taken, or refused for good."""
    try:
        await asyncio.to_thread(sns._http_post_sync, endpoint, payload, kind)
    except urllib.error.HTTPError as error:
        return 400 <= error.code < 500 and error.code != 429
    except OSError:
        return False
    return True


async def _deliver(endpoint: str, payload: str) -> None:
    for pause in (0.0, *_RETRIES):
        await asyncio.sleep(pause)
        if await _post(endpoint, payload, "Notification"):
            return


async def _ask_to_confirm(topic_arn: str, subscription: dict[str, Any]) -> None:
    """Send the confirmation until somebody has followed it."""
    token = subscription["token"]
    text = f"You have chosen to subscribe to the topic {topic_arn}. To confirm, visit the SubscribeURL in this message."
    deadline = datetime.now(UTC) + _CONFIRM_FOR
    while not subscription["confirmed"] and datetime.now(UTC) < deadline:
        if subscription not in (sns._topic_by_arn_any_scope(topic_arn) or {}).get("subscriptions", ()):
            return  # unsubscribed, or all was reset
        message = {
            "Type": "SubscriptionConfirmation",
            "MessageId": sns.new_uuid(),
            "TopicArn": topic_arn,
            "Token": token,
            "Message": text,
            "SubscribeURL": f"{_here()}/?Action=ConfirmSubscription&TopicArn={topic_arn}&Token={token}",
            "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        }
        payload = json.dumps(signed(message, _version(topic_arn)))
        await _post(subscription["endpoint"], payload, "SubscriptionConfirmation")
        await asyncio.sleep(_CONFIRM_EVERY)


def _serve_certificate(method: str, path: str) -> Response | None:
    if (method, path) == ("GET", _PATH):
        return 200, {"Content-Type": "application/x-pem-file"}, certificate()
    answer: Response | None = _builtin_pre_body(method, path)
    return answer


def install() -> None:
    sns._build_envelope = _envelope
    sns._deliver_to_http = _deliver
    sns._send_subscription_confirmation = _ask_to_confirm
    # The last of the paths that are not AWS's own: here one more is added to them.
    app._handle_elasticache_ca_request = _serve_certificate
