"""What a run knows of itself: steps, gates, waits, checklist, timeline. Plain data, no clock, no I/O.

These models are read by queries, current details, reports and, for runs that continue as new, by later code. Fields are
only ever added, with defaults.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from activities.charts import Chart

_ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    """Text in which nothing commands a terminal or turns the reading direction: each such sign becomes ``\ufffd``."""
    return _ACTS.sub("\ufffd", text.replace("\r\n", "\n"))


Scalar = str | int | float | bool | None
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(plain)]
Person = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$")
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][\w.-]*$")]


class RunbookInput(BaseModel):
    """What every runbook takes. Subclasses add what their procedure is about."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    stage: Name = Field(description="Stage to work on, as named in runbooks.toml", examples=["production"])
    reason: Line = Field(description="Why, for the timeline and the record", examples=["500s since the 14:02 deploy"])
    requested_by: Person | None = Field(
        None, description="Who asks. In production who asks may not approve; unnamed, one more approval is needed"
    )
    incident: Name | None = Field(None, description="Id of the ongoing incident that this belongs to, if any")
    severity: Literal["P1", "P2", "P3", "P4"] | None = Field(None, description="Severity of that incident")
    dry_run: bool = Field(False, description="Look at everything, list every change, change nothing")


class Kind(StrEnum):
    """What a step does to the world: told apart in the code, on the screen and in a dry run."""

    LOOK = "look"
    CHANGE = "change"
    GATE = "gate"
    WAIT = "wait"
    TELL = "tell"
    UNDO = "undo"


