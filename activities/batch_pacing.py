"""How large the next batch is, and whether it may begin. Pure decisions, no clock and no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from activities.batch_models import AbortLimits, BatchSizes, Load, LoadLimits

MEMORY = 0.8
"""Weight of what was known before each new batch: the last five batches count most."""

ALIKE = 10
"""Batches of one size, each too slow, after which a larger one is tried."""

TOO_SLOW = 1.1
"""Share of the target time beyond which a batch is too slow: what takes a hair longer is where it should be."""

STRIKES = 3
"""Readings in a row beyond a limit to abort at: one slow answer is no outage."""

RELIEF = 0.8
"""Once waiting, load has to fall to this share of the limit, or batches would start and stop at its edge."""


class Pacer:
    """Batch size that aims at a time a batch.

    A batch costs something fixed and something a document; both are fitted to the last batches. A batch is not made so
    small that the fixed part is most of its time: that would relieve nothing and only take longer. Batches of one size
    do not tell the two apart: where they stay too slow, as after time-outs have made them small, a larger one is tried.
    """

    def __init__(self, sizes: BatchSizes, size: int | None = None) -> None:
        self._sizes = sizes
        self.size = self._within(size or sizes.initial)
        self._weight = self._n = self._t = self._nn = self._nt = 0.0
        self._fixed = 0.0
        self._last = self._alike = 0

    def finished(self, documents: int, seconds: float) -> int:
        """A batch is over. Returns the size of the next one: at most twice, at least half of this one's."""
        if documents <= 0 or seconds <= 0:
            return self.size
        self._remember(documents, seconds)
        each = self._each()
        target = self._sizes.target_ms / 1000
        ideal = max((target - self._fixed) / each, self._fixed / each)
        if self._slow_for_long(documents, seconds > target * TOO_SLOW):
            ideal = self.size * 1.5
        self.size = self._within(min(max(ideal, self.size / 2), self.size * 2))
        return self.size

    def timed_out(self) -> bool:
        """A batch took too long: half of it next time. False when it cannot be made smaller."""
        smaller = self._within(self.size // 2)
        shrunk = smaller < self.size
        self.size = smaller
        self._weight = self._n = self._t = self._nn = self._nt = self._fixed = 0.0
        return shrunk

    def _slow_for_long(self, documents: int, slow: bool) -> bool:
        """Count a slow batch among those of its size; true at every tenth, when another size has to be tried."""
        self._alike = self._alike + 1 if slow and documents == self._last else 0
        self._last = documents
        return self._alike > 0 and self._alike % ALIKE == 0

    def _remember(self, documents: float, seconds: float) -> None:
        self._weight = self._weight * MEMORY + 1
        self._n = self._n * MEMORY + documents
        self._t = self._t * MEMORY + seconds
        self._nn = self._nn * MEMORY + documents * documents
        self._nt = self._nt * MEMORY + documents * seconds

    def _each(self) -> float:
        """Seconds a document; updates the fixed part where batches of different size tell the two apart."""
        n, t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - n * n
        if spread > (0.05 * n) ** 2:
            slope = (self._nt / self._weight - n * t) / spread
            self._fixed = min(max(t - slope * n, 0.0), 0.95 * t)
        self._fixed = min(self._fixed, 0.95 * t)
        return (t - self._fixed) / n

    def _within(self, size: float) -> int:
        return int(min(max(size, self._sizes.min), self._sizes.max))


@dataclass(frozen=True)
class Verdict:
    """Whether the next batch may begin; ``why`` is for people."""

    word: Literal["go", "wait", "abort"]
    why: str = ""


class LoadJudge:
    """Compares readings with limits. What is not known breaks no limit."""

    def __init__(self, throttle: LoadLimits, abort: AbortLimits) -> None:
        self._throttle, self._abort = throttle, abort
        self._strikes = 0
        self._waiting = False

    def see(self, load: Load) -> Verdict:
        critical = beyond(load, self._abort)
        self._strikes = self._strikes + 1 if critical else 0
        if self._strikes >= STRIKES:
            return Verdict("abort", f"{'; '.join(critical)}, {self._strikes} times in a row")
        reasons = beyond(load, self._throttle, RELIEF if self._waiting else 1.0)
        reasons += [reason for reason in critical if not reasons]
        self._waiting = bool(reasons)
        return Verdict("wait", "; ".join(reasons)) if reasons else Verdict("go")


_WORDS = {
    "ping_ms": ("the database answers a ping in {:.0f} ms", "{:.0f} ms"),
    "connections": ("{:.0f} connections to the database", "{:.0f}"),
    "queue": ("{:.0f} operations queue in the database", "{:.0f}"),
    "lag_s": ("a secondary is {:.0f} s behind", "{:.0f} s"),
    "api_p95_ms": ("the API's p95 is {:.0f} ms", "{:.0f} ms"),
    "api_error_rate": ("{:.2%} of the API's answers are errors", "{:.2%}"),
}


def beyond(load: Load, limits: LoadLimits, share: float = 1.0) -> list[str]:
    """What is beyond its limit, each as a phrase with the figure and the limit."""
    found = []
    for name, (phrase, figure) in _WORDS.items():
        value, limit = getattr(load, name), getattr(limits, name)
        if value is not None and limit is not None and value > limit * share:
            found.append(f"{phrase.format(value)} (limit {figure.format(limit)})")
    return found
