"""``runbooks doctor``: is everything in order that a stage's runbooks will need, and what to do where it is not.

It asks from where it runs, with the settings and credentials that it finds there: run it where the worker runs. Nothing
that it asks changes anything or reaches anybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from activities.clients import Aws, http_client
from activities.secret_refs import SecretResolver
from activities.settings import ConfigError, Settings, load_settings
from starters.doctor_api import ApiChecks
from starters.doctor_aws import AwsChecks
from starters.doctor_database import DatabaseChecks
from starters.doctor_lines import Check, Line, State, at_once
from starters.doctor_people import PeopleChecks
from starters.doctor_temporal import AREA, temporal_lines
from starters.output import AsJson, Output
from starters.problems import Code, Problem

_SHOWN = {
    State.OK: ("✔", "green"),
    State.WARNING: ("!", "yellow"),
    State.WRONG: ("✘", "bold red"),
    State.SKIPPED: ("–", "dim"),
}


def doctor(
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="Only this stage; default: all.")] = None,
    as_json: AsJson = False,
) -> int:
    """Check what the runbooks need: Temporal, AWS, database, backup, people. Each line says what to do.

    Run it where the worker runs, because it asks with the credentials it finds. Exit code 1 when something is wrong.
    """
    output = Output(as_json)
    with output.console.status("asking") if output.live else nullcontext():
        lines = examined(stage)
    output.show(lines, _view(lines))
    return Code.RUN_FAILED if any(line.state is State.WRONG for line in lines) else Code.DONE


def examined(stage: str | None) -> list[Line]:
    """Every line, those about what the stages share first.

    Raises:
        Problem: there is no stage of that name.
    """
    try:
        settings = load_settings()
    except ConfigError as error:
        remedy = "correct the settings; every key is explained in activities/settings.py and activities/stage.py"
        unusable = Line(area=AREA, check="settings", state=State.WRONG, said=str(error), remedy=remedy)
        return [unusable, *asyncio.run(temporal_lines(None))]
    if stage is not None and stage not in settings.stages:
        known = ", ".join(sorted(settings.stages)) or "none"
        raise Problem(f"there is no stage {stage}; the settings have: {known}", Code.CONFLICT)
    names = [stage] if stage else sorted(settings.stages)
    none = [] if names else [_no_stage()]
    lines = [*none, *asyncio.run(temporal_lines(settings))]
    for name in names:
        lines += at_once(name, *_checks(settings, name))
    return lines


def _no_stage() -> Line:
    return Line(
        area=AREA, check="settings", state=State.WRONG, said="no stage is configured", remedy="add [stages.NAME]"
    )


def _checks(settings: Settings, name: str) -> tuple[Check, list[Sequence[Check]]]:
    """What all others need, and groups of those that wait for one another."""
    stage, aws, http = settings.stages[name], Aws(settings), http_client()
    resolver = SecretResolver(aws.ssm, aws.secretsmanager)
    people = PeopleChecks(aws, settings, stage, resolver, http)
    of_aws = AwsChecks(aws, settings, stage)
    database = DatabaseChecks(aws, settings, stage, resolver, http)
    return of_aws.credentials(), [
        of_aws.all(),
        [people.secrets(), *ApiChecks(stage, resolver, http).all(), *database.all()],
        [people.approvals(), *people.providers()],
    ]


def _view(lines: list[Line]) -> RenderableType:
    parts: list[RenderableType] = []
    for area in dict.fromkeys(line.area for line in lines):
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1, overflow="fold")
        for line in (line for line in lines if line.area == area):
            sign, style = _SHOWN[line.state]
            said = Text(line.said, "" if line.state is State.OK else style)
            if line.remedy and line.state is not State.OK:
                said.append(f"\n→ {line.remedy}", "bold")
            table.add_row(Text(sign, style), Text(line.check), said)
        parts += [Text(f"\n{area}", "bold"), table]
    counts = {state: sum(line.state is state for line in lines) for state in State}
    told = f"\n{counts[State.OK]} in order, {counts[State.WARNING]} to know, {counts[State.WRONG]} wrong"
    skipped = f", {counts[State.SKIPPED]} not asked" if counts[State.SKIPPED] else ""
    return Group(*parts, Text(told + skipped, "bold red" if counts[State.WRONG] else "bold green"))
