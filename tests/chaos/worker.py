"""A worker that is killed, as by ``kill -9``, before, during or after each activity, and comes back at once.

Everything is imported once, and the real worker is forked from that, so that a new one is there within a moment of the
death of the last. What the server knows of a dead worker it knows from time-outs. Here the next
worker tells it of each attempt that the last one had in hand, which fails then, and is tried again by the same rules
as after a time-out. Where nobody can tell, time-outs are shortened, and so are pauses between attempts; nothing else is
different from ``python -m worker``.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, cast

from botocore.config import Config
from pymongo import pool_shared
from pymongo.pool_options import PoolOptions
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import ResetStickyTaskQueueRequest, RespondActivityTaskFailedRequest
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.service import RPCError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker
from temporalio.worker._worker import load_default_build_id
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

import worker.activities
import worker.main
from activities import clients, errors
from activities.settings import Aws, Settings, load_settings
from tests.read_once import read_once
from workflows import policy
from workflows.connection import connect

PHASE, NOTES = "CHAOS_PHASE", "CHAOS_NOTES"
"""Environment: ``before``, ``during``, ``after`` or ``undisturbed``; and the folder that outlives the worker."""

DETOUR = "CHAOS_DETOUR"
"""Environment: two ports. Drivers of the database that would call the first one call the second one."""

_DEAD = timedelta(seconds=4)
"""How long a silent worker is taken for alive."""

_OF_ONE_KIND = 6
"""Numbered activities of one kind that are killed, such as the ranges of an update."""

_STICKY = timedelta(seconds=1)
"""How long a run's next task waits for the worker that had the last one."""

_MOMENT = timedelta(minutes=2)
"""What a look has that is given less: some are under way side by side, and as many workers die one after the other."""

_RETRY = {"initial_interval": timedelta(seconds=0.2), "maximum_interval": timedelta(seconds=1)}


