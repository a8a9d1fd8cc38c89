"""The queue for a stage: one change at a time, whoever asks for it."""

from __future__ import annotations

from typing import TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.locks import LockRequest, Locks
from workflows import policy, waiting
from workflows.asking import Asking
from workflows.model import Phase, RunbookInput
from workflows.steps import describe

I = TypeVar("I", bound=RunbookInput)  # noqa: E741


class Queueing(Asking[I]):
    """The part of the frame that takes the stage for this run, and gives it back."""

    def __init__(self) -> None:
        super().__init__()
        self._lock_asked = False
        self.beside_holder = False
        """Whether the run goes on without waiting for the stage, because people allowed it at a gate."""

    def _lock_request(self) -> LockRequest:
        info = workflow.info()
        elders = [elder.workflow_id for elder in (info.parent, info.root) if elder is not None]
        return LockRequest(
            stage=self.stage.name,
            workflow_id=info.workflow_id,
            run_id=info.first_execution_run_id,
            runbook=info.workflow_type,
            ahead=self.inp.incident is not None,
            elders=tuple(elders),
        )

    async def _take_lock(self, inp: I) -> None:
        self._enter(Phase.QUEUED)
        self._lock_asked = True
        asked, since = 0, workflow.now()
        while not self.state.lock.held:
            asked += 1
            suffix = f"-{asked}" if asked > 1 else ""
            await self._run_activity(
                f"lock{suffix}", f"take {inp.stage} for this run", Locks.request, self._lock_request(), policy.LOCK
            )
            if self.beside_holder:
                self.say(f"queues for {inp.stage}, and goes on without waiting, as was approved", level="warning")
                self._enter(Phase.LOOKING)
                return
            try:
                await waiting.until(
                    lambda: self.state.lock.held,
                    at_most=policy.lock_reminder(workflow.now() - since),
                    summary=f"ask again for the lock of {inp.stage}",
                )
            except TimeoutError:
                continue
        self.say(f"has {inp.stage} to itself")
        self._enter(Phase.LOOKING)

    async def _release_lock(self) -> None:
        try:
            await self._run_activity(
                "unlock", f"give {self.stage.name} back", Locks.release, self._lock_request(), policy.LOCK
            )
        except ActivityError as error:
            # The lock finds out by itself that this run has ended.
            workflow.logger.warning("lock not released: %s", describe(error)[0])
