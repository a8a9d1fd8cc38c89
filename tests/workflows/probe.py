"""A small runbook that uses all of the frame, and the little world it works on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from pydantic import Field
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.evidence import Finding
from activities.locks import Locks
from activities.messages import Announcement, Attempt, Delivery
from activities.reports import RunRecord, render
from activities.stage import Facts, Stage
from activities.stages import Signers
from tests.workflows.bare_stage import bare_stage
from workflows.model import Kind, RunbookInput, RunbookResult, RunState, StepSpec
from workflows.runbook import Runbook, RunbookSpec, Undo

with workflow.unsafe.imports_passed_through():
    from tests.patience import LONGEST, eventually
    from tests.resting import resting


class Value(Finding):
    value: int


class Set(Facts):
    name: str
    value: int
    key: str = ""


class World:
    """Numbers by name, with a list of everything that was done to them and switchable faults."""

    def __init__(self, **policies: Any) -> None:
        self.numbers = {"dial": 1, "lamp": 1}
        self.done: list[str] = []
        self.fail: dict[str, str] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.began = asyncio.Event()
        self.told: list[Announcement] = []
        self.chat_held: asyncio.Event | None = None
        """Where set, the chat takes nothing until this is."""
        self.reports: list[dict[str, str]] = []
        self.gates = policies
        self.keys: dict[str, str] | None = None
        """Where set, gates take only decisions signed with these."""

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        if not name.startswith("stage-"):
            raise ApplicationError(f"there is no stage {name!r}", type="UnknownStage", non_retryable=True)
        return bare_stage(
            name,
            {
                "gates": self.gates,
                "signed_approvals": self.keys is not None,
            },
        )

    @activity.defn(name="stages.signers")
    async def signers(self) -> Signers:
        return Signers(keys=self.keys or {})

    @activity.defn(name="world.read")
    async def read(self, name: str) -> Value:
        if fault := self.fail.get(f"read {name}"):
            raise ApplicationError(f"could not read {name}: {fault}", type="Unavailable")
        return Value(summary=f"{name} is at {self.numbers[name]}", value=self.numbers[name])

    @activity.defn(name="world.set")
    async def set(self, wanted: Set) -> Value:
        self.began.set()
        if gate := self.hold.get(wanted.name):
            await gate.wait()
        if fault := self.fail.get(wanted.name):
            if fault.startswith("after:"):
                self.numbers[wanted.name] = wanted.value
            raise ApplicationError(f"could not set {wanted.name}: {fault}", type="Broken", non_retryable=True)
        self.numbers[wanted.name] = wanted.value
        self.done.append(f"{wanted.name}={wanted.value}")
        return Value(summary=f"{wanted.name} set to {wanted.value}", value=wanted.value)

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        if self.chat_held is not None:
            await self.chat_held.wait()
        if fault := self.fail.get("chat"):
            raise ApplicationError(f"nobody took it: {fault}", type="NobodyTookIt")
        self.told.append(message)
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        self.reports.append(render(record))
        return {"md": f"s3://records/{record.workflow_id}.md"}


class ProbeInput(RunbookInput):
    to: int = Field(2, ge=0, le=9, description="Where to put the dial")
    bake: timedelta = timedelta(0)
    laps: int = Field(0, description="How often to continue as new between the two changes")


@workflow.defn(name="Probe")
class Probe(Runbook[ProbeInput]):
    """Looks at a dial, asks, turns it, bakes, lights a lamp, looks again."""

    spec = RunbookSpec(
        input=ProbeInput,
        when="never outside the tests",
        steps=(
            StepSpec(id="identify", title="Look at the dial", kind=Kind.LOOK),
            StepSpec(id="turn", title="Turn the dial", kind=Kind.CHANGE, undo="turn it back"),
            StepSpec(id="light", title="Light the lamp", kind=Kind.CHANGE, undo="put it out"),
        ),
        checklist=(("dial", "The dial is where it should be"), ("human", "Somebody has looked")),
        gates=(("turn-it", "Turn the dial?"),),
        example={"stage": "stage-x", "reason": "to see it turn"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ProbeInput) -> str:
        if self.cursor is None:
            await self.turn(inp)
        lap = self.cursor["lap"] if self.cursor else 0
        if lap < inp.laps:
            await self.continue_as_new(lambda: {"lap": lap + 1})
        await self.set("lamp", "light", inp)
        after = await self.look("verify", World.read, "dial", title="Look again")
        self.check("dial", after.value == inp.to, f"dial at {after.value}")
        return f"dial {self.facts['before']} → {after.value}"

    async def turn(self, inp: ProbeInput) -> None:
        before = await self.look("identify", World.read, "dial")

        async def plan() -> dict[str, Any]:
            nonlocal before
            before = await self.look("recheck", World.read, "dial")
            return {"from": before.value, "to": inp.to}

        await self.gate("turn-it", "Turn the dial?", {"from": before.value, "to": inp.to}, recheck=plan)
        self.facts["before"] = before.value
        await self.set("dial", "turn", inp)
        if inp.bake:
            await self.wait("bake", inp.bake, "bake the dial")

    async def set(self, name: str, step: str, inp: ProbeInput) -> None:
        await self.change(
            step,
            World.set,
            Set(name=name, value=inp.to, key=self.key(step)),
            would=f"set {name} to {inp.to}",
            undo=Undo(f"put {name} back", World.set, Set(name=name, value=1, key=self.key(f"undo-{step}"))),
        )


@workflow.defn(name="Outer")
class Outer(Runbook[ProbeInput]):
    """Lights the lamp, then has a Probe turn the dial, under its own lock."""

    spec = RunbookSpec(
        input=ProbeInput,
        when="never outside the tests",
        steps=(),
        checklist=(),
        gates=(),
        example={"stage": "stage-x", "reason": "to see a child"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ProbeInput) -> str:
        await self.change(
            "own",
            World.set,
            Set(name="own", value=2),
            would="set own",
            undo=Undo("put own back", World.set, Set(name="own", value=1)),
        )
        result = await self.run_child("probe", "Probe", inp, title="Have the dial turned")
        return f"child: {result.summary}"

    async def after_undo(self) -> str | None:
        await self.observe("after", World.read, "dial", title="Look how it was left")
        return None


@contextlib.asynccontextmanager
async def working(
    client: Client, world: World, *extra: type, queue: str | None = None, **options: Any
) -> AsyncIterator[str]:
    """A worker for probes, on a queue of its own unless one is named; ``options`` are the worker's."""
    queue = queue or f"probe-{uuid.uuid4()}"
    locks = Locks(client, queue)
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Probe, Outer, *extra],
        activities=[
            world.resolve,
            world.signers,
            world.read,
            world.set,
            world.announce,
            world.write,
            locks.request,
            locks.release,
            locks.is_running,
        ],
        **options,
    ):
        yield queue


