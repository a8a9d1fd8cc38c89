"""Where a batched update stands: progress, rate, time left, and whether its window is open. Pure, no clock, no I/O.

How large a batch is and whether it may begin is decided beside the database, in :mod:`activities.batch_pacing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import BaseModel, Field

from activities.batch_models import AbortLimits, BatchSizes, IdRange, LoadLimits
from workflows.batched_update_model import OpenWindow, Tune
from workflows.details import length

SAMPLES = 40
"""Points of progress that rate and time left are taken from: the recent past, waiting included."""

FEW = 5
"""With fewer points than this, the range of the time left is a guess: half and double."""


@dataclass(frozen=True)
class TimeLeft:
    """Time until the last batch: likely, and the range that eight of ten recent stretches would give."""

    likely: timedelta
    best: timedelta
    worst: timedelta | None

    def described(self) -> str:
        worst = length(self.worst) if self.worst is not None else "much longer"
        return f"about {length(self.likely)} left ({length(self.best)} to {worst})"


class Progress(BaseModel):
    """Documents that are done. Carried from one history of a run to the next."""

    total: int = Field(0, description="Documents that were found to be done, so far")
    landed: int = Field(0, description="Documents of ranges that are not in the air")
    updated: int = Field(0, description="Documents that the server reports as changed, of ranges not in the air")
    batches: int = 0
    throttled_s: float = 0
    busy_s: float = 0
    flying: dict[int, int] = Field(default_factory=dict, description="Documents done of each range in the air")
    samples: list[tuple[float, int]] = Field(default_factory=list, description="Time in seconds, documents done")

    @property
    def done(self) -> int:
        return self.landed + sum(self.flying.values())

    @property
    def percent(self) -> float:
        return 100.0 if self.total <= 0 else min(100.0, 100.0 * self.done / self.total)

    def note(self, now: datetime) -> None:
        """Remember where it stands at this moment."""
        at = now.timestamp()
        if self.samples and at - self.samples[-1][0] < 0.5:
            self.samples.pop()
        self.samples.append((at, self.done))
        del self.samples[:-SAMPLES]

    def restart(self, now: datetime) -> None:
        """Forget the rate: time stood still (a pause, a closed window)."""
        self.samples = [(now.timestamp(), self.done)]

    def rate(self) -> float | None:
        """Documents a second, waiting included; None when too little has been seen."""
        if len(self.samples) < 2:
            return None
        (first, before), (last, after) = self.samples[0], self.samples[-1]
        return (after - before) / (last - first) if last > first and after > before else None

    def time_left(self) -> TimeLeft | None:
        rate = self.rate()
        if rate is None:
            return None
        left = max(0, self.total - self.done)
        slow, fast = rate / 2, rate * 2
        pairs = list(zip(self.samples, self.samples[1:], strict=False))
        if len(pairs) >= FEW:
            rates = sorted((after - before) / (b - a) for (a, before), (b, after) in pairs if b > a)
            edge = len(rates) // 10
            slow, fast = min(rates[edge], rate), max(rates[-1 - edge], rate)
        worst = timedelta(seconds=left / slow) if slow > 0 else None
        return TimeLeft(timedelta(seconds=left / rate), timedelta(seconds=left / fast), worst)

    def described(self, why: str | None = None) -> str:
        """One line for the run's page, with a bar."""
        filled = int(self.percent / 5)
        parts = [f"{'█' * filled}{'░' * (20 - filled)} {self.percent:.0f} %", f"{self.done:,} of {self.total:,}"]
        if rate := self.rate():
            parts.append(f"{rate:,.0f} a second")
        if self.done < self.total and (left := self.time_left()):
            parts.append(left.described())
        if why:
            parts.append(f"WAITS: {why}")
        return " · ".join(parts)


class Tuning(BaseModel):
    """What operators can change while it runs."""

    batch: BatchSizes
    partitions: int
    throttle: LoadLimits
    abort: AbortLimits

    def tuned(self, tune: Tune) -> Tuning:
        """These settings with what ``tune`` names."""
        named = {name: getattr(tune, name) for name in Tuning.model_fields if getattr(tune, name) is not None}
        return self.model_copy(update=named)

    def described(self) -> str:
        sizes = self.batch
        return f"{sizes.min} to {sizes.max} documents a batch for {sizes.target_ms} ms, {self.partitions} partitions"


class Work(BaseModel):
    """Everything that a run of an update needs to go on, in the next history too."""

    tuning: Tuning
    until: datetime | None = None
    windows: list[OpenWindow] = Field(default_factory=list)
    leaves_filter: bool = True
    waiting: list[IdRange] = Field(default_factory=list)
    numbered: int = Field(0, description="Ranges that have had a number")
    passes: int = 0
    clean_looks: int = 0
    next_size: int | None = None
    progress: Progress = Progress()


@dataclass(frozen=True)
class Opening:
    """Whether work is allowed now, and when that changes; None: not by itself."""

    is_open: bool
    changes: datetime | None


def opening(now: datetime, until: datetime | None, windows: Sequence[OpenWindow]) -> Opening:
    """Open until ``until``, then in each of the later windows, closed in between and after the last one."""
    if until is None:
        return Opening(True, None)
    if now < until:
        return Opening(True, until)
    for window in windows:
        if now < window.opens:
            return Opening(False, window.opens)
        if now < window.closes:
            return Opening(True, window.closes)
    return Opening(False, None)
