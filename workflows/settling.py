"""Looking again at what a change has only just stirred up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from workflows.runbook import Runbook

AGAIN = timedelta(seconds=30)


async def settle(run: Runbook[Any], wait: str, title: str, settled: Callable[[], Awaitable[bool]]) -> None:
    """Look ``AGAIN`` and again until it has ``settled``, as long as the stage's patience with its health lasts."""
    phase = run.state.phase
    await run.wait(wait, run.stage.rollback.health_patience, title, every=AGAIN, watch=settled)
    run._enter(phase)
