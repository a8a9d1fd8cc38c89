"""What operators can send to a running runbook: the same on every one of them.

Signals cannot be refused, so each takes whatever arrives: what fits is done, what does not fit stands on the timeline
with the reason and changes nothing. Updates have validators and are refused before they are accepted. No handler can
raise, because an exception in a handler would hold the workflow's task, and with it the run, for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from workflows import gates
from workflows.converter import Undecodable
from workflows.details import length, render
from workflows.model import (
    Answer,
    By,
    Decision,
    EndWait,
    ExtendWait,
    LockState,
    LockUpdate,
    Note,
    Revoke,
    RunState,
    Tick,
    TimelineEntry,
    Wait,
    plain,
)
from workflows.policy import SHORTENED_TIMELINE

M = TypeVar("M", bound=BaseModel)


class BadMessage(Exception):
    """A message that cannot be understood; the text says which field and what it takes."""


_CLOSES = "the run has done its work and is closing: nothing of it is undone"

_FINDINGS, _PART, _TOLD = 6, 60, 300
"""How many findings a refusal tells, and characters of a field's name and of a finding: what was sent may be huge."""


def explain(error: ValidationError) -> str:
    """Pydantic's findings in one line, without the values (they may be secrets typed by mistake)."""
    findings = error.errors(include_input=False, include_url=False, include_context=False)
    told = [f"{_place(found['loc'])}: {plain(found['msg'])[:_TOLD]}" for found in findings[:_FINDINGS]]
    more = len(findings) - len(told)
    return " ".join("; ".join([*told, *([f"and {more} more"] if more else [])]).split())


def _place(parts: Sequence[int | str]) -> str:
    return plain(".".join(str(part)[:_PART] for part in parts))[: 3 * _PART] or "input"


def read(model: type[M], payloads: Sequence[Any], shorthand: str | None = None) -> M:
    """One message out of whatever was sent.

    ``shorthand`` names the field that a bare JSON string stands for: ``"ann"`` for ``{"by": "ann"}``.

    Raises:
        BadMessage: it does not fit ``model``.
    """
    fields = ", ".join(name + ("" if field.is_required() else "?") for name, field in model.model_fields.items())
    takes = f"takes one JSON object with {fields}"
    if len(payloads) != 1 or payloads[0] is None:
        raise BadMessage(
            f"{takes}; got {'nothing' if not payloads or payloads[0] is None else f'{len(payloads)} inputs'}"
        )
    value = payloads[0]
    if isinstance(value, Undecodable):
        raise BadMessage(f"{takes}; {value.reason}")
    if isinstance(value, str) and shorthand:
        value = {shorthand: value}
    if not isinstance(value, dict):
        raise BadMessage(f"{takes}; got {type(value).__name__}")
    try:
        return model.model_validate_json(to_json(value))
    except ValidationError as error:
        raise BadMessage(f"{takes}; {explain(error)}") from None


