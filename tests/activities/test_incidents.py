"""Which alerts are of one problem: the incident's id is all that tells them apart."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from activities.incidents import incident_id
from workflows.model import Name

PREFIX = "acme-platform-state-tracking-api-production-eu-west-1-lambda"


@pytest.mark.parametrize(
    ("stage", "key", "named"),
    [
        ("production", "state-api-production-errors", "incident-production-state-api-production-errors"),
        ("production", "error-rate", "incident-production-error-rate"),
        ("production", " Checkout  fails", "incident-production-checkout-fails"),
        ("eu-prod", "errors", "incident-eu-prod.errors"),
    ],
)
def test_who_reads_stage_and_key_knows_the_id(stage: str, key: str, named: str) -> None:
    assert incident_id(stage, key) == named
    assert incident_id(stage, key, drill=True) == named.replace("incident-", "drill-")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("production", "Платежи не проходят"), ("production", "Сайт не открывается")),
        (("production", "Сайт не открывается"), ("production", "決済が失敗する")),
        (("production", "決済が失敗する"), ("production", "unnamed")),
        (("production", f"{PREFIX}-errors-high"), ("production", f"{PREFIX}-throttles")),
        (("production", "x" * 100), ("production", "x" * 99 + "y")),
        (("production", "latency > 1 s"), ("production", "latency < 1 s")),
        (("eu", "prod-x"), ("eu-prod", "x")),
        (("eu", "prod-ж"), ("eu-prod", "ж")),
        (("s" * 95, "errors"), ("s" * 95, "latency")),
    ],
)
def test_problems_that_differ_have_incidents_that_differ(one: tuple[str, str], other: tuple[str, str]) -> None:
    ids = [incident_id(*problem, drill=drill) for problem in (one, other) for drill in (False, True)]
    assert len(set(ids)) == 4, ids
    for found in ids:
        assert TypeAdapter(Name).validate_python(found), "an incident takes it as its key"


def test_one_problem_has_one_incident_however_it_is_spelt() -> None:
    spelt = ("Платежи не проходят!", "платежи  не проходят! ")
    assert len({incident_id("production", key) for key in spelt}) == 1
    assert incident_id("production", "Errors HIGH") == incident_id("production", "errors-high")
