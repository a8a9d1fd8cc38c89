"""Whether a service that was started anew does well enough to get more of its traffic. Pure functions."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

FEWEST = 10
"""Fewer invocations than this say nothing about a share of errors."""

MUCH_BETTER = 0.5
"""Half of the errors that there were before are not well, but no reason to keep clients out."""


class Verdict(StrEnum):
    GOOD = "good"
    BETTER = "better"
    BAD = "bad"
    FEW = "few"
    UNKNOWN = "unknown"


class Rung(NamedTuple):
    """What a step of the way back saw. ``None`` is what could not be measured."""

    errors: int | None
    invocations: int | None


class Judged(NamedTuple):
    verdict: Verdict
    reason: str


def judge(seen: Rung, limit: float, before: float | None) -> Judged:
    """Errors of invocations against the limit, and against what there was ``before``.

    Calls that found no room are no errors of the service: while it is limited they are meant to be there.
    """
    errors, invocations = seen
    if errors is None or invocations is None:
        return Judged(Verdict.UNKNOWN, "its errors could not be measured")
    if invocations < FEWEST:
        return Judged(Verdict.FEW, f"only {invocations} invocations, {errors} errors")
    rate = errors / invocations
    said = f"{errors} errors of {invocations} invocations ({rate:.1%})"
    if rate < limit:
        return Judged(Verdict.GOOD, said)
    if before is not None and rate <= before * MUCH_BETTER:
        return Judged(Verdict.BETTER, f"{said}, before the restart {before:.1%}")
    return Judged(Verdict.BAD, f"{said}, the limit is {limit:.1%}")


def steps_up(ladder: tuple[int, ...], former: int | None, reservable: int | None) -> tuple[int, ...]:
    """The steps that lie below the former limit, and that the account has room for.

    While nothing is let in nothing is reserved either, so the former reservation is room, too.
    """
    below = tuple(step for step in ladder if former is None or step < former)
    return below if reservable is None else tuple(step for step in below if step <= reservable + (former or 0))
