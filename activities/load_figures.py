"""Figures of a load test, as pure functions: percentiles, and what a waiting client would have seen meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that ``percent`` of all are not above; None of nothing."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def percentile_bounds(ordered: Sequence[float], percent: float, asked: int) -> tuple[float | None, float | None]:
    """Between which values the percentile lies, with 95 % confidence, when ``asked`` samples were independent.

    By ranks, so for times of any distribution; None where so few samples do not reach.
    """
    if not ordered or not asked:
        return None, None
    reach = 1.96 * math.sqrt(percent * (100 - percent) / asked)
    low, high = percent - reach, percent + reach
    return percentile(ordered, low) if low > 0 else None, percentile(ordered, high) if high < 100 else None


def with_omitted(times: Sequence[float], interval: float) -> list[float]:
    """The times, ordered, and those of the requests that were never sent because the client waited for an answer.

    A client of the closed model that waits ten seconds would have asked many times in them, had the service been as
    quick as usual; each of these requests would have waited, too. This is the correction of HdrHistogram, with the
    usual time as ``interval``. Without it one long stall of a service hides behind a few samples.
    """
    found = list(times)
    for time in times:
        if interval > 0 and time > 2 * interval:
            missed = min(int(time / interval) - 1, _MOST_MISSED)
            found += [time - interval * number for number in range(1, missed + 1)]
    return sorted(found)


_MOST_MISSED = 1000
"""Per sample: more would change no percentile that is shown."""


def slice_seconds(seconds: float, slices: int = 120) -> float:
    """How long a slice of the test's course is, so that no more than so many are kept."""
    return max(1.0, math.ceil(seconds / slices))
