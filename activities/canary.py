"""What each of two versions did over the same minutes, told apart by their log streams.

Logs rather than metrics, because metrics come by the minute, count no answer of 500 that the code gives itself, and
tell versions apart only where an alias was called. Lambda names a log stream by the version that writes it, whichever
way it was called, and an execution environment serves one request at a time: so within a stream every line belongs to
the ``REPORT`` line that follows it, and each invocation is counted once, failed or not.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pydantic import AwareDatetime, Field
from temporalio import activity

from activities.errors import classified
from activities.evidence import Evidence, Finding
from activities.logs import Logs, TooMuchError, answered_5xx
from activities.metrics import Window
from activities.stage import Facts, Stage
from activities.version_counts import VersionCounts

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_logs.type_defs import FilteredLogEventTypeDef

ENDED_OR_RAISED = '?"REPORT RequestId" ?"[ERROR] " ?"Invoke Error"'
"""The end of every invocation, and what the runtimes of Python and Node write when the code raises."""
ENDED_AS_JSON = '{ $.type = "platform.report" }'
"""The same where the function logs in Lambda's JSON format."""

_REPORT = re.compile(r"REPORT RequestId: \S+\s+Duration: (?P<ms>[\d.]+) ms")
_FAILED_REPORT = re.compile(r"\bStatus: (?:timeout|error)\b")
_LEAD = timedelta(seconds=30)
"""Lines this long before the window belong to an invocation that may have ended in it; a gateway waits 29 s."""


class Measure(Facts):
    """What each version did from ``start`` to ``end``, by the end of the invocation."""

    stage: Stage
    start: AwareDatetime
    end: AwareDatetime
    versions: tuple[str, ...]
    begun: AwareDatetime | None = Field(
        None, description="Only invocations that began then or later: those of before a shift went by other weights"
    )


class Measured(Finding):
    counts: dict[str, VersionCounts | None] = Field(
        description="By version. None: could not be measured, which is not zero invocations"
    )
    problems: tuple[str, ...] = Field((), description="Why something could not be measured, one line each")

    def evidence(self) -> Evidence:
        figures: Evidence = {}
        for version, counts in self.counts.items():
            if counts is not None:
                figures |= {
                    f"version {version} invocations": counts.invocations,
                    f"version {version} errors": counts.errors,
                }
        return figures


class Canary:
    def __init__(self, logs: CloudWatchLogsClient) -> None:
        self._client = logs
        self._logs = Logs(logs)

    @activity.defn(name="canary.measure")
    @classified("count what each version did")
    def measure(self, asked: Measure) -> Measured:
        """Invocations, errors and durations by version. Not being able to measure is a result, not a failure."""
        counts: dict[str, VersionCounts | None] = {}
        problems: list[str] = []
        group = asked.stage.log_group
        for version in asked.versions:
            try:
                counts[version] = self._count(asked, version)
            except self._client.exceptions.ResourceNotFoundException:
                counts[version] = None
                problems.append(f"log group {group} does not exist")
            except TooMuchError:
                counts[version] = None
                problems.append(f"{group} holds more lines of version {version} than can be read at once")
        return Measured(
            summary="; ".join([*dict.fromkeys(problems), *(described(one) for one in counts.values() if one)]),
            counts=counts,
            problems=tuple(dict.fromkeys(problems)),
        )

    def _count(self, asked: Measure, version: str) -> VersionCounts:
        window = Window(stage=asked.stage, start=asked.start - _LEAD, end=asked.end, version=version)
        ended = list(self._logs.events(window, ENDED_OR_RAISED))
        if not any(_report(event["message"]) for event in ended):
            ended += self._logs.events(window, ENDED_AS_JSON)
        # What the code answers itself and logs as JSON: Lambda counts it as a success.
        answered = list(self._logs.events(window, answered_5xx(asked.stage.log_fields.status)))
        begun = _millis(asked.begun) if asked.begun else 0
        return count(version, ended, answered, _millis(asked.start), _millis(asked.end), begun)


def count(
    version: str,
    ended: Iterable[FilteredLogEventTypeDef],
    answered_5xx: Iterable[FilteredLogEventTypeDef],
    since_ms: int,
    until_ms: int,
    begun_ms: float = float("-inf"),
) -> VersionCounts:
    """Invocations that ended in that time and began at ``begun_ms`` or later, failed or not.

    Only good answers are timed: a failure is often quick.
    """
    streams: dict[str, list[tuple[int, int, _Report | None]]] = defaultdict(list)
    for event in ended:
        report = _report(event["message"])
        # Within a millisecond the end comes last.
        streams[event["logStreamName"]].append((event["timestamp"], int(report is not None), report))
    for event in answered_5xx:
        streams[event["logStreamName"]].append((event["timestamp"], 0, None))
    invocations = errors = 0
    good: list[float] = []
    for lines in streams.values():
        failed = False
        for at, _, report in sorted(lines, key=lambda line: line[:2]):
            if report is None:
                failed = True
                continue
            failed = failed or report.failed
            if since_ms <= at < until_ms and at - report.ms >= begun_ms:
                invocations += 1
                errors += failed
                if not failed:
                    good.append(report.ms)
            failed = False
    return VersionCounts.of(version, invocations=invocations, errors=errors, durations_ms=good)


class _Report(NamedTuple):
    """What Lambda writes at the end of an invocation."""

    ms: float
    failed: bool


def _report(line: str) -> _Report | None:
    if found := _REPORT.search(line):
        return _Report(float(found["ms"]), _FAILED_REPORT.search(line) is not None)
    if '"platform.report"' not in line:
        return None
    try:
        record = json.loads(line)["record"]
        return _Report(float(record["metrics"]["durationMs"]), record.get("status", "success") != "success")
    except (ValueError, KeyError, TypeError):
        return None


def _millis(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def described(counts: VersionCounts) -> str:
    """One version's figures for people."""
    if not counts.invocations:
        return f"version {counts.version}: no requests"
    p95 = counts.percentile_ms(0.95)
    slow = f", p95 {p95:.0f} ms" if p95 is not None else ""
    return (
        f"version {counts.version}: {counts.errors} errors of {counts.invocations} ({counts.error_rate or 0:.1%}){slow}"
    )
