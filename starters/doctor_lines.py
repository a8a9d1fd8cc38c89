"""A check-up: questions to outside systems, each answered by one line with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from pydantic import BaseModel, Field
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from starters.problems import explained

A = TypeVar("A")
R = TypeVar("R")


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Nothing is broken; some runbook will have to do without."""
    WRONG = "wrong"
    SKIPPED = "skipped"
    """It could not be asked, because of something that is wrong above."""


class Line(BaseModel):
    """The answer to one question."""

    area: str = Field(description="The stage, or 'workers' for what all stages share")
    check: str
    state: State
    said: str
    remedy: str | None = None


@dataclass(frozen=True)
class Seen:
    """What a check saw."""

    said: str
    state: State = State.OK
    remedy: str | None = None


@dataclass(frozen=True)
class Check:
    """One question.

    Attributes:
        remedy: What to do when asking fails outright. A check that sees more says more.
        needs: Checks of the same area that have to be in order first.
    """

    name: str
    ask: Callable[[], Seen]
    remedy: str
    needs: tuple[str, ...] = ()


def wrong(said: str, remedy: str) -> Seen:
    return Seen(said, State.WRONG, remedy)


def warning(said: str, remedy: str) -> Seen:
    return Seen(said, State.WARNING, remedy)


def by_activity(activity: Callable[[A], R], argument: A) -> R:
    """Ask by the very activity that the runbooks use, outside of a worker."""
    return ActivityEnvironment().run(activity, argument)


def answered(area: str, checks: Sequence[Check], before: Sequence[Line] = ()) -> list[Line]:
    """The line of every check, in order. What needs something that is wrong, here or before, is not asked."""
    lines: list[Line] = []
    states = {line.check: line.state for line in before}
    for check in checks:
        broken = [name for name in check.needs if states.get(name, State.OK) in (State.WRONG, State.SKIPPED)]
        seen = Seen(f"not asked: mend '{broken[0]}' first", State.SKIPPED) if broken else _asked(check)
        states[check.name] = seen.state
        lines.append(Line(area=area, check=check.name, state=seen.state, said=seen.said, remedy=seen.remedy))
    return lines


def _asked(check: Check) -> Seen:
    try:
        return check.ask()
    except ApplicationError as error:
        return wrong(error.message, check.remedy)
    except Exception as error:  # whatever it is, it is one red line, and the others are asked all the same
        return wrong(str(explained(error)), check.remedy)


def at_once(area: str, first: Check, groups: Sequence[Sequence[Check]]) -> list[Line]:
    """What all need, then groups that do not wait for one another: a database that is away must not delay the rest."""
    before = answered(area, [first])
    with ThreadPoolExecutor(max_workers=len(groups)) as pool:
        found = pool.map(lambda group: answered(area, group, before), groups)
        return [*before, *(line for lines in found for line in lines)]
