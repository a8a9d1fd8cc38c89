"""Whether the traffic really splits as it was asked to: by chance alone, weights are met only on average."""

from __future__ import annotations

import math
from dataclasses import dataclass

_UNLIKELY = 0.001
"""A split that chance makes less often than this is not chance."""

_NEAR = 0.25
"""A deviation of up to this part of the smaller share disturbs nobody, however certain it is."""

_EXACT_UP_TO = 2000
"""Invocations up to which the binomial distribution is summed exactly; beyond, the normal one is as good."""


@dataclass(frozen=True)
class SplitSeen:
    """The split of one rung as it was measured."""

    wanted: float
    achieved: float | None
    """Share of the restored version, 0 to 1; None without invocations."""
    invocations: int
    p: float
    """How likely chance alone strays this far."""
    far: bool
    """Whether it is neither near the wanted split nor explained by chance."""

    def described(self) -> str:
        if self.achieved is None:
            return f"wanted {self.wanted:.0%}, no requests yet"
        shown = f"{self.achieved:.1%} of {self.invocations} requests, wanted {self.wanted:.0%}"
        return f"{shown}: far from it (p = {self.p:.1g})" if self.far else shown


def split_seen(percent: int, *, restored: int, replaced: int) -> SplitSeen:
    """Compare the invocations of both versions with the share, in percent, that the restored one was given."""
    wanted, total = percent / 100, restored + replaced
    if total == 0:
        return SplitSeen(wanted, None, 0, 1.0, far=False)
    achieved = restored / total
    p = _two_sided(restored, total, wanted)
    tolerated = max(0.02, _NEAR * min(wanted, 1 - wanted))
    return SplitSeen(wanted, achieved, total, p, far=p < _UNLIKELY and abs(achieved - wanted) > tolerated)


def _two_sided(hits: int, total: int, share: float) -> float:
    """The chance of a count at least as far from what is expected: twice the smaller tail, at most 1."""
    if share >= 1:
        return 1.0 if hits == total else 0.0
    if total > _EXACT_UP_TO:
        spread = math.sqrt(total * share * (1 - share))
        return math.erfc(max(0.0, abs(hits - total * share) - 0.5) / spread / math.sqrt(2))
    below = math.fsum(_mass(count, total, share) for count in range(hits + 1))
    above = math.fsum(_mass(count, total, share) for count in range(hits, total + 1))
    return min(1.0, 2 * min(below, above))


def _mass(count: int, total: int, share: float) -> float:
    ways = math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)
    return math.exp(ways + count * math.log(share) + (total - count) * math.log1p(-share))
