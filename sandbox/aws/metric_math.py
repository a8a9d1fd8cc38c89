"""The part of CloudWatch metric math that dashboards of error rates need.

``+ - * /``, numbers, ids of other queries, ``FILL(m, 0)``, and ``SUM``, ``AVG``, ``MIN``, ``MAX`` of a list of series
(period by period) or of one series (over the whole range). Anything else is refused, never guessed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from statistics import fmean

Series = dict[int, float]
"""Values by the start of their period, epoch seconds."""

Value = Series | float


class ExpressionError(ValueError):
    """The expression cannot be evaluated; the message says why."""


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {"SUM": sum, "AVG": fmean, "MIN": min, "MAX": max}


def evaluate(expressions: dict[str, str], stored: dict[str, Series]) -> dict[str, Series]:
    """Every stored series and every expression by id. Expressions may use each other, in any order."""
    known: dict[str, Value] = dict(stored)
    periods = {period for series in stored.values() for period in series}
    open_: list[str] = []

    def value_of(id: str) -> Value:
        if id in known:
            return known[id]
        if id not in expressions:
            raise ExpressionError(f"no query has the id {id}")
        if id in open_:
            raise ExpressionError(f"the expression {id} uses itself")
        open_.append(id)
        try:
            known[id] = _evaluate(ast.parse(expressions[id].strip(), mode="eval").body, value_of, periods)
        except SyntaxError:
            raise ExpressionError(f"error in expression {id}: {expressions[id]}") from None
        open_.pop()
        return known[id]

    results: dict[str, Series] = dict(stored)
    for id in expressions:
        value = value_of(id)
        if not isinstance(value, dict):
            raise ExpressionError(f"the expression {id} is a number, not a time series")
        results[id] = value
    return results


def _evaluate(node: ast.expr, value_of: Callable[[str], Value], periods: set[int]) -> Value:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=id):
            return value_of(id)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _combine(operator.mul, -1.0, _evaluate(operand, value_of, periods))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _combine(
                _OPERATORS[type(op)], _evaluate(left, value_of, periods), _evaluate(right, value_of, periods)
            )
        case ast.Call(func=ast.Name(id="FILL"), args=[series, filler]):
            return _fill(_evaluate(series, value_of, periods), _evaluate(filler, value_of, periods), periods)
        case ast.Call(func=ast.Name(id=name), args=[ast.List(elts=elements)]) if name in _AGGREGATES:
            return _across([_evaluate(element, value_of, periods) for element in elements], _AGGREGATES[name])
        case ast.Call(func=ast.Name(id=name), args=[series]) if name in _AGGREGATES:
            value = _evaluate(series, value_of, periods)
            if isinstance(value, dict):
                return _AGGREGATES[name](list(value.values())) if value else 0.0
    raise ExpressionError(f"this expression is not supported here: {ast.unparse(node)}")


def _combine(function: Callable[[float, float], float], left: Value, right: Value) -> Value:
    """Period by period; a period that one side lacks, or a division by zero, has no value."""
    if isinstance(left, dict):
        periods = left.keys() & right.keys() if isinstance(right, dict) else left.keys()
    elif isinstance(right, dict):
        periods = right.keys()
    else:
        return function(left, right)
    result: Series = {}
    for period in periods:
        a = left[period] if isinstance(left, dict) else left
        b = right[period] if isinstance(right, dict) else right
        try:
            result[period] = function(a, b)
        except ZeroDivisionError:
            continue
    return result


def _across(values: list[Value], function: Callable[[Sequence[float]], float]) -> Series:
    series = [value for value in values if isinstance(value, dict)]
    if len(series) != len(values):
        raise ExpressionError("a list takes time series only")
    periods = {period for one in series for period in one}
    return {period: function([one[period] for one in series if period in one]) for period in periods}


def _fill(series: Value, filler: Value, periods: set[int]) -> Value:
    """A value for every period that any query of the request has (AWS: every period of the asked-for range)."""
    if not isinstance(series, dict) or isinstance(filler, dict):
        raise ExpressionError("FILL takes a time series and a number")
    return {period: series.get(period, filler) for period in periods}
