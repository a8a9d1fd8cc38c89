"""Logs Insights: ``fields``, ``display``, ``filter``, ``parse``, ``stats ... by``, ``sort``, ``limit``.

ministack knows no ``stats`` and ignores what it does not know; here a query is compiled first, and what is not
understood is a malformed query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from sandbox.aws.insights_expressions import Expression, MalformedQuery, Parser, Row, number, regex

DEFAULT_LIMIT = 10_000

_REPORT = re.compile(
    r"REPORT RequestId: (?P<id>\S+)\s+Duration: (?P<duration>[\d.]+) ms\s+Billed Duration: (?P<billed>[\d.]+) ms\s+"
    r"Memory Size: (?P<size>\d+) MB\s+Max Memory Used: (?P<used>\d+) MB(?:\s+Init Duration: (?P<init>[\d.]+) ms)?"
)
_PLATFORM = re.compile(r"(?P<type>START|END) RequestId: (?P<id>\S+)")
_QUOTED_OR_PIPE = re.compile(
    r"""(?P<pipe>\|)|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`
    |(?:like|=~|parse\s+\S+)\s*/(?:[^/\\]|\\.)+/""",
    re.VERBOSE | re.IGNORECASE,
)
_MB = 1_000_000  # Insights reports memory in bytes, a megabyte being a million

Stage = Callable[[list[Row]], list[Row]]


@dataclass
class Query:
    """A compiled query. ``run`` may be called from any thread."""

    stages: list[Stage] = field(default_factory=list)
    shown: list[str] = field(default_factory=lambda: ["@timestamp", "@message"])
    limit: int = DEFAULT_LIMIT
    aggregated: bool = False

    def run(self, records: Iterable[Row]) -> tuple[list[list[dict[str, str]]], int]:
        """The result rows as GetQueryResults gives them, and how many records matched.

        A record has ``@timestamp``, ``@message``, ``@logStream``, ``@log``, ``@ptr`` and ``_timestamp_ms``.
        """
        rows = sorted(map(discover, records), key=lambda row: -int(row["_timestamp_ms"]))
        for stage in self.stages:
            rows = stage(rows)
        return [self._shown(row) for row in rows[: self.limit]], len(rows)

    def _shown(self, row: Row) -> list[dict[str, str]]:
        names = self.shown if self.aggregated else [*self.shown, "@ptr"]
        return [{"field": name, "value": _text(row[name])} for name in names if row.get(name) is not None]


def compile_query(source: str) -> Query:
    """Read a query.

    Raises:
        MalformedQuery: it cannot be read, or uses a command or function that is not supported here.
    """
    query = Query()
    for command in _split(source):
        verb, _, argument = command.partition(" ")
        compile_command = _COMMANDS.get(verb.lower())
        if compile_command is None:
            raise MalformedQuery(f"the command {verb} is not supported here")
        compile_command(query, argument.strip())
    return query


def discover(record: Row) -> Row:
    """The record with the fields that Insights finds in its message: those of JSON, and of Lambda's own lines."""
    row = dict(record)
    message = str(row.get("@message", ""))
    report = _REPORT.match(message)
    platform = _PLATFORM.match(message)
    if report:
        row |= {"@type": "REPORT", "@requestId": report["id"]}
        row |= {"@duration": float(report["duration"]), "@billedDuration": float(report["billed"])}
        row |= {"@memorySize": int(report["size"]) * _MB, "@maxMemoryUsed": int(report["used"]) * _MB}
        if report["init"]:
            row["@initDuration"] = float(report["init"])
    elif platform:
        row |= {"@type": platform["type"], "@requestId": platform["id"]}
    elif message.lstrip().startswith("{"):
        try:
            document = json.loads(message)
        except ValueError:
            return row
        for name, value in _flattened("", document):
            row.setdefault(name, value)
    return row


def _flattened(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in items:
            yield from _flattened(f"{prefix}.{name}" if prefix else str(name), inner)
    else:
        yield prefix, value


def _split(source: str) -> list[str]:
    """The commands between the pipes; a pipe within a text, a regular expression or backticks is none."""
    source = re.sub(r"^\s*#.*$", "", source, flags=re.MULTILINE)
    ends = [found.start() for found in _QUOTED_OR_PIPE.finditer(source) if found["pipe"]]
    parts = (source[begin + 1 : end] for begin, end in zip([-1, *ends], [*ends, len(source)], strict=True))
    return [command for command in (" ".join(part.split("\n")).strip() for part in parts) if command]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4f}".rstrip("0")
    return str(value)


# --- commands ----------


def _columns(argument: str) -> list[tuple[str, Expression]]:
    """``a, b / c as d``: each column's name and how it is computed."""
    parser, columns = Parser(argument), []
    while True:
        begin = parser.position
        expression = parser.expression()
        name = parser.source[begin : parser.position].strip().strip("`")
        if parser.take("as"):
            name = parser.name()
        columns.append((name, expression))
        if not parser.take(","):
            parser.end()
            return columns


def _fields(query: Query, argument: str) -> None:
    columns = _columns(argument)

    def compute(rows: list[Row]) -> list[Row]:
        return [{**row, **{name: expression(row) for name, expression in columns}} for row in rows]

    query.stages.append(compute)
    query.shown = [name for name, _ in columns]


def _filter(query: Query, argument: str) -> None:
    parser = Parser(argument)
    test = parser.expression()
    parser.end()
    query.stages.append(lambda rows: [row for row in rows if test(row)])


