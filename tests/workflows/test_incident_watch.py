"""When a service that turned out bad is diagnosed anew: decided without a run."""

from __future__ import annotations

import pytest

from workflows.diagnosis_model import Branch, Conclusion, Remedy
from workflows.incident_state import Situation
from workflows.incident_watch import Verdict, still_unexplained, uncured, unexplained, unread


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


CURE = Remedy(runbook="QuickRollback", input={}, why="the newest deployment")


@pytest.mark.parametrize(
    ("good", "bad_row", "failed", "options", "expected"),
    [
        (False, 1, ("logs: throttled",), (), False),
        (False, 2, ("logs: throttled",), (), True),
        (False, 3, ("logs: throttled",), (), False),
        (False, 24, ("logs: throttled",), (), True),
        (False, 2, (), (), False),
        (False, 2, ("logs: throttled",), (CURE,), False),
        (None, 2, ("logs: throttled",), (), False),
        (True, 0, ("logs: throttled",), (), False),
    ],
)
def test_what_is_explained_but_not_cured_is_diagnosed_anew_where_something_could_not_be_read(
    good: bool | None, bad_row: int, failed: tuple[str, ...], options: tuple[Remedy, ...], expected: bool
) -> None:
    seen = situation(bad_row, Branch.ERRORS)
    assert seen.conclusion is not None
    seen.conclusion = seen.conclusion.model_copy(update={"failed": failed, "options": options})
    assert unread(seen, Verdict(good, "")) is expected
    again = expected or (good is False and bad_row == 2 and not options)
    assert uncured(seen, Verdict(good, "")) is again, "also where everything could be read"
