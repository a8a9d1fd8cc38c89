"""The record of a run: Markdown and HTML for people, JSON for machines, in the records store."""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
from pydantic import Field
from temporalio import activity

from activities.charts import Chart, draw
from activities.errors import classified
from activities.stage import Facts

if TYPE_CHECKING:
    from activities.records import Records

MARKS = {"pending": "·", "running": "▶", "waiting": "⏳", "done": "✔", "skipped": "–", "failed": "✘", "undone": "↺"}


class RunRecord(Facts):
    """A run as it ended. ``state`` is the JSON form of what its ``progress`` query answers."""

    stage: str
    workflow_id: str
    run_id: str
    state: dict[str, Any]
    facts: dict[str, Any] = Field(default_factory=dict)
    charts: dict[str, str] = Field(default_factory=dict, description="SVG documents by title")
    series: tuple[Chart, ...] = Field((), description="What the run watched, drawn when the report is written")


def _moment(text: str | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromisoformat(text).strftime(form) if text else ""


def _one_line(text: object) -> str:
    """Markdown that a person typed cannot break the page it is quoted in."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)


@functools.cache
def environment() -> jinja2.Environment:
    """Where the templates of reports are found, with the filters that they use. Each is compiled once a process."""
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("activities"),
        autoescape=jinja2.select_autoescape(("html", "html.j2")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"moment": _moment, "line": _one_line}
    found.globals["marks"] = MARKS
    return found


def render(record: RunRecord) -> dict[str, str]:
    """The report in each format, by file ending."""
    templates = environment()
    drawn = {chart.title: svg for chart in record.series if (svg := draw(chart)) is not None}
    values = {"run": record.state, "facts": record.facts, "charts": record.charts | drawn}
    document = {**record.state, "facts": record.facts}
    if record.series:
        document["series"] = [chart.model_dump(mode="json") for chart in record.series]
    return {
        "md": templates.get_template("report.md.j2").render(values),
        "html": templates.get_template("report.html.j2").render(values),
        "json": json.dumps(document, indent=2, ensure_ascii=False),
    }


CONTENT_TYPES = {"md": "text/markdown; charset=utf-8", "html": "text/html; charset=utf-8", "json": "application/json"}


class Reports:
    """Writes reports through the records store."""

    def __init__(self, records: Records) -> None:
        self._records = records

    @activity.defn(name="reports.write")
    @classified("write the report")
    def write(self, record: RunRecord) -> dict[str, str]:
        """Write all formats under one prefix a run; writing again overwrites the same objects.

        Returns where each format lies, by file ending.
        """
        prefix = f"runs/{record.stage}/{record.workflow_id}/{record.run_id}"
        return {
            ending: self._records.store(f"{prefix}/report.{ending}", text.encode(), CONTENT_TYPES[ending])
            for ending, text in render(record).items()
        }
