"""Who may call the Atlas Administration API, and how it refuses."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import urllib.parse
from base64 import b64decode
from http import HTTPStatus

from sandbox.hub.exchange import Reply, Request, answer

_REALM = "MMS Public API"
_TOKEN_LIFE = 3600


class Refused(Exception):
    """An Atlas error, with the code that Atlas gives it."""

    def __init__(self, status: int, code: str, detail: str, *parameters: str) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.parameters = status, code, detail, parameters

    def reply(self, **headers: str) -> Reply:
        body = {
            "detail": self.detail,
            "error": self.status,
            "errorCode": self.code,
            "parameters": list(self.parameters),
            "reason": HTTPStatus(self.status).phrase,
        }
        return answer(self.status, body, **headers)


class Access:
    """Who may call: a service account's bearer token, or an API key pair over HTTP digest.

    With ``secret`` None every non-empty client secret and every digest answer to our own nonce is accepted; otherwise
    it is the one client secret and private key.
    """

    def __init__(self, secret: str | None) -> None:
        self._secret = secret
        self._tokens: dict[str, float] = {}
        self._nonces: set[str] = set()

    def token(self, request: Request) -> Reply:
        """``POST /api/oauth/token`` with client id and secret over HTTP Basic."""
        form = urllib.parse.parse_qs(request.body.decode("utf-8", "replace"))
        if form.get("grant_type") != ["client_credentials"]:
            return answer(400, {"error": "unsupported_grant_type", "error_description": "use client_credentials"})
        try:
            client, _, given = b64decode(request.authorization("Basic") or "", validate=True).decode().partition(":")
        except ValueError:
            client = given = ""
        if not client or not given or not self._is_secret(given):
            return answer(401, {"error": "invalid_client", "error_description": "client credentials are invalid"})
        token = secrets.token_urlsafe(32)
        self._tokens[token] = time.monotonic() + _TOKEN_LIFE
        return answer(200, {"access_token": token, "expires_in": _TOKEN_LIFE, "token_type": "Bearer"})

    def refusal(self, request: Request) -> Reply | None:
        """Nothing when the caller may pass, otherwise the 401 with a digest challenge."""
        bearer = request.authorization("Bearer")
        if bearer is not None and self._tokens.get(bearer, 0) > time.monotonic():
            return None
        if self._digest_holds(request):
            return None
        nonce = secrets.token_hex(16)
        self._nonces.add(nonce)
        challenge = f'Digest realm="{_REALM}", domain="", nonce="{nonce}", algorithm=MD5, qop="auth", stale=false'
        refused = Refused(401, "UNAUTHORIZED", "You are not authorized for this resource.")
        return refused.reply(WWW_Authenticate=challenge)

    def _is_secret(self, given: str) -> bool:
        return self._secret is None or hmac.compare_digest(given.encode(), self._secret.encode())

    def _digest_holds(self, request: Request) -> bool:
        text = request.authorization("Digest")
        if text is None:
            return False
        parts = {name: quoted or bare for name, quoted, bare in re.findall(r'(\w+)=(?:"([^"]*)"|([^\s,]+))', text)}
        if parts.get("nonce") not in self._nonces or not parts.get("username") or not parts.get("response"):
            return False
        if self._secret is None:
            return True
        first = _md5(f"{parts['username']}:{_REALM}:{self._secret}")
        second = _md5(f"{request.method}:{parts.get('uri', '')}")
        middle = ":".join(parts.get(name, "") for name in ("nonce", "nc", "cnonce", "qop"))
        return hmac.compare_digest(_md5(f"{first}:{middle}:{second}"), parts["response"])


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
