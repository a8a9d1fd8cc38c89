"""JSON Web Tokens with HS256, and the keyring that an API with two slots reads. Pure, but for the randomness.

The secret that such an API reads is either one bare secret, or a keyring in JSON::

    {"sign": "kid-2", "keys": {"kid-1": "...", "kid-2": "..."}}

Nothing of a keyring is ever printed: its ``repr`` is the ids of its keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from activities.errors import lasting
from activities.redaction import never_print
from activities.secret_refs import fingerprint


@dataclass(frozen=True)
class Keyring:
    """Keys by id, and which of them signs."""

    sign: str
    keys: Mapping[str, str] = field(repr=False)
    bare: bool = False
    """Whether it is one secret without a keyring around it."""

    @classmethod
    def of(cls, text: str) -> Keyring:
        """
        Raises:
            BadKeyring: it is JSON, and not such a keyring. The message does not repeat it.
        """
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            kid = fingerprint(text)
            never_print(text)
            return cls(kid, {kid: text}, bare=True)
        keys, sign = found.get("keys"), found.get("sign")
        if (
            not isinstance(keys, dict)
            or not isinstance(sign, str)
            or sign not in keys
            or not all(isinstance(secret, str) and secret for secret in keys.values())
        ):
            raise lasting(
                'the signing secret is JSON, but no keyring such as {"sign": "a", "keys": {"a": "..."}}. Correct it',
                type="BadKeyring",
            )
        for secret in keys.values():
            never_print(secret)
        return cls(sign, dict(keys))

    def text(self) -> str:
        if self.bare:
            return self.keys[self.sign]
        return json.dumps({"sign": self.sign, "keys": dict(self.keys)}, separators=(",", ":"))

    def with_key(self, kid: str, secret: str) -> Keyring:
        return Keyring(self.sign, {**self.keys, kid: secret})

    def signing_with(self, kid: str) -> Keyring:
        return Keyring(kid, self.keys)


def signed(header: Mapping[str, Any], claims: Mapping[str, Any], secret: str) -> str:
    content = f"{_encoded(header)}.{_encoded(claims)}"
    return f"{content}.{_base64(_signature(content, secret))}"


def signer(token: str, keys: Mapping[str, str]) -> str | None:
    """The id of the key that signed a token, found by the signature itself; None when it is none of these."""
    content, _, signature = token.rpartition(".")
    try:
        given = _unbase64(signature)
    except ValueError:
        return None
    return next((kid for kid, key in keys.items() if hmac.compare_digest(given, _signature(content, key))), None)


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Header and claims of a token, unverified; None when it is none."""
    try:
        header, claims, _signed = token.split(".")
        found = json.loads(_unbase64(header)), json.loads(_unbase64(claims))
    except ValueError:
        return None
    return found if all(isinstance(part, dict) for part in found) else None


def renewed(claims: Mapping[str, Any], now: int, seconds: int) -> dict[str, Any]:
    """The claims of an issued token as those of one that begins now, so that only its signature is in question."""
    fresh = {name: value for name, value in claims.items() if name not in ("nbf", "jti")}
    return fresh | {"iat": now, "exp": now + seconds, "jti": secrets.token_hex(8)}


def _signature(content: str, secret: str) -> bytes:
    return hmac.new(secret.encode(), content.encode(), hashlib.sha256).digest()


def _encoded(part: Mapping[str, Any]) -> str:
    return _base64(json.dumps(part, separators=(",", ":")).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise ValueError(str(error)) from None
