"""Signed tokens of the State Tracking API: JSON Web Tokens with HS256, whose header names the key that signed them.

Packed beside ``handler.py``; only the standard library is used.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any


class TokenError(Exception):
    """A token that is not accepted; the text says why, and old key is told from old token."""


@dataclass(frozen=True)
class Keyring:
    """The key that signs, and all that are accepted, by id. A bare secret is one key; JSON has two slots or more::

    {"sign": "kid-2", "keys": {"kid-1": "...", "kid-2": "..."}}
    """

    sign: str
    keys: dict[str, bytes]

    @classmethod
    def of(cls, text: str, *, single: bool = False) -> Keyring:
        """``single`` accepts nothing but the key that signs."""
        try:
            ring = json.loads(text)
        except ValueError:
            ring = None
        if not isinstance(ring, dict):
            kid = fingerprint(text)
            return cls(kid, {kid: text.encode()})
        keys = {kid: secret.encode() for kid, secret in ring["keys"].items() if not single or kid == ring["sign"]}
        return cls(ring["sign"], keys)

    def issue(self, seconds: int) -> str:
        now = int(time.time())
        head = {"alg": "HS256", "typ": "JWT", "kid": self.sign}
        claims = {"sub": "session-reader", "iat": now, "exp": now + seconds}
        signed = f"{_encoded(head)}.{_encoded(claims)}"
        return f"{signed}.{_base64(_signature(self.keys[self.sign], signed))}"

    def read(self, token: str) -> dict[str, Any]:
        """The claims of a token.

        Raises:
            TokenError: it is not accepted.
        """
        try:
            head, body, signature = token.split(".")
            kid = str(json.loads(_unbase64(head))["kid"])
            claims = json.loads(_unbase64(body))
            given = _unbase64(signature)
        except (ValueError, KeyError, TypeError):
            raise TokenError("the Authorization header holds no token") from None
        key = self.keys.get(kid)
        if key is None:
            raise TokenError("the key of this token is not accepted")
        if not hmac.compare_digest(given, _signature(key, f"{head}.{body}")):
            raise TokenError("the signature of this token is wrong")
        if not isinstance(claims, dict) or claims.get("exp", 0) <= time.time():
            raise TokenError("this token has expired")
        return claims


def fingerprint(secret: str) -> str:
    """Names a secret in logs and tokens without telling it."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def _signature(key: bytes, signed: str) -> bytes:
    return hmac.new(key, signed.encode(), hashlib.sha256).digest()


def _encoded(part: dict[str, Any]) -> str:
    return _base64(json.dumps(part).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
