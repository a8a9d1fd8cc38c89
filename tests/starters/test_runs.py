"""The command line against runs on a real Temporal server."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowUpdateInput,
    WorkflowUpdateHandle,
)

from activities.settings import load_settings
from starters import runs
from starters.problems import Code
from starters.session import Session
from tests.starters.conftest import Cli, House, write_settings
from tests.workflows.probe import at_gate
from workflows.model import Decision, RunState, State


def waiting(state: Any) -> bool:
    return bool(state.waits)


def read(file: str) -> str:
    return Path(file).read_text()


def stage() -> str:
    return f"stage-{uuid.uuid4().hex[:8]}"


async def test_start_says_where_it_runs_and_how_to_answer(cli: Cli, house: House) -> None:
    where = stage()
    said = await cli("start", "probe", "--set", f"stage={where}", "--set", "reason=test")
    assert said.code == Code.DONE
    found = re.search(rf"started Probe as (probe-{where}-\d{{8}}-\d{{6}})\n", said.out)
    assert found
    run = found[1]
    assert f"/namespaces/default/workflows/{run}/" in said.out
    assert f"runbooks approve {run}" in said.out
    state = await house.until(run, at_gate)
    assert state.requested_by == "ann"
    description = await house.client.get_workflow_handle(run).describe()
    assert await description.static_summary() == rf"Probe on {where}: test"

    again = await cli("start", "Probe", "--set", f"stage={where}", "--set", "reason=test", "--id", run)
    assert again.code == Code.CONFLICT
    assert again.err == f"runbooks: {run} is running already: see it with runbooks show {run}\n"
    assert (await cli("reject", run, "--by", "bob")).code == Code.DONE
    await house.until(run, lambda s: s.outcome)
    with pytest.raises(Exception, match="Workflow execution failed"):
        await house.client.get_workflow_handle(run).result()
    again = await cli("start", "Probe", "--set", f"stage={where}", "--set", "reason=test", "--id", run)
    assert again.code == Code.CONFLICT
    assert "was there before" in again.err


async def test_start_and_wait_for_a_dry_run(cli: Cli, house: House) -> None:
    inp = json.dumps({"stage": stage(), "reason": "rehearsal", "requested_by": "cid"})
    said = await cli("start", "Probe", "--input", inp, "--dry-run", "--wait", "--json")
    assert said.code == Code.DONE
    document = said.document
    assert document["outcome"] == "dry_run"
    assert document["input"] == {**json.loads(inp), "dry_run": True}
    assert document["result"]["would_change"] == ["set dial to 2", "set lamp to 2"]
    assert "would set dial to 2" in said.err
    assert house.world.done == []


async def test_watching_a_run_tells_it_to_its_end(cli: Cli, house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    assert (await cli("reject", handle.id, "--by", "bob", "--reason", "not now")).code == Code.DONE
    said = await cli("show", handle.id, "--watch")
    assert said.code == Code.RUN_FAILED
    assert "✔ Look at the dial: dial is at 1" in said.out
    assert "rejected: bob said no at 'turn-it': not now. Nothing had been changed" in said.out
    handle = await house.begin(to=7)
    await house.until(handle.id, at_gate)
    assert (await cli("approve", handle.id, "--by", "bob")).code == Code.DONE
    said = await cli("show", handle.id, "--watch", "--json")
    assert said.code == Code.DONE
    assert (said.document["status"], said.document["outcome"]) == ("completed", "completed")
    assert "dial set to 7" in said.err


async def test_an_answer_is_known_at_once(cli: Cli, house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    said = await cli("approve", handle.id)
    assert said.code == Code.CONFLICT
    assert "ann asked for this run and may not approve it" in said.err
    said = await cli("approve", handle.id, "--by", "bob", "--gate", "other")
    assert said.code == Code.CONFLICT
    assert "gate 'other' is not open; open now: turn-it" in said.err
    said = await cli("approve", handle.id, "--by", " ")
    assert (said.code, said.err) == (Code.BAD_INPUT, "runbooks: by: String should have at least 1 character\n")
    said = await cli("approve", handle.id, "--by", "bob", "--reason", "go", "--json")
    assert said.code == Code.DONE
    assert said.document == {"id": handle.id, "answer": "gate 'turn-it' is approved"}
    await handle.result()
    said = await cli("approve", handle.id, "--by", "bob")
    assert said.code == Code.CONFLICT
    assert said.err == f"runbooks: {handle.id} has ended (completed) and takes no messages\n"
    assert house.world.done == ["dial=2", "lamp=2"]


async def test_pause_revoke_resume_tell_whether_they_were_taken(cli: Cli, house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    said = await cli("resume", handle.id)
    assert said.code == Code.CONFLICT
    assert said.err == f"runbooks: {handle.id} refuses: the run is not paused\n"
    said = await cli("pause", handle.id, "--reason", "let me look")
    assert said.code == Code.DONE
    assert "ann pauses the run: let me look" in said.out
    assert (await cli("approve", handle.id, "--by", "bob")).code == Code.DONE
    await house.until(handle.id, lambda s: s.phase == "paused")
    assert (await cli("revoke", handle.id)).code == Code.CONFLICT
    said = await cli("revoke", handle.id, "--by", "bob", "--json")
    assert said.code == Code.DONE
    assert said.document["timeline"]["text"] == "takes the approval of 'turn-it' back"
    assert (await cli("resume", handle.id)).code == Code.DONE
    await house.until(handle.id, at_gate)
    said = await cli("abort", handle.id, "--reason", "wrong dial")
    assert said.code == Code.DONE
    assert "aborts the run: wrong dial" in said.out
    said = await cli("show", handle.id, "--watch")
    assert said.code == Code.RUN_FAILED
    assert house.world.done == []


async def test_notes_and_ticks(cli: Cli, house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    assert "customers are calling" in (await cli("note", handle.id, "customers are calling")).out
    said = await cli("tick", handle.id, "nope")
    assert said.code == Code.CONFLICT
    assert said.err == f"runbooks: {handle.id} refuses: no item 'nope'; items: dial, human\n"
    said = await cli("tick", handle.id, "human", "--by", "bob", "--reason", "looked at the graphs")
    assert "bob ticks 'Somebody has looked': looked at the graphs" in said.out
    item = (await house.progress(handle.id)).checklist[1]
    assert (item.done, item.by) == (True, "bob")


async def test_a_wait_is_extended_and_ended(cli: Cli, house: House) -> None:
    handle = await house.begin(bake="PT1H")
    await house.until(handle.id, at_gate)
    assert (await cli("approve", handle.id, "--by", "bob")).code == Code.DONE
    before = (await house.until(handle.id, waiting)).waits[0].until
    said = await cli("extend", handle.id, "--duration", "PT5M", "--reason", "few requests")
    assert said.code == Code.DONE
    assert "'bake' now ends at" in said.out
    assert ((await house.progress(handle.id)).waits[0].until - before).total_seconds() == 300
    assert (await cli("extend", handle.id, "--duration", "soon")).code == Code.BAD_INPUT
    said = await cli("end-wait", handle.id, "--wait", "nap")
    assert (said.code, "waiting now: bake" in said.err) == (Code.CONFLICT, True)
    said = await cli("show", handle.id)
    assert "bake the dial" in said.out
    assert f"runbooks extend {handle.id}" in said.out
    assert (await cli("end-wait", handle.id)).code == Code.DONE
    assert (await handle.result())["outcome"] == "completed"


async def test_show_tells_what_is_asked_and_how_to_answer(cli: Cli, house: House) -> None:
    handle = await house.begin(to=5)
    state = await house.until(handle.id, at_gate)
    said = await cli("show", handle.id)
    assert said.code == Code.DONE
    for text in ("Turn the dial?", state.gates[0].plan_hash, f"runbooks approve {handle.id} --gate turn-it", "✔"):
        assert text in said.out
    document = (await cli("show", handle.id, "--json")).document
    assert document["status"] == "running"
    assert document["steps"][0]["state"] == State.DONE
    assert document["ui"].endswith(f"/workflows/{handle.id}")


async def test_what_is_tried_again_is_told_with_its_reason(cli: Cli, house: House) -> None:
    house.world.fail["read dial"] = "the database did not answer"
    handle = await house.begin()
    while not (again := (await cli("show", handle.id, "--json")).document["trying_again"]):
        pass
    assert (again[0]["step"], again[0]["said"]) == (
        "identify",
        "could not read dial: the database did not answer",
    )
    assert again[0]["attempt"] > 1
    said = await cli("show", handle.id)
    assert "↻ identify: attempt " in said.out
    assert "The last one: could not read dial: the database did not answer" in said.out
    house.world.fail.clear()
    await house.until(handle.id, at_gate)
    assert (await cli("show", handle.id, "--json")).document["trying_again"] == []


async def test_list_finds_what_waits_on_a_stage(cli: Cli, house: House) -> None:
    ours, other = await house.begin(), await house.begin(dry_run=True)
    state = await house.until(ours.id, at_gate)
    await other.result()
    deadline = asyncio.get_running_loop().time() + 10
    while True:
        rows = (await cli("list", "--waiting", "--stage", state.stage, "--json")).document
        if rows or asyncio.get_running_loop().time() > deadline:
            break
    assert [(row["id"], row["gate"], row["status"]) for row in rows] == [(ours.id, "turn-it", "running")]
    assert ours.id in {row["id"] for row in (await cli("list", "--json")).document}
    assert (await cli("list", "--stage", stage())).out == "no runs\n"
    assert (await cli("list", "--stage", "a' OR 'b")).code == Code.BAD_INPUT


async def test_locks_tells_who_has_a_stage_and_who_waits(cli: Cli, house: House) -> None:
    where = stage()
    assert (await cli("locks", where)).out == f"{where} is free\n"
    first = await house.begin(stage=where)
    await house.until(first.id, at_gate)
    second = await house.begin(stage=where)
    await house.until(second.id, lambda s: s.lock.position == 1)
    said = await cli("locks", where)
    assert f"{where} is held by {first.id} (Probe) since" in said.out
    assert f"1. {second.id} (Probe) waits" in said.out
    assert (await cli("locks", where, "--json")).document["queue"][0]["workflow_id"] == second.id


async def test_a_report_before_the_end_is_what_is_known_so_far(cli: Cli, house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    said = await cli("report", handle.id, "--json")
    assert said.code == Code.DONE
    text = read(said.document["md"])
    assert "not ended yet" in text
    assert "dial is at 1" in text
    assert set(said.document) == {"md", "html", "json"}
    await handle.signal("approve", "bob")
    await handle.result()
    said = await cli("report", handle.id)
    # This test's AWS is not there; that is one line, too.
    assert said.code == Code.UNREACHABLE
    assert said.err.startswith("runbooks: AWS cannot be used: Could not connect")


async def test_an_unknown_run_is_not_found(cli: Cli, house: House) -> None:
    commands = [["show"], ["show", "--watch"], ["report"], ["approve"], ["pause"], ["end-wait"]]
    for command in commands:
        said = await cli(command[0], "nobody", *command[1:])
        assert said.code == Code.CONFLICT, command
        assert said.err == "runbooks: there is no run nobody. See: runbooks list\n"


async def test_a_terminated_run_is_told_as_such(cli: Cli, house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    await handle.terminate("by hand")
    said = await cli("show", handle.id, "--watch")
    assert said.code == Code.RUN_FAILED
    assert "terminated without a chance to undo anything" in said.out
    assert "terminated by Temporal: nothing was undone" in (await cli("show", handle.id)).out


async def test_a_terminated_run_is_told_from_what_temporal_knows_where_no_worker_is(
    cli: Cli, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starters.runs.ANSWER", timedelta(seconds=1))
    write_settings(monkeypatch, tmp_path, client, queue := f"nobody-{uuid.uuid4()}")
    run = await client.start_workflow("QuickRollback", {}, id=queue, task_queue=queue)
    await run.terminate("by hand")
    said = await cli("show", run.id)
    document = (await cli("show", run.id, "--json")).document
    watched = await cli("show", run.id, "--watch")
    assert said.code == Code.DONE
    assert f"{run.id}: terminated by Temporal: nothing was undone" in " ".join(said.out.split())
    assert document["status"] == "terminated"
    assert (watched.code, "without a chance to undo anything" in watched.out) == (Code.RUN_FAILED, True)


async def test_without_a_worker_it_says_what_is_missing(
    cli: Cli, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starters.runs.ANSWER", timedelta(seconds=1))
    write_settings(monkeypatch, tmp_path, client, f"nobody-{uuid.uuid4()}")
    run = f"probe-{uuid.uuid4()}"
    said = await cli("start", "Probe", "--set", f"stage={stage()}", "--set", "reason=test", "--id", run)
    assert said.code == Code.DONE
    said = await cli("show", run)
    assert (said.code, said.err.startswith("runbooks: no worker answers. Start one with")) == (Code.UNREACHABLE, True)
    said = await cli("approve", run, "--by", "bob")
    assert (said.code, "no worker answers" in said.err) == (Code.UNREACHABLE, True)
    said = await cli("pause", run)
    assert (said.code, "counts as soon as a worker takes it" in said.err) == (Code.UNREACHABLE, True)
    await client.get_workflow_handle(run).terminate()


async def test_an_old_line_of_the_timeline_is_no_answer(
    cli: Cli, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker was being replaced when the command looked, and is back when it looks for the reaction."""
    handle = await house.begin()
    state = await house.until(handle.id, at_gate)
    assert "ann" in [entry.who for entry in state.timeline]
    really, looks = runs.state_of, list[str]()

    async def first_without_an_answer(session: Session, workflow_id: str) -> RunState:
        looks.append(workflow_id)
        if len(looks) == 1:
            raise runs.NoAnswerError
        return await really(session, workflow_id)

    monkeypatch.setattr(runs, "state_of", first_without_an_answer)
    said = await cli("resume", handle.id)  # which it refuses: it is not paused
    assert (said.code, said.out) == (Code.UNREACHABLE, "")
    assert "resume was sent and counts as soon as a worker takes it" in said.err
    await handle.terminate()


class Sent(Interceptor):
    """Tells when an update is on its way."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        event = self.event

        class Noted(OutboundInterceptor):
            async def start_workflow_update(self, input: StartWorkflowUpdateInput) -> WorkflowUpdateHandle[Any]:
                event.set()
                return await super().start_workflow_update(input)

        return Noted(next)


async def test_an_interrupted_answer_is_no_missing_worker(
    cli: Cli, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_settings(monkeypatch, tmp_path, client, f"nobody-{uuid.uuid4()}")
    run = f"probe-{uuid.uuid4()}"
    said = await cli("start", "Probe", "--set", f"stage={stage()}", "--set", "reason=test", "--id", run)
    assert said.code == Code.DONE
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    sent = Sent()
    session = Session(Client(**client.config() | {"interceptors": [sent]}), load_settings())
    approval = asyncio.create_task(runs.update(session, run, "decide", Decision(decision="approve", by="bob")))
    await asyncio.wait_for(sent.event.wait(), 10)
    approval.cancel()
    await asyncio.wait([approval])
    assert approval.cancelled()
    del approval
    gc.collect()
    assert complaints == []
    await client.get_workflow_handle(run).terminate()
