"""Expressions of the Logs Insights query language: what ``filter``, ``stats``, ``fields`` and ``sort`` compute.

Grammar: https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/CWL_QuerySyntax.html. A part of it: comparisons,
``like``, ``in``, ``and``/``or``/``not``, arithmetic, ``bin()`` and the functions below. The rest is refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]
Expression = Callable[[Row], Any]


class MalformedQuery(ValueError):
    """The query cannot be read, or uses what is not supported here."""


_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<period>\d+(?:ms|s|m|h|d|w)\b)
    |(?P<number>\d+(?:\.\d+)?)
    |(?P<name>`[^`]+`|[@A-Za-z_][\w@.]*)
    |(?P<mark>!=|>=|<=|=~|[=<>()\[\],*/%+-]))\s*""",
    re.VERBOSE,
)
_REGEX = re.compile(r"\s*/((?:[^/\\]|\\.)+)/(i?)\s*")
_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}")


def number(value: Any) -> float | None:
    """The value as a number, None when it is none. A time, as @timestamp is shown, is milliseconds since 1970."""
    if isinstance(value, bool):
        return float(value)
    try:
        return float(value)
    except (TypeError, ValueError):
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            return datetime.strptime(value, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC).timestamp() * 1000
        return None


def _numeric(function: Callable[..., float]) -> Callable[..., float | None]:
    def apply(*values: Any) -> float | None:
        numbers = [number(value) for value in values]
        if any(one is None for one in numbers):
            return None
        try:
            return function(*numbers)
        except (ZeroDivisionError, ValueError):
            return None

    return apply


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "ispresent": lambda value: value is not None,
    "isempty": lambda value: value is None or value == "",
    "strcontains": lambda value, part: int(value is not None and str(part) in str(value)),
    "strlen": lambda value: None if value is None else len(str(value)),
    "coalesce": lambda *values: next((value for value in values if value is not None), None),
    "abs": _numeric(abs),
    "ceil": _numeric(lambda value: float(-(-value // 1))),
    "floor": _numeric(lambda value: float(value // 1)),
    "greatest": _numeric(max),
    "least": _numeric(min),
}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


class Parser:
    """Reads one command's argument from left to right. What it read stays known, for the names of columns."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0

    # --- tokens ---

    def peek(self) -> tuple[str, str]:
        """Kind and text of what follows; kind ``end`` at the end."""
        if not self.source[self.position :].strip():
            return "end", ""
        found = _TOKEN.match(self.source, self.position)
        if not found or found.lastgroup is None:
            raise MalformedQuery(f"cannot read {self.source[self.position :]!r}")
        return found.lastgroup, found[found.lastgroup]

    def take(self, *wanted: str) -> str | None:
        """The next word or mark when it is one of ``wanted`` (words in any case), else None and nothing is read."""
        kind, text = self.peek()
        if kind in ("name", "mark") and text.lower() in wanted:
            self._skip()
            return text.lower()
        return None

    def expect(self, mark: str) -> None:
        if self.take(mark) is None:
            raise MalformedQuery(f"expected {mark} before {self.source[self.position :]!r}")

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise MalformedQuery(f"unexpected {self.source[self.position :]!r}")

    def name(self) -> str:
        kind, text = self.peek()
        if kind != "name":
            raise MalformedQuery(f"expected a field name before {self.source[self.position :]!r}")
        self._skip()
        return text.strip("`")

    def _skip(self) -> None:
        found = _TOKEN.match(self.source, self.position)
        assert found is not None  # peek() has matched here
        self.position = found.end()

    # --- expressions, weakest binding first ---

    def expression(self) -> Expression:
        tests = [self._both()]
        while self.take("or"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _both(self) -> Expression:
        tests = [self._negation()]
        while self.take("and"):
            tests.append(self._negation())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _negation(self) -> Expression:
        if self.take("not"):
            test = self._negation()
            return lambda row: not test(row)
        return self._comparison()

    def _comparison(self) -> Expression:
        left = self.sum()
        negated = self.take("not") is not None
        kind = self.take("like", "=~", "in", *(() if negated else _COMPARISONS))
        if kind is None:
            if negated:
                raise MalformedQuery("after 'not' comes 'like' or 'in'")
            return left
        if kind == "in":
            test = self._membership(left)
        elif kind in ("like", "=~"):
            test = self._likeness(left)
        else:
            test = _compare(kind, left, self.sum())
        return (lambda row: not test(row)) if negated else test

    def _membership(self, left: Expression) -> Expression:
        self.expect("[")
        options = [self.sum()]
        while self.take(","):
            options.append(self.sum())
        self.expect("]")
        tests = [_compare("=", left, option) for option in options]
        return lambda row: any(test(row) for test in tests)

    def _likeness(self, left: Expression) -> Expression:
        found = _REGEX.match(self.source, self.position)
        if found:
            self.position = found.end()
            pattern = regex(found[1], ignore_case=bool(found[2]))
        else:
            pattern = re.compile(re.escape(self._text()))
        return lambda row: (value := left(row)) is not None and pattern.search(str(value)) is not None

    def sum(self) -> Expression:
        left = self._product()
        while symbol := self.take("+", "-"):
            left = _calculate(symbol, left, self._product())
        return left

    def _product(self) -> Expression:
        left = self._atom()
        while symbol := self.take("*", "/", "%"):
            left = _calculate(symbol, left, self._atom())
        return left

    def _atom(self) -> Expression:
        if self.take("("):
            inner = self.expression()
            self.expect(")")
            return inner
        if self.take("-"):
            return _calculate("-", lambda row: 0, self._atom())
        kind, text = self.peek()
        if kind == "number":
            self._skip()
            value = float(text)
            return lambda row: value
        if kind == "text":
            literal = self._text()
            return lambda row: literal
        field = self.name()
        if not self.take("("):
            return lambda row: row.get(field)
        if field.lower() == "bin":
            return self._bin()
        function = _FUNCTIONS.get(field.lower())
        if function is None:
            raise MalformedQuery(f"the function {field} is not supported here")
        arguments = [self.expression()]
        while self.take(","):
            arguments.append(self.expression())
        self.expect(")")
        return lambda row: function(*(argument(row) for argument in arguments))

    def _bin(self) -> Expression:
        kind, text = self.peek()
        if kind != "period":
            raise MalformedQuery("bin() takes a period such as 5m")
        self._skip()
        self.expect(")")
        count, unit = re.fullmatch(r"(\d+)(\D+)", text).groups()  # type: ignore[union-attr]  # the token's own form
        width = int(count) * _UNITS_MS[unit]
        return lambda row: timestamp(row["_timestamp_ms"] // width * width)

    def _text(self) -> str:
        kind, text = self.peek()
        if kind != "text":
            raise MalformedQuery(f"expected a quoted text before {self.source[self.position :]!r}")
        self._skip()
        return re.sub(r"\\(.)", r"\1", text[1:-1])


def regex(source: str, *, ignore_case: bool = False) -> re.Pattern[str]:
    """A regular expression of the query language; its groups are named ``(?<name>...)``."""
    try:
        return re.compile(re.sub(r"\(\?<(?![=!])", "(?P<", source), re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise MalformedQuery(f"the regular expression /{source}/ is wrong: {error}") from None


def timestamp(epoch_ms: int) -> str:
    """As Insights writes it: UTC, with milliseconds, without a zone."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.") + f"{epoch_ms % 1000:03d}"


def _calculate(symbol: str, left: Expression, right: Expression) -> Expression:
    apply = _numeric(_ARITHMETIC[symbol])
    return lambda row: apply(left(row), right(row))


def _compare(symbol: str, left: Expression, right: Expression) -> Expression:
    compare = _COMPARISONS[symbol]

    def test(row: Row) -> bool:
        a, b = left(row), right(row)
        if a is None or b is None:
            return symbol == "!=" and a is not b
        x, y = number(a), number(b)
        return compare(x, y) if x is not None and y is not None else compare(str(a), str(b))

    return test
