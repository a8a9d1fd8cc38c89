"""Every registered workflow keeps the rules that keep a run alive, whatever operators type.

What bites (reproduced on a real server): a signal, update or start with a payload that the handler cannot take makes
the workflow task fail for ever, and the run with it. Here every workflow gets all of that, and has to answer then.
"""

from __future__ import annotations

import asyncio
import inspect
import uuid
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tests.hostile import Sent
from tests.workflows.probe import Probe
from workflows.catalog import RUNBOOKS, WORKFLOWS
from workflows.runbook import Runbook

EVERY = (*WORKFLOWS, Probe)


def raw(data: bytes, encoding: str = "json/plain") -> RawValue:
    return RawValue(Payload(metadata={"encoding": encoding.encode()}, data=data))


POISON: dict[str, list[Any]] = {
    "nothing": [],
    "null": [None],
    "two": [{"by": "ann"}, {"by": "bob"}],
    "broken JSON": [raw(b'{"by": ')],
    "broken JSON twice": [raw(b'{"by": '), raw(b"")],
    "empty bytes": [raw(b"")],
    "unknown encoding": [raw(b"\x00\x01", "binary/strange")],
    "binary": [raw(b"\xff\xfe", "binary/plain")],
    "a number": [7],
    "a list": [["ann"]],
    "wrong type": [{"by": ["ann"], "reason": {"a": 1}, "granted": "perhaps"}],
    "unknown field": [{"by": "ann", "surprise": 1}],
    "empty name": [{"by": "  "}],
    "control characters": [{"by": "ann\x00\x1b[2J"}],
    "huge": [{"by": "x" * 20_000}],
    "deep": [{"by": "ann", "reason": eval("[" * 60 + "]" * 60)}],
}


_SLOW = "[TMPRL1101]"


def definition(cls: type) -> workflow._Definition:
    return workflow._Definition.must_from_class(cls)


def example(cls: type) -> dict[str, Any]:
    return cls.spec.example if issubclass(cls, Runbook) else {"stage": "conformance"}


@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
def test_handlers_take_anything(cls: type) -> None:
    found = definition(cls)
    handlers = {
        "run": found.run_fn,
        **{f"signal {n}": s.fn for n, s in found.signals.items() if n},
        **{f"query {n}": q.fn for n, q in found.queries.items() if n},
        **{f"update {n}": u.fn for n, u in found.updates.items() if n},
        **{f"validator {n}": u.validator for n, u in found.updates.items() if n},
    }
    for name, handler in handlers.items():
        assert handler is not None, f"{name}: an update without a validator can wedge the run"
        parameters = list(inspect.signature(handler).parameters.values())[1:]
        assert [p.kind for p in parameters] == [inspect.Parameter.VAR_POSITIONAL], f"{name} has to take *payload"
    for kind in (found.signals, found.updates):
        for name, handler in kind.items():
            if name:
                shown = handler.description or ""
                assert "Input: {" in shown or "not for people" in shown, f"{name}: its description needs an example"


@pytest.mark.parametrize("cls", RUNBOOKS, ids=lambda c: c.__name__)
def test_a_runbook_describes_itself(cls: type[Runbook[Any]]) -> None:
    spec = cls.spec
    assert definition(cls).name == cls.__name__
    assert cls.__doc__
    assert spec.when
    spec.input.model_validate(spec.example)
    assert {"stage", "reason"} <= spec.example.keys()
    assert len({step.id for step in spec.steps}) == len(spec.steps)
    for step in spec.steps:
        assert step.kind != "change" or step.undo, f"{step.id}: say what undoes it, even if nothing can"
    for field in spec.input.model_fields.values():
        assert field.description, "every field is explained"


async def idle(client: Client, cls: type) -> tuple[WorkflowHandle[Any, Any], Worker]:
    """A run of ``cls`` that stands at its first activity, because nobody serves activities."""
    queue = f"conformance-{uuid.uuid4()}"
    worker = Worker(client, task_queue=queue, workflows=[cls] if cls not in WORKFLOWS else [])
    handle = await client.start_workflow(
        definition(cls).name or "", example(cls), id=f"conformance-{uuid.uuid4()}", task_queue=queue
    )
    if not issubclass(cls, Runbook):
        asleep = await client.start_workflow("Probe", {}, id=f"holder-{uuid.uuid4()}", task_queue=f"nobody-{queue}")
        run_id = asleep.result_run_id
        holder = {"stage": "x", "workflow_id": asleep.id, "run_id": run_id, "runbook": "Probe"}
        await handle.signal("request", holder)
    return handle, worker


