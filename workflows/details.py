"""A run's page as Markdown: where it stands, what it waits for, and the exact text that answers it.

Shown by the Temporal UI as *current details*. Everything a person typed is escaped, because the UI renders Markdown.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from urllib.parse import quote

from workflows.gates import missing, signed_command
from workflows.model import ChecklistItem, Gate, RunState, State, Step, Wait, plain

MARKS = {
    State.PENDING: "·",
    State.RUNNING: "▶",
    State.WAITING: "⏳",
    State.DONE: "✔",
    State.SKIPPED: "–",
    State.FAILED: "✘",
    State.UNDONE: "↺",
}


_ESCAPED = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_{}[]()<>#|!~"})


def escape(text: str) -> str:
    """Text as it was typed, with nothing in it that Markdown acts upon."""
    return " ".join(plain(text).split()).translate(_ESCAPED)


def shortened(text: str, most: int = 120) -> str:
    """Text that fits a table; a hash (one long word) is cut sooner, because the page does not break it."""
    limit = most if " " in text else 24
    return text if len(text) <= limit else text[:limit] + "…"


def clock(moment: datetime) -> str:
    return moment.strftime("%H:%M:%S")


def length(duration: timedelta) -> str:
    """A duration as people say it: ``45 s``, ``12 min``, ``3 h 20 min``, ``29 d 4 h``."""
    seconds = max(0, round(duration.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 5 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def run_page(ui_url: str, namespace: str, workflow_id: str, run_id: str | None = None) -> str:
    """Address of a run's page in the Temporal UI."""
    run = f"/{quote(run_id)}/history" if run_id else ""
    return f"{ui_url.rstrip('/')}/namespaces/{quote(namespace)}/workflows/{quote(workflow_id, safe='')}{run}"


def answers(workflow_id: str, gate: Gate) -> dict[str, str]:
    """The ways to answer a gate, each as the exact text to type."""
    if gate.signing is not None:
        return {
            "runbooks": signed_command(gate, "approve"),
            "UI": "not from here: only decisions signed with the approver's own key count",
        }
    payload = json.dumps({"by": "YOUR NAME", "gate": gate.id, "plan_hash": gate.plan_hash})
    quoted = f"-w '{workflow_id}'"
    return {
        "UI": f"Signal → approve (or reject), input {payload}",
        "runbooks": f"runbooks approve {workflow_id} --gate {gate.id} --plan {gate.plan_hash} --by 'YOUR NAME'",
        "temporal": f"temporal workflow signal {quoted} --name approve --input '{payload}'",
    }


def render(state: RunState) -> str:
    """The whole page of a run."""
    parts = [_headline(state)]
    if gate := state.open_gate():
        parts.append(_gate(state, gate))
    parts += [_wait(state.workflow_id, wait) for wait in state.waits]
    parts.append(_steps(state.steps))
    if state.checklist:
        parts.append(_checklist(state.checklist))
    if state.left_undone:
        parts.append("### Not put back\n" + "\n".join(f"- {escape(line)}" for line in state.left_undone))
    parts.append(_timeline(state))
    if state.report:
        parts.append("### Report\n" + "\n".join(f"- {kind}: `{where}`" for kind, where in state.report.items()))
    return "\n\n".join(parts)


def _headline(state: RunState) -> str:
    mode = " · **dry run, nothing is changed**" if state.dry_run else ""
    who = f", asked for by {escape(state.requested_by)}" if state.requested_by else ""
    lines = [f"**{state.runbook}** on **{escape(state.stage or '?')}**: {state.phase} · {state.percent} %{mode}"]
    if state.reason:
        lines.append(f"{escape(state.reason)}{who}")
    if state.paused_by:
        lines.append(f"**Paused by {escape(state.paused_by)}.** Signal `resume` goes on.")
    if state.lock.position is not None and not state.lock.held:
        lines.append(f"Waits for the stage: place {state.lock.position}, held by `{state.lock.holder}`.")
    if state.outcome:
        lines.append(f"**{state.outcome}**: {escape(state.summary or '')}")
    return "\n\n".join(lines)


def _gate(state: RunState, gate: Gate) -> str:
    plan = "\n".join(f"| {escape(key)} | {escape(shortened(str(value)))} |" for key, value in gate.plan.items())
    who = ", ".join(escape(person) for person in gate.approvers) or "anybody"
    if not gate.requester_may_approve:
        who += (
            f" but {escape(gate.requester)}" if gate.requester else " (the requester is not named: one more is needed)"
        )
    again = f" It is asked for the {gate.asked}. time, because the plan has changed." if gate.asked > 1 else ""
    given = "".join(
        f"\n- {escape(a.by)} approved at {clock(a.at)}" + (f", signed with key `{a.key}`" if a.key else "")
        for a in gate.approvals
    )
    ways = "\n".join(f"- {way}: `{text}`" for way, text in answers(state.workflow_id, gate).items())
    return (
        f"### Waits for you: {escape(gate.question)}{again}\n\n"
        f"| plan `{gate.plan_hash}` | |\n|---|---|\n{plan}\n\n"
        f"{missing(gate)} approval(s) more, from {who}. Without an answer by {clock(gate.deadline)} UTC "
        f"({gate.deadline:%d %b}) it counts as **{gate.on_timeout}**.{given}\n\n{ways}"
    )


def _wait(workflow_id: str, wait: Wait) -> str:
    return (
        f"### Waits until {clock(wait.until)} UTC ({wait.until:%d %b}): {escape(wait.title)}\n\n"
        f"`runbooks extend {workflow_id} --duration PT5M --by 'YOUR NAME'` · "
        f"`runbooks end-wait {workflow_id} --by 'YOUR NAME'`"
    )


APART = "\u00a0"
"""Between columns, because the Temporal UI draws tables without any room between them."""


def _steps(steps: list[Step]) -> str:
    rows = "\n".join(
        f"| {MARKS[step.state]}{APART} | {escape(step.title)}{APART} | {step.kind}{APART} | {step.state}{APART} "
        f"| {escape(step.summary or '')} |"
        for step in steps
    )
    return f"### Steps\n\n| | step | kind | state | |\n|---|---|---|---|---|\n{rows}"


def _checklist(items: list[ChecklistItem]) -> str:
    def line(item: ChecklistItem) -> str:
        note = f": {escape(item.note)}" if item.note else ""
        by = f" ({escape(item.by)})" if item.by else ""
        return f"- [{'x' if item.done else ' '}] {escape(item.text)}{by}{note}"

    return "### Checklist\n\n" + "\n".join(line(item) for item in items)


def _timeline(state: RunState) -> str:
    def line(index: int) -> str:
        entry = state.timeline[index]
        who = f"**{escape(entry.who)}** " if entry.who else ""
        warn = "⚠ " if entry.level != "info" else ""
        return f"- {clock(entry.at)} {warn}{who}{escape(entry.text)}"

    last = range(max(0, len(state.timeline) - 15), len(state.timeline))
    return "### Timeline\n\n" + "\n".join(line(index) for index in reversed(last))
