"""The commands about runs: start, list, show, report, locks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from temporalio.client import WorkflowExecutionStatus

from starters import reports, runs, screen, seeds
from starters.attempts import trying
from starters.catalog import find
from starters.live import Follower
from starters.output import AsJson, Output
from starters.problems import Code, Problem
from starters.runs import Ended, NoAnswerError, Started
from starters.schema import typed, validated
from starters.session import Session, connected, me
from workflows.model import RunbookInput

RunId = Annotated[str, typer.Argument(metavar="ID", help="Id of the run, as 'runbooks list' shows it.")]
Stage = Annotated[str | None, typer.Option("--stage", help="Only runs on this stage.")]


def start(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The runbook, as 'runbooks catalog' lists it.")],
    text: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE|-", help="The input; - reads standard input.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One field, also a.b=value; repeatable.")
    ] = None,
    workflow_id: Annotated[
        str | None, typer.Option("--id", help="Id of the new run. Default: runbook, stage and time.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show the run live and wait for its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at everything, change nothing.")] = False,
    as_json: AsJson = False,
) -> int:
    """Start a runbook. Its input is checked here, by the runbook's own model, before anything is started."""
    output = Output(as_json)
    runbook = find(context.obj, name)
    given, raw = typed(text, assignments or [])
    if dry_run:
        given["dry_run"] = True
    if given.get("requested_by") is None and (asking := me()):
        given["requested_by"] = asking
    inp = validated(runbook.spec.input, given, raw)

    async def begin(session: Session) -> tuple[Started, Ended | None]:
        started = await runs.begin(session, runbook, inp, workflow_id)
        for line in _how_to_go_on(started, inp):
            output.line(line)
        return started, await _follow(output, session, started.id) if wait else None

    started, end = connected(begin)
    if output.json:
        output.show({**started.model_dump(mode="json"), **_end(end)})
    return _code(end)


def _how_to_go_on(started: Started, inp: RunbookInput) -> list[str]:
    run = started.id
    dry = " (dry run: it changes nothing and asks nobody)" if inp.dry_run else ""
    return [
        f"started {started.runbook} as {run}{dry}",
        f"  page    {started.ui}",
        f"  watch   runbooks show {run} --watch",
        *([] if inp.dry_run else [f"  answer  runbooks approve {run}   (or reject; also from its page in the UI)"]),
        f"  stop    runbooks abort {run} --reason 'why'",
    ]


async def _follow(output: Output, session: Session, workflow_id: str) -> Ended:
    try:
        state = await Follower(output).follow(session, workflow_id)
    except asyncio.CancelledError:  # Ctrl-C
        output.line(f"the run goes on: runbooks show {workflow_id}")
        raise
    end = await runs.ended(session, workflow_id)
    if state is None or state.outcome is None:
        output.line(f"{end.outcome}: {end.summary}", "bold red")
    elif not output.live:
        output.console.print(screen.checklist_view(state.checklist), soft_wrap=True)
        for where in state.report.values():
            output.line(f"report: {where}")
    return end


def _end(end: Ended | None) -> dict[str, Any]:
    if end is None:
        return {}
    result = end.result.model_dump(mode="json") if end.result else None
    return {"outcome": end.outcome, "summary": end.summary, "result": result}


def _code(end: Ended | None) -> int:
    return Code.DONE if end is None or end.well else Code.RUN_FAILED


def list_(
    context: typer.Context,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only runs that wait for a person.")] = False,
    stage: Stage = None,
    as_json: AsJson = False,
) -> None:
    """The newest runs."""
    rows = connected(lambda session: runs.listed(session, context.obj, waiting=waiting, stage=stage))
    Output(as_json).show(rows, screen.list_view(rows))


def show(
    run: RunId,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until it has ended.")] = False,
    as_json: AsJson = False,
) -> int:
    """Where a run stands: steps, the open gate and how to answer it, waits, checklist, last of the timeline."""
    output = Output(as_json)

    async def look(session: Session) -> int:
        end = await _follow(output, session, run) if watch else None
        description = await runs.described(session, run)
        page = session.page(run)
        status = runs.status(description.status)
        if end is None or output.json:
            closed_hard = description.status in (WorkflowExecutionStatus.TERMINATED, WorkflowExecutionStatus.TIMED_OUT)
            note = f"{status} by Temporal: nothing was undone" if closed_hard else ""
            try:
                state = await runs.state_of(session, run)
            except NoAnswerError:
                if not closed_hard:
                    raise
                known = f"{run}: {note}. Nobody can tell its state now, only its history: {page}"
                output.show({"ui": page, "status": status}, Text(known))
                return _code(end)
            failing = await trying(session, description)
            again = [one.model_dump(mode="json") for one in failing]
            document = {"ui": page, "status": status, "trying_again": again, **state.model_dump(mode="json")}
            output.show(document, screen.run_view(state, page, note, failing))
        return _code(end)

    return connected(look)


def report(
    run: RunId,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write it.")] = reports.DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Write a run's report here: Markdown, HTML, JSON. Before the end of the run: as it stands now."""
    files = connected(lambda session: reports.save(session, run, out))
    Output(as_json).show(
        {kind: str(file) for kind, file in files.items()}, Text("\n".join(str(file) for file in files.values()))
    )


def locks(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage.")],
    as_json: AsJson = False,
) -> None:
    """Who has a stage to itself, and who waits for it."""
    view = connected(lambda session: runs.lock_of(session, stage))
    Output(as_json).show(view, screen.lock_view(view))


def examples(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage that they look at.")],
    as_json: AsJson = False,
) -> None:
    """Start the example of every runbook as a dry run, so that the Temporal UI can fill its form. Safe to repeat."""

    async def begin(session: Session) -> dict[str, bool]:
        if stage not in session.settings.stages:
            known = ", ".join(session.settings.stages) or "none"
            raise Problem(f"there is no stage {stage} in the settings; there are: {known}", Code.BAD_INPUT)
        return await seeds.begin_examples(session, context.obj, stage)

    begun = connected(begin)
    lines = [f"{'started' if fresh else 'was there'}  {name}" for name, fresh in begun.items()]
    Output(as_json).show(begun, Text("\n".join(lines)))
