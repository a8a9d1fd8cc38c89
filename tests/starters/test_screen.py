"""What a run looks like on a terminal, and how it is told where there is none."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from rich.text import Text

from starters.attempts import Trying
from starters.live import Follower
from starters.output import Output
from starters.screen import Narrator, run_view
from starters.session import Session
from tests.starters.conftest import House
from tests.workflows.probe import at_gate
from workflows.connection import connect
from workflows.details import clock
from workflows.model import ChecklistItem, Gate, Kind, Outcome, Phase, RunState, State, Step, TimelineEntry, Wait

NOW = datetime.now(UTC)


def state() -> RunState:
    """A run in the middle, with people's text that looks like markup."""
    return RunState(
        runbook="Probe",
        workflow_id="probe-1",
        run_id="r",
        started_at=NOW,
        stage="production",
        reason="[red]500s[/red] since [14:02]",
        requested_by="ann",
        phase=Phase.APPROVAL,
        percent=33,
        steps=[
            Step(
                id="look", title="Look", kind=Kind.LOOK, state=State.DONE, started_at=NOW, ended_at=NOW, summary="seen"
            ),
            Step(id="turn", title="Turn [it]", kind=Kind.CHANGE),
        ],
        gates=[
            Gate(
                id="turn-it",
                question="Turn it?",
                plan={"from": 1, "to": None},
                plan_hash="abc123abc123",
                needed=2,
                requester="ann",
                requester_may_approve=False,
                opened_at=NOW,
                deadline=NOW + timedelta(hours=1),
            )
        ],
        waits=[
            Wait(
                id="bake",
                title="bake",
                started_at=NOW - timedelta(minutes=5),
                until=NOW + timedelta(minutes=5, seconds=2),
            )
        ],
        checklist=[ChecklistItem(id="a", text="All is well", done=True, by="bob", note="looked")],
        timeline=[TimelineEntry(at=NOW, source="person", text="asked for: [x]", who="ann")],
    )


def drawn(run: RunState, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(run_view(run, "http://ui/run", "no worker answers"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_run_is_drawn_whole(width: int) -> None:
    text = drawn(state(), width)
    for part in (
        "Probe on production · approval · 33 %",
        "[red]500s[/red] since [14:02] (asked for by ann)",
        "http://ui/run",
        "no worker answers",
        "Turn it?",
        "plan abc123abc123 · 2 more approval(s)",
        "runbooks approve probe-1 --gate turn-it",
        "runbooks reject probe-1 --gate turn-it",
        "✔",
        "Turn [it]",
        "runbooks end-wait probe-1",
        "All is well (bob): looked",
        "asked for: [x]",
    ):
        assert part in text
    assert "--gate turn-it --plan abc123abc123 --by" in " ".join(text.split()), "a yes is to the plan that was read"


def test_the_end_shows_outcome_what_is_left_and_the_report() -> None:
    run = state()
    run.outcome, run.summary = Outcome.FAILED, "it broke"
    run.left_undone = ["put it back: no"]
    run.report = {"md": "s3://records/report.md"}
    text = drawn(run)
    for part in ("failed: it broke", "NOT PUT BACK: put it back: no", "report: s3://records/report.md"):
        assert part in text


def test_each_thing_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    narrator = Narrator(Output(as_json=False))
    run = state()
    narrator.tell(run)
    first = capsys.readouterr().out
    assert "✔ Look: seen" in first
    assert "ann asked for: [x]" in first
    assert "Turn it?" in first
    narrator.tell(run)
    assert capsys.readouterr().out == ""
    turn = run.steps[1]
    turn.state, turn.started_at, turn.ended_at, turn.summary = State.DONE, NOW, NOW, "turned"
    run.timeline.append(TimelineEntry(at=NOW, source="run", text="Turn [it]: turned"))
    run.timeline.append(TimelineEntry(at=NOW, source="run", text="more"))
    del run.timeline[0]
    run.timeline_dropped = 1
    narrator.tell(run)
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:] for line in lines] == ["✔ Turn [it]: turned", "more"]


def test_what_is_tried_again_is_told_once_for_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    narrator, run = Narrator(Output(as_json=False)), state()
    narrator.tell(run)
    capsys.readouterr()
    for attempt, said in ((2, "no answer"), (3, "no answer"), (4, "HTTP 500")):
        narrator.tell(run, [Trying(step="look", attempt=attempt, said=said, next_at=NOW)])
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:] for line in lines] == [
        f"↻ look: attempt {attempt} at {clock(NOW)} UTC. The last one: {said}"
        for attempt, said in ((2, "no answer"), (4, "HTTP 500"))
    ]


async def test_on_a_terminal_the_run_is_drawn_over_until_it_asks(house: House) -> None:
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    output = Output(as_json=False)
    output.console = Console(file=io.StringIO(), force_terminal=True, width=100, height=50, highlight=False)
    assert output.live
    from activities.settings import load_settings

    settings = load_settings()
    session = Session(await connect(settings), settings)
    seen = await Follower(output).follow(session, handle.id, until_gate=True)
    assert seen is not None
    assert seen.open_gate() is not None
    assert isinstance(output.console.file, io.StringIO)
    assert "waits for you" in output.console.file.getvalue()
    await handle.terminate()


def test_nothing_that_is_shown_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "GET /\x1b]0;mine\x07\x1b[2J\u202e"
    Output(as_json=False).show({}, hostile, Text(hostile, "red"))
    Output(as_json=False).line(hostile)
    shown = capsys.readouterr().out
    assert shown.count("GET /\ufffd]0;mine") == 3
    assert not set(shown) & set("\x1b\x07\u202e")
