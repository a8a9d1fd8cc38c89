"""Waiting inside a long activity: heartbeats, and a clean end when the worker stops."""

from __future__ import annotations

from typing import Any

from temporalio import activity
from temporalio.exceptions import CancelledError

from activities.errors import passing


def pause(seconds: float, phase: str, **cursor: Any) -> None:
    """Report how far the activity is, then wait.

    Raises:
        WorkerStopping: the worker is shutting down. Retryable: another worker, or this one restarted, goes on.
    """
    activity.heartbeat({"phase": phase, **cursor})
    activity.wait_for_worker_shutdown_sync(seconds)
    if activity.is_worker_shutdown():
        raise passing(f"the worker stopped during: {phase}. The next attempt goes on from there", type="WorkerStopping")


def beat(phase: str, wait: float = 0) -> None:
    """Report what is being done, and stop here if the run is cancelled or the worker is stopping.

    For activities with ``no_thread_cancel_exception``, which end at a point of their own choice.

    Args:
        wait: seconds to wait in between.

    Raises:
        CancelledError: the run was cancelled.
        WorkerStopping: the worker is shutting down. Retryable.
    """
    pause(wait, phase)
    if activity.is_cancelled():
        raise CancelledError(f"stopped: {phase}")


def earlier() -> dict[str, Any]:
    """What the last heartbeat of an earlier attempt of this activity said; empty on the first attempt."""
    details = activity.info().heartbeat_details
    return dict(details[0]) if details and isinstance(details[0], dict) else {}
