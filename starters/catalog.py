"""``runbooks catalog``: every runbook, what it is for, what it takes, what it does and asks, what undoes it."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from starters.output import AsJson, Output
from starters.problems import Code, Problem
from starters.schema import InputField, fields
from workflows.model import Kind, StepSpec
from workflows.runbook import Runbook

Catalog = Sequence[type[Runbook[Any]]]

KIND_STYLE = {Kind.CHANGE: "bold yellow", Kind.GATE: "bold magenta", Kind.UNDO: "yellow", Kind.WAIT: "cyan"}


class Page(BaseModel):
    """What there is to know of a runbook before it runs."""

    name: str
    when: str
    about: str
    changes: bool
    fields: list[InputField]
    example: dict[str, Any]
    start: str
    steps: list[StepSpec]
    gates: dict[str, str]
    checklist: dict[str, str]
    input_schema: dict[str, Any]


def find(catalog: Catalog, name: str) -> type[Runbook[Any]]:
    """The runbook of that name, whatever its case.

    Raises:
        Problem: there is none; the message lists those that exist.
    """
    for candidate in catalog:
        if candidate.__name__.casefold() == name.casefold():
            return candidate
    known = ", ".join(candidate.__name__ for candidate in catalog)
    raise Problem(f"there is no runbook {name}; there are: {known}", Code.CONFLICT)


def page(runbook: type[Runbook[Any]]) -> Page:
    spec = runbook.spec
    return Page(
        name=runbook.__name__,
        when=spec.when,
        about=inspect.getdoc(runbook) or "",
        changes=spec.changes,
        fields=fields(spec.input),
        example=spec.example,
        start=f"runbooks start {runbook.__name__} --input {shlex.quote(json.dumps(spec.example))}",
        steps=list(spec.steps),
        gates=dict(spec.gates),
        checklist=dict(spec.checklist),
        input_schema=spec.input.model_json_schema(),
    )


def catalog(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One runbook in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """What runbooks there are; with a name, all about that one: input, steps, gates, undo."""
    output = Output(as_json)
    if name is None:
        pages = [page(runbook) for runbook in context.obj]
        output.show(pages, _overview(pages))
    else:
        found = page(find(context.obj, name))
        output.show(found, _in_full(found), f"  {found.start}")


def _overview(pages: Sequence[Page]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("runbook", "changes", "when to use it"):
        table.add_column(column)
    for one in pages:
        table.add_row(Text(one.name, "bold"), "yes" if one.changes else "no", Text(one.when))
    return Group(table, Text("\nAll about one: runbooks catalog NAME", "dim"))


def _in_full(one: Page) -> RenderableType:
    prose = re.sub(r"(?<!\n)\n(?!\n)", " ", one.about)
    parts: list[RenderableType] = [
        Text(one.name, "bold") + Text("" if one.changes else " (only looks)", "dim"),
        Text(one.when, "italic"),
        Text("\n" + prose),
        Text("\nInput", "bold"),
        Padding(_field_table(one.fields), (0, 0, 0, 2)),
        Text("\nSteps", "bold"),
        Padding(_step_table(one.steps), (0, 0, 0, 2)),
    ]
    if one.gates:
        parts.append(Text("\nAsks people", "bold"))
        parts += [Text(f"  {gate}: {question}") for gate, question in one.gates.items()]
    if one.checklist:
        parts.append(Text("\nChecklist", "bold"))
        parts += [Text(f"  {key}: {text}") for key, text in one.checklist.items()]
    return Group(*parts, Text("\nExample", "bold"))


def _field_table(rows: Sequence[InputField]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("field", "takes", "default", "what it is"):
        table.add_column(column, header_style="dim", no_wrap=column == "field")
    for row in rows:
        default = "required" if row.required else "" if row.default is None else json.dumps(row.default)
        table.add_row(Text(row.name, "bold" if row.required else ""), row.takes, default, Text(row.description))
    return table


def _step_table(steps: Sequence[StepSpec]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("", "step", "kind", "undone by"):
        table.add_column(column, header_style="dim")
    for number, step in enumerate(steps, 1):
        kind = Text(step.kind.value, KIND_STYLE.get(step.kind, ""))
        table.add_row(str(number), Text(step.title), kind, Text(step.undo or ""))
    return table