class OperatorSurface:
    """Handlers and the state they work on. The procedure reads the state; nothing here waits."""

    def __init__(self) -> None:
        info = workflow.info()
        self.state = RunState(
            runbook=info.workflow_type,
            workflow_id=info.workflow_id,
            run_id=info.run_id,
            started_at=info.start_time,
        )
        self._body: asyncio.Task[Any] | None = None
        self._aborted: By | None = None
        self._undoing = False
        self._stale = False

    # --- the timeline and the page ------------------------------------------------------------------------------

    def say(self, text: str, *, who: str | None = None, level: str = "info", source: str = "run") -> None:
        """Put a line on the timeline and refresh the page."""
        entry = TimelineEntry.model_validate(
            {"at": workflow.now(), "source": source, "text": text, "who": who, "level": level}
        )
        self.state.timeline.append(entry)
        if len(self.state.timeline) > SHORTENED_TIMELINE:
            del self.state.timeline[0]
            self.state.timeline_dropped += 1
        self.refresh()

    def refresh(self) -> None:
        """Have the run's page rendered, once for all changes of this moment.

        It is served by the built-in metadata query and never stored in the history.
        """
        if not self._stale:
            self._stale = True
            asyncio.get_running_loop().call_soon(self._render)

    def _render(self) -> None:
        self._stale = False
        self.state.percent = 100 if self.state.outcome else self._percent()
        workflow.set_current_details(render(self.state))

    def _percent(self) -> int:
        """How much of the run is over, at most 99. By steps; a runbook with a better measure has its own."""
        steps = self.state.steps
        return int(99 * sum(step.ended_at is not None for step in steps) / len(steps)) if steps else 0

    def _refuse(self, what: str, reason: str) -> None:
        self.say(f"{what} changed nothing: {reason}", level="warning", source="person")

    def _take(self, what: str, model: type[M], payloads: Sequence[Any], act: Callable[[M], None]) -> None:
        """Read a signal and act on it; whatever is wrong with it goes on the timeline."""
        try:
            act(read(model, payloads, shorthand="by"))
        except (BadMessage, gates.Refused) as error:
            self._refuse(f"signal {what}", str(error))

    # --- queries ------------------------------------------------------------------------------------------------

    @workflow.query(description="Everything the run knows of itself: steps, evidence, open gate, checklist, timeline")
    def progress(self, *_ignored: Any) -> RunState:
        return self.state

    # --- gates --------------------------------------------------------------------------------------------------

    @workflow.signal(description='Say yes at the open gate. Input: {"by": "your name", "reason": "optional"}')
    def approve(self, *payload: Any) -> None:
        self._take("approve", Answer, payload, lambda answer: self._answer(answer, "approve"))

    @workflow.signal(description='Say no at the open gate. Input: {"by": "your name", "reason": "why not"}')
    def reject(self, *payload: Any) -> None:
        self._take("reject", Answer, payload, lambda answer: self._answer(answer, "reject"))

    def _answer(self, answer: Answer, word: str) -> None:
        self._decide(Decision.model_validate({**answer.model_dump(), "decision": word}))

    def _decide(self, decision: Decision) -> str:
        gate = gates.find_gate(self.state.gates, decision.gate)
        gates.check(gate, decision)
        gates.count(gate, decision, workflow.now())
        left = gates.missing(gate)
        more = f" ({left} more needed)" if decision.decision == "approve" and left else ""
        because = f": {decision.reason}" if decision.reason else ""
        self.say(f"{decision.decision}s '{gate.id}'{more}{because}", who=decision.by, source="person")
        return f"gate '{gate.id}' is {gate.state}{more}"

    @workflow.update(
        description='Answer a gate, learn at once whether it counted. Input: {"decision": "approve", "by": "your name"}'
    )
    def decide(self, *payload: Any) -> str:
        return self._decide(read(Decision, payload))

    @decide.validator
    def _check_decide(self, *payload: Any) -> None:
        decision = _valid(Decision, payload)
        with _as_rejection():
            gates.check(gates.find_gate(self.state.gates, decision.gate), decision)

    @workflow.signal(
        description='Take your approval back, until the step it released begins. Input: {"by": "your name"}'
    )
    def revoke(self, *payload: Any) -> None:
        self._take("revoke", Revoke, payload, self._revoke)

    def _revoke(self, message: Revoke) -> None:
        given = [g for g in self.state.gates if g.state in ("open", "approved") and message.gate in (None, g.id)]
        if not given:
            begun = [g for g in self.state.gates if g.state == "begun" and message.gate in (None, g.id)]
            if begun:
                gates.revoke(begun[-1], message.by)
            raise gates.Refused("no gate has an approval to take back")
        gates.revoke(given[-1], message.by)
        self.say(f"takes the approval of '{given[-1].id}' back", who=message.by, source="person")

    # --- pause, resume, abort, note, tick -----------------------------------------------------------------------

    @workflow.signal(description='Stop before the next step. Input: {"by": "your name", "reason": "optional"}')
    def pause(self, *payload: Any) -> None:
        self._take("pause", By, payload, self._pause)

    def _pause(self, message: By) -> None:
        if self.state.outcome or self._undoing:
            raise gates.Refused("the run is closing and cannot be paused")
        if self._is_over() and workflow.patched("a run that closes is not paused"):
            raise gates.Refused(_CLOSES)
        self.state.paused_by = message.by
        self.say(f"pauses the run{_because(message)}", who=message.by, source="person")

    @workflow.signal(description='Go on after a pause. Input: {"by": "your name"}')
    def resume(self, *payload: Any) -> None:
        self._take("resume", By, payload, self._resume)

    def _resume(self, message: By) -> None:
        if self.state.paused_by is None:
            raise gates.Refused("the run is not paused")
        self.state.paused_by = None
        self.say(f"resumes the run{_because(message)}", who=message.by, source="person")

    @workflow.signal(description='Stop and undo what was begun. Input: {"by": "your name", "reason": "why"}')
    def abort(self, *payload: Any) -> None:
        self._take("abort", By, payload, self._abort)

    def _abort(self, message: By) -> None:
        if self.state.outcome or self._undoing or self._aborted:
            raise gates.Refused("the run is already stopping")
        self.state.paused_by = None  # of a run that closes, too: it goes on closing
        if self._is_over():
            raise gates.Refused(_CLOSES)
        self._aborted = message
        self.say(f"aborts the run{_because(message)}", who=message.by, source="person", level="warning")
        if self._body is not None:
            self._body.cancel()

    def _is_over(self) -> bool:
        """Whether the procedure has ended: what is left to be done is the record."""
        return self._body is not None and self._body.done()

    @workflow.signal(
        description='Put a line on the timeline. Input: {"by": "your name", "text": "what you saw or did"}'
    )
    def note(self, *payload: Any) -> None:
        self._take("note", Note, payload, lambda note: self.say(note.text, who=note.by, source="person"))

    @workflow.signal(description='Tick a checklist item by hand. Input: {"by": "your name", "item": "its id"}')
    def tick(self, *payload: Any) -> None:
        self._take("tick", Tick, payload, self._tick)

    def _tick(self, message: Tick) -> None:
        item = next((item for item in self.state.checklist if item.id == message.item), None)
        if item is None:
            raise gates.Refused(f"no item '{message.item}'; items: {', '.join(i.id for i in self.state.checklist)}")
        item.done, item.by, item.note = True, message.by, message.reason or item.note
        self.say(f"ticks '{item.text}'{_because(message)}", who=message.by, source="person")

    # --- waits --------------------------------------------------------------------------------------------------

    @workflow.update(description='Make a wait longer. Input: {"by": "your name", "duration": "PT15M"}')
    def extend_wait(self, *payload: Any) -> str:
        message = read(ExtendWait, payload)
        wait = self._find_wait(message.wait)
        wait.until, wait.ended = wait.until + message.duration, False
        by = f"by {length(message.duration)}, until {wait.until:%d %b %H:%M:%S} UTC{_because(message)}"
        self.say(f"extends '{wait.title}' {by}", who=message.by, source="person")
        return f"'{wait.id}' now ends at {wait.until.isoformat()}"

    @extend_wait.validator
    def _check_extend_wait(self, *payload: Any) -> None:
        message = _valid(ExtendWait, payload)
        with _as_rejection():
            self._find_wait(message.wait)

    @workflow.update(description='End a wait now. Input: {"by": "your name", "reason": "why it is enough"}')
    def end_wait(self, *payload: Any) -> str:
        message = read(EndWait, payload)
        wait = self._find_wait(message.wait)
        wait.until, wait.ended = workflow.now(), True
        self.say(f"ends '{wait.title}' early{_because(message)}", who=message.by, source="person")
        return f"'{wait.id}' has ended"

    @end_wait.validator
    def _check_end_wait(self, *payload: Any) -> None:
        message = _valid(EndWait, payload)
        with _as_rejection():
            self._find_wait(message.wait)

    def _find_wait(self, wait_id: str | None) -> Wait:
        fitting = [wait for wait in self.state.waits if wait_id in (None, wait.id)]
        if len(fitting) == 1:
            return fitting[0]
        known = ", ".join(wait.id for wait in self.state.waits) or "none"
        raise gates.Refused(f"{'name one of the waits' if fitting else 'no such wait'}; waiting now: {known}")

    # --- from other runs, and everything that has no name here ---------------------------------------------------

    @workflow.signal(description="From the stage's lock, not for people")
    def lock_update(self, *payload: Any) -> None:
        self._take("lock_update", LockUpdate, payload, self._lock_update)

    def _lock_update(self, message: LockUpdate) -> None:
        before = self.state.lock
        if before.held or message.run not in (None, workflow.info().first_execution_run_id):
            return
        self.state.lock = LockState(held=message.granted, position=message.position, holder=message.holder)
        if not message.granted and before != self.state.lock:
            self.say(f"waits for the stage: place {message.position} behind {message.holder}")

    @workflow.signal(dynamic=True)
    def unknown_signal(self, name: str, payload: Sequence[RawValue]) -> None:
        self._refuse(f"signal '{name[:80]}'", "this runbook has no such signal")


def _because(message: By) -> str:
    return f": {message.reason}" if message.reason else ""


def _valid(model: type[M], payloads: Sequence[Any]) -> M:
    """What a validator accepts; anything else is a rejection that the caller reads."""
    try:
        return read(model, payloads)
    except BadMessage as error:
        raise ApplicationError(str(error), type="BadMessage", non_retryable=True) from None


class _as_rejection:
    """Turns a refusal into the rejection of an update."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, gates.Refused):
            raise ApplicationError(str(error), type="Refused", non_retryable=True) from None
