"""Charts in the report: drawn from figures, safe whatever the names are."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

import pytest

from activities.charts import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Line, Mark, draw
from activities.reports import RunRecord, render
from workflows.model import Outcome, RunState

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SVG = "{http://www.w3.org/2000/svg}"


def line(name: str, *values: float) -> Line:
    return Line(name=name, points=tuple((START + timedelta(minutes=n), value) for n, value in enumerate(values)))


def test_every_point_lies_where_its_time_and_value_say() -> None:
    svg = draw(Chart(title="Errors", unit="%", lines=(line("version 1", 0, 5, 10), line("version 2", 10, 10, 10))))
    assert svg is not None
    document = ET.fromstring(svg)
    first, second = (
        [tuple(map(float, pair.split(","))) for pair in found.attrib["points"].split()]
        for found in document.iter(f"{SVG}polyline")
    )
    assert [at for at, _ in first] == [at for at, _ in second]
    assert first[0][0] == LEFT
    assert first[2][0] == WIDTH - RIGHT
    assert second[0][1] == TOP, "the highest value is a round one, so it is the top"
    assert first[0][1] > first[1][1] > first[2][1] == TOP
    assert all(0 <= level <= HEIGHT for _, level in first + second)
    assert {"version 1", "version 2", "12:00:00", "10 %"} <= {found.text for found in document.iter(f"{SVG}text")}


def test_weights_are_steps_that_hold_until_the_end() -> None:
    end = START + timedelta(minutes=9)
    svg = draw(
        Chart(title="Share", unit="%", lines=(line("1", 10, 50),), marks=(Mark(at=end, text="go_on"),), steps=True)
    )
    points = next(ET.fromstring(svg or "").iter(f"{SVG}polyline")).attrib["points"].split()
    assert len(points) == 4
    assert float(points[-1].split(",")[0]) == WIDTH - RIGHT


@pytest.mark.parametrize("values", [(), (0.0,), (0.0, 0.0)])
def test_few_or_equal_points(values: tuple[float, ...]) -> None:
    svg = draw(Chart(title="Errors", unit="%", lines=(line("1", *values),)))
    assert (svg is None) == (not values)
    if svg:
        assert "nan" not in svg


def test_the_report_holds_the_chart_and_names_cannot_break_it() -> None:
    state = RunState(
        runbook="R", workflow_id="w", run_id="r", started_at=START, stage="s", outcome=Outcome.COMPLETED
    ).model_dump(mode="json")
    chart = Chart(title="Errors <script>", unit="%", lines=(line('"><script>alert(1)</script>', 1, 2),))
    html = render(RunRecord(stage="s", workflow_id="w", run_id="r", state=state, series=(chart,)))["html"]
    assert "<svg" in html
    assert "<script>" not in html
