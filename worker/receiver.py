"""Alerts over HTTP: CloudWatch alarms through SNS, and anything else that can post JSON with a token.

An alert is answered when it is on the disk, and delivered to Temporal from there, so that nothing is lost while
Temporal is away. Delivered twice it counts once: the incident knows the ids of its alerts.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import uvicorn
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from temporalio.client import Client
from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.incident_policy import SeverityName
from activities.incidents import CLOSING, OpenIncident, open_incident
from activities.secret_refs import SecretResolver
from activities.settings import ConfigError, Receiver, Settings, load_settings
from worker import logs
from worker.sns import NotGenuineError, Sns, of_alarm
from worker.spool import Spool
from workflows.codec import MissingKeyError
from workflows.connection import ConnectionProblem, connect
from workflows.operator import explain

LARGEST = 256 * 1024
"""Bytes; SNS sends no more."""

_PAUSE = (0.5, 15.0)
"""Seconds between two tries to deliver: the first, and at the most."""

Connect = Callable[[], Awaitable[Client]]


class Alert(BaseModel):
    """Body of ``POST /alerts``."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    stage: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,99}$")
    text: str = Field(min_length=1, max_length=300)
    id: str = Field(pattern=r"^[\x21-\x7e]{1,200}$", description="Sent twice it counts once")
    source: str = Field("webhook", pattern=r"^[^\x00-\x1f]{1,100}$")
    key: str | None = Field(None, min_length=1, max_length=100, description="Name of the problem; its text when absent")
    severity: SeverityName | None = None
    at: AwareDatetime | None = None

    def problem(self) -> OpenIncident:
        return OpenIncident(
            stage=self.stage,
            reason=" ".join(self.text.split()) or "an alert without words",
            key=self.key or self.text,
            alert=self.id,
            source=self.source.strip() or "webhook",
            severity=self.severity,
            detected_at=self.at,
        )


class Desk:
    """The HTTP side: what is genuine is kept, and answered."""

    def __init__(
        self, stages: frozenset[str], receiver: Receiver, spool: Spool, resolver: SecretResolver, sns: Sns
    ) -> None:
        self._stages, self._receiver = stages, receiver
        self._spool, self._resolver, self._sns = spool, resolver, sns
        self.arrived = asyncio.Event()

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/alerts", self.alerts, methods=["POST"]),
                Route("/sns", self.sns, methods=["POST"]),
                Route("/health", self.health),
            ]
        )

    async def health(self, _request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "waiting": self._spool.count()})

    async def alerts(self, request: Request) -> JSONResponse:
        """A generic alert, behind the token."""
        if self._receiver.token is None:
            return _no(404, "no token is configured, so that this door is closed")
        token = await asyncio.to_thread(self._resolver.resolve, self._receiver.token)
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return _no(401, "the bearer token is missing or wrong")
        body = await _json(request)
        try:
            problem = Alert.model_validate(body).problem()
        except ValidationError as error:
            return _no(400, explain(error))
        return await self._take(problem)

    async def sns(self, request: Request) -> JSONResponse:
        """A message of SNS, with its signature."""
        body = await _json(request)
        if not isinstance(body, dict):
            return _no(400, "the body is not a JSON object")
        try:
            await self._sns.check(body, datetime.now(UTC))
            if body["Type"] == "SubscriptionConfirmation":
                await self._sns.confirm(body)
                return JSONResponse({"confirmed": True})
            if body["Type"] != "Notification":
                return JSONResponse({"taken": False})
            problem = of_alarm(body, self._receiver.alarms)
        except NotGenuineError as error:
            logging.warning("an SNS message was not taken: %s", error)
            return _no(403, str(error))
        except httpx.HTTPError:
            return _no(503, "the subscription could not be confirmed now")
        return JSONResponse({"taken": False}) if problem is None else await self._take(problem)

    async def _take(self, problem: OpenIncident) -> JSONResponse:
        if problem.stage not in self._stages:
            logging.warning("alert %s was not taken: there is no stage %s", problem.alert, problem.stage)
            return _no(400, f"stage: there is none of that name; stages: {', '.join(sorted(self._stages))}")
        await asyncio.to_thread(self._spool.keep, problem)
        self.arrived.set()
        return JSONResponse({"taken": True, "alert": problem.alert}, status_code=202)


