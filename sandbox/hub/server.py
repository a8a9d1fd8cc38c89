"""The HTTP server around the services: routing, failure switches, and what was received."""

from __future__ import annotations

import select
import socket
import struct
import threading
import urllib.parse
from dataclasses import asdict
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sandbox.hub import page
from sandbox.hub.atlas import Atlas
from sandbox.hub.cluster import Cluster
from sandbox.hub.exchange import Reply, Request, Service, answer, text_of
from sandbox.hub.faults import Fault, Faults
from sandbox.hub.journal import Journal
from sandbox.hub.people import PagerDuty, Slack, Webhook
from sandbox.hub.trackers import GitHub, Jira

_LARGEST_BODY = 1024 * 1024


class Hub:
    """Everything but the sockets. Requests are answered one at a time: none takes long, and order stays plain."""

    def __init__(
        self,
        state: Path | None = None,
        webhook_token: str | None = None,
        atlas_secret: str | None = None,
        atlas_step: timedelta = timedelta(seconds=1),
        atlas_cluster: Cluster | None = None,
    ) -> None:
        self.faults = Faults()
        self._journal = Journal(state)
        self._pagerduty = PagerDuty(self._journal)
        self._atlas = Atlas(self._journal, atlas_secret, atlas_step, atlas_cluster)
        self._services: dict[str, Service] = {
            "slack": Slack(self._journal),
            "webhook": Webhook(self._journal, webhook_token),
            "pagerduty": self._pagerduty,
            "github": GitHub(self._journal),
            "jira": Jira(self._journal),
            "atlas": self._atlas,
        }
        self._one_at_a_time = threading.Lock()

    def fault(self, request: Request) -> Fault | None:
        """The failure switch that this request meets, if any."""
        if not request.path or request.path[0] not in self._services:
            return None
        return self.faults.take(request.path[0], request.path[1] if len(request.path) > 1 else "")

    def handle(self, request: Request) -> Reply:
        with self._one_at_a_time:
            if request.path and request.path[0] in self._services:
                service = self._services[request.path[0]]
                return service.handle(_below(request))
            return self._own(request)

    def _own(self, request: Request) -> Reply:
        match request.route:
            case ("GET",):
                text = page.render(self._journal.events(), self._pagerduty.alerts, self.faults.active())
                return Reply(200, text.encode("utf-8", "replace"), "text/html; charset=utf-8")
            case ("GET", "_control", "received"):
                events = self._journal.events(request.query.get("target"))
                return answer(200, [asdict(event) for event in events])
            case ("GET", "_control", "alerts"):
                return answer(200, [asdict(alert) for alert in self._pagerduty.alerts])
            case ("GET", "_control", "fail"):
                return answer(200, [fault.model_dump() for fault in self.faults.active()])
            case ("POST", "_control", "fail"):
                return self._switch(request)
            case ("DELETE", "_control", "fail", *target):
                return answer(200, {"cleared": self.faults.clear("/".join(target))})
            case ("POST", "_control", "atlas", "login"):
                sent = request.json_object() or {}
                group, cluster, user = (text_of(sent.get(name)) for name in ("group", "cluster", "username"))
                if not (group and cluster and user):
                    return answer(400, {"error": "give group, cluster and username"})
                self._atlas.record_login(group, cluster, user)
                return answer(200, {"recorded": user})
            case ("POST", "_control", "atlas", "fail-next", ("snapshot" | "restore") as kind):
                self._atlas.fail_next(kind)
                return answer(200, {"fails": kind})
        return answer(404, {"error": "there is nothing at this path"})

    def _switch(self, request: Request) -> Reply:
        try:
            fault = Fault.model_validate(request.json_object() or {})
        except ValidationError as error:
            problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
            return answer(400, {"error": "; ".join(problems)})
        if fault.target.split("/")[0] not in self._services:
            return answer(400, {"error": f"target is one of {', '.join(self._services)}, or one name in it"})
        self.faults.set(fault)
        return answer(200, fault.model_dump())


def _below(request: Request) -> Request:
    return Request(request.method, request.path[1:], request.query, request.headers, request.body, request.base_url)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    disable_nagle_algorithm = True  # head and body are two writes; without this each answer waits 40 ms
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the journal says what arrived, and a log line could hold a token."""

    def do_GET(self) -> None:
        request = self._read()
        if request is None:
            return
        fault = self.server.hub.fault(request)
        match fault.mode if fault else None:
            case "timeout":
                self._wait(600)
                self.close_connection = True
                return
            case "reset":
                self._reset()
                return
        try:
            reply = self._failing(fault) if fault else None
            reply = reply or self.server.hub.handle(request)
        except Exception as error:  # a request must never take the hub down
            reply = answer(500, {"error": f"the hub failed: {type(error).__name__}"})
        if fault and fault.mode == "slow":
            self._wait(fault.seconds)
        self._send(reply)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    @staticmethod
    def _failing(fault: Fault) -> Reply | None:
        if fault.mode == "http":
            after = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            return Reply(fault.status, b"switched to fail", "text/plain; charset=utf-8", after)
        if fault.mode == "garbage":
            return Reply(200, b"<html><body>Please sign in to the network", "text/html; charset=utf-8")
        return None

    def _read(self) -> Request | None:
        length = self.headers.get("Content-Length", "0")
        sized = length.isdecimal() and len(length) < 10 and int(length) <= _LARGEST_BODY
        if "Transfer-Encoding" in self.headers or not sized:
            self.close_connection = True
            self._send(answer(413, {"error": "send a Content-Length of at most 1 MiB"}))
            return None
        body = self.rfile.read(int(length))
        path, _, query = self.path.partition("?")
        # Split before unquoting, so that an encoded slash stays inside its name.
        names = tuple(urllib.parse.unquote(part) for part in path.split("/") if part)
        pairs = urllib.parse.parse_qsl(query, keep_blank_values=True)
        base = f"http://127.0.0.1:{self.server.server_port}"
        return Request(self.command, names, dict(pairs), self.headers, body, base)

    def _send(self, reply: Reply) -> None:
        try:
            self.send_response(reply.status)
            if reply.status != 204:
                self.send_header("Content-Type", reply.content_type)
                self.send_header("Content-Length", str(len(reply.body)))
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
        except OSError:
            # The caller has gone. That is its right, and what 'slow' is for.
            self.close_connection = True

    def _wait(self, seconds: float) -> None:
        """Until ``seconds`` have passed, the caller has gone, or the hub stops."""
        step = 0.1
        for _ in range(max(1, round(seconds / step))):
            if self.server.stopping.wait(step):
                return
            readable, _, _ = select.select([self.connection], [], [], 0)
            try:
                if readable and not self.connection.recv(1, socket.MSG_PEEK):
                    return
            except OSError:
                return

    def _reset(self) -> None:
        """Close so that the caller sees 'connection reset', not an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        for part in (self.rfile, self.wfile, self.connection):
            part.close()


class HubServer(ThreadingHTTPServer):
    """Serves one hub on loopback. Port 0 picks a free one; ``server_port`` tells which."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, hub: Hub, port: int = 0) -> None:
        self.hub = hub
        self.stopping = threading.Event()
        super().__init__(("127.0.0.1", port), _Handler)

    def shutdown(self) -> None:
        self.stopping.set()
        super().shutdown()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A broken connection is the caller's affair; it is not reported."""
