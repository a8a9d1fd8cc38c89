"""The logs for a diagnosis, counted where they lie by Logs Insights: requests, REPORT lines, kinds of errors."""

from __future__ import annotations

import statistics
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from temporalio import activity

from activities.errors import classified
from activities.insights import MOST_ROWS, Insights, Row, figure, whole
from activities.logs import OF_NODE, RAISED_WORDS, record_of, shown
from activities.metrics import Window
from activities.routes import route_of
from activities.stage import Stage
from activities.symptom_models import (
    ClientCount,
    ErrorKind,
    ErrorKinds,
    Points,
    Reports,
    Requests,
    RequestsAsked,
    RouteCount,
)

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

_ROUTES = 40
_CLIENTS = 10
_KINDS = 10
_MB = 1_000_000
"""Insights gives memory in bytes, a megabyte being a million of them."""

_GREW = 0.1
"""An environment grows when its use rose by this share of the memory it has."""

_SEEN_OFTEN = 5
"""Fewer invocations of an environment say nothing about growth."""

_PLAIN = (
    'filter @type = "REPORT" | stats count(*) as n, avg(@duration) as average, count(@initDuration) as cold, '
    "avg(@initDuration) as init, max(@initDuration) as longest, max(@memorySize) as size, max(@maxMemoryUsed) as used, "
    "avg(@maxMemoryUsed) as usual by bin(1m) as minute"
)
_PLAIN_GROWTH = (
    'filter @type = "REPORT" | stats count(*) as n, min(@maxMemoryUsed) as low, max(@maxMemoryUsed) as high '
    "by @logStream | sort high desc"
)
_JSON = (
    'filter type = "platform.report" | stats count(*) as n, avg(record.metrics.durationMs) as average, '
    "count(record.metrics.initDurationMs) as cold, avg(record.metrics.initDurationMs) as init, "
    "max(record.metrics.initDurationMs) as longest, max(record.metrics.memorySizeMB) as size, "
    "max(record.metrics.maxMemoryUsedMB) as used, avg(record.metrics.maxMemoryUsedMB) as usual by bin(1m) as minute"
)
_JSON_GROWTH = (
    'filter type = "platform.report" | stats count(*) as n, min(record.metrics.maxMemoryUsedMB) as low, '
    "max(record.metrics.maxMemoryUsedMB) as high by @logStream | sort high desc"
)
_TIMEOUTS = 'filter @message like "Task timed out" | stats count(*) as n'
_LOGGED = 'filter level = "ERROR" or level = "FATAL" | stats count(*) as n by {kind}, {text} | sort n desc'
_ANY_OF_THEM = " or ".join(f'@message like "{words}"' for words in RAISED_WORDS)
_RAISED = (
    f'filter (not ispresent(level) or level not in ["ERROR", "FATAL"]) and ({_ANY_OF_THEM}) '
    "| fields @message | limit 200"
)
"""But for those that count as logged: in Lambda's JSON format the runtime's own lines have a level too."""