def _no(status: int, why: str) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status)


async def _json(request: Request) -> Any:
    """The body as JSON; None when it is none, or too large."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST:
            return None
    try:
        return json.loads(bytes(content))
    except (ValueError, RecursionError):
        return None


async def deliver(spool: Spool, arrived: asyncio.Event, task_queue: str, reach: Connect) -> None:
    """Hand over what is on the disk, oldest first, for as long as it takes.

    Nothing ends it, whatever goes wrong: the door for alerts would close with it.
    """
    client: Client | None = None
    pause = _PAUSE[0]
    while True:
        arrived.clear()
        unanswered = 0
        try:
            for path, problem in spool.waiting():
                client = client or await reach()
                try:
                    opened = await open_incident(client, task_queue, problem)
                except ApplicationError as error:
                    if error.type == CLOSING:
                        logging.info("alert %s: %s", problem.alert, error.message)
                        unanswered += 1
                        continue
                    if not error.non_retryable:
                        raise
                    logging.error("alert %s is set aside: %s", problem.alert, error.message)
                    spool.refuse(path)
                    continue
                except Exception as error:  # such as an answer under a key that was promoted since
                    logging.warning("alert %s waits: %s", problem.alert, _told(error))
                    client, unanswered = None, unanswered + 1
                    continue
                logging.info("alert %s: %s", problem.alert, opened.summary)
                if opened.new is None:
                    unanswered += 1  # the incident is open; it is told again, and counts once
                else:
                    spool.done(path)
            if unanswered:
                raise ApplicationError("no worker has answered yet, or the incident is closing")
        except Exception as error:
            logging.warning("alerts wait on the disk (%d): %s", spool.count(), _told(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE[1])
            continue
        pause = _PAUSE[0]
        await arrived.wait()


def _told(error: Exception) -> str:
    """Its message where it is one of ours; what others say may quote a payload."""
    ours = (ApplicationError, ConfigError, ConnectionProblem, MissingKeyError, OSError)
    return str(error) if isinstance(error, ours) else type(error).__name__


async def receive(settings: Settings, reach: Connect | None = None) -> None:
    """Serve until it is cancelled.

    Raises:
        ConfigError: the settings have no receiver, or its address cannot be used.
    """
    receiver = settings.receiver
    if receiver is None:
        raise ConfigError("there is no [receiver] in the settings: add it, with spool and token or topics")
    aws, spool = Aws(settings), Spool(receiver.spool)
    async with httpx.AsyncClient(timeout=10, follow_redirects=False) as http:
        resolver = SecretResolver(aws.ssm, aws.secretsmanager)
        desk = Desk(frozenset(settings.stages), receiver, spool, resolver, Sns(receiver, http))
        listening = _listen(receiver.listen)
        config = uvicorn.Config(desk.application(), log_config=None, access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        delivering = asyncio.create_task(
            deliver(spool, desk.arrived, settings.task_queue, reach or (lambda: connect(settings, patience=5)))
        )
        logging.info("receiver listens on %s, %d alerts wait", receiver.listen, spool.count())
        # Not serve(), which takes over the signals of the process.
        serving = asyncio.create_task(server._serve(sockets=[listening]))
        try:
            await asyncio.wait({serving, delivering}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                await delivering
        finally:
            server.should_exit = True
            delivering.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise ConfigError(f"receiver.listen: {address} cannot be used: {error.strerror or error}") from None
    return found


async def _alone() -> None:
    settings = load_settings()
    receiving = asyncio.create_task(receive(settings))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, receiving.cancel)
    try:
        await receiving
    except asyncio.CancelledError:
        logging.info("receiver stopped; what waits stays on the disk")


def main() -> None:
    """Entry point of ``python -m worker.receiver``; exit code 2 when it refuses to start."""
    code = 0
    try:
        logs.set_up(os.environ)
        asyncio.run(_alone())
    except ConfigError as error:
        print(f"receiver: {error}", file=sys.stderr)
        code = 2
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
