"""The maintenance window of a migration: waited for on a durable timer, with the stage left to others meanwhile."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from temporalio import workflow

from activities.stage import MaintenancePolicy
from activities.time_zones import zone
from workflows import maintenance
from workflows.batched_update_model import OpenWindow
from workflows.database_migration_model import DatabaseMigrationInput
from workflows.details import length
from workflows.migration_code import CodeSteps
from workflows.model import LockState

I = TypeVar("I", bound=DatabaseMigrationInput)  # noqa: E741

LATER_WINDOWS = 30
"""Windows that an update is told of in advance: it parks at the end of each and goes on in the next by itself."""


class WindowSteps(CodeSteps[I]):
    """Steps that keep to the maintenance window."""

    def __init__(self) -> None:
        super().__init__()
        self._outside = False

    async def in_window(self, step_id: str, eta: timedelta) -> bool:
        """Go on only in a window that is long enough. True when nothing had to be waited for.

        Raises:
            Stopped: ``WindowClosed`` where the input says refuse, ``WindowTooShort`` where no window is long enough.
        """
        rules, now = self.stage.maintenance, workflow.now()
        if rules is None or self._outside or maintenance.will_fit(rules, eta, now):
            return True
        opening = maintenance.fitting_opening(rules, eta, now)
        if opening is None:
            raise self.stop(
                f"it takes about {length(eta)}, and no maintenance window of {self.stage.name} within a year is that "
                "long. Give the stage a longer window",
                "WindowTooShort",
            )
        left = maintenance.closes_at(rules, now)
        state = f"closes {self._clock(left, rules)}, too soon for about {length(eta)}" if left else "is closed"
        text = f"the maintenance window of {self.stage.name} {state}; the next one opens {self._clock(opening, rules)}"
        if self.inp.when_closed == "refuse":
            raise self.stop(f'{text}. Start it then, or with "when_closed": "wait"', "WindowClosed")
        self.say(text)
        await self.wait(step_id, opening - now, "Wait for the maintenance window")
        if not self.inp.dry_run and not maintenance.open_at(rules, workflow.now()):
            self._outside = True
            self.say("goes on outside of the maintenance window: the wait was ended by hand", level="warning")
        return False

    async def in_window_again(self, step_id: str, eta: timedelta) -> bool:
        """As :meth:`in_window`, for a run that has the stage: others may have it while this one waits."""
        rules = self.stage.maintenance
        if rules is None or self._outside or self.inp.dry_run or maintenance.will_fit(rules, eta, workflow.now()):
            return True
        await self._release_lock()
        self.state.lock = LockState()
        waited_for_nothing = await self.in_window(step_id, eta)
        await self._take_lock(self.inp)
        return waited_for_nothing

    def window_line(self) -> str:
        """The rule, for the plan. It says no time, so that a plan does not change by waiting."""
        rules = self.stage.maintenance
        if rules is None:
            return "the stage has none: at any time"
        return "outside, by hand" if self._outside else f"only inside ({rules.time_zone}); waits when closed"

    def open_windows(self) -> tuple[datetime | None, tuple[OpenWindow, ...]]:
        """When the open window closes and the ones after it, for an update that parks by itself."""
        rules, now = self.stage.maintenance, workflow.now()
        if rules is None or self._outside:
            return None, ()
        found = list(islice(maintenance.intervals(rules, now), LATER_WINDOWS + 1))
        later = [OpenWindow(opens=start, closes=end) for start, end in found if start > now]
        return maintenance.closes_at(rules, now) or now, tuple(later)

    @staticmethod
    def _clock(moment: datetime, rules: MaintenancePolicy) -> str:
        return f"{moment.astimezone(zone(rules.time_zone)):%a %d %b %H:%M} ({rules.time_zone})"
