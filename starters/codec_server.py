"""The codec server: decrypts what the Temporal UI and the ``temporal`` command have read, and encrypts what they send.

Both ask it over HTTP with the payloads as Temporal has them. The command shows the token as a bearer token. The UI can
pass on a login's access token, which only a proxy that knows the login can judge, or cookies: so people sign in here
once, with the same token, and their browser keeps a cookie that this server can check without remembering anybody.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payload, Payloads

from workflows.codec import EncryptionCodec, MissingKeyError

LARGEST = 32 * 1024 * 1024
"""Bytes of one request; Temporal takes 2 MB a payload, and the UI asks for a page of them at once."""

SIGNED_IN_FOR = 12 * 3600
"""Seconds."""

COOKIE = "runbooks-codec"

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Codec server</title>
<style>body{{font:16px sans-serif;max-width:32em;margin:4em auto}}input{{font:inherit;width:100%}}</style>
<h1>Codec server</h1><p>{said}</p>
<form method="post" action="/sign-in"><label>Token <input type="password" name="token" autofocus></label>
<p><button>Sign in</button></form></html>"""


class CodecServer:
    """``POST /decode`` and ``POST /encode`` for who has the token.

    Args:
        codec: With the keys.
        origin: Of the Temporal UI: no other page may ask from a browser.
        token: What to show; read at each request, so that another one counts at once.
    """

    def __init__(self, codec: EncryptionCodec, origin: str, token: Callable[[], str]) -> None:
        self._codec, self._origin, self._token = codec, origin, token

    def application(self) -> Starlette:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=[self._origin],
            allow_methods=["POST"],
            allow_headers=["authorization", "content-type", "x-namespace"],
            allow_credentials=True,
        )
        routes = [
            Route("/decode", self.decode, methods=["POST"]),
            Route("/encode", self.encode, methods=["POST"]),
            Route("/sign-in", self.sign_in, methods=["POST"]),
            Route("/health", self.health),
            Route("/", self.page),
        ]
        return Starlette(routes=routes, middleware=[cors])

    async def health(self, _request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def page(self, request: Request) -> HTMLResponse:
        token = await asyncio.to_thread(self._token)
        known = _session_holds(request.cookies.get(COOKIE, ""), token)
        return _page("You are signed in: the Temporal UI can decrypt now." if known else "Sign in to decrypt.")

    async def sign_in(self, request: Request) -> Response:
        given = parse_qs((await _body(request) or b"").decode(errors="replace")).get("token", [""])[0]
        token = await asyncio.to_thread(self._token)
        if not hmac.compare_digest(given.strip().encode(), token.encode()):
            return _page("That is not the token.", 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            _session(token, int(time.time()) + SIGNED_IN_FOR),
            max_age=SIGNED_IN_FOR,
            httponly=True,
            samesite="strict",
            secure=self._origin.startswith("https:"),
        )
        return answer

    async def encode(self, request: Request) -> Response:
        return await self._convert(request, self._codec.encode)

    async def decode(self, request: Request) -> Response:
        return await self._convert(request, self._readable)

    async def _readable(self, payloads: list[Payload]) -> list[Payload]:
        """Decrypted as far as there are keys; the rest stays as it is, so that one lost key hides no other payload."""
        readable: list[Payload] = []
        for payload in payloads:
            try:
                readable += await self._codec.decode([payload])
            except MissingKeyError as error:
                logging.warning("%s", error)
                readable.append(payload)
        return readable

    async def _convert(self, request: Request, conversion: Callable[..., object]) -> Response:
        if (refusal := await self._refusal(request)) is not None:
            return JSONResponse({"error": refusal}, status_code=401)
        body = await _body(request)
        if body is None:
            return JSONResponse({"error": f"more than {LARGEST} bytes"}, status_code=413)
        try:
            asked = json_format.Parse(body, Payloads(), ignore_unknown_fields=True)
        except (json_format.ParseError, UnicodeDecodeError, RecursionError):
            return JSONResponse({"error": "the body is no Payloads in JSON"}, status_code=400)
        converted = await conversion(list(asked.payloads))  # type: ignore[misc]
        answer = json_format.MessageToJson(Payloads(payloads=converted), indent=None)
        return Response(answer, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _refusal(self, request: Request) -> str | None:
        """Why this request is not answered; a cookie counts only for the UI's own page, which a browser vouches for."""
        token = await asyncio.to_thread(self._token)
        if given := request.headers.get("authorization"):
            known = hmac.compare_digest(given.encode(), f"Bearer {token}".encode())
            return None if known else "that is not the bearer token of this codec server"
        if request.headers.get("origin") == self._origin and _session_holds(request.cookies.get(COOKIE, ""), token):
            return None
        return f"sign in first, at {request.base_url}, or send the bearer token"


def _session(token: str, until: int) -> str:
    """What a browser keeps: another token, or time, makes it worthless."""
    return f"{until}.{hmac.digest(token.encode(), f'session until {until}'.encode(), 'sha256').hex()}"


def _session_holds(cookie: str, token: str) -> bool:
    until, _, _ = cookie.partition(".")
    if not until.isascii() or not until.isdigit() or len(until) > 12 or int(until) < time.time():
        return False
    return hmac.compare_digest(cookie.encode(), _session(token, int(until)).encode())


def _page(said: str, status: int = 200) -> HTMLResponse:
    # Nobody may lay this page under another one and have the token typed into it.
    return HTMLResponse(_PAGE.format(said=said), status, {"Content-Security-Policy": "frame-ancestors 'none'"})


async def _body(request: Request) -> bytes | None:
    """None when it is too large."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST:
            return None
    return bytes(content)