class State(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    WAITING = "waiting"
    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    UNDONE = "undone"


class Phase(StrEnum):
    STARTING = "starting"
    QUEUED = "queued"
    LOOKING = "looking"
    APPROVAL = "approval"
    CHANGING = "changing"
    WAITING = "waiting"
    VERIFYING = "verifying"
    PAUSED = "paused"
    UNDOING = "undoing"
    CLOSED = "closed"


class Outcome(StrEnum):
    """How a run ended. Only the first two are a success."""

    COMPLETED = "completed"
    DRY_RUN = "dry_run"
    REJECTED = "rejected"
    ABORTED = "aborted"
    CANCELLED = "cancelled"
    FAILED = "failed"


class StepSpec(BaseModel):
    """A step of the procedure as the catalog and the screen list it before it runs."""

    model_config = ConfigDict(frozen=True)

    id: str
    title: str
    kind: Kind
    undo: str | None = Field(None, description="What undoes it, in words")


class Step(BaseModel):
    """A step of one run."""

    id: str
    title: str
    kind: Kind
    state: State = State.PENDING
    started_at: datetime | None = None
    ended_at: datetime | None = None
    summary: str | None = None
    evidence: dict[str, Scalar] = Field(default_factory=dict)


class ChecklistItem(BaseModel):
    """An item of the document's checklist: ticked from evidence, by a named person, or open with the reason."""

    id: str
    text: str
    done: bool = False
    by: str | None = Field(None, description="'evidence' or the person who ticked it")
    note: str | None = Field(None, description="The evidence, or why it is open")


class TimelineEntry(BaseModel):
    at: datetime
    source: Literal["run", "person", "provider"]
    text: str
    who: str | None = None
    level: Literal["info", "warning", "error"] = "info"


class Wait(BaseModel):
    """A long wait on a durable timer that operators can extend or end."""

    id: str
    title: str
    started_at: datetime
    until: datetime
    ended: bool = Field(False, description="Whether a person has ended it")


class LockState(BaseModel):
    held: bool = False
    position: int | None = Field(None, description="Place in the queue while waiting, 1 is next")
    holder: str | None = Field(None, description="Run that has the lock while this one waits")


class Approval(BaseModel):
    """One counted answer at a gate."""

    by: str
    decision: Literal["approve", "reject"]
    at: datetime
    reason: str | None = None
    plan_hash: str | None = None
    key: str | None = Field(None, description="Fingerprint of the key that it was signed with, at a gate that asks so")
    proof: str | None = Field(None, description="Its signature, to be checked again by an audit")


class Signing(BaseModel):
    """What a decision has to be signed for, and by whom, at a gate that takes signed decisions only."""

    workflow_id: str
    run: str = Field(description="Id of the first run of this workflow: it outlives resets and continued runs")
    keys: dict[str, str] = Field(default_factory=dict, description="Public keys by approver")
    asked_before: int = Field(0, description="How often earlier gates of this id and run were asked")
    used: list[str] = Field(default_factory=list, description="Nonces of what has counted; none counts again")


class Gate(BaseModel):
    """A question to people, with the exact plan that a yes releases."""

    id: str
    question: str
    plan: dict[str, Any]
    plan_hash: str
    needed: int
    approvers: tuple[str, ...] = ()
    requester: str | None = None
    requester_may_approve: bool = True
    on_timeout: Literal["approve", "reject"] = "reject"
    opened_at: datetime
    deadline: datetime
    state: Literal["open", "approved", "rejected", "begun"] = "open"
    approvals: list[Approval] = Field(default_factory=list)
    asked: int = Field(1, description="How often it was asked; more than once when the plan had drifted")
    signing: Signing | None = Field(None, description="Set where only signed decisions count")


class RunState(BaseModel):
    """Everything a run shows. The answer of the ``progress`` query."""

    runbook: str
    workflow_id: str
    run_id: str
    started_at: datetime
    stage: str | None = None
    reason: str | None = None
    requested_by: str | None = None
    dry_run: bool = False
    phase: Phase = Phase.STARTING
    paused_by: str | None = None
    percent: int = 0
    steps: list[Step] = Field(default_factory=list)
    gates: list[Gate] = Field(default_factory=list)
    waits: list[Wait] = Field(default_factory=list)
    checklist: list[ChecklistItem] = Field(default_factory=list)
    lock: LockState = LockState()
    timeline: list[TimelineEntry] = Field(default_factory=list)
    timeline_dropped: int = 0
    left_undone: list[str] = Field(default_factory=list, description="What could not be put back, and who was told")
    outcome: Outcome | None = None
    summary: str | None = None
    report: dict[str, str] = Field(default_factory=dict, description="Where the report lies, by format")

    def open_gate(self) -> Gate | None:
        return next((gate for gate in self.gates if gate.state == "open"), None)

    def step(self, step_id: str) -> Step | None:
        return next((step for step in self.steps if step.id == step_id), None)


class RunbookResult(BaseModel):
    """What a run leaves: enough to audit it without the history."""

    model_config = ConfigDict(extra="ignore")

    runbook: str
    outcome: Outcome
    summary: str
    stage: str
    facts: dict[str, Scalar] = Field(default_factory=dict, description="Figures of the procedure, by name")
    checklist: list[ChecklistItem] = Field(default_factory=list)
    approvals: list[Approval] = Field(default_factory=list)
    would_change: list[str] = Field(default_factory=list, description="Dry run: each change that was not made")
    left_undone: list[str] = Field(default_factory=list)
    report: dict[str, str] = Field(default_factory=dict)
    charts: tuple[Chart, ...] = Field((), description="For the report of the run above, where this was a part of it")


# --- what operators send: tolerant of how it is typed, strict about what it means ------------------------------------


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)


class By(Message):
    """Base of every operator message: who, and why."""

    by: Person = Field(description="Who sends this")
    reason: Line | None = None


Proof = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\.[A-Za-z0-9+/]{86}==$")]
"""A signature: its nonce in hexadecimal digits, a dot, the 64 bytes of Ed25519 in base64."""


class Decision(By):
    decision: Literal["approve", "reject"]
    gate: Name | None = Field(None, description="Needed only when several gates are open")
    plan_hash: str | None = Field(None, max_length=64, description="Refused when the plan is another by now")
    proof: Proof | None = Field(None, description="Made by 'runbooks approve --key', where the stage asks for it")


class Answer(By):
    """Signals ``approve`` and ``reject``: a decision without the word."""

    gate: Name | None = None
    plan_hash: str | None = Field(None, max_length=64)
    proof: Proof | None = None


class Revoke(By):
    gate: Name | None = None


class Note(Message):
    by: Person
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=4000), AfterValidator(plain)]


class Tick(By):
    item: Name = Field(description="Id of the checklist item")


class ExtendWait(By):
    wait: Name | None = None
    duration: timedelta = Field(gt=timedelta(0), le=timedelta(days=90), description="How much longer, such as PT15M")


class EndWait(By):
    wait: Name | None = None


class LockUpdate(Message):
    """From the stage's lock to a run that asked for it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    granted: bool
    position: int | None = None
    holder: str | None = None
    run: str | None = Field(None, description="First run of the workflow that asked: its id may be another one's now")
