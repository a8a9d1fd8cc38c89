"""Waiting for a run of this process to rest, so that it is asked when there is news and not many times a second.

Each look at a run is a task for the server and for the worker, and tests wait for hundreds of gates.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from workflows.ahead import Level

_listening: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = defaultdict(list)

_activate = Level.activate


def _activate_and_tell(run: Level, act: WorkflowActivation) -> WorkflowActivationCompletion:
    done = _activate(run, act)
    asked = all(job.HasField("query_workflow") or job.HasField("remove_from_cache") for job in act.jobs)
    busy = any(command.HasField("schedule_activity") for command in done.successful.commands)
    if not asked and not busy:
        for loop, rests in _listening.get(run.get_info().workflow_id, ()):
            loop.call_soon_threadsafe(rests.set)
    return done


Level.activate = _activate_and_tell  # type: ignore[method-assign]


@contextlib.contextmanager
def resting(workflow_id: str) -> Iterator[asyncio.Event]:
    """Set whenever a task of that run has left it with nothing new to do."""
    rests = asyncio.Event()
    listening = asyncio.get_running_loop(), rests
    _listening[workflow_id].append(listening)
    try:
        yield rests
    finally:
        _listening[workflow_id].remove(listening)
