"""Runs under encryption: what the database holds of them, who can read them, and what happens without the key."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Replayer

from activities.keyring import Key, Keyring
from tests.conftest import DYNAMIC_CONFIG, temporal_binary
from tests.patience import eventually
from tests.workflows.probe import Probe, World, at_gate, begin, failure, outcome, until, working
from worker.logs import JsonLines, TextLines
from workflows import search_attributes
from workflows.codec import MissingKeyError
from workflows.model import RunbookResult
from workflows.plugin import RunbooksPlugin

KEYRING = Keyring((Key.new("test"),))
KEYED, KEYLESS = RunbooksPlugin(KEYRING), RunbooksPlugin()

TYPED = "prefers-to-stay-unread"
"""What people type, plan and read, everywhere that this project puts such things."""


UNCACHED: Any = {"max_cached_workflows": 0}
"""For workers that take over from one another: nothing waits for the one before."""


class Kept:
    """A server that keeps its database in a file, and clients with and without the key."""

    def __init__(self, target: str, database: Path) -> None:
        self._target, self._database = target, database

    async def client(self, plugin: RunbooksPlugin = KEYED) -> Client:
        return await Client.connect(self._target, plugins=[plugin], identity="who-connects")

    def holds(self, text: str) -> bool:
        files = [self._database, *self._database.parent.glob(f"{self._database.name}-*")]
        return any(text.encode() in file.read_bytes() for file in files)


@pytest_asyncio.fixture(scope="module")
async def kept(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    database = tmp_path_factory.mktemp("temporal") / "temporal.db"
    flags = [part for key, value in DYNAMIC_CONFIG.items() for part in ("--dynamic-config-value", f"{key}={value}")]
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=temporal_binary(),
        dev_server_database_filename=str(database),
        dev_server_extra_args=flags,
        search_attributes=list(search_attributes.ALL),
    ) as server:
        yield Kept(server.client.service_client.config.target_host, database)


async def through(client: Client, world: World) -> WorkflowHandle[object, object]:
    """A run with a gate, an answer, a note, a memo, a summary, and a failure that quotes what it was given."""
    world.fail["lamp"] = TYPED
    async with working(client, world) as queue:
        given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": TYPED, "requested_by": f"ann, who {TYPED}"}
        handle: WorkflowHandle[object, object] = await client.start_workflow(
            "Probe",
            given,
            id=f"encrypted-{uuid.uuid4()}",
            task_queue=queue,
            memo={"a-memo-key": TYPED},
            static_summary=TYPED,
            static_details=TYPED,
        )
        await until(handle, at_gate)
        await handle.signal("note", {"by": "ann", "text": TYPED})
        await handle.execute_update("decide", {"by": "ben", "decision": "approve", "reason": TYPED}, id="an-update-id")
        assert TYPED in str(outcome(await failure(handle)))
    return handle


@pytest_asyncio.fixture(scope="module")
async def handle(kept: Kept) -> WorkflowHandle[object, object]:
    return await through(await kept.client(), World())


async def test_the_database_holds_names_and_times_and_nothing_that_was_typed_or_found(
    kept: Kept, handle: WorkflowHandle[object, object]
) -> None:
    """The list of docs/encryption.md, as the bytes of Temporal's own database."""
    stage = (await handle.describe()).typed_search_attributes[search_attributes.STAGE]
    for hidden in (
        TYPED,
        "Turn the dial?",  # the question of a gate
        "dial is at 1",  # what a step has found
        "dial set to 2",  # what a step has changed
        "Look at the dial",  # the title of a step, as the summary of its activity
        "remind people of gate",  # the summary of a timer
        "could not set lamp",  # the message of a failure
        "in _execute_activity",  # its stack trace
    ):
        assert not kept.holds(hidden), hidden
    for readable in (
        handle.id,
        "Probe",  # the type of the workflow
        "world.set",  # the type of an activity
        "undo-turn",  # the id of an activity is the id of its step
        (await handle.describe()).task_queue,
        "decide",  # names of signals and updates
        "an-update-id",
        stage,  # the value of a search attribute
        "a-memo-key",
        "Broken",  # the type of an error
        "who-connects",  # how a client or worker calls itself
        KEYRING.keys[0].id,
    ):
        assert kept.holds(readable), readable
    timers = [e for e in (await handle.fetch_history()).events if e.HasField("timer_started_event_attributes")]
    assert timers[0].timer_started_event_attributes.start_to_fire_timeout.ToTimedelta().total_seconds() > 0


