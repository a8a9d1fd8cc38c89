"""CloudWatch Logs filter patterns: terms, JSON and space-delimited.

Grammar: https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html. What this does not
understand is refused; nothing is silently matched.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from typing import Any

Matcher = Callable[[str], bool]


class InvalidPattern(ValueError):
    """The pattern is not one CloudWatch Logs takes; the message says what is wrong with it."""


_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_ORDERINGS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}


def compile_pattern(pattern: str) -> Matcher:
    """A function that says whether a log message matches.

    Raises:
        InvalidPattern: the pattern is malformed.
    """
    pattern = pattern.strip()
    if not pattern:
        return lambda message: True
    if pattern.startswith("{"):
        return _json_pattern(pattern)
    if pattern.startswith("["):
        return _columns_pattern(pattern)
    return _terms_pattern(pattern)


# --- terms: ERROR "cold start" -timeout ?WARN %regex% ----------

_TERM = re.compile(r'\s*([?-]?)("(?:[^"\\]|\\.)*"|%[^%]+%|[^\s"%]+)')


def _terms_pattern(pattern: str) -> Matcher:
    required: list[Matcher] = []
    optional: list[Matcher] = []
    excluded: list[Matcher] = []
    position = 0
    while position < len(pattern):
        found = _TERM.match(pattern, position)
        if not found:
            raise InvalidPattern(f"cannot read {pattern[position:]!r}")
        position = found.end()
        kind = {"": required, "?": optional, "-": excluded}[found[1]]
        kind.append(_term(found[2]))
    if required:
        optional = []  # AWS ignores the ?terms beside plain ones
    return lambda message: (
        all(term(message) for term in required)
        and not any(term(message) for term in excluded)
        and (not optional or any(term(message) for term in optional))
    )


def _term(text: str) -> Matcher:
    if text.startswith("%"):
        return _regex(text)
    if text.startswith('"'):
        phrase = _unquoted(text)
        return lambda message: phrase in message
    if not re.fullmatch(r"\w+", text):
        raise InvalidPattern(f"the term {text} has characters other than letters, digits and _, so it must be quoted")
    word = re.compile(rf"(?<!\w){text}(?!\w)")
    return lambda message: word.search(message) is not None


def _regex(text: str) -> Matcher:
    try:
        expression = re.compile(text[1:-1])
    except re.error as error:
        raise InvalidPattern(f"the regular expression {text} is wrong: {error}") from None
    return lambda message: expression.search(message) is not None


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


# --- values, shared by JSON and columns ----------


def _comparison(symbol: str, literal: str) -> Callable[[Any], bool]:
    """``= 500``, ``!= "a*"``, ``>= 4``. A number is only compared with a number, a text only with a text."""
    if literal.startswith("%"):
        matches = _regex(literal)
        return lambda value: isinstance(value, str) and matches(value) == (symbol == "=")
    if _NUMBER.fullmatch(literal):
        number = float(literal)
        if symbol in _ORDERINGS:
            ordering = _ORDERINGS[symbol]
            return lambda value: _is_number(value) and ordering(value, number)
        return lambda value: (_is_number(value) and value == number) == (symbol == "=")
    if symbol in _ORDERINGS:
        raise InvalidPattern(f"{symbol} needs a number, not {literal}")
    text = _unquoted(literal) if literal.startswith('"') else literal
    glob = re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)
    return lambda value: (isinstance(value, str) and glob.fullmatch(value) is not None) == (symbol == "=")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# --- JSON: { ($.level = "ERROR") && ($.latency > 20) } ----------

_JSON_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>&&|\|\||\(|\)|!=|>=|<=|=|>|<)
    |(?P<selector>\$(?:\.[\w@-]+|\["[^"]+"\]|\[\d+\])*)
    |(?P<word>NOT\s+EXISTS|EXISTS|IS)\b
    |(?P<literal>"(?:[^"\\]|\\.)*"|%[^%]+%|[^\s()=<>!&|]+))\s*""",
    re.VERBOSE,
)
_STEP = re.compile(r'\.([\w@-]+)|\["([^"]+)"\]|\[(\d+)\]')
_MISSING = object()
_CONSTANTS = {"NULL": None, "TRUE": True, "FALSE": False}

_JsonTest = Callable[[Any], bool]


def _json_pattern(pattern: str) -> Matcher:
    if not pattern.endswith("}"):
        raise InvalidPattern("a JSON pattern ends with }")
    test = _JsonParser(pattern[1:-1]).parse()

    def matches(message: str) -> bool:
        try:
            document = json.loads(message)
        except ValueError:
            return False
        return isinstance(document, dict) and test(document)

    return matches


