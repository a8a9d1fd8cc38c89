"""Waiting that can be cancelled at any moment.

``workflow.wait_condition`` with a time limit goes through ``asyncio.wait_for``, which before Python 3.12 takes a
cancellation for nothing when what was waited for has come about in the same moment: the task that another one has
cancelled would go on. Temporal's SDK mends that for the cancellation of a whole run, not for tasks of a workflow's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from temporalio import workflow


async def until(holds: Callable[[], bool], *, at_most: timedelta | None = None, summary: str | None = None) -> None:
    """Wait until ``holds`` is true.

    Args:
        summary: Of the timer, for people who look at the run.

    Raises:
        TimeoutError: it has not become true in time.
        asyncio.CancelledError: this task was cancelled meanwhile, even in the moment in which it became true.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    await workflow.wait_condition(holds, timeout=at_most, timeout_summary=summary)
    if task and task.cancelling() > before and workflow.patched("a cancelled wait ends as cancelled"):
        raise asyncio.CancelledError  # the patch is recorded only where it makes a difference