async def begin(client: Client, queue: str, runbook: str = "Probe", **inp: Any) -> WorkflowHandle[Any, Any]:
    """Start a probe on a stage of its own."""
    given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "test", "requested_by": "ann", **inp}
    return await client.start_workflow(runbook, given, id=f"probe-{uuid.uuid4()}", task_queue=queue)


@workflow.defn(dynamic=True)
class Before:
    """The run before another one, which goes on where nobody works yet."""

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None:
        carried, queue = (workflow.payload_converter().from_payload(arg.payload) for arg in args)
        workflow.continue_as_new(carried, task_queue=queue)


async def going_on(client: Client, queue: str, handle: WorkflowHandle[Any, Any]) -> WorkflowHandle[Any, Any]:
    """Another run that goes on as this one did in its last history. It begins when somebody works on ``-next``."""
    history = await client.get_workflow_handle(handle.id).fetch_history()
    began = history.events[0].workflow_execution_started_event_attributes
    carried = json.loads(began.input.payloads[0].data)
    async with Worker(client, task_queue=queue, workflows=[Before], workflow_runner=UnsandboxedWorkflowRunner()):
        before = await client.start_workflow(
            began.workflow_type.name, args=[carried, f"{queue}-next"], id=f"again-{uuid.uuid4()}", task_queue=queue
        )
        latest = client.get_workflow_handle(before.id)

        async def went_on() -> bool:
            return (await latest.describe()).run_id != before.result_run_id

        await eventually(went_on, "the next run")
    return latest


async def progress(handle: WorkflowHandle[Any, Any]) -> RunState:
    return RunState.model_validate(await handle.query("progress"))


async def until(handle: WorkflowHandle[Any, Any], holds: Any, patience: float = 15) -> RunState:
    """The run's state as soon as ``holds`` of it; fails with the last state seen."""
    seen: RunState | None = None

    async def look() -> RunState | None:
        nonlocal seen
        try:
            seen = await progress(handle)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:  # a child that is being started is not there yet
                return None
            raise
        return seen if holds(seen) else None

    def last() -> str:
        return seen.model_dump_json(indent=1) if seen else "no such run"

    with resting(handle.id) as rests:
        return await eventually(look, last, patience, LONGEST, rests)


def at_gate(state: RunState) -> bool:
    return state.open_gate() is not None


async def failure(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """The failure that the run ended with."""
    with pytest.raises(WorkflowFailureError) as failed:
        await asyncio.wait_for(handle.result(), 180)
    assert isinstance(failed.value.cause, ApplicationError)
    return failed.value.cause


def outcome(error: ApplicationError) -> RunbookResult:
    return RunbookResult.model_validate(error.details[0])
