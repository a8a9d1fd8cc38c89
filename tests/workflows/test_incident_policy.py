"""The severity policy is data: the document's table, and what is refused when it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from activities.incident_policy import SEVERITIES, IncidentPolicy
from activities.stage import Stage

DEFAULT = IncidentPolicy()


def changed(severity: str, **fields: Any) -> dict[str, Any]:
    rules = {name: rule.model_dump(mode="json") for name, rule in DEFAULT.severities.items()}
    rules[severity] |= fields
    return {"severities": rules}


@pytest.mark.parametrize(
    ("severity", "clock", "time"),
    [
        ("P1", "response", "PT15M"),
        ("P1", "post-mortem", "P2D"),
        ("P2", "alert", "PT15M"),
        ("P2", "response", "PT1H"),
        ("P2", "cause", "PT1H"),
        ("P2", "workaround", "PT2H"),
        ("P2", "stable", "PT4H"),
        ("P2", "post-mortem", "P7D"),
        ("P3", "response", "PT4H"),
    ],
)
def test_the_document_s_clocks(severity: Any, clock: str, time: str) -> None:
    found = DEFAULT.rule(severity).clock(clock)
    assert found is not None
    assert found.model_dump(mode="json")["within"] == time


def test_p4_responds_within_a_business_day() -> None:
    clock = DEFAULT.rule("P4").clock("response")
    assert clock is not None
    assert (clock.business_days, clock.within) == (1, None)


@pytest.mark.parametrize(
    ("share", "severity"),
    [(1.0, "P1"), (0.95, "P1"), (0.94, "P2"), (0.5, "P2"), (0.25, "P2"), (0.24, "P3"), (0.01, "P3"), (0.0, "P4")],
)
def test_severity_by_the_share_of_failing_requests(share: float, severity: str) -> None:
    assert DEFAULT.severity_of(share) == severity


@given(st.floats(0, 1))
def test_every_share_has_exactly_one_severity(share: float) -> None:
    fitting = [
        name
        for name, rule in DEFAULT.severities.items()
        if rule.from_share <= share and (share < rule.to_share or rule.to_share == share == 1)
    ]
    assert fitting == [DEFAULT.severity_of(share)]


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (changed("P2", from_share=0.3), "a gap: P3 ends at 25%, P2 begins at 30%"),
        (changed("P2", to_share=1), "an overlap: P2 ends at 100%, P1 begins at 95%"),
        (changed("P1", to_share=0.99), "P1 to end at 1"),
        (changed("P3", from_share=0.25), "P3 ends at 25%, where it has not begun"),
        ({"severities": {k: v for k, v in changed("P1")["severities"].items() if k != "P3"}}, "no rule for P3"),
        (changed("P3", clocks=[{"id": "a", "title": "t", "met_by": "cause"}]), "either within or business_days"),
        (
            changed("P3", clocks=[{"id": "a", "title": "t", "met_by": "cause", "within": "PT1H"}] * 2),
            "two clocks have the same id",
        ),
        ({"business_hours": {"windows": [{"days": ["mon"], "opens": "22:00", "closes": "04:00"}]}}, "business_hours"),
        ({"business_hours": {"time_zone": "Mars/Base", "windows": [{"days": ["mon"], "opens": "09:00"}]}}, "Mars/Base"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_when_it_is_loaded(policy: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why.replace("(", r"\(")):
        IncidentPolicy.model_validate(policy)


def test_a_stage_carries_only_what_differs() -> None:
    """A stage goes into the input of every activity, so the built-in policy is not repeated in it."""
    facts = {
        "name": "s",
        "function": "f",
        "url": "u",
        "api_key": "env:K",
        "log_group": "g",
        "gateway": {"name": "a", "stage": "s"},
        "database": {"uri": "env:D", "name": "d"},
    }
    stage = Stage.model_validate(facts)
    assert stage.incidents is None
    assert set(stage.incident_policy.severities) == set(SEVERITIES)
