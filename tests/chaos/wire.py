"""In front of the database: every command meets its fault at first, in the wire protocol that the drivers speak."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

import bson

from tests.chaos.strikes import Mode, Strikes

_HANGS = 4.0
"""Seconds without an answer, before the connection is gone: a heartbeat of the shortened ones."""

_HEADER = struct.Struct("<iiii")
_REPLY, _QUERY, _MSG = 1, 2004, 2013

_LOGINS = ("saslStart", "saslContinue")
"""Where credentials are refused."""

_REFUSALS: dict[str, dict[str, Any]] = {
    "500": {"code": 189, "codeName": "PrimarySteppedDown", "errmsg": "the primary has stepped down"},
    "throttled": {
        "code": 462,
        "codeName": "IngressRequestRateLimitExceeded",
        "errmsg": "Request rejected: rate limit exceeded",
        "errorLabels": ["SystemOverloadedError", "RetryableError", "NoWritesPerformed"],
    },
    "expired": {"code": 18, "codeName": "AuthenticationFailed", "errmsg": "Authentication failed."},
}


class Wire:
    """Listens for clients of the server on ``port``.

    ``reset`` is an answer that is lost: the command was carried out.
    """

    def __init__(self, port: int, strikes: Strikes) -> None:
        self.upstream, self.strikes = ("127.0.0.1", port), strikes
        self._server = _Server(("127.0.0.1", 0), _Conversation)
        self._server.wire = self
        self.watches: set[socket.socket] = set()
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fault(self, asked: Asked) -> Mode | None:
        """How this command fails; None when it has failed often enough."""
        if asked.command not in _LOGINS and self.strikes.way(asked.operation) == "expired":
            return None
        return self.strikes.fault(asked.operation)

    def end_watches(self) -> None:
        """What drivers see of a change of the primary before they would look again."""
        for watch in self.watches.copy():
            with contextlib.suppress(OSError):  # it has hung up
                watch.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    wire: Wire

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a worker that is killed breaks its connections."""


@dataclass(frozen=True)
class Asked:
    """One command, and what its answer has to look like."""

    number: int
    opcode: int
    command: str
    operation: str
    """The same for every attempt at it."""
    waits: bool
    """Whether it is a driver's watch on the server, which answers at once when it ceases to be the primary."""

    @classmethod
    def of(cls, message: bytes) -> Asked:
        _, number, _, opcode = _HEADER.unpack_from(message)
        start = message.index(b"\0", 20) + 9 if opcode == _QUERY else 21
        (size,) = struct.unpack_from("<i", message, start)
        document = bson.decode(message[start : start + size])
        command, on = next(iter(document.items()))
        place = re.sub(r"[0-9a-f-]{8,}|\d+", "#", on) if isinstance(on, str) else ""
        return cls(number, opcode, command, f"mongodb {command} {place}".strip(), "maxAwaitTimeMS" in document)

    def answer(self, document: dict[str, Any]) -> bytes:
        body = bson.encode(document)
        head, opcode = (struct.pack("<iqii", 0, 0, 0, 1), _REPLY) if self.opcode == _QUERY else (bytes(5), _MSG)
        size = _HEADER.size + len(head) + len(body)
        return _HEADER.pack(size, 0, self.number, opcode) + head + body


class _Conversation(socketserver.BaseRequestHandler):
    request: socket.socket
    _next: Mode | None = None
    """What becomes of the next answer."""

    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        wire = self.server.wire
        with socket.create_connection(wire.upstream) as upstream:
            threading.Thread(target=self._pass_back, args=(upstream,), daemon=True).start()
            with contextlib.ExitStack() as stack:
                stack.callback(wire.watches.discard, self.request)
                stack.enter_context(contextlib.suppress(OSError))  # either side has hung up
                while message := _message(self.request):
                    asked = Asked.of(message)
                    if asked.waits:
                        wire.watches.add(self.request)
                    fault = wire.fault(asked)
                    if fault == "time-out":
                        time.sleep(_HANGS)
                        return
                    if fault == "garbage":
                        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                        return
                    if fault in (None, "slow", "reset"):
                        self._next = fault
                        upstream.sendall(message)
                        continue
                    self.request.sendall(asked.answer({"ok": 0.0, **_REFUSALS[fault]}))
                    if fault == "500":
                        wire.end_watches()

    def _pass_back(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side has hung up
            while message := _message(upstream):
                if self._next == "reset":
                    break
                pieces = 5 if self._next == "slow" else 1
                for start in range(0, len(message), piece := -(-len(message) // pieces)):
                    self.request.sendall(message[start : start + piece])
                    if self._next == "slow":
                        time.sleep(0.2)
            self.request.shutdown(socket.SHUT_RDWR)


def _message(of: socket.socket) -> bytes:
    """The next whole message; nothing at the end."""
    head = _exactly(of, _HEADER.size)
    return head and head + _exactly(of, _HEADER.unpack(head)[0] - _HEADER.size)


def _exactly(of: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        more = of.recv(size - len(found))
        if not more:
            return b""
        found += more
    return found
