"""What one version of the function did over some minutes: counts, and how long its answers took.

Counts and a histogram with fixed buckets can be added up, over minutes and over sources, and stay small in a history
whatever the traffic. Percentiles can do neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from activities.stage import Facts

BUCKETS_PER_DOUBLING = 6
"""Each bucket reaches 12 % further (2 ** (1 / 6)) than the one before it."""

LAST_BUCKET = 90
"""Holds everything above 29 seconds, where a gateway has long given up."""


def bucket_of(milliseconds: float) -> int:
    """The bucket that a duration falls into. Bucket 0 holds all up to a millisecond."""
    if not milliseconds > 1:
        return 0
    # Rounded first, so that a bucket's own upper edge falls into it whatever the last bit of the logarithm.
    return min(LAST_BUCKET, math.ceil(round(BUCKETS_PER_DOUBLING * math.log2(milliseconds), 9)))


def upper_ms(bucket: int) -> float:
    """The longest duration, in milliseconds, that falls into a bucket."""
    return float(2 ** (bucket / BUCKETS_PER_DOUBLING))


class VersionCounts(Facts):
    """One version over some minutes. No traffic is 0 invocations; not measured is no ``VersionCounts`` at all."""

    version: str = Field(description="Published version of the function")
    invocations: int = Field(ge=0)
    errors: int = Field(ge=0, description="Failed invocations and answers of 5xx, each invocation counted once")
    latency: dict[Annotated[int, Field(ge=0, le=LAST_BUCKET)], Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict,
        description=(
            "Answers by bucket of duration (see bucket_of), empty where durations are not known. Of good answers only, "
            "where the source can tell: a failure is often quick"
        ),
    )

    @classmethod
    def of(cls, version: str, *, invocations: int, errors: int, durations_ms: Iterable[float] = ()) -> VersionCounts:
        """Counts with single durations sorted into buckets."""
        latency = Counter(bucket_of(duration) for duration in durations_ms)
        return cls(version=version, invocations=invocations, errors=errors, latency=dict(sorted(latency.items())))

    def plus(self, other: VersionCounts) -> VersionCounts:
        """Both together, under this version's name."""
        latency = Counter(self.latency)
        latency.update(other.latency)
        return VersionCounts(
            version=self.version,
            invocations=self.invocations + other.invocations,
            errors=self.errors + other.errors,
            latency=dict(sorted(latency.items())),
        )

    @property
    def error_rate(self) -> float | None:
        """Errors of invocations, 0 to 1; None without invocations."""
        return self.errors / self.invocations if self.invocations else None

    @property
    def timed(self) -> int:
        """Answers whose duration is known."""
        return sum(self.latency.values())

    def slower_than(self, bucket: int) -> int:
        """Answers that took longer than a bucket's upper edge."""
        return sum(count for at, count in self.latency.items() if at > bucket)

    def percentile_ms(self, share: float) -> float | None:
        """The upper edge of the bucket that the percentile falls into (at most 12 % high); None without durations."""
        below = 0
        for bucket, count in sorted(self.latency.items()):
            below += count
            if below >= share * self.timed:
                return upper_ms(bucket)
        return None
