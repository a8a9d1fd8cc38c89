"""The judge of a gradual rollback: counts in, verdict out. Pure: no clock, no I/O, no state."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from activities.stage import Facts
from activities.version_counts import VersionCounts


class Look(Facts):
    """Both versions over the same stretch of time. Stretches of one bake follow one another and do not overlap."""

    restored: VersionCounts | None = Field(description="The version being brought back; None: could not be measured")
    replaced: VersionCounts | None = Field(description="The version it replaces; None: could not be measured")


class Limits(BaseModel):
    """What the judge goes by."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    alpha: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="Most likely share of bakes, however many looks they take, that are wrongly called worse; "
        "the same again for 'not the deploy'",
    )
    min_sample: int = Field(50, ge=1, description="Fewest invocations of each version before anything is called good")
    max_error_rate: float = Field(0.001, gt=0, lt=1, description="Errors of invocations that are healthy, 0 to 1")
    latency_ratio: float = Field(1.25, ge=1, le=10, description="How many times slower still counts as equal")
    max_latency_ms: float = Field(2000, gt=1, le=29000, description="Slower than this is a slow answer (milliseconds)")
    slow_share: float = Field(0.05, gt=0, lt=0.5, description="Share of slow answers that is healthy: 0.05 judges p95")
    recovery: float = Field(0.5, gt=0, lt=1, description="A cure leaves at most this share of the errors")
    consecutive: int = Field(2, ge=1, le=20, description="Judgements in a row that settle it, unless one is certain")
    unmeasured: int = Field(3, ge=1, le=100, description="Looks in a row that may fail before a person is asked")


class Verdict(StrEnum):
    """On the version being brought back."""

    BETTER_OR_EQUAL = "better_or_equal"
    WORSE = "worse"
    NOT_ENOUGH = "not_enough"


class Judgement(Facts):
    """What one look, with those before it in the bake, says."""

    verdict: Verdict
    measured: bool = Field(True, description="False: the last look failed; the verdict is then 'not enough'")
    improved: bool | None = Field(
        None, description="Whether bringing the version back cures what is wrong; None: not known (yet)"
    )
    certain: bool = Field(False, description="Worse beyond doubt: needs no second judgement")
    within_limits: bool | None = Field(
        None, description="Whether it keeps the absolute limits; None: not measured, or too few invocations"
    )
    reasons: tuple[str, ...] = Field((), description="One line each, with the figures")
    p_values: dict[str, float] = Field(
        default_factory=dict, description="Chance of such evidence at any look of a bake, were it not so; by question"
    )


class Decision(StrEnum):
    GO_ON = "go_on"
    WORSE = "worse"
    NOT_THE_DEPLOY = "not_the_deploy"
    WAIT = "wait"
    UNMEASURED = "unmeasured"


def judge(looks: Sequence[Look], limits: Limits, *, earlier: VersionCounts | None = None) -> Judgement:
    """Judge the version being brought back on all looks of the present bake, oldest first.

    Call it after each look, with every look of this bake so far: evidence adds up over looks, and the stated chance of a
    false alarm holds for the whole bake whatever the number of looks, also if the bake is extended.

    Args:
        looks: Of one bake at one weight. A look that failed stays in the list, with None.
        limits: What to go by.
        earlier: What the replaced version did when it last had traffic: for the bake at 100 %, where nothing is left to
            compare with. The version brought back is then worse only if it is above the limits and above this.
    """
    raise NotImplementedError


def settle(judgements: Sequence[Judgement], limits: Limits, *, proof: bool = False) -> Decision:
    """What the judgements of one bake so far come to.

    ``WORSE`` and ``NOT_THE_DEPLOY`` act at once; ``GO_ON`` says that the bake may end well now, ``WAIT`` that more looks
    are needed (the caller bounds how long, then asks a person), ``UNMEASURED`` that too many looks in a row failed.

    Args:
        judgements: One a look of the present bake, oldest first.
        limits: What to go by.
        proof: Whether recovery has to be shown to go on: for the last bake in which both versions have traffic. Below
            that it is enough that the version brought back is not worse.
    """
    raise NotImplementedError
