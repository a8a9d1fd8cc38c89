"""``runbooks schedules``: what begins by itself, and when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from starters import schedules as calendar
from starters.operator_commands import Reason, Who
from starters.output import AsJson, Output
from starters.schedules import Applied, Row
from starters.session import connected, somebody

schedules = typer.Typer(help="What begins by itself, and when.", no_args_is_help=True)

ScheduleId = Annotated[str, typer.Argument(metavar="ID", help="Id of the schedule, as 'schedules list' shows it.")]

_STYLE = {"created": "green", "updated": "yellow", "not in the plan": "red"}


@schedules.command()
def apply(context: typer.Context, as_json: AsJson = False) -> None:
    """Have the schedules as they are written down, for every stage of the settings. Safe to repeat."""
    done = connected(lambda session: calendar.apply(session, context.obj))
    remedies = [one.note for one in done if one.did == "not in the plan"]
    Output(as_json).show(done, _applied_view(done), *remedies)


@schedules.command(name="list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """When each runs next, how its last run ended, whether it is paused."""
    rows = connected(lambda session: calendar.listed(session, context.obj))
    Output(as_json).show(rows, _list_view(rows))


@schedules.command()
def pause(name: ScheduleId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Have it start nothing until 'schedules resume'. 'apply' leaves it paused."""
    note = f"paused by {somebody(by)}" + (f": {reason}" if reason else "")
    row = connected(lambda session: calendar.pause(session, name, note))
    Output(as_json).show(row, f"{row.id}: {row.note}")


@schedules.command()
def resume(name: ScheduleId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Have it start its runs again."""
    note = f"resumed by {somebody(by)}" + (f": {reason}" if reason else "")
    row = connected(lambda session: calendar.resume(session, name, note))
    Output(as_json).show(row, f"{row.id}: {row.note}; next {_next(row)}")


def _at(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC" if moment else "-"


def _next(row: Row) -> str:
    return "never again: runbooks schedules apply" if row.over else _at(row.next_at)


def _applied_view(done: Sequence[Applied]) -> RenderableType:
    if not done:
        return Text("no runbook of the catalog has a schedule, or the settings name no stage")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")  # an id is typed again, so none of it is cut off
    for one in done:
        # What is to be done about what is not in the plan stands below, as a line that can be copied.
        note = "" if one.did == "not in the plan" else one.note
        table.add_row(Text(one.did, _STYLE.get(one.did, "dim")), one.id, Text(note, "dim"))
    return table


def _list_view(rows: Sequence[Row]) -> RenderableType:
    if not rows:
        return Text("no schedules: make them with runbooks schedules apply")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("schedule", "next", "last", "how it ended", "note"):
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        following = Text("paused", "yellow") if row.paused else Text(_next(row), "red" if row.over else "")
        ended = Text(row.last_status or "", "red" if row.last_status not in (None, "completed", "running") else "")
        table.add_row(row.id, following, _at(row.last_at), ended, Text(row.note, "dim"))
    return Group(table)