async def test_without_encryption_the_same_search_finds_what_was_typed(kept: Kept) -> None:
    """So that the test above would have found it."""
    client = await kept.client(KEYLESS)
    async with working(client, World()) as queue:
        handle = await begin(client, queue, reason="readable-to-everybody")
        await until(handle, at_gate)
    assert kept.holds("readable-to-everybody")
    assert kept.holds("remind people of gate")
    await handle.terminate("seen")


async def test_who_has_the_key_reads_it_all_and_nobody_else(kept: Kept, handle: WorkflowHandle[object, object]) -> None:
    description = await handle.describe()
    assert await description.static_summary() == TYPED
    assert (await description.memo()) == {"a-memo-key": TYPED}
    with pytest.raises(MissingKeyError):
        await (await (await kept.client(KEYLESS)).get_workflow_handle(handle.id).describe()).memo()
    replayer = Replayer(workflows=[Probe], plugins=[KEYED])
    await replayer.replay_workflow(await handle.fetch_history())
    result = await Replayer(workflows=[Probe], plugins=[KEYLESS]).replay_workflow(
        await handle.fetch_history(), raise_on_replay_failure=False
    )
    assert f"lacks the key {KEYRING.keys[0].id}" in str(result.replay_failure)


async def test_a_worker_without_the_key_says_so_in_one_line_and_leaves_the_run_alone(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    client, keyless, world = await kept.client(), await kept.client(KEYLESS), World()
    async with working(keyless, world, **UNCACHED) as queue:
        handle = await begin(client, queue)

        async def refused() -> str:
            told = [
                event.workflow_task_failed_event_attributes.failure.message
                async for event in handle.fetch_history_events()
                if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
            ]
            return " ".join(told)

        said = await eventually(refused, "a task that the worker gives back")
    assert f"this process lacks the key {KEYRING.keys[0].id}" in said
    assert (await handle.describe()).status == WorkflowExecutionStatus.RUNNING
    record = next(r for r in caplog.records if r.exc_info and isinstance(r.exc_info[1], MissingKeyError))
    for formatter in (TextLines(), JsonLines()):
        line = formatter.format(record)
        assert f"lacks the key {KEYRING.keys[0].id}" in line
        assert "\n" not in line
    async with working(client, world, queue=queue, **UNCACHED):
        await until(handle, at_gate, 60)  # each refused task has made the server wait longer before the next
    await handle.terminate("seen")


async def test_a_run_goes_on_over_a_rotation_of_the_key(kept: Kept) -> None:
    """Begun without encryption, gone on under one key, ended under another."""
    second = Keyring((Key.new("second"), *KEYRING.keys))
    plain, world = await kept.client(KEYLESS), World()
    async with working(plain, world, **UNCACHED) as queue:
        handle = await begin(plain, queue)
        await until(handle, at_gate)
    client = await kept.client()
    async with working(client, world, queue=queue, **UNCACHED):
        await client.get_workflow_handle(handle.id).signal("note", {"by": "ann", "text": "in between"})
        await until(client.get_workflow_handle(handle.id), lambda s: any("in between" in e.text for e in s.timeline))
    client = await kept.client(RunbooksPlugin(second))
    async with working(client, world, queue=queue, **UNCACHED):
        last: WorkflowHandle[object, object] = client.get_workflow_handle(handle.id)
        await last.execute_update("decide", {"by": "ben", "decision": "approve"})
        assert RunbookResult.model_validate(await last.result()).outcome == "completed"
    history = (await last.fetch_history()).to_json()
    assert all(base64.b64encode(key.id.encode()).decode() in history for key in second.keys)
    await Replayer(workflows=[Probe], plugins=[RunbooksPlugin(second)]).replay_workflow(await last.fetch_history())
