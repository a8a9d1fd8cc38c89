"""Faults of everything but the worker: Temporal itself, AWS and the API, the people's tools, the database.

Each fault passes. What is asked for once and refused, delayed or answered with nonsense has to be asked for again.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from sandbox import processes
from sandbox.house import House, HouseError
from sandbox.parts import PARTS
from sandbox.state import State
from tests.chaos.strikes import Mode, Strikes

_HANGS = 4.0
"""Seconds without an answer: longer than the shortened patience of the clients."""

_HUB_MODES: dict[Mode, dict[str, Any]] = {
    "500": {"mode": "http", "status": 500},
    "throttled": {"mode": "http", "status": 429, "retry_after": 1},
    "reset": {"mode": "reset"},
    "time-out": {"mode": "timeout"},
    "slow": {"mode": "slow", "seconds": 1},
    "garbage": {"mode": "garbage"},
    "expired": {"mode": "http", "status": 401},
}


class Proxy:
    """In front of the embedded AWS and of the API behind its gateway: every operation meets its fault at first.

    ``reset`` is an answer that is lost: what was asked for is done.
    """

    def __init__(self, upstream: str, strikes: Strikes) -> None:
        host, _, port = upstream.removeprefix("http://").partition(":")
        self.upstream = (host, int(port.strip("/")))
        self.strikes = strikes
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a worker that is killed breaks its connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what matters is how the run ends."""

    def _handle(self) -> None:
        proxy: Proxy = self.server.proxy  # type: ignore[attr-defined]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        operation = _operation(self, body)
        fault = proxy.strikes.fault(operation)
        if fault == "time-out":
            time.sleep(_HANGS)
            self.close_connection = True
        elif fault in (None, "slow", "reset"):
            self._pass_on(proxy, body, fault)
        else:
            self._answer(*_refusal(fault, operation.partition(" ")[0], in_xml=b"Action=" in body))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

    def _pass_on(self, proxy: Proxy, body: bytes, fault: Mode | None) -> None:
        upstream = http.client.HTTPConnection(*proxy.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body=body or None, headers=dict(self.headers.items()))
            found = upstream.getresponse()
            content = found.read()
        except OSError:
            self._answer(502, {}, b"")
            return
        finally:
            upstream.close()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        skipped = ("transfer-encoding", "content-length", "connection")
        headers = {name: value for name, value in found.getheaders() if name.lower() not in skipped}
        length = found.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(found.status, headers, content, slow=fault == "slow", length=length)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, slow: bool = False, length: str | None = None
    ) -> None:
        with contextlib.suppress(OSError):  # the caller has given up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            for start in range(0, len(body), piece := max(1, len(body) // 5)):
                self.wfile.write(body[start : start + piece])
                if slow:
                    time.sleep(0.2)


_REFUSALS: dict[str, tuple[int, str, str]] = {
    "500": (500, "InternalFailure", "internal error"),
    "throttled": (429, "ThrottlingException", "Rate exceeded"),
    "expired": (403, "ExpiredTokenException", "The security token included in the request is expired"),
}
_CODES_IN_XML = {"InternalFailure": "InternalError", "ThrottlingException": "SlowDown"}


def _refusal(mode: str, service: str, in_xml: bool) -> tuple[int, dict[str, str], bytes]:
    """As the service itself says it: S3 and the older ones in XML, the others in JSON with the error's type beside."""
    if mode == "garbage":
        return 200, {"Content-Type": "text/html"}, b"<html><body>Please sign in to the network</body></html>"
    status, code, message = _REFUSALS[mode]
    headers = {"Retry-After": "1"} if mode == "throttled" else {}
    if service == "s3" or in_xml:
        code = _CODES_IN_XML.get(code, "ExpiredToken") if service == "s3" else code.removesuffix("Exception")
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = error if service == "s3" else f"<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>"
        return status, headers | {"Content-Type": "text/xml"}, body.encode()
    headers |= {"Content-Type": "application/json", "x-amzn-errortype": code}
    return status, headers, json.dumps({"__type": code, "message": message}).encode()


def _operation(handler: _Handler, body: bytes) -> str:
    """What is asked for, the same for every attempt at it."""
    service = re.search(r"Credential=[^/]+/\d+/[\w-]+/([\w-]+)/", handler.headers.get("Authorization", ""))
    target = handler.headers.get("X-Amz-Target") or next(iter(re.findall(rb"(?:^|&)Action=(\w+)", body)), b"").decode()
    path = re.sub(r"[0-9a-f-]{8,}|\d+", "#", handler.path.partition("?")[0])
    return f"{service.group(1) if service else 'api'} {target or f'{handler.command} {path}'}"


@contextlib.contextmanager
def hub_fails(house: House, strikes: Strikes) -> Iterator[None]:
    """Every service of the people's tools meets its fault at first."""
    hub = next(f"http://127.0.0.1:{part.ports['hub']}" for part in house.status() if part.name == "hub")
    channels = ("slack", "pagerduty", "github", "webhook", "atlas")
    with httpx.Client(base_url=hub, trust_env=False) as client:
        for channel in channels:
            fault = {"target": channel, "times": 2, **_HUB_MODES[strikes.way(channel)]}
            client.post("/_control/fail", json=fault).raise_for_status()
        try:
            yield
        finally:
            for channel in channels:
                client.delete(f"/_control/fail/{channel}")


class Kills:
    """Kills a part of the sandbox now and then, as its machine dying, and starts it again on the data that it left."""

    def __init__(self, house: House, part: str, seed: int, most: int = 5) -> None:
        self._house, self._part = house, part
        self._chance, self._most = random.Random(seed), most
        self._over, self.count = threading.Event(), 0
        self._thread = threading.Thread(target=self._run, name=f"kills {part}", daemon=True)

    def __enter__(self) -> Kills:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        pause = self._chance.uniform(0, 2)  # some runs take only seconds
        while self.count < self._most and not self._over.wait(pause):
            pause = self._chance.uniform(2, 9)
            self.count += 1
            state = State.read(self._house.layout.state)
            assert state is not None
            leader = state.parts[self._part]
            same = {port: state.ports[port] for port in PARTS[self._part].ports}
            for pid in processes.session_members(leader):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            while processes.alive(leader):
                time.sleep(0.05)
            while True:
                with contextlib.suppress(HouseError):  # a machine under load can be slow to start it
                    self._house.up(ports=same)
                    break
