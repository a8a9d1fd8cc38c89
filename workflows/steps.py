"""Steps: how a runbook looks, changes and tells, and what of it stays visible."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    FailureError,
    TimeoutType,
    is_cancelled_exception,
)
from temporalio.exceptions import TimeoutError as ActivityTimeout

from activities.charts import Chart
from activities.evidence import Finding
from activities.messages import Announcement, Severity
from activities.notifications import Notifications
from activities.stage import Stage
from workflows import policy, search_attributes
from workflows.details import run_page
from workflows.model import Kind, Phase, RunbookInput, Scalar, State, Step
from workflows.operator import OperatorSurface

I = TypeVar("I", bound=RunbookInput)  # noqa: E741
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Undo:
    """How a change is put back. Registered before the change is made, so it has to be right if nothing happened yet."""

    title: str
    activity: Callable[[Any, Any], Any] | str
    argument: Any


class Stopped(ApplicationError):
    """The run ends here, without success, for a reason that a person should read."""

    def __init__(self, message: str, type: str) -> None:
        super().__init__(message, type=type, non_retryable=True)


class Steps(OperatorSurface, Generic[I]):
    """The part of the frame that runs activities as visible steps."""

    stage: Stage
    inp: I

    def __init__(self) -> None:
        super().__init__()
        self.facts: dict[str, Scalar] = {}
        self.charts: list[Chart] = []
        self.charts_above: list[Chart] = []
        """What the run that began this one shows in its report, too. It goes through the history: few points."""
        self._undos: list[tuple[str, Undo]] = []
        self._would: list[str] = []
        self._background: list[asyncio.Task[None]] = []
        self._ids: dict[str, int] = {}
        self._gate_shown: str | None = None
        self._before_pause = Phase.LOOKING

    async def _honour_gates(self) -> None:
        """Just before a change: wait while paused. Gates add that a withdrawn approval is asked for again."""
        await self._unpaused()

    async def _unpaused(self) -> None:
        if self.state.paused_by is None:
            return
        before = self.state.phase
        if before is not Phase.PAUSED:
            self._before_pause = before
        self._enter(Phase.PAUSED)
        await workflow.wait_condition(lambda: self.state.paused_by is None)
        if before is Phase.PAUSED and workflow.patched("a-pause-gives-the-phase-back"):
            before = self._before_pause  # another part of the run waited already
        self._enter(before)

    async def look(
        self,
        step_id: str,
        activity: Callable[[Any, A], R],
        argument: A,
        preset: policy.ActivityOptions = policy.LOOK,
        *,
        title: str | None = None,
    ) -> R:
        """A step that only looks; it really runs in a dry run too."""
        async with self._step(step_id, title, Kind.LOOK) as step:
            result = await self._run_activity(step.id, step.title, activity, argument, preset)
            self._keep(step, result)
            return cast(R, result)

    async def observe(
        self,
        step_id: str,
        activity: Callable[[Any, A], R],
        argument: A,
        preset: policy.ActivityOptions = policy.OBSERVE,
        *,
        title: str | None = None,
    ) -> R | None:
        """A look that the run can do without: a source that is down is reported, and None means not known."""
        try:
            return await self.look(step_id, activity, argument, preset, title=title)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            step = self._find_step(step_id, title, Kind.LOOK)
            self.say(f"{step.title}: not known, {describe(error)[0]}", level="warning", source="provider")
            return None

    async def change(
        self,
        step_id: str,
        activity: Callable[[Any, A], R],
        argument: A,
        preset: policy.ActivityOptions = policy.CHANGE,
        *,
        would: str,
        undo: Undo | None,
        title: str | None = None,
    ) -> R | None:
        """A step that changes something. In a dry run it is listed as ``would`` and None is returned.

        ``undo`` is registered before the change is made. None says that there is nothing to put back.
        """
        if self.inp.dry_run:
            self._would.append(would)
            step = self._find_step(step_id, title, Kind.CHANGE)
            step.state, step.summary = State.SKIPPED, f"would {would}"
            self.say(f"dry run: would {would}")
            return None
        await self._honour_gates()
        self._enter(Phase.CHANGING)
        async with self._step(step_id, title, Kind.CHANGE) as step:
            if undo is not None:
                self._undos.append((step.id, undo))
            result = await self._run_activity(step.id, step.title, activity, argument, preset)
            self._keep(step, result)
            self.say(f"{step.title}: {step.summary}")
            return cast(R, result)

    async def tell(
        self,
        step_id: str,
        activity: Callable[[Any, A], R],
        argument: A,
        *,
        would: str,
        title: str | None = None,
    ) -> R | None:
        """A step that tells people. It never decides the outcome: when it fails the run says so and goes on."""
        step = self._find_step(step_id, title, Kind.TELL)
        if self.inp.dry_run:
            self._would.append(would)
            step.state, step.summary = State.SKIPPED, f"would {would}"
            return None
        try:
            async with self._step(step_id, title, Kind.TELL) as step:
                result = await self._run_activity(step.id, step.title, activity, argument, policy.ANNOUNCE)
                self._keep(step, result)
                return cast(R, result)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self.say(f"{step.title}: nobody could be told: {describe(error)[0]}", level="warning", source="provider")
            return None

    def announce(self, key: str, title: str, text: str, *, severity: Severity = "info") -> None:
        """Tell the stage's chat in the background, so that no provider can hold the run up."""
        if self.inp.dry_run or not hasattr(self, "stage"):
            return
        message = Announcement(
            channels=self.stage.channels,
            key=self.key(key),
            title=title,
            text=text,
            severity=severity,
            links=self.links(),
        )
        self._background.append(asyncio.create_task(self._announce(key, title, message)))

    async def _announce(self, key: str, title: str, message: Announcement) -> None:
        activity_id = self._activity_id(f"tell-{key}")
        try:
            delivery = await self._run_activity(
                activity_id, f"tell: {title}", Notifications.announce, message, policy.ANNOUNCE
            )
            failed = [attempt for attempt in delivery.attempts if not attempt.ok]
            for attempt in failed:
                self.say(f"{attempt.provider} was down: {attempt.detail}", level="warning", source="provider")
            self.say(f"told {delivery.delivered_by}: {title}", source="provider")
        except ActivityError as error:
            self.say(f"nobody could be told '{title}': {describe(error)[0]}", level="warning", source="provider")

    async def _settle_background(self) -> None:
        while self._background:
            await asyncio.gather(self._background.pop(0), return_exceptions=True)

    def key(self, step_id: str) -> str:
        """What makes a change of this step recognisable to the system that is asked to make it twice."""
        return f"{self.state.workflow_id}/{step_id}"

    def links(self) -> dict[str, str]:
        """Links for messages: the run's own page."""
        if self.stage.ui_url is None:
            return {}
        info = workflow.info()
        return {"Run": run_page(self.stage.ui_url, info.namespace, info.workflow_id, info.run_id)}

    def check(self, item_id: str, done: bool, note: str) -> None:
        """Tick a checklist item from evidence, or leave it open with the reason. A person's tick stands."""
        item = next(item for item in self.state.checklist if item.id == item_id)
        if not (item.done and item.by != "evidence"):
            item.done, item.note, item.by = done, note, "evidence" if done else None
        self.refresh()

    def stop(self, message: str, type: str = "Failed") -> Stopped:
        """The exception that ends the run here: ``raise self.stop(...)``."""
        return Stopped(message, type)

    def stops(self, error: BaseException) -> bool:
        """Whether it was cancelled because this run, or this task of it, is to stop.

        A run below this one can be cancelled alone, in the UI for instance. That is a failure of it, like any other.
        """
        if not is_cancelled_exception(error):
            return False
        task = asyncio.current_task()
        if self._aborted is not None or workflow.cancellation_reason() is not None or (task and task.cancelling()):
            return True
        return not workflow.patched("a run below that was cancelled alone has failed")

    # --- how a step runs ---------------------------------------------------------------------------------

    def _enter(self, phase: Phase, gate: str | None = None) -> None:
        before = (self.state.phase, self._gate_shown)
        self.state.phase = phase
        self._gate_shown = gate = gate or self._still_open(phase)
        if before != (phase, gate):
            shown = search_attributes.GATE.value_set(gate) if gate else search_attributes.GATE.value_unset()
            updates = [search_attributes.PHASE.value_set(phase.value)]
            workflow.upsert_search_attributes(updates + ([shown] if gate != before[1] else []))
            self.refresh()

    def _still_open(self, phase: Phase) -> str | None:
        """The gate at which another part of the run goes on waiting, whatever this part does."""
        gate = None if phase in (Phase.UNDOING, Phase.CLOSED) else self.state.open_gate()
        return gate.id if gate and workflow.patched("an-open-gate-stays-shown") else None

    def _find_step(self, step_id: str, title: str | None, kind: Kind) -> Step:
        step = self.state.step(step_id)
        if step is None:
            step = Step(id=step_id, title=title or step_id, kind=kind)
            self.state.steps.append(step)
        elif title:
            step.title = title
        return step

    @asynccontextmanager
    async def _step(self, step_id: str, title: str | None, kind: Kind) -> AsyncIterator[Step]:
        await self._unpaused()
        step = self._find_step(step_id, title, kind)
        step.state, step.started_at, step.ended_at = State.RUNNING, workflow.now(), None
        self.refresh()
        try:
            yield step
        except (FailureError, asyncio.CancelledError) as error:
            step.state, step.ended_at = State.FAILED, workflow.now()
            step.summary = "stopped" if isinstance(error, asyncio.CancelledError) else describe(error)[0]
            self.refresh()
            raise
        step.state, step.ended_at = State.DONE, workflow.now()
        self.refresh()

    def _priority(self) -> Priority:
        """Incident work first: the server hands it to workers before all other work of the queue."""
        return Priority(priority_key=1) if self.inp.incident else Priority.default

    def _queue(self, preset: policy.ActivityOptions) -> str | None:
        """Long database work goes to the queue that the stage's record names; all else stays on the run's own."""
        return self.stage.migrations_queue if any(preset is long for long in policy.MIGRATIONS) else None

    def _keep(self, step: Step, result: Any) -> None:
        if isinstance(result, dict) and "summary" in result:  # of an activity that was called by its name
            step.summary = str(result["summary"])
        if isinstance(result, Finding):
            step.summary, step.evidence = result.summary, dict(result.evidence())

    def _activity_id(self, step_id: str) -> str:
        """Stable and typeable: the step's id, numbered when the step runs again."""
        self._ids[step_id] = times = self._ids.get(step_id, 0) + 1
        return step_id if times == 1 else f"{step_id}-{times}"

    async def _run_activity(
        self,
        step_id: str,
        summary: str,
        activity: Callable[[Any, A], R] | str,
        argument: A,
        preset: policy.ActivityOptions = policy.LOOK,
    ) -> Any:
        result: Any = await workflow.execute_activity(
            activity,  # type: ignore[arg-type]  # an unbound method, whose first parameter is the worker's instance
            argument,
            activity_id=self._activity_id(step_id),
            summary=summary[:200],
            priority=self._priority(),
            task_queue=self._queue(preset),
            **preset,
        )
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # A change that waited for its outcome returns normally although the run is being stopped.
            raise asyncio.CancelledError("stopped after this step")
        return result


_GAVE_UP = "gave up after trying for as long as the policy allows"
_TIMED_OUT = {
    TimeoutType.START_TO_CLOSE: "it did not end in the time that the policy gives one try",
    TimeoutType.HEARTBEAT: "its worker fell silent",
}


def describe(error: BaseException) -> tuple[str, str]:
    """What failed, in the words of the activity, and its type."""
    cause: BaseException = error
    while (
        isinstance(cause, FailureError)
        and isinstance(cause.cause, FailureError)
        and not isinstance(cause, ApplicationError)
    ):
        if isinstance(cause, ActivityTimeout):
            break
        cause = cause.cause
    if isinstance(cause, ActivityTimeout):
        why = _TIMED_OUT.get(cause.type or TimeoutType.SCHEDULE_TO_CLOSE, _GAVE_UP)
        last = describe(cause.cause)[0] if cause.cause else why
        return why if last == why else f"{why}; the last try: {last}", "TimedOut"
    if isinstance(cause, ApplicationError):
        return cause.message, cause.type or "Failed"
    if isinstance(cause, CancelledError) and isinstance(error, ChildWorkflowError):
        return f"{error.workflow_type} was cancelled", "Cancelled"
    return str(cause) or type(cause).__name__, type(cause).__name__
