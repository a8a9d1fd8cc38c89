"""The judge of a gradual rollback: counts in, verdict out. Pure: no clock, no I/O, no state.

It compares the version being brought back with the version it replaces over the same minutes, and asks two things:
does it do harm, and does it cure? Evidence comes from :mod:`workflows.canary_evidence`, so that the chances stated in
:class:`Limits` hold for a whole bake however often one looks.

- *Errors* are judged as counts: failed of all invocations, the rate of one side against that of the other, never a
  ratio of two rates, so that a side without errors is a baseline like any other.
- *Latency* is judged as counts too: for each of 30 durations, how many answers of one side were slower than it,
  against how many of the other were slower than it by more than the tolerance. Percentiles of two samples say nothing
  of how sure they are; these counts do, at every percentile up to the share that the limits leave aside.
- *Worse* is what is shown to be worse. A rate above the absolute limits alone never is, as long as there is something
  to compare with: in a rollback the other side is believed to be broken. It does keep the verdict from being good,
  until the version is shown to be better than what it replaces.
- *Latency* never sends traffic back to a version with errors unless the errors are the same: failures are often
  quick.
- *Improved* is False when the visible fault is shown to stay (the version brought back has more than ``recovery`` of
  the errors, or slow answers), or when there is shown to be none. Then it is not the deploy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from functools import reduce
from itertools import accumulate
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from activities.stage import Facts
from activities.version_counts import BUCKETS_PER_DOUBLING, LAST_BUCKET, VersionCounts, bucket_of
from workflows.canary_evidence import Sample, above, average, below, higher

_ERRORS, _LATENCY = 0.9, 0.1
"""How the chance of a false alarm is shared out. Latency needs little: every answer has one."""

_CERTAIN = 1e-6
"""A chance this small needs no second judgement."""

_EDGES = range(0, LAST_BUCKET, BUCKETS_PER_DOUBLING // 2)
"""Buckets at whose upper edges latency is compared."""

Pair = tuple[VersionCounts, VersionCounts]


class Look(Facts):
    """Both versions over the same stretch of time. Stretches of one bake follow one another and do not overlap."""

    restored: VersionCounts | None = Field(description="The version being brought back; None: could not be measured")
    replaced: VersionCounts | None = Field(description="The version it replaces; None: could not be measured")


class Limits(BaseModel):
    """What the judge goes by."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    alpha: float = Field(
        0.02,
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

    Call it after each look, with every look of this bake so far: evidence adds up over looks, and the stated chance of
    a false alarm holds for the whole bake however many looks it has, also if somebody extends it.

    Args:
        looks: Of one bake at one weight. A look that failed stays in the list, with None.
        limits: What to go by.
        earlier: What the replaced version did when it last had traffic: for the bake at 100 %, where nothing is left to
            compare with. The version brought back is then worse only if it is above the limits and above this.
    """
    pairs = [pair for look in looks if isinstance(pair := _counts(look, earlier), tuple)]
    last = _counts(looks[-1], earlier) if looks else "there was no look yet"
    if isinstance(last, str):
        return Judgement(verdict=Verdict.NOT_ENOUGH, measured=False, reasons=(last,))
    restored, replaced = (_sum(side) for side in zip(*pairs, strict=True))
    if earlier is not None:
        return _alone(pairs, restored, earlier, limits)
    return _compared(pairs, restored, replaced, limits)


def settle(judgements: Sequence[Judgement], limits: Limits, *, proof: bool = False) -> Decision:
    """What the judgements of one bake so far come to.

    ``WORSE`` and ``NOT_THE_DEPLOY`` act at once; ``GO_ON`` says that the bake may end well now, ``WAIT`` that more
    looks are needed (the caller bounds how long, then asks a person), ``UNMEASURED`` that too many looks in a row
    failed.

    Args:
        judgements: One a look of the present bake, oldest first.
        limits: What to go by.
        proof: Whether recovery has to be shown to go on: for the last bake in which both versions have traffic. Below
            that it is enough that the version brought back is not worse.
    """
    if not judgements or not judgements[-1].measured:
        failed = 0
        for judgement in reversed(judgements):
            if judgement.measured:
                break
            failed += 1
        return Decision.UNMEASURED if failed >= limits.unmeasured else Decision.WAIT
    measured = [judgement for judgement in judgements if judgement.measured]
    latest = measured[-limits.consecutive :]
    if latest[-1].certain:
        return Decision.WORSE
    if len(latest) < limits.consecutive:
        return Decision.WAIT
    verdicts = {judgement.verdict for judgement in latest}
    improved = {judgement.improved for judgement in latest}
    if verdicts == {Verdict.WORSE}:
        return Decision.WORSE
    if Verdict.WORSE in verdicts:
        return Decision.WAIT
    if improved == {False}:
        return Decision.NOT_THE_DEPLOY
    if verdicts == {Verdict.BETTER_OR_EQUAL} and (improved == {True} if proof else False not in improved):
        return Decision.GO_ON
    return Decision.WAIT


def _counts(look: Look, earlier: VersionCounts | None) -> Pair | str:
    """Both sides of a look, or why they can't be judged."""
    restored, replaced = look.restored, look.replaced if earlier is None else earlier
    if restored is None:
        return "the version being brought back could not be measured"
    if replaced is None:
        return "the version being replaced could not be measured"
    for side in (restored, replaced):
        if side.errors > side.invocations:
            return f"version {side.version}: {side.errors} errors of {side.invocations} invocations can't be: bad data"
    return restored, replaced


