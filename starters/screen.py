"""A run on the screen: drawn whole for a terminal, told line by line elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from starters.attempts import Trying
from starters.catalog import KIND_STYLE
from starters.output import Output
from starters.runs import Row
from workflows.details import MARKS, answers, clock, length
from workflows.gates import missing
from workflows.model import ChecklistItem, Gate, Kind, Outcome, RunState, State, Step, TimelineEntry, Wait
from workflows.stage_lock import LockView

STATE_STYLE = {
    State.PENDING: "dim",
    State.RUNNING: "bold cyan",
    State.WAITING: "bold magenta",
    State.DONE: "green",
    State.SKIPPED: "dim",
    State.FAILED: "bold red",
    State.UNDONE: "yellow",
}
LEVEL_STYLE = {"info": "", "warning": "yellow", "error": "bold red"}

_TIMELINE = 6
_BAR = 30


def run_view(
    state: RunState, page: str, note: str = "", failing: Sequence[Trying] = (), *, brief: bool = False
) -> RenderableType:
    """The whole run, most urgent first; ``brief`` keeps each step on one line, to fit on one screen."""
    parts: list[RenderableType] = [_headline(state), Text(page, f"dim link {page}")]
    if note:
        parts.append(Text(note, "bold yellow"))
    if gate := state.open_gate():
        lines = Group(*gate_lines(state, gate))
        parts.append(Panel(lines, title="waits for you", border_style="magenta", box=box.HORIZONTALS))
    parts.append(Padding(_steps(state, brief), (1, 0, 0, 0)))
    parts += [Text(f"↻ {one.text}", "yellow") for one in failing]
    parts += [_wait(state, wait) for wait in state.waits]
    if not brief and any(item.done for item in state.checklist):
        parts.append(checklist_view(state.checklist))
    parts += [Text(f"NOT PUT BACK: {line}", "bold red") for line in state.left_undone]
    parts.append(Padding(Group(*(_entry(entry) for entry in state.timeline[-_TIMELINE:])), (1, 0, 0, 0)))
    if state.outcome:
        parts.append(Padding(outcome_line(state), (1, 0, 0, 0)))
    parts += [Text(f"report: {where}", "dim", overflow="fold") for where in list(state.report.values())[:1]]
    return Group(*parts)


def _headline(state: RunState) -> Text:
    line = Text.assemble((state.runbook, "bold"), " on ", (state.stage or "?", "bold"), f" · {state.phase.value}")
    line.append(f" · {state.percent} %")
    if state.dry_run:
        line.append(" · dry run, nothing is changed", "bold cyan")
    if state.paused_by:
        line.append(f" · paused by {state.paused_by}: runbooks resume {state.workflow_id}", "bold yellow")
    if state.lock.position is not None and not state.lock.held:
        line.append(f" · waits for the stage: place {state.lock.position} behind {state.lock.holder}", "yellow")
    if state.reason:
        line.append(f"\n{state.reason}" + (f" (asked for by {state.requested_by})" if state.requested_by else ""))
    return line


def gate_lines(state: RunState, gate: Gate) -> list[RenderableType]:
    """The question, the plan that a yes releases, and how to answer."""
    plan = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for key, value in gate.plan.items():
        plan.add_row(Text(key, "dim"), Text("-" if value is None else str(value), overflow="fold"))
    again = f" (asked for the {gate.asked}. time: the plan has changed)" if gate.asked > 1 else ""
    given = [
        Text(f"{a.by} approved at {clock(a.at)}" + (f", signed with key {a.key}" if a.key else ""), "green")
        for a in gate.approvals
    ]
    ways = answers(state.workflow_id, gate)
    yes = ways["runbooks"]
    return [
        Text(gate.question + again, "bold"),
        plan,
        Text(_rules(gate), "dim"),
        *given,
        Text(yes, "bold"),
        Text(yes.replace(" approve ", " reject ", 1), "bold"),
        Text(f"or in the Temporal UI: {ways['UI']}", "dim"),
    ]


def _rules(gate: Gate) -> str:
    who = ", ".join(gate.approvers) or "anybody"
    if not gate.requester_may_approve:
        who += f" but {gate.requester}" if gate.requester else " (who asked is not named: one more is needed)"
    return (
        f"plan {gate.plan_hash} · {missing(gate)} more approval(s), from {who} · "
        f"without an answer by {clock(gate.deadline)} UTC it counts as {gate.on_timeout}"
    )


def _steps(state: RunState, brief: bool) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(ratio=2, no_wrap=brief, overflow="ellipsis")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(ratio=3, no_wrap=brief, overflow="ellipsis")
    for step in state.steps:
        style = STATE_STYLE[step.state]
        table.add_row(
            Text(MARKS[step.state], style),
            Text(step.title, "dim" if step.state in (State.PENDING, State.SKIPPED) else ""),
            Text(step.kind.value, KIND_STYLE.get(step.kind, "dim")),
            Text(_took(step), "dim"),
            Text(step.summary or "", "red" if step.state is State.FAILED else "dim"),
        )
    return table


def _took(step: Step) -> str:
    if step.started_at is None:
        return ""
    return length((step.ended_at or datetime.now(UTC)) - step.started_at)


def _wait(state: RunState, wait: Wait) -> RenderableType:
    now = datetime.now(UTC)
    whole = max((wait.until - wait.started_at).total_seconds(), 1)
    bar = ProgressBar(total=whole, completed=min(whole, (now - wait.started_at).total_seconds()), width=_BAR)
    row = Table.grid(padding=(0, 2))
    left = length(max(wait.until - now, timedelta(0)))
    row.add_row(Text("⏳"), Text(wait.title), bar, Text(f"{left} left, until {clock(wait.until)} UTC", "cyan"))
    run = state.workflow_id
    ways = [f"   runbooks extend {run} --duration PT5M", f"   runbooks end-wait {run}"]
    return Group(row, *(Text(way, "dim") for way in ways))


def checklist_view(items: Sequence[ChecklistItem]) -> RenderableType:
    lines = [Text("\nChecklist", "bold")]
    for item in items:
        line = Text("✔ " if item.done else "□ ", "green" if item.done else "yellow") + Text(item.text)
        line.append(f" ({item.by})" if item.by and item.by != "evidence" else "", "dim")
        line.append(f": {item.note}" if item.note else "", "dim")
        lines.append(line)
    return Group(*lines)


def outcome_line(state: RunState) -> Text:
    good = state.outcome in (Outcome.COMPLETED, Outcome.DRY_RUN)
    return Text(f"{state.outcome}: {state.summary}", "bold green" if good else "bold red")


def _entry(entry: TimelineEntry) -> Text:
    return Text.assemble(
        (f"{clock(entry.at)} ", "dim"),
        (f"{entry.who} " if entry.who else "", "bold"),
        (" ".join(entry.text.split()), LEVEL_STYLE[entry.level]),
    )


class Narrator:
    """Tells a run line by line, each thing once, for where the screen cannot be drawn over."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._entries = 0
        self._states: dict[str, State] = {}
        self._asked: set[tuple[str, int]] = set()
        self._steps_told: set[str] = set()
        self._failures: set[tuple[str, str]] = set()

    def tell(self, state: RunState, failing: Sequence[Trying] = ()) -> None:
        """What is new since the last call."""
        for step in state.steps:
            self._step(step)
        for entry in state.timeline[max(0, self._entries - state.timeline_dropped) :]:
            if entry.text not in self._steps_told:
                self._output.console.print(_entry(entry), soft_wrap=True)
        self._entries = state.timeline_dropped + len(state.timeline)
        for one in failing:
            if (one.step, one.said) not in self._failures:
                self._failures.add((one.step, one.said))
                self._output.line(f"{clock(datetime.now(UTC))} ↻ {one.text}", "yellow")
        gate = state.open_gate()
        if gate and (gate.id, gate.asked) not in self._asked:
            self._asked.add((gate.id, gate.asked))
            for line in gate_lines(state, gate):
                self._output.console.print(line, soft_wrap=isinstance(line, Text))

    def _step(self, step: Step) -> None:
        if self._states.get(step.id) is step.state:
            return
        self._states[step.id] = step.state
        if step.state in (State.PENDING, State.SKIPPED) or (step.state is State.WAITING and step.kind is Kind.GATE):
            return
        text = f"{step.title}: {step.summary}" if step.summary and step.state is not State.RUNNING else step.title
        self._steps_told.add(text)
        moment = (step.ended_at or step.started_at or datetime.now(UTC)).astimezone(UTC)
        self._output.line(f"{clock(moment)} {MARKS[step.state]} {text}", STATE_STYLE[step.state])


def list_view(rows: Sequence[Row]) -> RenderableType:
    """The runs as a table."""
    if not rows:
        return Text("no runs", "dim")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("id", "runbook", "stage", "phase", "waits for", "status", "started (UTC)"):
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(
            Text(row.id, "bold"),
            row.runbook,
            Text(row.stage or ""),
            row.phase or "",
            Text(row.gate or "", "bold magenta"),
            Text(row.status, "" if row.status in ("running", "completed") else "red"),
            f"{row.started_at:%Y-%m-%d %H:%M:%S}",
        )
    return table


def lock_view(view: LockView) -> RenderableType:
    """Who has a stage."""
    if view.holder is None:
        return Text(f"{view.stage} is free", "green")
    since = f" since {clock(view.since)} UTC" if view.since else ""
    lines = [Text(f"{view.stage} is held by {view.holder.workflow_id} ({view.holder.runbook}){since}")]
    lines += [Text(f"  {place}. {r.workflow_id} ({r.runbook}) waits") for place, r in enumerate(view.queue, 1)]
    return Group(*lines)
