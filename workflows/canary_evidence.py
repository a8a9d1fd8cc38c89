"""Evidence from counts that may be asked for again and again: test martingales (e-processes), in pure arithmetic.

A look gives the bad of all answers of two sides. Each look is turned into a factor whose expectation is at most 1 as
long as the claim in doubt (the null hypothesis) is true, whatever happened before it. The product of the factors is
then 1,000 to 1 against a true claim at *any* look of a bake with a chance of at most 1 in 1,000 (Ville's inequality):
so one may look after every minute, stop when one likes, or go on longer, and the chance of a false alarm stays what
it is said to be. The usual tests (Fisher, Mann-Whitney, confidence intervals) give that chance for a single look.

The factor for "the rate of the first side is at most ``ratio`` times that of the second, plus ``margin``", with n1,
n2 answers of which x1, x2 are bad, and a rate ratio s > ``ratio`` that speaks against it:

    a ** x1 * c ** x2 * exp(-n1 * margin * (a - 1)),   c = (n1 * ratio + n2) / (n1 * s + n2),   a = c * s / ratio

Its expectation is at most 1. With t1, t2 the true rates, and as 1 + y <= exp(y), it is at most exp(n1 * t1 * (a - 1)
+ n2 * t2 * (c - 1) - n1 * margin * (a - 1)); that grows with t1, since a > 1; and at the largest t1 of the claim,
ratio * t2 + margin, it is exp(t2 * (n1 * ratio * (a - 1) + n2 * (c - 1))) = exp(0). So nothing is assumed about the
rates themselves: they may be anything, none at all on one side, and others at every look, as when the database has a
bad minute for both. Answers of one look are taken as independent of one another; bursts of retries are not, which is
why verdicts are also asked for twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

STRENGTHS = (2.0, 8.0, 64.0)
"""How many times the claim is exceeded, in the alternatives averaged: a doubling, more, and something from nothing."""

FROM_THE_START = 0.9
"""Weight of the change that is there at the first look; the rest is spread over changes that come later."""


class Sample(NamedTuple):
    """Bad answers of all answers, of two sides at one look."""

    n1: int
    x1: int
    n2: int
    x2: int

    def swapped(self) -> Sample:
        return Sample(self.n2, self.x2, self.n1, self.x1)


def higher(samples: Sequence[Sample], *, ratio: float = 1, margin: float = 0, late: bool = False) -> float:
    """The logarithm of the evidence that the first side's rate is above ``ratio`` times the second's, plus ``margin``.

    Args:
        samples: One a look, oldest first.
        ratio: Of the rates, above 0.
        margin: Difference of the rates besides, 0 to 1.
        late: Whether a change that began at a later look is to be found too, at a small price to those that did not.
    """
    return average(
        _product((_log_factor(sample, ratio, margin, ratio * strength) for sample in samples), late)
        for strength in STRENGTHS
    )


def above(counts: Sequence[tuple[int, int]], limit: float) -> float:
    """The logarithm of the evidence that a rate is above a limit, from (answers, bad ones) a look; also of late."""
    return average(
        _product((x * math.log(a) - n * limit * (a - 1) for n, x in counts), late=True) for a in (2.0, 10.0, 100.0)
    )


def below(counts: Sequence[tuple[int, int]], limit: float) -> float:
    """The logarithm of the evidence that a rate is below a limit, from (answers, bad ones) of each look."""
    return average(
        _product((x * math.log(a) - n * limit * (a - 1) for n, x in counts), late=False) for a in (0.01, 0.3)
    )


def average(logs: Iterable[float]) -> float:
    """The logarithm of the mean of several pieces of evidence against one claim: it is evidence again."""
    found = list(logs)
    return _log_sum(found) - math.log(len(found)) if found else -math.inf


def _log_factor(sample: Sample, ratio: float, margin: float, against: float) -> float:
    n1, x1, n2, x2 = sample
    if not n1 or not n2:
        return 0.0  # nothing to compare
    c = (n1 * ratio + n2) / (n1 * against + n2)
    a = c * against / ratio
    return x1 * math.log(a) + x2 * math.log(c) - n1 * margin * (a - 1)


def _product(log_factors: Iterable[float], late: bool) -> float:
    """The logarithm of the product of all factors; with ``late``, of the weighted sum of the products from each look.

    The weights of the looks at which a change may begin add up to 1, so the sum's expectation stays at most 1.
    """
    if not late:
        return math.fsum(log_factors)
    total = -math.inf
    for number, log_factor in enumerate(log_factors, start=1):
        begins = FROM_THE_START if number == 1 else (1 - FROM_THE_START) / (number * (number - 1))
        total = _log_sum((total, math.log(begins))) + log_factor
    return total


def _log_sum(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum([math.exp(each - top) for each in logs])) if top > -math.inf else top
