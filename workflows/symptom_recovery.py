"""When a symptom counts as gone: the same measurement under its threshold for a whole window. Pure, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

Verdict = Literal["watching", "mended", "not_mended", "not_known"]


@dataclass
class Recovery:
    """Looks after a remedy, one slice of time after the other.

    A bad slice begins the count anew; one in which nothing could be measured (no traffic) neither counts nor breaks it.
    """

    began: datetime
    stable_for: timedelta
    patience: timedelta
    good: timedelta = field(default=timedelta(0))
    last: bool | None = None
    """Of the last slice that could be measured."""

    def see(self, start: datetime, end: datetime, well: bool | None) -> Verdict:
        """Take in one slice. ``well`` is None when it could not be measured."""
        if well is True:
            self.good += end - start
        elif well is False:
            self.good = timedelta(0)
        if well is not None:
            self.last = well
        if self.good >= self.stable_for:
            return "mended"
        if end - self.began < self.patience:
            return "watching"
        return "not_known" if self.last is None else "not_mended"
