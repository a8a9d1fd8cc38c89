"""The decision tree: every branch and every cause reached, readings that cannot be, remedies that cannot help."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.log_kinds import LogCounts, kind_of
from activities.releases import LedgerEntry
from workflows.catalog import RUNBOOKS
from workflows.diagnosis_causes import CANDIDATES
from workflows.diagnosis_model import Branch, Conclusion, Readings
from workflows.diagnosis_remedies import Context
from workflows.diagnosis_tree import diagnose, set_aside

NOW = datetime(2026, 1, 20, 14, 5, tzinfo=UTC)
CONTEXT = Context("production", "more 500s", incident="incident-1", severity="P1")


def deployed(minutes: float, label: str = "broken") -> LedgerEntry:
    return LedgerEntry(
        app="a",
        stage="production",
        release="bbbbbbb",
        label=label,
        engine="sst",
        deployed_at=NOW - timedelta(minutes=minutes),
        deployed_by="ci",
    )


WELL: dict[str, Any] = {
    "taken_at": NOW,
    "health_ok": True,
    "health_status": 200,
    "health_ms": 12,
    "ready_ok": True,
    "ready_status": 200,
    "ready_ms": 20,
    "invocations": 1000,
    "errors": 0,
    "throttles": 0,
    "duration_ms": 40,
    "duration_max_ms": 90,
    "concurrent": 4,
    "timeout_ms": 30_000,
    "memory_mb": 512,
    "memory_used_mb": 120,
    "requests": 1000,
    "gateway_5xx": 0,
    "gateway_4xx": 10,
    "gateway_ms": 60,
    "integration_ms": 50,
    "log_lines": LogCounts(),
    "reports": 1000,
    "cold_starts": 4,
    "init_ms": 300,
    "database_ok": True,
    "database_ping_ms": 2,
    "connections": 40,
    "connections_left": 1460,
    "live": "good",
}
DEAD = {"health_ok": False, "health_status": 502, "ready_ok": False, "ready_status": 502, "errors": 900}
FAILING = {"errors": 0, "gateway_5xx": 300}
SLOW = {"duration_ms": 6000, "duration_max_ms": 9000, "integration_ms": 6100, "gateway_ms": 6200}
REFUSED = {"throttles": 400, "invocations": 600, "reserved": 1, "concurrent": 1, "gateway_5xx": 400}


def conclude(**changes: Any) -> Conclusion:
    return diagnose(Readings.model_validate({**WELL, **changes}), CONTEXT)


@pytest.mark.parametrize(
    ("seen", "branch", "cause", "next_runbook"),
    [
        # not responding
        (
            {**DEAD, "deployments": [deployed(3)], "log_lines": LogCounts(startup=900)},
            "not_responding",
            "deployment",
            "QuickRollback",
        ),
        (
            {**DEAD, "database_ok": False, "database_problem": "refused", "log_lines": LogCounts(database=50)},
            "not_responding",
            "database-down",
            None,
        ),
        (
            {**DEAD, "connections_left": 0, "log_lines": LogCounts(database=50)},
            "not_responding",
            "pool",
            "ConnectionPoolScaling",
        ),
        ({**DEAD, "log_lines": LogCounts(credential=50)}, "not_responding", "credential", None),
        (
            {**DEAD, "duration_max_ms": 30_000, "log_lines": LogCounts(timeout=50)},
            "not_responding",
            "time-out",
            "ServiceRestart",
        ),
        (
            {**DEAD, "memory_used_mb": 512, "log_lines": LogCounts(memory=50)},
            "not_responding",
            "memory",
            "VerticalScaling",
        ),
        (
            {**DEAD, "reserved": 0, "invocations": None, "errors": None, "throttles": 900},
            "not_responding",
            "stopped",
            None,
        ),
        (
            {"health_ok": False, "health_status": None, "ready_ok": False, "duration_max_ms": 29_900},
            "not_responding",
            "time-out",
            "ServiceRestart",
        ),
        (
            {"ready_ok": False, "ready_status": 503, "requests": None, "errors": None, "connections_left": 0},
            "not_responding",
            "pool",
            "ConnectionPoolScaling",
        ),
        # errors
        (
            {**FAILING, "deployments": [deployed(3)], "log_lines": LogCounts(code=300)},
            "errors",
            "deployment",
            "QuickRollback",
        ),
        ({**FAILING, "log_lines": LogCounts(database=300), "database_ping_ms": 900}, "errors", "database-errors", None),
        (
            {**FAILING, "gateway_4xx": 600, "log_lines": LogCounts(validation=300)},
            "errors",
            "validation",
            "HighErrorRate",
        ),
        (
            {**FAILING, "duration_max_ms": 30_000, "log_lines": LogCounts(timeout=300)},
            "errors",
            "time-out",
            "ServiceRestart",
        ),
        ({**FAILING, "log_lines": LogCounts(credential=300)}, "errors", "credential", None),
        (
            {"errors": 80, "log_lines": LogCounts(memory=80), "memory_used_mb": 512},
            "errors",
            "memory",
            "VerticalScaling",
        ),
        # latency
        ({**SLOW, "deployments": [deployed(3)]}, "latency", "deployment", "QuickRollback"),
        ({**SLOW, "database_ping_ms": 900}, "latency", "queries", "PerformanceDegradation"),
        ({"gateway_ms": 7000, "integration_ms": 300}, "latency", "network", None),
        (
            {**SLOW, "cold_starts": 600, "init_ms": 4000, "duration_ms": 1500},
            "latency",
            "cold-starts",
            "ProvisionedConcurrency",
        ),
        ({**SLOW, "memory_used_mb": 510, "log_lines": LogCounts(memory=4)}, "latency", "memory", "VerticalScaling"),
        # throttling
        (REFUSED, "throttling", "concurrency", None),
        ({**REFUSED, "health_ok": False, "health_status": 429}, "throttling", "concurrency", None),
        ({**REFUSED, "reserved": None}, "throttling", "concurrency", "ProvisionedConcurrency"),
    ],
)
def test_every_branch_and_every_cause(seen: dict[str, Any], branch: str, cause: str, next_runbook: str | None) -> None:
    found = conclude(**seen)
    assert (found.branch, found.causes[0].id) == (branch, cause), [(c.id, c.score) for c in found.causes]
    assert found.causes[0].supports
    assert (found.next.runbook if found.next else None) == next_runbook, found.options


def test_the_table_reaches_every_cause_there_is() -> None:
    rows = test_every_branch_and_every_cause.pytestmark[0].args[1]  # type: ignore[attr-defined]
    reached = {(branch, cause) for _, branch, cause, _ in rows}
    known = {(branch.value, cause.id) for branch, causes in CANDIDATES.items() for cause in causes}
    # A cause may be the runner-up in one branch and the first in another; a stopped function is never only throttled.
    missing = {cause for _, cause in known} - {cause for _, cause in reached}
    assert missing == set()
    assert {branch.value for branch in CANDIDATES} - {branch for branch, _ in reached} == {"healthy", "unknown"}


def test_well_and_unknown() -> None:
    assert conclude().branch is Branch.HEALTHY
    assert conclude().next is None
    blind = diagnose(Readings(taken_at=NOW, failed_sources={"metrics": "no answer"}), CONTEXT)
    assert blind.branch is Branch.UNKNOWN
    assert blind.failed == ("metrics: no answer",)


def test_the_next_runbook_comes_with_its_input() -> None:
    found = conclude(**FAILING, deployments=[deployed(3)], log_lines=LogCounts(code=300)).next
    assert found is not None
    assert found.input == {
        "stage": "production",
        "reason": "more 500s (diagnosis: the newest deployment)",
        "incident": "incident-1",
        "severity": "P1",
    }


@pytest.mark.parametrize(
    ("seen", "runbook", "own"),
    [
        ({**DEAD, "memory_used_mb": 512, "log_lines": LogCounts(memory=50)}, "VerticalScaling", {"memory_mb": 1024}),
        (
            {**DEAD, "connections": 1500, "connections_left": 0, "concurrent": 30},
            "ConnectionPoolScaling",
            {"max_pool_size": 40},
        ),
        (
            {**SLOW, "cold_starts": 600, "init_ms": 4000, "duration_ms": 1500, "concurrent": 12},
            "ProvisionedConcurrency",
            {"executions": 12},
        ),
    ],
)
def test_a_capacity_that_was_measured_is_filled_in(seen: dict[str, Any], runbook: str, own: dict[str, int]) -> None:
    found = conclude(**seen).next
    assert found is not None
    assert found.runbook == runbook
    assert {name: found.input[name] for name in own} == own


def test_what_cannot_be_worked_out_is_no_remedy_and_a_person_is_told_what_to_do() -> None:
    found = conclude(**{**DEAD, "connections_left": 0, "connections": None})
    assert found.causes[0].id == "pool"
    assert found.causes[0].remedy is None
    assert "raise its reserved concurrency" in (conclude(**REFUSED).causes[0].by_hand or "")


def test_deployments_in_the_window_are_named() -> None:
    found = conclude(**FAILING, deployments=[deployed(3), deployed(600, "old")])
    assert found.deployments[0] == "broken at 2026-01-20 14:02 UTC by ci (3 min before)"
    assert len(found.deployments) == 2


def test_all_symptoms_are_said_and_the_first_of_the_document_leads() -> None:
    found = conclude(**SLOW, errors=0, gateway_5xx=300, throttles=100)
    assert found.branch is Branch.ERRORS
    assert len(found.symptoms) == 3


def test_the_document_s_checks_stand_beside_what_was_seen() -> None:
    assert list(conclude(**DEAD).checks) == [
        "Check Lambda logs",
        "Check database connection",
        "Check API Gateway metrics",
    ]
    assert (
        conclude(**FAILING, routes={"GET /sessions": 300}).checks["Identify affected endpoints"]
        == "GET /sessions (300)"
    )
    assert list(conclude(**SLOW).checks) == ["Check Lambda duration metrics", "Check database query performance"]
    assert "600 invocations and 400 refused" in conclude(**REFUSED).checks["Check request volume"]


@pytest.mark.parametrize(
    ("seen", "what"),
    [
        ({"gateway_ms": 50, "integration_ms": 700}, "the integration outlasts the gateway"),
        ({"gateway_ms": 50, "integration_ms": 40, "duration_ms": 800, "duration_max_ms": 900}, "the function outlasts"),
        ({"errors": 1001}, "more invocations fail than there are"),
        ({"gateway_5xx": 1001}, "more requests are answered 5xx"),
        ({"duration_max_ms": 90_000}, "ran longer than the function may"),
        ({"duration_ms": 100}, "longer on average than at most"),
        ({"memory_used_mb": 900}, "more memory than there is"),
        ({"live_since": NOW + timedelta(hours=2)}, "in the future"),
        ({"throttles": -1}, "throttles is -1"),
    ],
)
def test_readings_that_cannot_be_are_named_and_decide_nothing(seen: dict[str, Any], what: str) -> None:
    found = conclude(**seen)
    assert any(what in text for text in found.impossible), found.impossible
    assert found.branch is Branch.HEALTHY


def test_a_window_of_other_requests_is_no_contradiction() -> None:
    """Invocations that did not come through the gateway may well outlast it."""
    found = conclude(invocations=3000, duration_ms=800, duration_max_ms=900)
    assert found.impossible == ()


@pytest.mark.parametrize(
    ("seen", "runbook", "why"),
    [
        ({**DEAD, "database_ok": False}, "QuickRollback", "no release changes that"),
        ({**DEAD, "database_ok": False}, "ServiceRestart", "will not reach it"),
        ({**DEAD, "deployments": [deployed(3)], "log_lines": LogCounts(startup=9)}, "ServiceRestart", "same code"),
        ({**DEAD, "deployments": [deployed(3)]}, "VerticalScaling", "120 of 512 MB"),
        ({**FAILING, "deployments": [deployed(3)], "log_lines": LogCounts(code=9)}, "ServiceRestart", "come back"),
        ({**FAILING}, "ProvisionedConcurrency", "stand idle"),
        ({**SLOW, "deployments": [deployed(3)]}, "ServiceRestart", "as slow after a restart"),
        ({**SLOW}, "ConnectionPoolScaling", "1460 connections are left"),
        (REFUSED, "QuickRollback", "before any code runs"),
        (REFUSED, "ServiceRestart", "does not let more calls run"),
        (REFUSED, "ProvisionedConcurrency", "counts within that"),
        ({**REFUSED, "reserved": 0}, "ProvisionedConcurrency", "counts within that"),
        ({**DEAD, "memory_mb": 10_240, "memory_used_mb": 10_240}, "VerticalScaling", "there is no more"),
        ({**DEAD, "reserved": 0, "invocations": None, "errors": None}, "QuickRollback", "not allowed to run"),
    ],
)
def test_a_remedy_that_cannot_help_is_refused(seen: dict[str, Any], runbook: str, why: str) -> None:
    found = conclude(**seen)
    assert {r.runbook: r.why for r in found.refused}.get(runbook, "").count(why), found.refused
    assert runbook not in {option.runbook for option in found.options}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("2026-01-20T14:02:11Z 7f Task timed out after 30.00 seconds", "timeout"),
        ('{"level": "ERROR", "error": "database is down: ServerSelectionTimeoutError"}', "database"),
        ('{"level": "ERROR", "errorType": "AutoReconnect", "error": "database error without a code"}', "database"),
        ('{"level": "ERROR", "error": "database error 18"}', "credential"),
        ("[ERROR] Runtime.ImportModuleError: Unable to import module 'handler'", "startup"),
        ("RequestId: 7f Error: Runtime exited with error: signal: killed", "memory"),
        ('{"level": "ERROR", "error": "project_id must be a UUID", "errorType": "Bad Request"}', "validation"),
        ('{"level": "ERROR", "errorType": "SessionStateError", "error": "cannot read property"}', "code"),
    ],
)
def test_error_lines_by_what_they_speak_of(line: str, kind: str) -> None:
    assert kind_of(line) == kind


# --- whatever was seen ----------------------------------------------------------------------------------------------

INPUTS = {runbook.__name__: runbook.spec.input for runbook in RUNBOOKS}
COUNT = st.none() | st.integers(-3, 2000)
MS = st.none() | st.floats(-5, 60_000)
FLAG = st.none() | st.booleans()
ANY = st.builds(
    Readings,
    taken_at=st.just(NOW),
    health_ok=FLAG,
    health_status=st.none() | st.sampled_from([200, 429, 500, 502, 503]),
    health_ms=MS,
    ready_ok=FLAG,
    ready_status=st.none() | st.sampled_from([200, 503]),
    invocations=COUNT,
    errors=COUNT,
    throttles=COUNT,
    duration_ms=MS,
    duration_max_ms=MS,
    concurrent=COUNT,
    timeout_ms=MS,
    memory_mb=COUNT,
    memory_used_mb=MS,
    reserved=st.none() | st.integers(0, 20),
    requests=COUNT,
    gateway_5xx=COUNT,
    gateway_4xx=COUNT,
    gateway_ms=MS,
    integration_ms=MS,
    log_lines=st.none() | st.builds(LogCounts, database=st.integers(0, 9), code=st.integers(0, 9)),
    reports=COUNT,
    cold_starts=COUNT,
    init_ms=MS,
    database_ok=FLAG,
    database_ping_ms=MS,
    connections=COUNT,
    connections_left=COUNT,
    deployments=st.lists(st.floats(0, 5000).map(deployed), max_size=2).map(tuple),
)


@settings(max_examples=400, deadline=None)
@given(ANY)
def test_whatever_was_seen_there_is_one_conclusion_that_holds_together(seen: Readings) -> None:
    found = diagnose(seen, CONTEXT)
    assert found == diagnose(seen, CONTEXT)
    refused = {remedy.runbook for remedy in found.refused}
    assert not refused & {option.runbook for option in found.options}
    assert found.next == (found.options[0] if found.options else None)
    assert [cause.score for cause in found.causes] == sorted((cause.score for cause in found.causes), reverse=True)
    assert all(0 <= cause.score < 1 and (cause.supports or cause.score == 0) for cause in found.causes)
    assert found.summary
    for option in found.options:
        INPUTS[option.runbook].model_validate(option.input)  # it can be started as it stands


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_what_is_left_after_setting_aside_can_be(seen: Readings) -> None:
    kept, wrong = set_aside(seen)
    again, more = set_aside(kept)
    assert (again, more) == (kept, ())
    assert bool(wrong) == (kept != seen)