class SymptomLogs:
    def __init__(self, logs: CloudWatchLogsClient, poll: float = 0.5) -> None:
        self._insights = Insights(logs, poll)

    @activity.defn(name="insights.requests")
    @classified("count requests in the log")
    def requests(self, asked: RequestsAsked) -> Requests:
        """Answers by status, route and client. A log that is not there, or has no such lines, is said."""
        window, stage = asked.window, asked.window.stage
        fields = stage.log_fields
        if asked.source == "gateway":
            group = stage.gateway.log_group
            names = (fields.gateway_status, fields.gateway_method, fields.gateway_path, fields.gateway_client)
            took = fields.gateway_latency
        else:
            group = stage.log_group
            names = (fields.status, fields.method, fields.route, fields.client)
            took = fields.duration
        if group is None:
            return Requests(summary=f"stage {stage.name} names no log group of its gateway")
        query = (
            f"filter ispresent({names[0]}) | stats count(*) as n, avg({took}) as average, max({took}) as longest, "
            f"min(@timestamp) as first, max(@timestamp) as last by {', '.join(names)} | sort n desc"
        )
        rows = self._insights.ask(group, query, window.start, window.end)
        if rows is None:
            return Requests(summary=f"log group {group} does not exist: requests are not known")
        prefix = f"/{stage.gateway.stage}" if asked.source == "gateway" else ""
        return counted(rows, names, group, prefix)

    @activity.defn(name="insights.reports")
    @classified("read the REPORT lines")
    def reports(self, window: Window) -> Reports:
        """Cold starts, memory and time-outs, in Lambda's plain log format or in its JSON one."""
        group = window.stage.log_group
        rows = self._insights.ask(group, _PLAIN, window.start, window.end)
        if rows is None:
            return Reports(summary=f"log group {group} does not exist: cold starts and memory are not known")
        growth_query, unit = _PLAIN_GROWTH, _MB
        if not rows:
            rows = self._insights.ask(group, _JSON, window.start, window.end) or []
            growth_query, unit = _JSON_GROWTH, 1
        if not rows:
            return Reports(summary=f"no REPORT line in {group}: cold starts and memory are not known")
        growth = self._insights.ask(group, growth_query, window.start, window.end) or []
        timeouts = self._insights.ask(group, _TIMEOUTS, window.start, window.end) or []
        return reported(rows, growth, whole(timeouts[0], "n") if timeouts else 0, unit)

    @activity.defn(name="insights.errors")
    @classified("group the errors in the log")
    def errors(self, window: Window) -> ErrorKinds:
        """Kinds of errors that the code logged as JSON, and what the runtime wrote where it raised or died."""
        stage: Stage = window.stage
        logged_query = _LOGGED.format(kind=stage.log_fields.error_type, text=stage.log_fields.error)
        logged = self._insights.ask(stage.log_group, logged_query, window.start, window.end)
        if logged is None:
            return ErrorKinds(summary=f"log group {stage.log_group} does not exist: errors are not known")
        raised = self._insights.ask(stage.log_group, _RAISED, window.start, window.end) or []
        kinds: Counter[tuple[str, str]] = Counter()
        for row in logged:
            kind = row.get(stage.log_fields.error_type, "error")
            kinds[kind[:80], shown(row.get(stage.log_fields.error, ""))] += whole(row, "n")
        for row in raised:
            kinds[_raised_kind(row.get("@message", ""))] += 1
        total = sum(kinds.values())
        most = tuple(ErrorKind(kind=kind, text=text, count=n) for (kind, text), n in kinds.most_common(_KINDS))
        first = f": most of them {most[0].kind} ({most[0].text})" if most else ""
        return ErrorKinds(summary=f"{total} errors of {len(kinds)} kinds{first}", total=total, kinds=most)


def _raised_kind(message: str) -> tuple[str, str]:
    if "Task timed out" in message:
        return "TimedOut", "Task timed out"
    if "Runtime exited" in message:
        return "RuntimeExited", "the environment died: out of memory, or the code ended it"
    if "Process exited" in message:
        return "ProcessExited", "the code ended its process before it answered"
    if of_node := next((words for words in OF_NODE if words in message), None):
        return str(record_of(message).get("errorType", of_node))[:80], shown(message)
    text = shown(message.splitlines()[0] if message else "")
    kind, _, rest = text.removeprefix("[ERROR]").strip().partition(":")
    return kind[:80] or "error", rest.strip() or text


def counted(rows: list[Row], names: tuple[str, str, str, str], group: str, prefix: str = "") -> Requests:
    """Rows of ``stats count(*) as n ... by status, method, route, client``, added up three ways.

    ``prefix`` is what the gateway puts before the API's own paths: the name of its stage.
    """
    if not rows:
        return Requests(summary=f"no line with a status in {group}: requests are not known")
    status_name, method_name, route_name, client_name = names
    statuses: Counter[str] = Counter()
    routes: dict[tuple[int, str], list[Row]] = {}
    clients: dict[str, Counter[str]] = {}
    for row in rows:
        status, n = whole(row, status_name), whole(row, "n")
        statuses[str(status)] += n
        routes.setdefault((status, route_of(row.get(method_name), _own_path(row.get(route_name), prefix))), []).append(
            row
        )
        client = clients.setdefault(row.get(client_name, "without a key")[:40], Counter())
        client["requests"] += n
        name = "limited" if status == 429 else "missed" if status == 404 else "failed" if status >= 500 else "other"
        client[name] += n
    by_route = sorted((_route_count(key, found) for key, found in routes.items()), key=lambda one: -one.requests)
    by_client = sorted(
        (
            ClientCount(
                client=name,
                requests=found["requests"],
                limited=found["limited"],
                missed=found["missed"],
                failed=found["failed"],
            )
            for name, found in clients.items()
        ),
        key=lambda one: (-one.requests, one.client),
    )
    total = sum(statuses.values())
    shares = ", ".join(f"{status}: {n}" for status, n in sorted(statuses.items()))
    others = [one.requests for one in by_client[1:]]
    return Requests(
        summary=f"{total} requests ({shares}) of {len(clients)} clients",
        total=total,
        average_ms=_weighted(rows, "average", "n"),
        statuses=dict(statuses),
        routes=tuple(by_route[:_ROUTES]),
        clients=tuple(by_client[:_CLIENTS]),
        client_count=len(by_client),
        other_median=float(statistics.median(others)) if others else None,
        complete=len(rows) < MOST_ROWS,
    )


