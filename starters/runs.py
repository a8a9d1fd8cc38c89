"""Runs as the command line reaches them: begun, listed, looked at, answered."""

from __future__ import annotations

import asyncio
import inspect
import re
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from temporalio.client import (
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import Priority, SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, CancelledError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.locks import lock_id
from starters.catalog import Catalog
from starters.problems import Code, Problem
from starters.session import Session
from workflows import search_attributes
from workflows.details import escape
from workflows.gates import same_person
from workflows.model import Message, Outcome, RunbookInput, RunbookResult, RunState, TimelineEntry
from workflows.operator import explain
from workflows.runbook import Runbook
from workflows.stage_lock import LockView

M = TypeVar("M", bound=Message)

LISTED = 50
"""Runs that a list shows, newest first; the Temporal UI has the rest."""

ANSWER = timedelta(seconds=10)
"""How long a running worker may take to answer a query or an update. Without a worker there is no answer at all."""

_POLL = 0.1
_NO_WORKER = "no worker answers. Start one with: python -m worker. The run itself is safe and goes on then"


class Started(BaseModel):
    id: str
    run_id: str
    runbook: str
    ui: str
    input: dict[str, Any]


class Row(BaseModel):
    """A run in the list."""

    id: str
    runbook: str
    stage: str | None
    status: str
    phase: str | None
    gate: str | None
    started_at: datetime


class Ended(BaseModel):
    """How a run ended, as far as Temporal keeps it."""

    outcome: str
    summary: str
    result: RunbookResult | None = None

    @property
    def well(self) -> bool:
        return self.outcome in (Outcome.COMPLETED, Outcome.DRY_RUN)


class NoAnswerError(Problem):
    """Nobody is there to answer for the run just now."""

    def __init__(self) -> None:
        super().__init__(_NO_WORKER, Code.UNREACHABLE)


# --- begin -----------------------------------------------------------------------------------------------------------


def new_id(runbook: type[Runbook[Any]], stage: str, now: datetime) -> str:
    """``QuickRollback`` on production at 14:02:05 UTC is ``quick-rollback-production-20260131-140205``."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", runbook.__name__).lower()
    return f"{name}-{stage}-{now:%Y%m%d-%H%M%S}"


async def begin(
    session: Session, runbook: type[Runbook[Any]], inp: RunbookInput, workflow_id: str | None = None
) -> Started:
    """Start a run. An id names one run for ever, because the keys that make its changes safe to repeat derive from it.

    Raises:
        Problem: a run has, or had, this id.
    """
    workflow_id = workflow_id or new_id(runbook, inp.stage, datetime.now(UTC))
    payload = inp.model_dump(mode="json", exclude_unset=True)
    try:
        handle = await session.client.start_workflow(
            runbook.__name__,
            payload,
            id=workflow_id,
            task_queue=session.settings.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            priority=Priority(priority_key=1) if inp.incident else Priority.default,
            search_attributes=TypedSearchAttributes([SearchAttributePair(search_attributes.STAGE, inp.stage)]),
            static_summary=escape(f"{runbook.__name__} on {inp.stage}: {inp.reason}"[:120]),
            static_details=inspect.getdoc(runbook),
        )
    except WorkflowAlreadyStartedError:
        status = (await described(session, workflow_id)).status
        running = status is WorkflowExecutionStatus.RUNNING
        has = "is running already: see it with" if running else "was there before: name another id, or see it with"
        raise Problem(f"{workflow_id} {has} runbooks show {workflow_id}", Code.CONFLICT) from None
    return Started(
        id=workflow_id,
        run_id=handle.result_run_id or "",
        runbook=runbook.__name__,
        ui=session.page(workflow_id, handle.result_run_id),
        input=payload,
    )


# --- look ------------------------------------------------------------------------------------------------------------


async def listed(session: Session, catalog: Catalog, *, waiting: bool, stage: str | None) -> list[Row]:
    """The newest runs of the catalog's runbooks."""
    names = ", ".join(f"'{runbook.__name__}'" for runbook in catalog)
    query = f"WorkflowType IN ({names})"
    if waiting:
        query += f" AND {search_attributes.WAITING_FOR_PEOPLE}"
    if stage:
        if not re.fullmatch(r"[\w.-]+", stage):
            raise Problem(f"{stage!r} is no name of a stage", Code.BAD_INPUT)
        query += f" AND {search_attributes.STAGE.name} = '{stage}'"
    return [
        Row(
            id=run.id,
            runbook=run.workflow_type,
            stage=run.typed_search_attributes.get(search_attributes.STAGE),
            status=status(run.status),
            phase=run.typed_search_attributes.get(search_attributes.PHASE),
            gate=run.typed_search_attributes.get(search_attributes.GATE),
            started_at=run.start_time,
        )
        async for run in session.client.list_workflows(query, limit=LISTED)
    ]


def status(value: WorkflowExecutionStatus | None) -> str:
    return value.name.lower() if value else "unknown"


async def described(session: Session, workflow_id: str) -> WorkflowExecutionDescription:
    """What Temporal itself knows of a run.

    Raises:
        Problem: there is no such run.
    """
    try:
        return await session.handle(workflow_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise Problem(f"there is no run {workflow_id}. See: runbooks list", Code.CONFLICT) from None
        raise


async def state_of(session: Session, workflow_id: str) -> RunState:
    """Everything the run knows of itself.

    Raises:
        NoAnswerError: no worker runs.
        Problem: there is no such run, or it is none of a runbook.
    """
    return RunState.model_validate(await _query(session.handle(workflow_id), "progress"))


async def _query(handle: WorkflowHandle[Any, Any], name: str) -> Any:
    try:
        return await handle.query(name, rpc_timeout=ANSWER)
    except WorkflowQueryFailedError as error:
        raise Problem(f"{handle.id} has no {name} to show: {error}", Code.CONFLICT) from None
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise Problem(f"there is no run {handle.id}. See: runbooks list", Code.CONFLICT) from None
        if _nobody_there(error):
            raise NoAnswerError from None
        raise


def _nobody_there(error: RPCError) -> bool:
    return error.status in (
        RPCStatusCode.DEADLINE_EXCEEDED,
        RPCStatusCode.CANCELLED,
        RPCStatusCode.FAILED_PRECONDITION,
        RPCStatusCode.UNAVAILABLE,
    )


async def ended(session: Session, workflow_id: str) -> Ended:
    """Wait for the end of a run, and how it was. It needs no worker once the run has ended."""
    try:
        result = RunbookResult.model_validate(await session.handle(workflow_id).result())
        return Ended(outcome=result.outcome, summary=result.summary, result=result)
    except WorkflowFailureError as error:
        return _failed(error.cause)


def _failed(cause: BaseException) -> Ended:
    match cause:
        case ApplicationError():
            found = RunbookResult.model_validate(cause.details[0]) if cause.details else None
            return Ended(outcome=found.outcome if found else Outcome.FAILED, summary=cause.message, result=found)
        case CancelledError():
            return Ended(outcome=Outcome.CANCELLED, summary="cancelled; what was begun has been undone")
        case _:
            # Terminated or timed out by Temporal: the run had no chance to undo anything.
            word = re.sub(r"Error$", "", type(cause).__name__).lower()
            return Ended(outcome=word, summary=f"{word} without a chance to undo anything: {cause}")


async def lock_of(session: Session, stage: str) -> LockView:
    """Who has a stage, and who waits for it. A stage that nobody has asked for is free."""
    handle = session.handle(lock_id(stage))
    try:
        description = await handle.describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return LockView(stage=stage)
        raise
    if description.status is not WorkflowExecutionStatus.RUNNING:
        return LockView(stage=stage)
    return LockView.model_validate(await _query(handle, "lock"))


# --- answer and operate ----------------------------------------------------------------------------------------------


def message(model: type[M], **values: Any) -> M:
    """A message as the run will take it.

    Raises:
        Problem: a value does not fit; the message names it.
    """
    try:
        return model.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise Problem(explain(error), Code.BAD_INPUT) from None


async def update(session: Session, workflow_id: str, name: str, sent: Message) -> str:
    """Send an update and wait for the run's own answer.

    Raises:
        Problem: the run refuses, with its reason; or it has ended; or no worker answers.
    """
    payload = sent.model_dump(mode="json", exclude_none=True)
    handle = session.handle(workflow_id)
    try:
        async with asyncio.timeout(ANSWER.total_seconds()):
            return str(await handle.execute_update(name, payload))
    except WorkflowUpdateFailedError as error:
        said = error.cause.message if isinstance(error.cause, ApplicationError) else str(error.cause)
        raise Problem(f"{workflow_id} refuses: {said}", Code.CONFLICT) from None
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
        if (task := asyncio.current_task()) and task.cancelling():
            raise asyncio.CancelledError from None  # Ctrl-C, which the SDK makes the same error as a time-out
        raise Problem(
            f"no worker answers: whether it counted shows in runbooks show {workflow_id}, once a worker runs",
            Code.UNREACHABLE,
        ) from None
    except RPCError as error:
        raise await _not_taken(session, workflow_id, error) from None


async def send(session: Session, workflow_id: str, name: str, sent: Message, by: str) -> TimelineEntry:
    """Send a signal, then read the timeline to learn whether it was taken.

    Raises:
        Problem: the run refused, with its reason; or it has ended; or no worker has taken it within the time.
    """
    try:
        seen: int | None = _told(await state_of(session, workflow_id))
    except NoAnswerError:
        seen = None
    try:
        await session.handle(workflow_id).signal(name, sent.model_dump(mode="json", exclude_none=True))
    except RPCError as error:
        raise await _not_taken(session, workflow_id, error) from None
    waiting = Problem(
        f"{name} was sent and counts as soon as a worker takes it. Start one with: python -m worker", Code.UNREACHABLE
    )
    if seen is None:  # which lines are new is not known, so none of them can be taken for the answer
        raise waiting
    deadline = asyncio.get_running_loop().time() + ANSWER.total_seconds()
    while (entry := await _reaction(session, workflow_id, name, by, seen)) is None:
        if asyncio.get_running_loop().time() > deadline:
            raise waiting
        await asyncio.sleep(_POLL)
    if entry.level == "warning" and entry.text.startswith(refusal := f"signal {name} changed nothing: "):
        raise Problem(f"{workflow_id} refuses: {entry.text.removeprefix(refusal)}", Code.CONFLICT)
    return entry


async def _reaction(session: Session, workflow_id: str, name: str, by: str, seen: int) -> TimelineEntry | None:
    """The first new line on the timeline that is about this signal."""
    try:
        state = await state_of(session, workflow_id)
    except NoAnswerError:
        return None
    for entry in state.timeline[max(0, seen - state.timeline_dropped) :]:
        refused = entry.text.startswith(f"signal {name} changed nothing: ")
        if entry.source == "person" and (refused or same_person(entry.who, by)):
            return entry
    return None


def _told(state: RunState) -> int:
    return state.timeline_dropped + len(state.timeline)


async def _not_taken(session: Session, workflow_id: str, error: RPCError) -> Exception:
    """Why a message did not reach its run."""
    if error.status is not RPCStatusCode.NOT_FOUND:
        return error
    description = await described(session, workflow_id)
    return Problem(f"{workflow_id} has ended ({status(description.status)}) and takes no messages", Code.CONFLICT)
