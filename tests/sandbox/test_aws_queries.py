"""The languages of the embedded AWS, without a server: filter patterns, Insights queries, metric math."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox.aws.filter_patterns import InvalidPattern, compile_pattern
from sandbox.aws.insights import compile_query
from sandbox.aws.insights_expressions import MalformedQuery
from sandbox.aws.metric_math import ExpressionError, evaluate


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("", ["anything"], []),
        ("ERROR", ["an ERROR here", "[ERROR]"], ["error", "ERRORS"]),
        ("ERROR timeout", ["timeout of ERROR"], ["ERROR"]),
        ("ERROR -timeout", ["ERROR"], ["ERROR timeout"]),
        ("?ERROR ?WARN", ["ERROR", "WARN"], ["INFO"]),
        ("ERROR ?WARN", ["ERROR"], ["WARN"]),
        ('"Task timed out"', ["x Task timed out after 3.00 seconds"], ["Task time out"]),
        (r'"say \"no\""', ['they say "no"'], ["they say no"]),
        ("%ERR[A-Z]+%", ["ERRORS"], ["ERR"]),
        ("{ $.code = 500 }", ['{"code": 500}', '{"code": 500.0}'], ['{"code": "500"}', '{"code": true}', "500", "[]"]),
        ("{ $.code != 500 }", ['{"code": 200}'], ['{"code": 500}', "{}"]),
        ("{ ($.a = 1 && $.b = 2) || $.c > 3 }", ['{"a":1,"b":2}', '{"c":4}'], ['{"a":1}', '{"c":3}']),
        ('{ $.msg = "*boom*" }', ['{"msg": "a boom!"}'], ['{"msg": "quiet"}', '{"msg": 1}']),
        ("{ $.user.tags[1] = x }", ['{"user":{"tags":["w","x"]}}'], ['{"user":{"tags":["x"]}}', '{"user":1}']),
        ("{ $.a IS NULL }", ['{"a": null}'], ["{}", '{"a": 0}']),
        ("{ $.a IS TRUE }", ['{"a": true}'], ['{"a": 1}']),
        ("{ $.a NOT EXISTS }", ["{}"], ['{"a": null}']),
        ("{ $.a EXISTS }", ['{"a": null}'], ["{}"]),
        ("{ $.a = %^x\\d$% }", ['{"a": "x1"}'], ['{"a": "xx"}']),
        ("[ip, status >= 500, size]", ["1.2.3.4 503 12"], ["1.2.3.4 404 12", "1.2.3.4 503", "1.2.3.4 x 12"]),
        ("[..., status = 4* || status = 5*, size]", ["a b c 503 12", "404 1"], ["a 200 12", "1"]),
        ("[first, ..., last = end]", ["a b c end", "a end"], ["a b", "end"]),
        ('[a, quoted = "GET /x*", ...]', ['ip "GET /x/1" 200'], ['ip "POST /x" 200']),
    ],
)
def test_filter_pattern(pattern: str, yes: list[str], no: list[str]) -> None:
    matches = compile_pattern(pattern)
    assert [message for message in yes if not matches(message)] == []
    assert [message for message in no if matches(message)] == []


@pytest.mark.parametrize(
    "pattern",
    ["cold-start", '"open', "{ $.a }", "{ $.a = 1", "{ a = 1 }", "{ ($.a = 1 }", "{ $.a > x }", "{ $.a = 1 $.b = 2 }",
     "{ $.a IS 1 }", "[a, b", "[..., a, ...]", "[a = ]", "%(%"],
)  # fmt: skip
def test_malformed_filter_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        compile_pattern(pattern)


RECORDS = [
    {"@message": message, "_timestamp_ms": 60_000 * n, "@timestamp": f"t{n}", "@ptr": str(n)}
    for n, message in enumerate(
        [
            '{"path": "/a", "ms": 10, "ok": true, "user": {"id": "u1"}}',
            '{"path": "/a", "ms": 30, "ok": false, "user": {"id": "u2"}}',
            '{"path": "/b", "ms": 5, "ok": true, "tags": ["x", "y"]}',
            "user=ada took 12 ms",
        ]
    )
]


def run(query: str) -> list[dict[str, str]]:
    results, _ = compile_query(query).run(RECORDS)
    return [{one["field"]: one["value"] for one in row if one["field"] != "@ptr"} for row in results]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("fields @timestamp", [{"@timestamp": f"t{n}"} for n in (3, 2, 1, 0)]),
        ("fields ms | sort ms | limit 2", [{}, {"ms": "5"}]),
        ("fields ms * 2 + 1 as x | filter path = '/b'", [{"x": "11"}]),
        ("filter ms >= 10 and not ok = 1 | display path, user.id", [{"path": "/a", "user.id": "u2"}]),
        ("filter path in ['/b', '/c'] or tags.1 = 'y' | fields tags.0", [{"tags.0": "x"}]),
        ("filter @message not like /path|tags/ | fields @timestamp", [{"@timestamp": "t3"}]),
        ("filter @message like 'took' \n# no more\n| fields @timestamp", [{"@timestamp": "t3"}]),
        ("parse @message 'user=* took * ms' as who, took | filter took > 11 | fields who", [{"who": "ada"}]),
        (r"parse @message /took (?<took>\d+)/ | filter ispresent(took) | fields took", [{"took": "12"}]),
        (
            "filter ispresent(ms) | stats count(*) as n, avg(ms), sum(strcontains(path, 'a')) as a by path | sort path",
            [{"path": "/a", "n": "2", "avg(ms)": "20", "a": "2"}, {"path": "/b", "n": "1", "avg(ms)": "5", "a": "0"}],
        ),
        (
            "filter ispresent(path) | stats latest(@timestamp) as last, earliest(ms) as first by path | sort path",
            [{"path": "/a", "last": "t1", "first": "10"}, {"path": "/b", "last": "t2", "first": "5"}],
        ),
        ("stats count_distinct(path) as n, pct(ms, 50) as p, count(ms)", [{"n": "2", "p": "10", "count(ms)": "3"}]),
        ("stats max(ms) by bin(2m)", [
            {"bin(2m)": "1970-01-01 00:02:00.000", "max(ms)": "5"},
            {"bin(2m)": "1970-01-01 00:00:00.000", "max(ms)": "30"},
        ]),
        ("filter ms > 1000 | stats count(*) as n", [{"n": "0"}]),
    ],
)  # fmt: skip
def test_insights_query(query: str, expected: list[dict[str, str]]) -> None:
    assert run(query) == expected


@pytest.mark.parametrize(
    "query",
    ["teleport x", "filter", "filter a = ", "filter a not = 1", "stats avg()", "stats pct(a)", "stats count(*) by",
     "fields f(a)", "limit 0", "limit x", "filter a like /(/", "parse @message 'a * b'", "sort a b"],
)  # fmt: skip
def test_malformed_insights_query_is_refused(query: str) -> None:
    with pytest.raises(MalformedQuery):
        compile_query(query)


def test_metric_math() -> None:
    stored = {"e": {0: 1.0, 60: 2.0}, "n": {0: 10.0, 60: 0.0, 120: 5.0}}
    expressions: dict[str, Any] = {
        "rate": "100 * e / n",
        "filled": "FILL(e, 0)",
        "both": "SUM([e, n])",
        "share": "e / SUM(e)",
        "later": "rate + 1",
    }
    found = evaluate(expressions, stored)
    assert found["rate"] == {0: 10.0}, "a division by zero has no value"
    assert found["filled"] == {0: 1.0, 60: 2.0, 120: 0.0}
    assert found["both"] == {0: 11.0, 60: 2.0, 120: 5.0}
    assert found["share"] == {0: pytest.approx(1 / 3), 60: pytest.approx(2 / 3)}
    assert found["later"] == {0: 11.0}


@pytest.mark.parametrize(
    "expression", ["x", "a.b", "e if e else n", "e ** 2", "__import__('os')", "IF(e, 1)", "1 + 1", "("]
)
def test_metric_math_refuses_the_rest(expression: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate({"r": expression}, {"e": {0: 1.0}})
