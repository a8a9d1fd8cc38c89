"""One change at a time on a stage: the lock that every changing runbook takes first."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

from activities.locks import LockRequest, Locks, RunRef
from workflows import policy
from workflows.details import escape
from workflows.operator import BadMessage, read


class LockInput(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    stage: str
    holder: LockRequest | None = None
    since: datetime | None = None
    queue: list[LockRequest] = Field(default_factory=list)
    guests: list[LockRequest] = Field(default_factory=list)


class LockView(BaseModel):
    """Who has the stage, since when, and who waits, in order."""

    stage: str
    holder: LockRequest | None = None
    since: datetime | None = None
    queue: list[LockRequest] = Field(default_factory=list)
    guests: list[LockRequest] = Field(default_factory=list)
    """Children of the holder, which work under its lock."""


@workflow.defn(name="StageLock")
class StageLock:
    """Grants a stage to one run at a time, in the order they asked; incident work goes ahead of the queue.

    A holder that has ended without giving the lock back (killed, terminated) is found by looking, while somebody waits.
    The run ends when nobody holds the stage and nobody waits; asking again starts it anew.
    """

    def __init__(self) -> None:
        self._view = LockView(stage="?")
        self._news = False
        self._doubt = False
        self._told: dict[str, dict[str, Any]] = {}
        self._early: list[tuple[Callable[[LockRequest], None], LockRequest]] | None = []
        """What was sent before the run began; None once it has."""

    @workflow.run
    async def run(self, *payload: Any) -> None:
        try:
            start = read(LockInput, payload)
        except BadMessage as error:
            raise ApplicationError(f"StageLock {error}", type="BadInput", non_retryable=True) from None
        self._begin_from(start)
        while True:
            await self._settle()
            if self._doubt:
                self._doubt = False
                await self._free_if_ended()
            if self._view.holder is None and not self._view.queue and not self._news:
                return
            if workflow.info().is_continue_as_new_suggested() and not self._news:
                view = self._view
                workflow.continue_as_new(LockInput.model_validate(view.model_dump()))
            try:
                await workflow.wait_condition(
                    lambda: self._news,
                    timeout=policy.LOCK_CHECK if self._view.queue else None,
                    timeout_summary="look whether the holder still runs",
                )
            except TimeoutError:
                await self._free_if_ended()

    def _begin_from(self, start: LockInput) -> None:
        """Go on where the run before this one left off, then do what was asked of this one before it began."""
        early, self._early = self._early or [], None
        self._view.stage = start.stage
        as_it_was = start.holder is not None and workflow.patched("a lock goes on as it was")
        if as_it_was:
            self._view = LockView.model_validate(start.model_dump())
        for act, request in early:
            act(request)
        if not as_it_was:
            for request in ([start.holder] if start.holder else []) + start.queue + start.guests:
                self._enqueue(request)

    async def _settle(self) -> None:
        """Grant a free stage to the next in the queue and tell everybody where they stand."""
        self._news = False
        if self._view.holder is None and self._view.queue:
            self._view.holder = self._view.queue.pop(0)
            self._view.since = workflow.now()
        self._show()
        holder = self._view.holder
        if holder is None:
            return
        if not await self._tell(holder, granted=True):
            self._drop(holder.run_id)
            return
        for guest in list(self._view.guests):
            if not await self._tell(guest, granted=True):
                self._drop(guest.run_id)
        for position, request in enumerate(list(self._view.queue), start=1):
            if not await self._tell(request, granted=False, position=position, holder=holder.workflow_id):
                self._drop(request.run_id)

    async def _tell(self, request: LockRequest, **update: Any) -> bool:
        """Signal a run where it stands. False when the run has ended, which frees what it held or waited for.

        Its id may have been given to another run since: that one sees by ``run`` that it is not meant.
        """
        if self._told.get(request.run_id) == update:
            return True
        handle = workflow.get_external_workflow_handle(request.workflow_id)
        try:
            await handle.signal("lock_update", {**update, "run": request.run_id})
        except FailureError:
            return False
        self._told[request.run_id] = update
        return True

    async def _free_if_ended(self) -> None:
        holder = self._view.holder
        if holder is None:
            return
        running = await workflow.execute_activity_method(
            Locks.is_running,
            RunRef(workflow_id=holder.workflow_id, run_id=holder.run_id),
            summary=f"does {holder.workflow_id} still run?",
            **policy.LOCK,
        )
        if not running:
            self._drop(holder.run_id)

    def _drop(self, run_id: str) -> None:
        if self._view.holder and self._view.holder.run_id == run_id:
            self._view.holder = self._view.since = None
            self._view.queue = self._view.guests + self._view.queue
            self._view.guests = []
        self._view.guests = [request for request in self._view.guests if request.run_id != run_id]
        self._view.queue = [request for request in self._view.queue if request.run_id != run_id]
        self._told.pop(run_id, None)
        self._news = True

    def _enqueue(self, request: LockRequest) -> None:
        self._news = True
        self._told.pop(request.run_id, None)  # who asks again has perhaps not heard
        holder, queue = self._view.holder, self._view.queue
        known = [holder, *queue, *self._view.guests]
        if any(other and other.run_id == request.run_id for other in known):
            return
        if holder is not None and holder.workflow_id in request.elders:
            self._view.guests.append(request)
            return
        self._doubt = self._view.holder is not None  # look at once, so that nobody waits for a holder that is dead
        place = sum(other.ahead for other in queue) if request.ahead else len(queue)
        queue.insert(place, request)

    def _show(self) -> None:
        holder = self._view.holder
        lines = [f"**{escape(self._view.stage)}** is " + (f"held by `{holder.workflow_id}`" if holder else "free")]
        lines += [f"{place}. `{r.workflow_id}` ({escape(r.runbook)})" for place, r in enumerate(self._view.queue, 1)]
        workflow.set_current_details("\n\n".join(lines))

    @workflow.signal(description="From a run that wants the stage, not for people")
    def request(self, *payload: Any) -> None:
        self._on(payload, self._enqueue)

    @workflow.signal(description="From a run that is done with the stage, not for people")
    def release(self, *payload: Any) -> None:
        self._on(payload, lambda request: self._drop(request.run_id))

    def _on(self, payload: tuple[Any, ...], act: Callable[[LockRequest], None]) -> None:
        try:
            request = read(LockRequest, payload)
        except BadMessage as error:
            workflow.logger.warning("lock of %s ignored a message: %s", self._view.stage, error)
            return
        if self._early is None:
            act(request)
        else:
            self._early.append((act, request))

    @workflow.query(description="Who has the stage, since when, and who waits, in order")
    def lock(self, *_ignored: Any) -> LockView:
        return self._view
