"""Charts of what a run watched, as SVG: drawn when the report is written, from plain figures of the run."""

from __future__ import annotations

import functools
import itertools
import math
from datetime import datetime
from typing import Any

import jinja2
from pydantic import Field

from activities.stage import Facts

WIDTH, HEIGHT = 860, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 14, 34
"""Room for the figures of both axes, and for the legend on the right."""

COLOURS = ("#b3372f", "#2b6cb0", "#2b7a4b", "#8a5a00")
_TICKS = 4


class Line(Facts):
    """One figure over time."""

    name: str
    points: tuple[tuple[datetime, float], ...]


class Mark(Facts):
    """Something that happened at a moment, such as a verdict."""

    at: datetime
    text: str


class Chart(Facts):
    title: str
    unit: str = Field(description="Behind each figure of the axis, such as ms or %")
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    steps: bool = Field(False, description="Whether a figure holds until the next one")


def draw(chart: Chart) -> str | None:
    """The chart as an SVG document; None when it has no point."""
    moments = [at for line in chart.lines for at, _ in line.points]
    if not moments:
        return None
    start, end = min(moments).timestamp(), max([*moments, *(mark.at for mark in chart.marks)]).timestamp()
    top = _ceiling(max(value for line in chart.lines for _, value in line.points))

    def x(at: datetime) -> float:
        share = (at.timestamp() - start) / (end - start) if end > start else 0.0
        return round(LEFT + max(0.0, share) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM), 1)

    lines = [
        {
            "name": line.name,
            "colour": COLOURS[number % len(COLOURS)],
            "points": _path([(x(at), y(value)) for at, value in line.points], chart.steps, x(_last(chart, moments))),
            "dots": [] if chart.steps else [(x(at), y(value)) for at, value in line.points],
        }
        for number, line in enumerate(chart.lines)
        if line.points
    ]
    moments_shown = [datetime.fromtimestamp(start + (end - start) * n / _TICKS, moments[0].tzinfo) for n in range(5)]
    values: dict[str, Any] = {
        "chart": chart,
        "lines": lines,
        "marks": [(x(mark.at), mark) for mark in chart.marks],
        "levels": [(y(top * n / _TICKS), f"{top * n / _TICKS:g} {chart.unit}") for n in range(_TICKS + 1)],
        "times": [(x(at), f"{at:%H:%M:%S}") for at in (moments_shown if end > start else moments_shown[:1])],
        "box": {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    }
    return _template().render(values)


def _last(chart: Chart, moments: list[datetime]) -> datetime:
    return max([*moments, *(mark.at for mark in chart.marks)])


def _path(points: list[tuple[float, float]], steps: bool, end: float) -> str:
    drawn = list(points)
    if steps:
        drawn = [points[0]]
        for (_, before), (at, level) in itertools.pairwise(points):
            drawn += [(at, before), (at, level)]
        drawn.append((end, points[-1][1]))
    return " ".join(f"{at},{level}" for at, level in drawn)


def _ceiling(highest: float) -> float:
    """A round figure that is not below the highest."""
    if highest <= 0:
        return 1.0
    power = 10 ** math.floor(math.log10(highest))
    return next(float(step * power) for step in (1, 2, 4, 5, 8, 10) if step * power >= highest)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("activities"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("chart.svg.j2")
