"""How good the diagnosis is over the benchmark's scenarios: what it was measured to be, with room for a better one."""

from __future__ import annotations

import random

import pytest

from bench.diagnosis import CONTEXT, SCENARIOS, Scenario, Tally, by_the_book, drawn
from workflows.diagnosis_tree import diagnose


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_a_fault_by_the_book_is_found_and_the_right_thing_is_next(scenario: Scenario) -> None:
    found = diagnose(by_the_book(scenario), CONTEXT)
    assert found.branch is scenario.branch
    assert [cause.id for cause in found.causes[:1]] == ([scenario.cause] if scenario.cause else [])
    started = found.next.runbook if found.next else None
    assert started in scenario.cures if scenario.cures else started is None
    assert not scenario.cures & {refused.runbook for refused in found.refused}


@pytest.mark.parametrize(
    ("failing", "branch", "cause", "wrong"), [(0, 0.95, 0.92, 0.04), (1, 0.80, 0.75, 0.10), (2, 0.65, 0.53, 0.17)]
)
def test_evidence_at_random(failing: int, branch: float, cause: float, wrong: float) -> None:
    chance, whole = random.Random(20260120), Tally()
    for scenario in SCENARIOS:
        whole.add(drawn(scenario, chance, failing, 100))
    assert whole.branch / whole.draws >= branch
    assert whole.first / whole.draws >= cause
    assert whole.harmful / whole.draws <= wrong