class Notes:
    """What outlives a killed worker: where it was killed already, and how long each activity takes undisturbed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def begin(self, phase: str) -> None:
        """Before a run in this phase: it has not been killed anywhere."""
        for old in (*self._folder.glob(f"{phase}-*"), *self._folder.glob("attempt-*")):
            old.unlink()

    def first(self, phase: str, name: str) -> bool:
        """Whether it is the first time for this activity; remembered before it returns.

        Of activities that are numbered, as a watch's looks and all that belongs to one of them, the first few: a watch
        that lasts for as long as something is not known would last for as long as it is killed.
        """
        alike = re.sub(r"\d.*", "[0-9]*", _safe(name))
        if len(list(self._folder.glob(f"{phase}-{alike}"))) >= _OF_ONE_KIND:
            return False
        try:
            (self._folder / f"{phase}-{_safe(name)}").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def kills(self, phase: str) -> int:
        return len(list(self._folder.glob(f"{phase}-*")))

    def in_hand(self, info: activity.Info) -> Path:
        """Note an attempt that this worker has begun. To be removed when it is over."""
        note = self._folder / f"attempt-{hashlib.sha256(info.task_token).hexdigest()}"
        note.write_text(json.dumps([info.task_token.hex(), info.workflow_id, info.workflow_run_id]))
        return note

    def left_behind(self) -> Iterator[tuple[bytes, WorkflowExecution]]:
        """The attempts that died with the last worker, each once: its token, and the run that it is of."""
        for note in self._folder.glob("attempt-*"):
            told = note.read_text()
            note.unlink()
            if told:  # else it died as it wrote this
                token, workflow, run = json.loads(told)
                yield bytes.fromhex(token), WorkflowExecution(workflow_id=workflow, run_id=run)

    def took(self, name: str, seconds: float) -> None:
        (self._folder / f"took-{_safe(name)}").write_text(json.dumps(seconds))

    def usual(self, name: str) -> float:
        """Seconds that the activity took undisturbed; a moment when it is a new one."""
        try:
            return float(json.loads((self._folder / f"took-{_safe(name)}").read_text()))
        except FileNotFoundError:
            return 0.02


class Killer(Interceptor):
    """Kills this process once at each activity, in the phase that is asked for."""

    def __init__(self, phase: str, notes: Notes) -> None:
        self._phase, self._notes = phase, notes

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        phase, notes = self._phase, self._notes

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                info = activity.info()
                held = notes.in_hand(info)
                try:
                    return await self._struck(info, input)
                finally:
                    held.unlink(missing_ok=True)

            async def _struck(self, info: activity.Info, input: ExecuteActivityInput) -> Any:
                # Of a run below another one, the step; the run's own name is a new one each time.
                name = f"{info.activity_id}-{info.activity_type}"
                if info.retry_policy and 1 < info.retry_policy.maximum_attempts == info.attempt:
                    return await super().execute_activity(input)  # to die again is to be given up: that is its policy
                if phase == "before" and notes.first(phase, name):
                    _die()
                timer = None
                if phase == "during" and notes.first(phase, name):
                    timer = threading.Timer(notes.usual(name) / 2, _die)
                    timer.start()
                began = time.monotonic()
                answer = await super().execute_activity(input)
                if phase == "undisturbed":
                    notes.took(name, time.monotonic() - began)
                if timer is not None:
                    _die()  # it was quicker than usual
                if phase == "after" and notes.first(phase, name):
                    _die()
                return answer

        return Inbound(next)


async def connect_and_tell(notes: Notes, *args: Any, **options: Any) -> Client:
    """Connect, and report as failed what the last worker had in hand; its runs are not kept for it any more."""
    client = await connect(*args, **options)
    service, namespace = client.workflow_service, client.namespace
    failure = Failure(message="its worker was killed")
    failure.application_failure_info.type = "WorkerKilled"
    for token, run in notes.left_behind():
        with contextlib.suppress(RPCError):  # over in time, or given up with its run
            await service.reset_sticky_task_queue(ResetStickyTaskQueueRequest(namespace=namespace, execution=run))
            await service.respond_activity_task_failed(
                RespondActivityTaskFailedRequest(namespace=namespace, task_token=token, failure=failure)
            )
    return client


def shorten() -> None:
    """Have the death of a worker noticed in seconds. Times only: every number of attempts stays."""
    for name, preset in vars(policy).items():
        if not (name.isupper() and isinstance(preset, dict)):
            continue
        options = cast(policy.ActivityOptions, preset)
        if "heartbeat_timeout" in options:
            options["heartbeat_timeout"] = _DEAD
        elif "start_to_close_timeout" in options:
            options["start_to_close_timeout"] = _DEAD
        if "schedule_to_close_timeout" in options:
            options["schedule_to_close_timeout"] = max(options["schedule_to_close_timeout"], _MOMENT)
        retry = options.get("retry_policy") or RetryPolicy()
        options["retry_policy"] = RetryPolicy(**_RETRY, maximum_attempts=retry.maximum_attempts)  # type: ignore[arg-type]
    errors.RENEWAL = 1.0
    clients._CONFIG = clients._CONFIG.merge(Config(connect_timeout=1, read_timeout=2))


def detour(listens: int, instead: int) -> None:
    """Have every connection to the database go through another port; connection strings stay as they are."""
    connect = pool_shared._create_connection

    def redirected(address: tuple[str, int | None], options: PoolOptions) -> socket.socket:
        host, port = address
        return connect((host, instead if port == listens else port), options)

    pool_shared._create_connection = redirected


def _every_client(settings: Settings) -> clients.Aws:
    """AWS with all its clients made. None of them has a connection yet that a fork could share."""
    aws = clients.Aws(settings)
    for name, service in vars(clients.Aws).items():
        if isinstance(service, functools.cached_property):
            getattr(aws, name)
    return aws


def read_ahead() -> None:
    """Once for all runs what is read from disk, which takes longer than all else of a start."""
    read_once()
    _every_client(Settings(aws=Aws(region="us-east-1")))
    clients.http_client().close()
    load_default_build_id()
    gc.freeze()  # what is here stays


def warm() -> None:
    """Once for all workers of a run what each would do anew, so that most of a run's time is the run's."""
    aws = _every_client(load_settings())
    worker.activities.Aws = lambda _settings: aws  # type: ignore[assignment, misc]
    # That every workflow can be loaded is checked once a worker: seconds that show nothing here.
    SandboxedWorkflowRunner.prepare_workflow = lambda *_: None  # type: ignore[method-assign]


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _serve() -> NoReturn:
    """Fork a worker, and another one whenever it is killed."""
    child = 0

    def stop(number: int, _frame: object) -> None:
        if child:
            os.kill(child, number)
        os._exit(0)

    gc.collect()
    gc.freeze()  # looking through what is here would copy every page of it for each worker
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            worker.main.main()
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"the worker ended by itself: {status}")


def serve(environment: Mapping[str, str], log: Path) -> NoReturn:
    """Be a worker with this environment, in a process of its own, until SIGTERM. What it says goes to the log."""
    with log.open("ab") as told:
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    notes = Notes(Path(environment[NOTES]))
    killer = Killer(environment[PHASE], notes)
    worker.main.connect = functools.partial(connect_and_tell, notes)
    shorten()
    if ports := environment.get(DETOUR):
        detour(*map(int, ports.split(":")))
    warm()
    worker.main.Worker = functools.partial(  # type: ignore[misc]
        Worker, interceptors=[killer], sticky_queue_schedule_to_start_timeout=_STICKY
    )
    _serve()
