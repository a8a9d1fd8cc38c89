"""CloudWatch Logs of the stage's function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic import Field
from temporalio import activity

from activities.errors import classified
from activities.evidence import Finding
from activities.metrics import Window
from activities.scrub import scrub

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_logs.type_defs import FilteredLogEventTypeDef

LOGGED = '{ $.level = "ERROR" || $.level = "FATAL" }'
"""Errors that the application itself logs, as JSON. Patterns are case-sensitive."""
OF_NODE = ("Invoke Error", "Uncaught Exception", "Unhandled Promise Rejection")
"""What Lambda's runtime for Node writes before the error as JSON, in one line of its plain log format."""
RAISED_WORDS = ("[ERROR]", *OF_NODE, "Task timed out", "Runtime exited", "Process exited")
"""What Lambda and its runtimes write when the code raises, hangs or dies."""
RAISED = " ".join(f'?"{words}"' for words in RAISED_WORDS)
FINISHED = '"REPORT RequestId"'
"""One line an invocation, written by Lambda at its end."""


def answered_5xx(field: str) -> str:
    """Pattern of the JSON lines of such an answer. Some formats have the status in quotes; a text is never a number."""
    return f'{{ ($.{field} >= 500) || ($.{field} = "5*") }}'


_SAMPLES = 5
_SAMPLE_LENGTH = 200
_MOST_PAGES = 100


class LogErrors(Finding):
    """Error lines in the function's log, against the invocations in it. Absent figures could not be measured."""

    errors: int | None = Field(None, description="Lines; absent when the log group does not exist")
    requests: int | None = Field(None, description="Invocations that ended; absent when they could not all be counted")
    rate: float | None = Field(None, description="Error lines of invocations, at most 1; absent without invocations")
    complete: bool = Field(True, description="False when there was more to read than is read at once")
    samples: tuple[str, ...] = Field((), description="A few messages, newest first, shortened and without secrets")


class Logs:
    def __init__(self, logs: CloudWatchLogsClient) -> None:
        self._logs = logs

    @activity.defn(name="logs.errors")
    @classified("read the function's log")
    def errors(self, window: Window) -> LogErrors:
        """Count error lines and invocations in the window, and keep a few of the messages.

        A log group that does not exist yet is no error: Lambda makes it at the first invocation. It says so.
        """
        group = window.stage.log_group
        try:
            logged = list(self.events(window, LOGGED))
            raised = list(self.events(window, RAISED))
            finished = sum(1 for _ in self.events(window, FINISHED))
        except self._logs.exceptions.ResourceNotFoundException:
            return LogErrors(summary=f"log group {group} does not exist: errors are not known", complete=False)
        except TooMuchError:
            return LogErrors(
                summary=f"{group} holds more lines than can be read at once: take a shorter window", complete=False
            )
        found = {event["eventId"]: event for event in (*logged, *raised)}
        newest = sorted(found.values(), key=lambda event: event["timestamp"], reverse=True)
        errors = len(found)
        rate = min(1.0, errors / finished) if finished else None
        minutes = window.length.total_seconds() / 60
        share = f" ({rate:.3%})" if rate is not None else ": the rate is not known"
        return LogErrors(
            summary=f"{errors} error lines, {finished} invocations in {minutes:.0f} min of {group}{share}",
            errors=errors,
            requests=finished,
            rate=rate,
            samples=tuple(shown(event["message"]) for event in newest[:_SAMPLES]),
        )

    def events(self, window: Window, pattern: str) -> Iterator[FilteredLogEventTypeDef]:
        """Lines in the window that fit the filter pattern, stream by stream in order.

        Raises:
            TooMuchError: there are more than are read at once.
        """
        for prefix in stream_prefixes(window):
            narrowed: _Narrowed = {"logStreamNamePrefix": prefix} if prefix else {}
            pages = self._logs.get_paginator("filter_log_events").paginate(
                logGroupName=window.stage.log_group,
                startTime=int(window.start.timestamp() * 1000),
                endTime=int(window.end.timestamp() * 1000),
                filterPattern=pattern,
                **narrowed,
            )
            for number, page in enumerate(pages):
                if number >= _MOST_PAGES:
                    raise TooMuchError
                activity.heartbeat({"phase": f"reading {window.stage.log_group}", "page": number})
                yield from page["events"]


def stream_prefixes(window: Window) -> list[str | None]:
    """How the log streams begin that can hold the window's lines: Lambda names them by day and version of the function.

    An execution environment keeps its stream for as long as it lives, some hours, so the day before counts too.
    """
    if window.version is None:
        return [None]
    first, last = (window.start - timedelta(days=1)).date(), window.end.date()
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    return [f"{day:%Y/%m/%d}/[{window.version}]" for day in days]


class _Narrowed(TypedDict, total=False):
    logStreamNamePrefix: str


class TooMuchError(Exception):
    """More lines than are read at once."""


_NODE = re.compile(rf"(?s)\t(?:{'|'.join(OF_NODE)})\s+(?=\{{)")


def record_of(line: str) -> dict[str, Any]:
    """What a log line says as JSON: all of it, or what the runtime for Node writes behind its words; else nothing."""
    said = _NODE.search(line)
    try:
        record = json.loads(line[said.end() :] if said else line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def field_of(record: dict[str, Any], path: str) -> str | None:
    """A field of a JSON line by the name that Logs Insights has for it; absent, null and empty are all None."""
    found: Any = record
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return None if found in (None, "") else str(found)


def shown(line: str) -> str:
    """A log line for people: the message of a JSON line, in one line, shortened, without what looks like a secret."""
    text = line
    if record := record_of(line):
        parts = (record.get(key) for key in ("message", "msg", "error", "errorMessage"))
        text = " - ".join(str(part) for part in parts if part) or line
    text = " ".join(scrub(text).split())
    return text if len(text) <= _SAMPLE_LENGTH else text[: _SAMPLE_LENGTH - 1] + "…"
