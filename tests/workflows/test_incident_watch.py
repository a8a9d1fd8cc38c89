"""When a service that turned out bad is diagnosed anew: decided without a run."""

from __future__ import annotations

import pytest

from workflows.diagnosis_model import Branch, Conclusion
from workflows.incident_state import Situation
from workflows.incident_watch import Verdict, still_unexplained, unexplained


def situation(bad_row: int, branch: Branch | None) -> Situation:
    conclusion = None if branch is None else Conclusion(branch=branch, summary="")
    return Situation(headline="500s", stage="production", bad_row=bad_row, conclusion=conclusion)


@pytest.mark.parametrize(
    ("good", "bad_row", "branch", "expected"),
    [
        (False, 1, Branch.UNKNOWN, False),
        (False, 2, Branch.UNKNOWN, True),
        (False, 3, Branch.UNKNOWN, False),
        (False, 4, Branch.HEALTHY, True),
        (False, 8, None, True),
        (False, 24, Branch.UNKNOWN, False),
        (False, 2, Branch.ERRORS, False),
        (None, 2, Branch.UNKNOWN, False),
        (True, 0, Branch.UNKNOWN, False),
    ],
)
def test_only_bad_looks_that_nothing_explains(
    good: bool | None, bad_row: int, branch: Branch | None, expected: bool
) -> None:
    assert unexplained(situation(bad_row, branch), Verdict(good, "")) is expected


@pytest.mark.parametrize(
    ("good", "bad_row", "branch", "expected"),
    [
        (False, 12, None, False),
        (False, 24, Branch.UNKNOWN, True),
        (False, 25, Branch.UNKNOWN, False),
        (False, 40, Branch.ERRORS, False),
        (None, 24, Branch.UNKNOWN, False),
        (True, 0, Branch.UNKNOWN, False),
    ],
)
def test_what_nothing_explains_for_long_is_diagnosed_at_every_eighth_look(
    good: bool | None, bad_row: int, branch: Branch | None, expected: bool
) -> None:
    assert still_unexplained(situation(bad_row, branch), Verdict(good, "")) is expected