def _limit(query: Query, argument: str) -> None:
    if not argument.isdigit() or not 1 <= int(argument) <= DEFAULT_LIMIT:
        raise MalformedQuery(f"limit takes a number from 1 to {DEFAULT_LIMIT}, not {argument!r}")
    query.limit = int(argument)


def _sort(query: Query, argument: str) -> None:
    parser, keys = Parser(argument), []
    while True:
        expression = parser.sum()
        keys.append((expression, parser.take("asc", "desc") == "desc"))
        if not parser.take(","):
            break
    parser.end()

    def order(rows: list[Row]) -> list[Row]:
        for expression, descending in reversed(keys):  # a stable sort by the last key first
            rows = sorted(rows, key=lambda row: _sortable(expression(row)), reverse=descending)
        return rows

    query.stages.append(order)


def _sortable(value: Any) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    as_number = number(value)
    return (1, as_number, "") if as_number is not None else (2, 0.0, str(value))


def _parse(query: Query, argument: str) -> None:
    """``parse @message /(?<name>...)/`` or ``parse @message "user=*, took * ms" as user, took``."""
    by_regex = re.fullmatch(r"(\S+)\s+/(.+)/", argument)
    by_glob = re.fullmatch(r"""(\S+)\s+(["'])(.+)\2\s+as\s+(.+)""", argument)
    if by_regex:
        source, pattern = by_regex[1], regex(by_regex[2])
    elif by_glob:
        names = [name.strip() for name in by_glob[4].split(",")]
        parts = [re.escape(part) for part in by_glob[3].split("*")]
        if len(parts) != len(names) + 1:
            raise MalformedQuery("parse needs as many names as it has *")
        groups = [f"(?P<{name}>.*{'?' if rest else ''})" for name, rest in zip(names, parts[1:], strict=True)]
        source = by_glob[1]
        pattern = re.compile(parts[0] + "".join(g + p for g, p in zip(groups, parts[1:], strict=True)), re.DOTALL)
    else:
        raise MalformedQuery(f"cannot read parse {argument}")

    def parse(rows: list[Row]) -> list[Row]:
        found = ((row, pattern.search(str(row.get(source, "")))) for row in rows)
        return [{**row, **match.groupdict()} if match else row for row, match in found]

    query.stages.append(parse)


# --- stats ----------


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


_AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "sum": sum,
    "avg": fmean,
    "min": min,
    "max": max,
    "median": lambda values: _percentile(values, 50),
    "stddev": pstdev,
}


def _stats(query: Query, argument: str) -> None:
    parser = Parser(argument)
    measures = [_measure(parser)]
    while parser.take(","):
        measures.append(_measure(parser))
    keys = _columns(parser.source[parser.position :]) if parser.take("by") else []
    if not keys:
        parser.end()

    def aggregate(rows: list[Row]) -> list[Row]:
        groups: dict[tuple[Any, ...], list[Row]] = {} if keys else {(): rows}
        for row in rows if keys else ():
            groups.setdefault(tuple(key(row) for _, key in keys), []).append(row)
        return [
            {name: value for (name, _), value in zip(keys, group, strict=True)}
            | {name: measure(members) for name, measure in measures}
            for group, members in groups.items()
        ]

    query.stages.append(aggregate)
    query.shown = [name for name, _ in keys] + [name for name, _ in measures]
    query.aggregated = True


def _measure(parser: Parser) -> tuple[str, Callable[[list[Row]], Any]]:
    begin = parser.position
    function = parser.name().lower()
    parser.expect("(")
    argument: Expression | None = None
    if parser.take("*") is None and parser.peek()[1] != ")":
        argument = parser.expression()
    percent = parser.sum()({}) if parser.take(",") else None
    parser.expect(")")
    name = parser.source[begin : parser.position].strip()
    if parser.take("as"):
        name = parser.name()
    return name, _aggregate(function, argument, percent)


def _aggregate(function: str, argument: Expression | None, percent: float | None) -> Callable[[list[Row]], Any]:
    if function == "count" and argument is None:
        return len
    if argument is None:
        raise MalformedQuery(f"{function}() needs a field")
    if function == "count":
        return lambda rows: sum(argument(row) is not None for row in rows)
    if function == "count_distinct":
        return lambda rows: len({argument(row) for row in rows} - {None})
    if function in ("latest", "earliest"):
        pick = max if function == "latest" else min

        def by_time(rows: list[Row]) -> Any:
            present = [row for row in rows if argument(row) is not None]
            return argument(pick(present, key=lambda row: int(row["_timestamp_ms"]))) if present else None

        return by_time
    if function in ("pct", "percentile"):
        if percent is None:
            raise MalformedQuery("pct() needs a percent, as in pct(@duration, 99)")
        reduce: Callable[[list[float]], float] = lambda values: _percentile(values, percent)  # noqa: E731
    elif function in _AGGREGATES:
        reduce = _AGGREGATES[function]
    else:
        raise MalformedQuery(f"the function {function} is not supported in stats")

    def measure(rows: list[Row]) -> float | None:
        values = [value for value in (number(argument(row)) for row in rows) if value is not None]
        return reduce(values) if values else None

    return measure


_COMMANDS: dict[str, Callable[[Query, str], None]] = {
    "fields": _fields,
    "display": _fields,
    "filter": _filter,
    "limit": _limit,
    "sort": _sort,
    "parse": _parse,
    "stats": _stats,
}
