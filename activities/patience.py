"""A long call to the database, with heartbeats while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import CancelledError

from activities.errors import passing

T = TypeVar("T")

_BEAT = 1.0
"""Seconds between two heartbeats."""


def _nothing() -> dict[str, Any]:
    return {}


def patiently(
    call: Callable[[], T],
    phase: str,
    *,
    seen: Callable[[], Mapping[str, Any]] = _nothing,
    stop: Callable[[], object] | None = None,
) -> T:
    """Make ``call`` in a thread of its own and heartbeat until it is done.

    Args:
        phase: what is being done, for the heartbeat.
        seen: how far it is, asked at each heartbeat.
        stop: ends the call on the server when the activity is cancelled; the call's own end is then waited for. For an
            activity with ``no_thread_cancel_exception``.

    Raises:
        CancelledError: it was cancelled, and stopped.
        WorkerStopping: the worker is shutting down, and the server goes on by itself. Retryable.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    # A daemon, so that a worker that stops does not wait for the server.
    # In the activity's own context, so that what listens to its calls knows whose they are.
    threading.Thread(target=copy_context().run, args=(work,), daemon=True, name=phase).start()
    activity.heartbeat({"phase": phase})
    while True:
        try:
            return future.result(timeout=_BEAT)
        except TimeoutError:
            if future.done():  # the call's own error
                raise
        activity.heartbeat({"phase": phase, **seen()})
        if stop is not None and activity.is_cancelled():
            stop()
            future.exception()
            raise CancelledError(f"stopped: {phase}")
        if activity.is_worker_shutdown():
            raise passing(f"the worker stopped during: {phase}. The next attempt goes on", type="WorkerStopping")
