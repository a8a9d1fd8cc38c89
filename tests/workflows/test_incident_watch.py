"""When a service that turned out bad is diagnosed anew: decided without a run."""

from __future__ import annotations

import pytest

from workflows.diagnosis_model import Branch, Conclusion
from workflows.incident_state import Situation
from workflows.incident_watch import Verdict, unexplained


@pytest.mark.parametrize(
    ("good", "bad_row", "branch", "expected"),
    [
        (False, 1, Branch.UNKNOWN, False),
        (False, 2, Branch.UNKNOWN, True),
        (False, 3, Branch.UNKNOWN, False),
        (False, 4, Branch.HEALTHY, True),
        (False, 8, None, True),
        (False, 2, Branch.ERRORS, False),
        (None, 2, Branch.UNKNOWN, False),
        (True, 0, Branch.UNKNOWN, False),
    ],
)
def test_only_bad_looks_that_nothing_explains(
    good: bool | None, bad_row: int, branch: Branch | None, expected: bool
) -> None:
    conclusion = None if branch is None else Conclusion(branch=branch, summary="")
    situation = Situation(headline="500s", stage="production", bad_row=bad_row, conclusion=conclusion)
    assert unexplained(situation, Verdict(good, "")) is expected