async def failed_tasks(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """Failures of the workflow's own code. The server also fails tasks that messages have overtaken, and a machine
    under load takes longer than the SDK allows for a task with hundreds of messages; those are tried again and go on.
    """
    history = await handle.fetch_history()
    failures = [
        event.workflow_task_failed_event_attributes
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
    ]
    own = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE
    found = [failure.failure.message for failure in failures if failure.cause == own]
    return [message for message in found if not message.startswith(_SLOW)]


async def answers(handle: WorkflowHandle[Any, Any], cls: type) -> Any:
    name = next(iter(n for n in definition(cls).queries if n))
    return await asyncio.wait_for(handle.query(name), 180)


@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
async def test_no_signal_wedges_a_run(client: Client, cls: type, sent: Sent) -> None:
    handle, worker = await idle(client, cls)
    names = [name for name in definition(cls).signals if name]
    async with worker:
        every = [(name, args) for name in [*names, "no_such_signal"] for args in POISON.values()]
        await asyncio.gather(*(handle.signal(name, args=args) for name, args in every))
        state = await answers(handle, cls)
        if issubclass(cls, Runbook):
            refused = [entry for entry in state["timeline"] if "changed nothing" in entry["text"]]
            assert len(refused) + state["timeline_dropped"] >= len(POISON) * (len(names) + 1)
            assert state["outcome"] is None
            assert any("no such signal" in entry["text"] for entry in refused)
        assert await failed_tasks(handle) == []
        await handle.terminate()
    sent("signals", len(every))


@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
async def test_no_update_or_query_wedges_a_run(client: Client, cls: type, sent: Sent) -> None:
    handle, worker = await idle(client, cls)
    found = definition(cls)
    async with worker:

        async def refusal(name: str, kind: str) -> None:
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await asyncio.wait_for(handle.execute_update(name, args=POISON[kind]), 180)
            assert isinstance(refused.value.cause, ApplicationError), kind
            assert "takes one JSON object with" in refused.value.cause.message, kind
            assert len(refused.value.cause.message) < 600, "a refusal is read by a person"

        for name in [n for n in found.updates if n]:
            kinds = list(POISON)
            for some in (kinds[:8], kinds[8:]):  # the server takes ten updates at a time
                await asyncio.gather(*(refusal(name, kind) for kind in some))
        for name in [n for n in found.queries if n]:
            for args in POISON.values():
                assert await asyncio.wait_for(handle.query(name, args=args), 180) is not None
        assert await failed_tasks(handle) == []
        await handle.terminate()
    for kind, names in (("updates", found.updates), ("queries", found.queries)):
        sent(kind, len([name for name in names if name]) * len(POISON))


@pytest.mark.usefixtures("outside_of_the_sandbox")
@pytest.mark.parametrize("cls", EVERY, ids=lambda c: c.__name__)
async def test_bad_input_fails_at_once(client: Client, cls: type, sent: Sent) -> None:
    queue = f"conformance-{uuid.uuid4()}"

    async def refusal(kind: str) -> None:
        handle = await client.start_workflow(
            definition(cls).name or "", args=POISON[kind], id=f"conformance-{uuid.uuid4()}", task_queue=queue
        )
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), 180)
        cause = failed.value.cause
        assert isinstance(cause, ApplicationError), kind
        assert cause.type == "BadInput", kind
        assert "takes one JSON object with" in cause.message, kind
        assert len(cause.message) < 2500, kind
        assert await failed_tasks(handle) == [], kind

    async with Worker(client, task_queue=queue, workflows=[cls] if cls not in WORKFLOWS else []):
        await asyncio.gather(*(refusal(kind) for kind in POISON))
    sent("starts", len(POISON))
