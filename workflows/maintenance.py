"""When a stage may be migrated: its maintenance windows as intervals of time. Pure functions of policy and moment.

A window belongs to the day on which it opens: one that opens on Friday at 22:00 and closes at 04:00 is Friday's, and a
holiday on Saturday does not shorten it. Windows that touch or overlap are one.

Times of the clock are read in the policy's time zone. Where a clock is put back, an hour comes twice, and a window
opens and closes at the first of the two. Where it is put forward, a time that does not exist is taken an hour later,
and a window that lies wholly in the missing hour does not open on that day.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from activities.stage import MaintenancePolicy
from activities.time_zones import zone

HORIZON_DAYS = 400
"""How far ahead an opening is looked for: longer than a year, so that a policy of a few days a year is served."""

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = timedelta(days=1)

Interval = tuple[datetime, datetime]


def open_at(policy: MaintenancePolicy, now: datetime) -> bool:
    """Whether a window is open; the moment it closes is no longer in it."""
    return closes_at(policy, now) is not None


def closes_at(policy: MaintenancePolicy, now: datetime) -> datetime | None:
    """When the window that is open now closes, in UTC; None when none is open.

    A policy that never closes is said to close at the end of the horizon.
    """
    for start, end in intervals(policy, now):
        if start > now:
            return None
        if now < end:
            return end
    return None


def next_opening(policy: MaintenancePolicy, now: datetime) -> datetime | None:
    """When the next window opens, in UTC, later than now; None when none does within the horizon."""
    return next((start for start, _ in intervals(policy, now) if start > now), None)


def will_fit(policy: MaintenancePolicy, eta: timedelta, now: datetime) -> bool:
    """Whether something that takes ``eta`` and begins now is done before the open window closes."""
    end = closes_at(policy, now)
    return end is not None and now + eta <= end


def fitting_opening(policy: MaintenancePolicy, eta: timedelta, now: datetime) -> datetime | None:
    """When the next window opens, later than now, that is long enough for ``eta``; None when none is."""
    return next((start for start, end in intervals(policy, now) if start > now and end - start >= eta), None)


def intervals(policy: MaintenancePolicy, now: datetime) -> Iterator[Interval]:
    """The windows from the one that is open now, in UTC, in order, without overlaps, up to the horizon."""
    here = zone(policy.time_zone)
    first = now.astimezone(here).date() - 2 * _DAY  # one that opened yesterday may be open still
    merged: Interval | None = None
    for start, end in _days(policy, here, first):
        if merged is not None and start <= merged[1]:
            merged = (min(merged[0], start), max(merged[1], end))
            continue
        if merged is not None and merged[1] > now:
            yield merged
        merged = (start, end)
    if merged is not None and merged[1] > now:
        yield merged


def _days(policy: MaintenancePolicy, here: ZoneInfo, first: date) -> Iterator[Interval]:
    """Each day's windows, ordered by when they open."""
    for number in range(HORIZON_DAYS + 2):
        day = first + number * _DAY
        if day in policy.holidays:
            continue
        found = [
            (
                _moment(day, window.opens, here),
                _moment(_last_day(day, window.opens, window.closes), window.closes, here),
            )
            for window in policy.windows
            if _DAYS[day.weekday()] in window.days
        ]
        yield from sorted(interval for interval in found if interval[0] < interval[1])


def _last_day(day: date, opens: time, closes: time) -> date:
    return day if opens < closes else day + _DAY


def _moment(day: date, clock: time, here: ZoneInfo) -> datetime:
    return datetime.combine(day, clock, here).astimezone(UTC)
