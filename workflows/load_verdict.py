"""What a load test shows, and how two of them compare. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from activities.charts import Chart, Line
from activities.load_models import LoadReport
from activities.metrics import ErrorRate

TOLERANCE = 0.1
"""Two figures closer than this are the same: tests of one service differ by as much from minute to minute."""

ERROR_TOLERANCE = 0.005
"""Shares of failed calls closer than half a point are the same."""


class Change(StrEnum):
    BETTER = "better"
    SAME = "the same"
    WORSE = "worse"
    UNKNOWN = "not known"


class Compared(NamedTuple):
    change: Change
    text: str
    figure: str = ""
    """What was compared, where it is not the runbook's own figure."""


def problems(found: LoadReport, max_error_rate: float, max_p95_ms: float) -> list[str]:
    """Why a load test is not passed, one line each; empty when it is."""
    said = []
    if found.error_rate is None or found.p95_ms is None:
        return ["nothing could be measured"]
    if found.error_rate > max_error_rate:
        said.append(f"{found.error_rate:.1%} of requests failed, at most {max_error_rate:.1%} may")
    if found.p95_ms > max_p95_ms:
        said.append(f"p95 is {found.p95_ms:.0f} ms, at most {max_p95_ms:.0f} ms is wanted")
    return said


def compare(before: float | None, after: float | None, unit: str = "ms") -> Compared:
    """Whether a figure of which less is better has changed by more than chance."""
    if before is None or after is None:
        shown = (f"{value:.0f} {unit}" if value is not None else "not known" for value in (before, after))
        return Compared(Change.UNKNOWN, " → ".join(shown))
    text = f"{before:.0f} → {after:.0f} {unit}"
    if after > before * (1 + TOLERANCE) + 1:
        return Compared(Change.WORSE, text)
    if after < before * (1 - TOLERANCE):
        return Compared(Change.BETTER, text)
    return Compared(Change.SAME, text)


class Failed(NamedTuple):
    """The share of calls that failed, and of how many."""

    share: float | None
    calls: float | None

    @classmethod
    def of_test(cls, facts: Mapping[str, object]) -> Failed:
        return cls(_figure(facts, "error_rate"), _figure(facts, "requests"))

    @classmethod
    def of_metrics(cls, found: ErrorRate | None) -> Failed:
        return cls(found.rate, found.gateway_requests or found.invocations) if found else cls(None, None)


def compare_failed(before: Failed, after: Failed) -> Compared:
    """Whether clearly more or fewer calls fail: by more than the tolerance, and than so few calls show by chance."""
    text = " → ".join("not known" if one.share is None else f"{one.share:.1%}" for one in (before, after))
    figure = "share of failed calls"
    if before.share is None or after.share is None or not before.calls or not after.calls:
        return Compared(Change.UNKNOWN, text, figure)
    share = (before.share * before.calls + after.share * after.calls) / (before.calls + after.calls)
    chance = 2 * math.sqrt(share * (1 - share) * (1 / before.calls + 1 / after.calls))
    if abs(after.share - before.share) <= max(ERROR_TOLERANCE, chance):
        return Compared(Change.SAME, text, figure)
    return Compared(Change.WORSE if after.share > before.share else Change.BETTER, text, figure)


def judged(found: Compared, failed: Compared, figure: str) -> Compared:
    """The verdict on a figure, seen beside the share of failed calls.

    More failed calls are worse whatever the figure says: a call that fails is often a quick one. Fewer of them are
    better, unless the figure is worse: then it is for people to say.
    """
    beside = f"{failed.text}; {found.figure or figure} {found.text}"
    if failed.change is Change.WORSE:
        return failed._replace(text=beside)
    if failed.change is not Change.BETTER or found.change is Change.BETTER:
        return found
    mixed = found.change is Change.WORSE
    return Compared(Change.UNKNOWN if mixed else Change.BETTER, beside, failed.figure)


def compare_tests(before: Mapping[str, object], after: Mapping[str, object]) -> Compared:
    """The p95 of two load tests, by their facts: changed when so few requests cannot show as much by chance."""
    found = compare(_figure(before, "p95_ms"), _figure(after, "p95_ms"))._replace(figure="p95 of the load test")
    lower, upper = (before, after) if found.change is Change.WORSE else (after, before)
    bounds_known = all("p95_high_ms" in of for of in (before, after))  # not by tests of earlier versions
    if not bounds_known or found.change not in (Change.BETTER, Change.WORSE):
        return found
    most, least = _figure(lower, "p95_high_ms"), _figure(upper, "p95_low_ms")
    if most is None or least is None or most >= least:
        return found._replace(change=Change.SAME, text=f"{found.text}, which so few requests can show by chance")
    return found


def _figure(of: Mapping[str, object], name: str) -> float | None:
    value = of.get(name)
    return float(value) if isinstance(value, int | float) else None


def charts(found: LoadReport, title: str = "Load test") -> list[Chart]:
    """How the test went, second by second."""
    answered = tuple((second.at, float(second.answered)) for second in found.seconds)
    failed = tuple((second.at, float(second.failed)) for second in found.seconds)
    p95 = tuple((second.at, second.p95_ms) for second in found.seconds if second.p95_ms is not None)
    lines = (Line(name="answered", points=answered), Line(name="failed", points=failed))
    return [
        Chart(title=f"{title}: answers", unit="", lines=lines),
        Chart(title=f"{title}: p95", unit="ms", lines=(Line(name="p95", points=p95),)),
    ]


def thinned(chart: Chart, most: int = 120) -> Chart:
    """The chart with no more than about so many points a line: every n-th, and the last."""

    def few(line: Line) -> Line:
        step = max(1, len(line.points) // most)
        kept = line.points[::step]
        return line.model_copy(update={"points": kept if kept[-1:] == line.points[-1:] else (*kept, line.points[-1])})

    return chart.model_copy(update={"lines": tuple(few(line) for line in chart.lines)})
