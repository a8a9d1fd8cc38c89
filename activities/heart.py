"""Heartbeats that are stored before the work goes on, for activities whose cursor must never be behind.

The SDK sends heartbeats at intervals of seconds and keeps the last one in the worker until then, so a killed worker
loses what it did since. Here each one is a call to the server, which also answers at once whether the activity is to
stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from temporalio import activity
from temporalio.client import AsyncActivityCancelledError, Client
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import passing

_AGAIN = 1.0
"""Seconds until a heartbeat that the server did not take is sent again."""


class Heart:
    """The heartbeats of one attempt of an async activity."""

    def __init__(self) -> None:
        self._info = activity.info()
        self._own = 0.0

    async def beat(self, details: dict[str, Any]) -> bool:
        """Store ``details`` with the server. Returns whether the activity is asked to stop.

        Waits for a server that is away: work that cannot be recorded must not go on.

        Raises:
            Superseded: this attempt has been given up, and another one may be running.
        """
        self._tell_worker(details)
        client = own_client()
        if client is None:
            return False
        while True:
            try:
                await client.get_async_activity_handle(task_token=self._info.task_token).heartbeat(details)
                return False
            except AsyncActivityCancelledError as asked:
                if asked.details is not None and asked.details.cancel_requested:
                    return True
                raise passing("the activity was paused or reset; it goes on from its cursor", type="Held") from None
            except RPCError as error:
                if error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
                    raise passing("this attempt was given up; another one goes on", type="Superseded") from None
                logging.warning("heartbeat not taken (%s): it is sent again before the work goes on", error.status)
                await asyncio.sleep(_AGAIN)

    def _tell_worker(self, details: dict[str, Any]) -> None:
        """The worker itself ends an activity that never beats. Seldom enough that it sends each beat at once, and never
        an old one later."""
        every = (self._info.heartbeat_timeout.total_seconds() if self._info.heartbeat_timeout else 0) * 0.9
        if time.monotonic() - self._own >= every:
            self._own = time.monotonic()
            activity.heartbeat(details)


def own_client() -> Client | None:
    """The worker's client; None where an activity runs without a worker."""
    try:
        return activity.client()
    except RuntimeError:
        return None


async def tell_run(signal: str, message: dict[str, Any]) -> None:
    """Send a signal to the run that this activity belongs to. That it does not arrive harms nothing but its page."""
    client = own_client()
    if client is None:
        return
    run = client.get_workflow_handle(activity.info().workflow_id or "")
    try:
        await run.signal(signal, message)
    except RPCError as error:
        logging.warning("the run could not be told: %s", error.status)