def _own_path(path: str | None, prefix: str) -> str | None:
    return path.removeprefix(prefix) or "/" if path and (path + "/").startswith(prefix + "/") else path


def _route_count(key: tuple[int, str], rows: list[Row]) -> RouteCount:
    n = sum(whole(row, "n") for row in rows)
    timed = [(whole(row, "n"), value) for row in rows if (value := figure(row, "average")) is not None]
    longest = [value for row in rows if (value := figure(row, "longest")) is not None]
    weight = sum(count for count, _ in timed)
    return RouteCount(
        status=key[0],
        route=key[1],
        requests=n,
        average_ms=round(sum(count * value for count, value in timed) / weight, 1) if weight else None,
        longest_ms=max(longest, default=None),
        first_at=_moment(min((value for row in rows if (value := figure(row, "first")) is not None), default=None)),
        last_at=_moment(max((value for row in rows if (value := figure(row, "last")) is not None), default=None)),
    )


def reported(minutes: list[Row], growth: list[Row], timeouts: int, unit: int) -> Reports:
    """Rows by minute and by environment, added up. ``unit`` is what one MB of memory counts in the rows."""
    n = sum(whole(row, "n") for row in minutes)
    cold = sum(whole(row, "cold") for row in minutes)
    size = max((figure(row, "size") or 0 for row in minutes), default=0) / unit
    used = max((figure(row, "used") or 0 for row in minutes), default=0) / unit
    grown = [
        ((figure(row, "high") or 0) - (figure(row, "low") or 0)) / unit
        for row in growth
        if whole(row, "n") >= _SEEN_OFTEN
    ]
    growing = sum(1 for one in grown if size and one >= _GREW * size)
    init = _weighted(minutes, "init", "cold")
    line = f"{cold} of {n} invocations started cold"
    if init is not None:
        line += f" ({init:.0f} ms on average)"
    line += f"; at most {used:.0f} of {size:.0f} MB used"
    if growing:
        line += f", growing in {growing} environments"
    if timeouts:
        line += f"; {timeouts} timed out"
    return Reports(
        summary=line,
        invocations=n,
        average_ms=_weighted(minutes, "average", "n"),
        cold_starts=cold,
        init_average_ms=init,
        init_longest_ms=max((value for row in minutes if (value := figure(row, "longest")) is not None), default=None),
        memory_size_mb=round(size) or None,
        memory_used_mb=round(used, 1) or None,
        memory_average_mb=_weighted(minutes, "usual", "n", unit),
        environments=len(growth),
        growing=growing,
        growth_mb=round(max(grown), 1) if grown else None,
        timeouts=timeouts,
        points=_points(minutes, unit),
    )


def _moment(milliseconds: float | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _weighted(rows: list[Row], name: str, by: str, unit: int = 1) -> float | None:
    timed = [(whole(row, by), value) for row in rows if (value := figure(row, name)) is not None]
    weight = sum(count for count, _ in timed)
    return round(sum(count * value for count, value in timed) / weight / unit, 1) if weight else None


def _points(rows: list[Row], unit: int) -> Points:
    found = [
        (datetime.strptime(row["minute"][:19], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC), value / unit)
        for row in rows
        if row.get("minute") and (value := figure(row, "used")) is not None
    ]
    return tuple(sorted(found))
