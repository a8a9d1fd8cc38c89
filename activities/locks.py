"""Asking for a stage's lock, and giving it back.

The lock itself is a workflow; it is reached by name through Temporal's client, so that this package knows no workflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from temporalio import activity
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import passing
from activities.stage import Facts

if TYPE_CHECKING:
    from temporalio.client import Client

LOCK_TYPE = "StageLock"


def lock_id(stage: str) -> str:
    """Workflow id of a stage's lock: one a stage, whoever asks."""
    return f"stage-lock/{stage}"


class LockRequest(Facts):
    """A run that wants to change a stage."""

    stage: str
    workflow_id: str
    run_id: str = Field(description="Of the workflow's first run: it stays when the workflow continues as new")
    runbook: str
    ahead: bool = Field(False, description="Incident work: goes ahead of the queue, never of the holder")
    elders: tuple[str, ...] = Field((), description="Ids of its parent and root workflows: it works under their lock")


class RunRef(Facts):
    workflow_id: str
    run_id: str


class Locks:
    """Temporal as a lock service."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue

    @activity.defn(name="locks.request")
    async def request(self, request: LockRequest) -> None:
        """Ask, starting the lock when it is not running. Asking twice is asking once; the answer comes as a signal."""
        try:
            await self._client.start_workflow(
                LOCK_TYPE,
                {"stage": request.stage},
                id=lock_id(request.stage),
                task_queue=self._task_queue,
                start_signal="request",
                start_signal_args=[request.model_dump(mode="json")],
                static_summary=f"one change at a time on {request.stage}",
            )
        except (RPCError, WorkflowAlreadyStartedError) as error:
            raise passing(f"could not ask for the lock of {request.stage}: {type(error).__name__}") from None

    @activity.defn(name="locks.release")
    async def release(self, request: LockRequest) -> None:
        """Give the lock back, or leave the queue. A lock that is gone is given back."""
        try:
            handle = self._client.get_workflow_handle(lock_id(request.stage))
            await handle.signal("release", request.model_dump(mode="json"))
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise passing(f"could not give the lock of {request.stage} back: {error.status.name}") from None

    @activity.defn(name="locks.is_running")
    async def is_running(self, run: RunRef) -> bool:
        """Whether that run, or one that continues it, is still going; a run that nobody knows is not."""
        try:
            description = await self._client.get_workflow_handle(run.workflow_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise passing(f"could not look at run {run.workflow_id}: {error.status.name}") from None
        first = description.raw_description.workflow_execution_info.first_run_id
        return description.close_time is None and first in ("", run.run_id)
