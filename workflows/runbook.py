"""The frame of every runbook: steps, gates, waits, undo, checklist, and how a run begins and ends.

A runbook is a subclass with a ``spec`` and a ``procedure`` that reads top to bottom like the operational document::

    @workflow.defn(name="QuickRollback")
    class QuickRollback(Runbook[QuickRollbackInput]):
        spec = RunbookSpec(...)

        @workflow.run
        async def run(self, *payload: Any) -> RunbookResult:
            return await self.conduct(payload)

        async def procedure(self, inp: QuickRollbackInput) -> str:
            target = await self.look("identify", Deployments.find_target, FindTarget(...))
            ...

``run`` takes whatever was typed, because input that Temporal cannot decode would hold the run for ever; ``conduct``
reads it and fails the run at once with a message that names the field.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar, cast

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

from activities.reports import Reports, RunRecord
from activities.stages import Stages
from workflows import meters, policy, search_attributes
from workflows.carrying import CARRIED_TIMELINE, Carried, CarriedUndo, read_carried
from workflows.model import (
    ChecklistItem,
    Kind,
    Outcome,
    Phase,
    RunbookInput,
    RunbookResult,
    RunState,
    State,
    Step,
    StepSpec,
)
from workflows.operator import BadMessage, read
from workflows.queueing import Queueing
from workflows.steps import Stopped, Undo, describe

__all__ = ["Runbook", "RunbookSpec", "Stopped", "Undo"]

I = TypeVar("I", bound=RunbookInput)  # noqa: E741
R = TypeVar("R")
_UNCHANGED = ". Nothing had been changed"


@dataclass(frozen=True)
class RunbookSpec:
    """What the catalog, the CLI and the screen know of a runbook before it runs."""

    input: type[RunbookInput]
    when: str
    steps: tuple[StepSpec, ...]
    checklist: tuple[tuple[str, str], ...]
    gates: tuple[tuple[str, str], ...]
    example: dict[str, Any]
    changes: bool = True
    locks: bool = True
    """Whether it takes the stage for itself; False where the runs below it do, each for its own change."""


class Runbook(Queueing[I]):
    """Base of every runbook workflow."""

    spec: ClassVar[RunbookSpec]

    @workflow.init
    def __init__(self, *payload: Any) -> None:
        """Where this run continues another it is that one from here on, because messages come before ``run`` does.

        A subclass that has an ``__init__`` passes ``payload`` on, and takes ``self.cursor`` up there, if it has one.
        """
        super().__init__()
        self.cursor: dict[str, Any] | None = None
        if (carried := _carried(payload)) is not None:
            self._take_up(carried)

    @abstractmethod
    async def procedure(self, inp: I) -> str:
        """The procedure, one line a step. Returns the summary of a success in one line."""

    # --- beginning and end --------------------------------------------------------------------------------------

    async def conduct(self, payload: Sequence[Any]) -> RunbookResult:
        """Read the input, follow the procedure, undo on failure, and close with the record."""
        if (carried := _carried(payload)) is not None:
            if self.cursor is None:
                self._take_up(carried)
            elif self.state != _state(carried) and not workflow.patched("what is sent before a run goes on counts"):
                self._forget(payload)
            inp = self.inp
            self.refresh()
        else:
            self.inp = inp = self._read_input(payload)
            self._begin(inp)
        self._body = asyncio.create_task(self._whole(inp), name="procedure")
        if self._aborted is not None:
            self._body.cancel()
        try:
            summary = await self._body
        except (FailureError, asyncio.CancelledError) as error:
            outcome, message, kind = self._explain(error)
            return await self._shielded(self._end_badly(error, outcome, message, kind))
        outcome = Outcome.DRY_RUN if inp.dry_run else Outcome.COMPLETED
        return await self._shielded(self._close(outcome, summary))

    def _read_input(self, payload: Sequence[Any]) -> I:
        try:
            return cast(I, read(self.spec.input, payload))
        except BadMessage as error:
            example = self.spec.input.model_validate(self.spec.example).model_dump_json(exclude_defaults=True)
            raise Stopped(f"{workflow.info().workflow_type} {error}. Example: {example}", "BadInput") from None

    def _begin(self, inp: I) -> None:
        state = self.state
        state.stage, state.reason, state.requested_by = inp.stage, inp.reason, inp.requested_by
        state.dry_run = inp.dry_run
        state.steps = [Step(id=s.id, title=s.title, kind=s.kind) for s in self.spec.steps]
        state.checklist = [ChecklistItem(id=key, text=text) for key, text in self.spec.checklist]
        attributes = [search_attributes.STAGE.value_set(inp.stage)]
        if inp.severity:
            attributes.append(search_attributes.SEVERITY.value_set(inp.severity))
        workflow.upsert_search_attributes(attributes)
        self.say(f"asked for: {inp.reason}", who=inp.requested_by, source="person")

    async def _whole(self, inp: I) -> str:
        if not hasattr(self, "stage"):
            self._enter(Phase.LOOKING)
            self.stage = await self._run_activity("resolve-stage", f"what is {inp.stage}?", Stages.resolve, inp.stage)
        await self.preflight(inp)
        if self.spec.changes and self.spec.locks and not inp.dry_run:
            await self._take_lock(inp)
        return await self.procedure(inp)

    async def preflight(self, inp: I) -> None:
        """What has to be looked at before the run queues for the stage. Only looks and gates."""

    async def after_undo(self) -> str | None:
        """After a failure, abort or cancel, when everything was put back that could be. It cannot be cancelled.

        Returns what the run should say of its end beside what failed; None leaves that to the frame.
        """
        return None

    async def closing(self, outcome: Outcome, summary: str) -> None:
        """Before the run closes, however it ended: what belongs into the records of the procedure."""

    def _take_up(self, carried: Carried) -> None:
        """Go on where the run before this one of the same workflow left off."""
        self.inp = cast(I, self.spec.input.model_validate(carried.input))
        self.state = _state(carried)
        self.stage, self.facts, self.cursor = carried.stage, carried.facts, carried.cursor
        self._would, self._ids = carried.would, carried.ids
        self._undos = [(undo.step, Undo(undo.title, undo.activity, undo.argument)) for undo in carried.undos]

    def _forget(self, payload: Sequence[Any]) -> None:
        """Of what came before ``run`` only an abort counted, when this run began."""
        aborted = self._aborted
        self.__init__(*payload)  # type: ignore[misc]
        self._aborted = aborted

    @property
    def history_is_long(self) -> bool:
        """Whether it is time for :meth:`continue_as_new`."""
        return workflow.info().is_continue_as_new_suggested()

    async def continue_as_new(self, cursor: Callable[[], dict[str, Any]]) -> NoReturn:
        """Go on in a new run with a short history: state, undos and lock are carried, ``procedure`` begins again.

        It finds what ``cursor`` returns (plain JSON) as ``self.cursor`` and goes on from there. It is called at the
        very end, so that what was sent meanwhile is in it. Call this where no gate is open.
        """
        await workflow.wait_condition(workflow.all_handlers_finished)
        await self._settle_background()  # nothing is awaited after it
        carry = cursor()
        kept = self.state.timeline[-CARRIED_TIMELINE:]
        self.state.timeline_dropped += len(self.state.timeline) - len(kept)
        self.state.timeline = kept
        carried = Carried(
            input=self.inp.model_dump(mode="json"),
            state=self.state,
            stage=self.stage,
            facts=self.facts,
            would=self._would,
            ids=self._ids,
            undos=[CarriedUndo.of(step_id, undo) for step_id, undo in self._undos],
            cursor=carry,
        )
        workflow.continue_as_new({"carried": carried.model_dump(mode="json")})

    async def run_child(
        self,
        step_id: str,
        runbook: str,
        inp: RunbookInput,
        *,
        title: str | None = None,
        undo: Callable[[RunbookResult], Undo | None] | None = None,
    ) -> RunbookResult:
        """Run another runbook as a step of this one, under this one's lock; it asks and undoes by itself.

        Cancelling this run cancels the child, and its undo is awaited. What it changed successfully is this run's to
        undo: ``undo`` makes that of the child's result.
        """
        async with self._step(step_id, title, Kind.CHANGE) as step:
            child_id = f"{self.state.workflow_id}/{self._activity_id(step_id)}"
            self.say(f"{step.title}: runs {runbook} as {child_id}")
            answer = await workflow.execute_child_workflow(
                runbook,
                inp.model_dump(mode="json", exclude_unset=True),  # a limit of null is not the default limit
                id=child_id,
                static_summary=f"{runbook} for {self.state.workflow_id}",
                cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
                parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
                priority=self._priority(),
                result_type=RunbookResult,
            )
            result = cast(RunbookResult, answer)
            step.summary = result.summary
            step.evidence = dict(result.facts)
            if undo is not None and (registered := undo(result)) is not None:
                self._undos.append((step_id, registered))
            task = asyncio.current_task()
            stopped = task is not None and task.cancelling()
            spent = self._aborted is not None and not self._is_over()  # by the SDK, on a start that was under way
            if stopped or (spent and workflow.patched("an-abort-while-a-run-below-starts-is-heard")):
                # It was done before it heard that it should stop.
                raise asyncio.CancelledError("stopped after this step")
            return result

    def _explain(self, error: BaseException) -> tuple[Outcome, str, str]:
        """How the run ends, what to say, and the type of the failure."""
        if self._aborted is not None:
            why = f": {self._aborted.reason}" if self._aborted.reason else ""
            return Outcome.ABORTED, f"aborted by {self._aborted.by}{why}", "Aborted"
        if isinstance(error, Stopped):
            rejected = error.type in ("Rejected", "GateExpired")
            return Outcome.REJECTED if rejected else Outcome.FAILED, error.message, error.type or "Failed"
        if isinstance(error, asyncio.CancelledError) or self.stops(error):
            return Outcome.CANCELLED, "cancelled", "Cancelled"
        message, kind = describe(error)
        return Outcome.FAILED, message, kind

    async def _end_badly(self, error: BaseException, outcome: Outcome, message: str, kind: str) -> RunbookResult:
        self.say(message, level="error")
        if self.state.paused_by is not None and workflow.patched("a pause does not hold what is undone"):
            self.say(f"no longer paused by {self.state.paused_by}: what was begun is undone", level="warning")
            self.state.paused_by = None
        self._shut_gates()
        began = bool(self._undos)
        await self._undo_all()
        note = await self.after_undo()
        if self.state.left_undone:
            message += f". NOT put back: {'; '.join(self.state.left_undone)}"
            kind = "LeftUndone"
        elif note is not None:
            message += f". {note}"
        elif began:
            message += ". Everything that was begun has been undone"
        elif self.spec.changes:
            message = f"{message.removesuffix(_UNCHANGED)}{_UNCHANGED}"  # a run within this one can have said it
        result = await self._close(outcome, message)
        if outcome is Outcome.CANCELLED and not self.state.left_undone:
            raise asyncio.CancelledError(message)
        raise ApplicationError(message, result, type=kind, non_retryable=True)

    async def _close(self, outcome: Outcome, summary: str) -> RunbookResult:
        state = self.state
        for step in state.steps:
            if step.state is State.PENDING:
                step.state = State.SKIPPED
        for item in state.checklist:
            if not item.done and item.note is None:
                item.note = "the run ended before it" if outcome is not Outcome.DRY_RUN else "dry run"
        await self.closing(outcome, summary)
        if outcome not in (Outcome.COMPLETED, Outcome.DRY_RUN):
            self.announce("close", f"{state.runbook} on {state.stage}: {outcome}", summary, severity="error")
        await self._settle_background()
        if self._lock_asked:
            await self._release_lock()
        state.outcome, state.summary = outcome, summary
        meters.closed(state.stage, outcome)
        self._enter(Phase.CLOSED)
        self.say(f"{outcome}: {summary}")
        await self._record()
        approvals = [approval for gate in state.gates for approval in gate.approvals]
        return RunbookResult(
            runbook=state.runbook,
            outcome=outcome,
            summary=summary,
            stage=state.stage or "?",
            facts=self.facts,
            checklist=state.checklist,
            approvals=approvals,
            would_change=self._would,
            left_undone=state.left_undone,
            report=state.report,
            charts=tuple(self.charts_above),
        )

    async def _record(self) -> None:
        record = RunRecord(
            stage=self.state.stage or "unknown",
            workflow_id=self.state.workflow_id,
            run_id=self.state.run_id,
            state=self.state.model_dump(mode="json"),
            facts=self.facts,
            series=tuple(self.charts),
        )
        try:
            self.state.report = await self._run_activity(
                "record", "write the report", Reports.write, record, policy.RECORD
            )
        except ActivityError as error:
            self.say(f"the report could not be written: {describe(error)[0]}", level="error")
        self.refresh()

    # --- undo ---------------------------------------------------------------------------------------------------

    async def _undo_all(self) -> None:
        """Put everything back, last first, each as a step of its own, with no limit of time."""
        self._undoing = True
        if not self._undos:
            return
        self._enter(Phase.UNDOING)
        while self._undos:
            step_id, undo = self._undos.pop()
            step = self._find_step(f"undo-{step_id}", undo.title, Kind.UNDO)
            step.state, step.started_at = State.RUNNING, workflow.now()
            self.refresh()
            try:
                result = await self._run_activity(step.id, undo.title, undo.activity, undo.argument, policy.UNDO)
                self._keep(step, result)
                step.state = State.DONE
                if changed := self.state.step(step_id):
                    changed.state = State.UNDONE
                self.say(f"undone: {undo.title}")
            except ActivityError as error:
                step.state, step.summary = State.FAILED, describe(error)[0]
                meters.undo_failed(self.state.stage)
                told = f"{', '.join(self.stage.channels.chat)} and the record"
                self.state.left_undone.append(f"{undo.title}: {step.summary} (told: {told})")
                self.say(f"COULD NOT UNDO {undo.title}: {step.summary}", level="error")
                self.announce(
                    f"undo-{step_id}", f"Could not undo: {undo.title}", step.summary or "", severity="critical"
                )
            step.ended_at = workflow.now()

    def undone_by_design(self) -> None:
        """The changes made so far are final: what comes after no longer undoes them."""
        self._undos.clear()

    async def _shielded(self, work: Coroutine[Any, Any, R]) -> R:
        """Finish ``work`` whatever is cancelled meanwhile: a cancel must not stop an undo half-way."""
        task = asyncio.create_task(work)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.done():
                    break
                self.say("cancelled while closing: the closing goes on", level="warning")
            except FailureError:
                break
        return task.result()


def _carried(payload: Sequence[Any]) -> Carried | None:
    """What the run before this one has handed on."""
    return read_carried(payload) if workflow.info().continued_run_id else None


def _state(carried: Carried) -> RunState:
    # The lock is asked for again at once: it knows this run by its first run's id.
    lock = carried.state.lock.model_copy(update={"held": False})
    return carried.state.model_copy(update={"run_id": workflow.info().run_id, "lock": lock})