def _sum(sides: Sequence[VersionCounts]) -> VersionCounts:
    return reduce(VersionCounts.plus, sides)


def _p(log_evidence: float, share: float = 1) -> float:
    """The chance of such evidence or more at any look, were it not so; with its share of alpha already paid for."""
    return float(f"{min(1.0, math.exp(-max(0.0, min(log_evidence, 600.0))) / share):.3g}")


class _Aspect(NamedTuple):
    """What is known about one kind of bad answers."""

    symptom: bool  # the replaced version visibly has it, above the absolute limit
    cured: bool
    uncured: bool
    healthy: bool  # shown: the replaced version keeps the absolute limit


def _aspect(name: str, p: dict[str, float], symptom: bool, alpha: float) -> _Aspect:
    better, no_better = p[f"{name}_better"] <= alpha, p[f"{name}_no_better"] <= alpha
    uncured = no_better and (symptom or not better)
    return _Aspect(symptom, better and not uncured, uncured, p[f"{name}_healthy"] <= alpha)


def _improved(aspects: Sequence[_Aspect]) -> bool | None:
    cured = any(aspect.cured for aspect in aspects)
    visible = [aspect for aspect in aspects if aspect.symptom]
    if any(aspect.uncured for aspect in visible):
        return False if all(aspect.uncured for aspect in visible) and not cured else None
    if cured:
        return True
    return False if all(aspect.uncured or aspect.healthy for aspect in aspects) else None


def _slower(pairs: Sequence[Pair], limits: Limits, *, late: bool) -> float:
    """The logarithm of the evidence that the first side of the pairs is slower than the second beyond the tolerance."""
    wider = round(BUCKETS_PER_DOUBLING * math.log2(limits.latency_ratio))
    slower = [
        (_slower_than_each(first), _slower_than_each(second))
        for first, second in pairs
        if first.latency and second.latency
    ]
    found = []
    for edge in _EDGES:
        samples = [Sample(x1[0], x1[min(edge + wider, LAST_BUCKET) + 1], x2[0], x2[edge + 1]) for x1, x2 in slower]
        seen = any(sample.x1 for sample in samples)
        found.append(higher(samples, margin=limits.slow_share, late=late) if seen else -math.inf)
    return average(found)


def _slower_than_each(side: VersionCounts) -> list[int]:
    """All answers, then those slower than the upper edge of bucket 0, of bucket 1, and so on."""
    each = [0] * (LAST_BUCKET + 1)
    for bucket, count in side.latency.items():
        each[LAST_BUCKET - bucket] = count
    return list(accumulate(each, initial=0))[::-1]


