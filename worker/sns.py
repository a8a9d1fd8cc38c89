"""Messages of Amazon SNS: whether one is really from SNS, and what a CloudWatch alarm in it says."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA1, SHA256

from activities.incidents import OpenIncident
from activities.settings import AlarmRule, Receiver

FRESH = timedelta(hours=1)
"""A message older than this is a recording."""

_SIGNED = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
"""The fields that are signed, in the order of SNS's manual; Subject only when there is one."""


class NotGenuineError(Exception):
    """The message is not taken; the text says why and holds nothing of it."""


class Sns:
    """Checks messages. The certificate is fetched from SNS itself, once."""

    def __init__(self, settings: Receiver, http: httpx.AsyncClient) -> None:
        self._settings, self._http = settings, http
        self._certificates: dict[str, rsa.RSAPublicKey] = {}

    async def check(self, message: dict[str, Any], now: datetime) -> None:
        """Return when the message was signed by SNS, for a topic of ours, just now.

        Raises:
            NotGenuineError: it was not.
        """
        topic, kind = str(message.get("TopicArn", "")), str(message.get("Type", ""))
        if topic not in self._settings.topics:
            raise NotGenuineError("the topic is none of receiver.topics in the settings")
        if kind not in _SIGNED:
            raise NotGenuineError("the type is none that SNS sends")
        key = await self._key(str(message.get("SigningCertURL", "")), topic)
        version = str(message.get("SignatureVersion", ""))
        if version not in ("1", "2"):
            raise NotGenuineError(f"signature version {version[:5]!r} is not known")
        try:
            signature = base64.b64decode(str(message.get("Signature", "")), validate=True)
            algorithm = SHA1() if version == "1" else SHA256()  # noqa: S303  # version 1 is SHA-1 by definition
            key.verify(signature, signed_text(message), padding.PKCS1v15(), algorithm)
        except (InvalidSignature, ValueError):
            raise NotGenuineError("the signature is wrong") from None
        self._fresh(str(message.get("Timestamp", "")), now)

    async def confirm(self, message: dict[str, Any]) -> None:
        """Confirm a subscription by the address in the message, which was checked before.

        Raises:
            NotGenuineError: the address does not lead to SNS.
        """
        url = str(message.get("SubscribeURL", ""))
        self._from_sns(url, str(message.get("TopicArn", "")))
        (await self._http.get(url)).raise_for_status()

    async def _key(self, url: str, topic: str) -> rsa.RSAPublicKey:
        self._from_sns(url, topic)
        if not urlsplit(url).path.endswith(".pem"):
            raise NotGenuineError("the certificate's address is not one of SNS")
        if url not in self._certificates:
            try:
                answer = (await self._http.get(url)).raise_for_status()
                key = x509.load_pem_x509_certificate(answer.content).public_key()
            except (httpx.HTTPError, ValueError):
                raise NotGenuineError("the certificate could not be read") from None
            if not isinstance(key, rsa.RSAPublicKey):
                raise NotGenuineError("the certificate's key is not RSA")
            self._certificates[url] = key
        return self._certificates[url]

    def _from_sns(self, url: str, topic: str) -> None:
        """Only SNS in the topic's own region may say what is genuine."""
        parts = topic.split(":")
        partition, region = (parts[1], parts[3]) if len(parts) == 6 else ("", "")
        suffix = "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com"
        base = self._settings.certificates or f"https://sns.{region}.{suffix}"
        wanted, given = urlsplit(base), urlsplit(url)
        if (given.scheme, given.netloc) != (wanted.scheme, wanted.netloc) or not given.netloc:
            raise NotGenuineError("an address in it does not lead to SNS")

    @staticmethod
    def _fresh(timestamp: str, now: datetime) -> None:
        try:
            sent = datetime.fromisoformat(timestamp)
        except ValueError:
            raise NotGenuineError("its time cannot be read") from None
        sent = sent if sent.tzinfo else sent.replace(tzinfo=UTC)
        if abs(now - sent) > FRESH:
            raise NotGenuineError("it is more than an hour old: a recording")


def signed_text(message: dict[str, Any]) -> bytes:
    """What SNS signs: names and values, a line each."""
    fields = [name for name in _SIGNED[str(message["Type"])] if name != "Subject" or message.get("Subject")]
    return "".join(f"{name}\n{message.get(name, '')}\n" for name in fields).encode()


def of_alarm(message: dict[str, Any], rules: tuple[AlarmRule, ...]) -> OpenIncident | None:
    """The incident that a CloudWatch alarm in the message opens; None when it says that all is well again.

    Raises:
        NotGenuineError: it is no alarm, or no rule fits its name.
    """
    try:
        alarm = json.loads(str(message.get("Message", "")))
        name, state = str(alarm["AlarmName"]), str(alarm["NewStateValue"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotGenuineError("the message holds no CloudWatch alarm") from None
    rule = next((rule for rule in rules if fnmatchcase(name, rule.alarm)), None)
    if rule is None:
        raise NotGenuineError(f"no rule of receiver.alarms fits the alarm {name[:100]!r}")
    if state != "ALARM":
        return None
    # What people have written of it says more than the figures do, which are read anew in any case.
    said = alarm.get("AlarmDescription") or f"{name}: {alarm.get('NewStateReason') or 'in alarm'}"
    return OpenIncident(
        stage=rule.stage,
        reason=" ".join(str(said).split())[:300],
        key=rule.key or name,
        alert=f"sns-{message.get('MessageId', '')}"[:200],
        source=f"alarm {name}"[:100],
        severity=rule.severity,
        detected_at=_moment(alarm.get("StateChangeTime")),
    )


def _moment(text: Any) -> datetime | None:
    """CloudWatch writes ``2026-01-20T14:02:11.123+0000``."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