def _select(document: Any, selector: str) -> Any:
    for name, quoted, index in _STEP.findall(selector):
        try:
            document = document[int(index)] if index else document[name or quoted]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return document


class _JsonParser:
    """``or`` binds weaker than ``and``; parentheses group."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        text = text.strip()
        while position < len(text):
            found = _JSON_TOKEN.match(text, position)
            if not found or found.lastgroup is None:
                raise InvalidPattern(f"cannot read {text[position:]!r}")
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            position = found.end()

    def parse(self) -> _JsonTest:
        test = self._either()
        if self._tokens:
            raise InvalidPattern(f"unexpected {self._tokens[0][1]!r}")
        return test

    def _next(self, *kinds: str) -> str:
        if not self._tokens or (kinds and self._tokens[0][0] not in kinds):
            raise InvalidPattern(f"expected {' or '.join(kinds)}, found {self._tokens[0][1] if self._tokens else '}'}")
        return self._tokens.pop(0)[1]

    def _follows(self, mark: str) -> bool:
        if self._tokens and self._tokens[0] == ("mark", mark):
            self._tokens.pop(0)
            return True
        return False

    def _either(self) -> _JsonTest:
        tests = [self._both()]
        while self._follows("||"):
            tests.append(self._both())
        return lambda document: any(test(document) for test in tests)

    def _both(self) -> _JsonTest:
        tests = [self._single()]
        while self._follows("&&"):
            tests.append(self._single())
        return lambda document: all(test(document) for test in tests)

    def _single(self) -> _JsonTest:
        if self._follows("("):
            test = self._either()
            if not self._follows(")"):
                raise InvalidPattern("a parenthesis is not closed")
            return test
        selector = self._next("selector")
        symbol = self._next("mark", "word")
        if symbol == "EXISTS":
            return lambda document: _select(document, selector) is not _MISSING
        if symbol.startswith("NOT"):
            return lambda document: _select(document, selector) is _MISSING
        literal = self._next("literal")
        if symbol == "IS":
            if literal not in _CONSTANTS:
                raise InvalidPattern(f"IS takes NULL, TRUE or FALSE, not {literal}")
            return lambda document: _select(document, selector) is _CONSTANTS[literal]
        if symbol in ("&&", "||", "(", ")"):
            raise InvalidPattern(f"expected a comparison, found {symbol}")
        compare = _comparison(symbol, literal)

        def compared(document: Any) -> bool:
            value = _select(document, selector)
            return value is not _MISSING and compare(value)

        return compared


# --- columns: [ip, user, ..., status >= 500, size] ----------

_FIELD = re.compile(r'"[^"]*"|\[[^\]]*\]|\S+')
_CONDITION = re.compile(r'\w+\s*(!=|>=|<=|=|>|<)\s*("(?:[^"\\]|\\.)*"|%[^%]+%|[^\s"%]+)')


def _columns_pattern(pattern: str) -> Matcher:
    if not pattern.endswith("]"):
        raise InvalidPattern("a space-delimited pattern ends with ]")
    columns = [column.strip() for column in pattern[1:-1].split(",")]
    if columns.count("...") > 1:
        raise InvalidPattern("... may stand once")
    open_at = columns.index("...") if "..." in columns else None
    tests = [_column(column) for column in columns if column != "..."]

    def matches(message: str) -> bool:
        words = [word.strip('"') if word.startswith('"') else word for word in _FIELD.findall(message)]
        if open_at is None:
            fits = len(words) == len(tests)
        else:
            fits = len(words) >= len(tests)
            words = words[:open_at] + words[len(words) - (len(tests) - open_at) :]
        return fits and all(test(word) for test, word in zip(tests, words, strict=True))

    return matches


def _column(column: str) -> Matcher:
    """``status``, ``status = 4*``, or conditions joined by ``||`` or ``&&``."""
    if re.fullmatch(r"\w*", column):
        return lambda word: True
    for joint, combine in (("||", any), ("&&", all)):
        if joint in column:
            tests = [_column(part.strip()) for part in column.split(joint)]
            return lambda word: combine(test(word) for test in tests)
    found = _CONDITION.fullmatch(column)
    if not found:
        raise InvalidPattern(f"cannot read the column {column!r}")
    compare = _comparison(found[1], found[2])
    numeric = _NUMBER.fullmatch(found[2]) is not None
    return lambda word: compare(float(word) if numeric and _NUMBER.fullmatch(word) else word)