def _compared(pairs: Sequence[Pair], restored: VersionCounts, replaced: VersionCounts, limits: Limits) -> Judgement:
    errors = [Sample(new.invocations, new.errors, old.invocations, old.errors) for new, old in pairs]
    edge = bucket_of(limits.max_latency_ms)
    slow = [Sample(new.timed, new.slower_than(edge), old.timed, old.slower_than(edge)) for new, old in pairs]
    p: dict[str, float] = {
        "errors_worse": _p(higher(errors, late=True), _ERRORS),
        "errors_better": _p(higher([sample.swapped() for sample in errors]), _ERRORS),
        "latency_worse": _p(_slower(pairs, limits, late=True), _LATENCY),
        "latency_better": _p(_slower([(old, new) for new, old in pairs], limits, late=False), _LATENCY),
    }
    for name, samples, limit in (("errors", errors, limits.max_error_rate), ("latency", slow, limits.slow_share)):
        p[f"{name}_no_better"] = _p(higher(samples, ratio=limits.recovery), 0.5)
        p[f"{name}_healthy"] = _p(below([(sample.n2, sample.x2) for sample in samples], limit), 0.5)
        p[f"{name}_above"] = _p(above([(sample.n1, sample.x1) for sample in samples], limit), 0.5)

    enough = min(restored.invocations, replaced.invocations) >= limits.min_sample
    of_errors = _aspect("errors", p, (replaced.error_rate or 0) > limits.max_error_rate, limits.alpha)
    of_latency = _aspect("latency", p, replaced.slower_than(edge) > limits.slow_share * replaced.timed, limits.alpha)
    improved = _improved((of_errors, of_latency)) if enough else None

    harm = []
    if (restored.error_rate or 0) > limits.max_error_rate:
        harm.append(p["errors_worse"])
    if of_errors.uncured or not of_errors.symptom:
        harm.append(p["latency_worse"])
    worst = min(harm, default=1.0)
    over = min(p["errors_above"], p["latency_above"]) <= limits.alpha

    reasons = [
        f"errors: {_errors(restored)}, {_errors(replaced)}: {_word('errors', p, limits)}",
        f"latency: {_latency(restored, limits)}, {_latency(replaced, limits)}: {_word('latency', p, limits)}",
    ]
    if worst <= limits.alpha:
        verdict = Verdict.WORSE
    elif not enough:
        verdict = Verdict.NOT_ENOUGH
        reasons.append(f"each version needs {limits.min_sample} invocations before it is judged good")
    elif over and not improved:
        verdict = Verdict.NOT_ENOUGH
        reasons.append(f"version {restored.version} is above the limits, and not shown to be better")
    else:
        verdict = Verdict.BETTER_OR_EQUAL
    if improved and verdict is Verdict.WORSE:
        improved = None  # it cures one thing and breaks another
    if improved is False and verdict is not Verdict.WORSE:
        visible = of_errors.symptom or of_latency.symptom
        wrong = (
            "does not cure what is wrong" if visible else f"has nothing to cure: version {replaced.version} is healthy"
        )
        reasons.append(f"version {restored.version} {wrong}. It is not the deploy")
    return Judgement(
        verdict=verdict,
        improved=improved,
        certain=worst <= min(_CERTAIN, limits.alpha),
        within_limits=False if over else True if enough else None,
        reasons=tuple(reasons),
        p_values=p,
    )


def _alone(pairs: Sequence[Pair], restored: VersionCounts, earlier: VersionCounts, limits: Limits) -> Judgement:
    """Nothing else has traffic: the version brought back is held against the limits, and what was before it."""
    edge = bucket_of(limits.max_latency_ms)
    errors = [(new.invocations, new.errors) for new, _ in pairs]
    slow = [(new.timed, new.slower_than(edge)) for new, _ in pairs]
    was_slow = earlier.slower_than(edge) / earlier.timed if earlier.timed else 0.0
    p = {
        "errors_worse": _p(above(errors, max(limits.max_error_rate, earlier.error_rate or 0)), _ERRORS),
        "latency_worse": _p(above(slow, max(limits.slow_share, was_slow)), _LATENCY),
        "errors_above": _p(above(errors, limits.max_error_rate), 0.5),
        "latency_above": _p(above(slow, limits.slow_share), 0.5),
    }
    worst = min(p["errors_worse"], p["latency_worse"])
    over = min(p["errors_above"], p["latency_above"]) <= limits.alpha
    enough = restored.invocations >= limits.min_sample
    reasons = [
        f"errors: {_errors(restored)}; earlier {_errors(earlier)}; healthy is {limits.max_error_rate:.2%}",
        f"latency: {_latency(restored, limits)}; earlier {_latency(earlier, limits)}",
    ]
    if over:
        reasons.append(f"version {restored.version} is above the limits")
    good = Verdict.BETTER_OR_EQUAL if enough else Verdict.NOT_ENOUGH
    return Judgement(
        verdict=Verdict.WORSE if worst <= limits.alpha else good,
        certain=worst <= min(_CERTAIN, limits.alpha),
        within_limits=False if over else True if enough else None,
        reasons=tuple(reasons),
        p_values=p,
    )


def _errors(side: VersionCounts) -> str:
    rate = "no traffic" if side.error_rate is None else f"{side.error_rate:.2%}"
    return f"version {side.version} {side.errors} of {side.invocations} ({rate})"


def _latency(side: VersionCounts, limits: Limits) -> str:
    p50, p95 = side.percentile_ms(0.5), side.percentile_ms(0.95)
    if p50 is None or p95 is None:
        return f"version {side.version} not known"
    slow = side.slower_than(bucket_of(limits.max_latency_ms))
    return (
        f"version {side.version} p50 {p50:.0f} ms, p95 {p95:.0f} ms, {slow} of {side.timed} over "
        f"{limits.max_latency_ms:.0f} ms"
    )


def _word(name: str, p: dict[str, float], limits: Limits) -> str:
    """The strongest of what is shown, in a word, with the chance that it only looks so."""
    words = (("worse", "worse"), ("no_better", "not cured"), ("better", "better"), ("healthy", "none to cure"))
    for key, word in words:
        if (chance := p[f"{name}_{key}"]) <= limits.alpha:
            return f"{word} (p = {chance:.1g})"
    return "no difference shown"
