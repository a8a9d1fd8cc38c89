"""Maintenance windows: tables for the nights people argue about, properties against a walk minute by minute."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from activities.stage import MaintenancePolicy, MaintenanceWindow
from activities.time_zones import zone
from workflows import maintenance

WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTE = timedelta(minutes=1)


def policy(
    *windows: tuple[str, str, str], tz: str = "Europe/Berlin", holidays: tuple[str, ...] = ()
) -> MaintenancePolicy:
    return MaintenancePolicy.model_validate(
        {
            "time_zone": tz,
            "windows": [{"days": days.split(), "opens": opens, "closes": closes} for days, opens, closes in windows],
            "holidays": holidays,
        }
    )


def at(text: str, tz: str = "Europe/Berlin") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(tz))


NIGHTS = policy(("mon tue wed thu fri", "22:00", "04:00"))
WEEKENDS = policy(("sat sun", "00:00", "00:00"))


@pytest.mark.parametrize(
    ("rules", "moment", "closes"),
    [
        (NIGHTS, "2026-01-20T21:59:59", None),
        (NIGHTS, "2026-01-20T22:00", "2026-01-21T04:00"),
        (NIGHTS, "2026-01-21T03:59", "2026-01-21T04:00"),
        (NIGHTS, "2026-01-21T04:00", None),
        (NIGHTS, "2026-01-24T03:00", "2026-01-24T04:00"),  # Saturday morning is Friday's night
        (NIGHTS, "2026-01-26T03:00", None),  # and Monday morning would be Sunday's
        (WEEKENDS, "2026-01-24T00:00", "2026-01-26T00:00"),  # two whole days that touch are one window
        (WEEKENDS, "2026-01-26T00:00", None),
    ],
)
def test_open_and_closed(rules: MaintenancePolicy, moment: str, closes: str | None) -> None:
    now = at(moment)
    assert maintenance.open_at(rules, now) == (closes is not None)
    assert maintenance.closes_at(rules, now) == (at(closes) if closes else None)


@pytest.mark.parametrize(
    ("rules", "moment", "opens"),
    [
        (NIGHTS, "2026-01-20T12:00", "2026-01-20T22:00"),
        (NIGHTS, "2026-01-20T23:00", "2026-01-21T22:00"),  # the one after the open one
        (NIGHTS, "2026-01-24T12:00", "2026-01-26T22:00"),
        (WEEKENDS, "2026-01-24T12:00", "2026-01-31T00:00"),
    ],
)
def test_next_opening(rules: MaintenancePolicy, moment: str, opens: str) -> None:
    assert maintenance.next_opening(rules, at(moment)) == at(opens)


def test_no_window_opens_on_a_holiday_but_one_that_is_open_goes_on() -> None:
    rules = policy(("mon tue wed thu fri", "22:00", "04:00"), holidays=("2026-01-21",))
    assert maintenance.closes_at(rules, at("2026-01-21T01:00")) == at("2026-01-21T04:00")
    assert maintenance.next_opening(rules, at("2026-01-21T12:00")) == at("2026-01-22T22:00")


def test_a_policy_without_an_opening_in_a_year_has_none() -> None:
    everyday = tuple(str(date(2026, 1, 1) + timedelta(days=n)) for n in range(500))
    rules = policy((" ".join(WEEK), "22:00", "04:00"), holidays=everyday)
    assert maintenance.next_opening(rules, at("2026-01-20T12:00")) is None


def test_a_window_that_never_closes() -> None:
    rules = policy((" ".join(WEEK), "00:00", "00:00"))
    now = at("2026-01-20T12:00")
    assert maintenance.will_fit(rules, timedelta(days=365), now)
    assert maintenance.next_opening(rules, now) is None


def test_will_it_fit() -> None:
    now = at("2026-01-20T23:00")
    assert maintenance.will_fit(NIGHTS, timedelta(hours=5), now)
    assert not maintenance.will_fit(NIGHTS, timedelta(hours=5, seconds=1), now)
    assert not maintenance.will_fit(NIGHTS, timedelta(0), at("2026-01-20T12:00"))
    assert maintenance.fitting_opening(NIGHTS, timedelta(hours=6), now) == at("2026-01-21T22:00")
    assert maintenance.fitting_opening(NIGHTS, timedelta(hours=6, seconds=1), now) is None


# In Berlin the clock goes from 02:00 to 03:00 on 29 March 2026, and from 03:00 back to 02:00 on 25 October 2026.


def test_a_window_across_the_missing_hour_is_an_hour_shorter() -> None:
    rules = policy(("sun", "01:00", "04:00"))
    now = datetime(2026, 3, 29, 0, 0, tzinfo=UTC)
    assert maintenance.closes_at(rules, now) == now + timedelta(hours=2)


def test_a_window_in_the_missing_hour_opens_an_hour_later_or_not_at_all() -> None:
    late = policy(("sun", "02:30", "05:00"))
    assert maintenance.next_opening(late, at("2026-03-28T12:00")) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    gone = policy(("sun", "02:15", "03:00"))
    assert maintenance.next_opening(gone, at("2026-03-28T12:00")) == at("2026-04-05T02:15")


def test_a_window_across_the_hour_that_comes_twice_is_an_hour_longer() -> None:
    rules = policy(("sun", "01:00", "04:00"))
    now = at("2026-10-25T01:00")
    assert maintenance.closes_at(rules, now) == now.astimezone(UTC) + timedelta(hours=4)


def test_a_window_in_the_hour_that_comes_twice_is_in_the_first() -> None:
    rules = policy(("sun", "02:15", "02:45"))
    start = datetime(2026, 10, 25, 0, 15, tzinfo=UTC)
    assert maintenance.next_opening(rules, at("2026-10-24T12:00")) == start
    assert maintenance.closes_at(rules, start) == start + timedelta(minutes=30)
    assert not maintenance.open_at(rules, start + timedelta(hours=1))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"time_zone": "Mars/Olympus"}, "there is no time zone 'Mars/Olympus'"),
        ({"time_zone": "../../etc/passwd"}, "String should match pattern"),
        ({"time_zone": "Europe"}, "there is no time zone 'Europe'"),
        ({"windows": []}, "at least 1 item"),
        ({"windows": [{"days": ["monday"], "opens": "22:00", "closes": "04:00"}]}, "Input should be 'mon'"),
        ({"windows": [{"days": ["mon"], "opens": "22:00+01:00", "closes": "04:00"}]}, "without an offset"),
        ({"windows": [{"days": ["mon"], "opens": "25:00", "closes": "04:00"}]}, "valid time format"),
    ],
)
def test_a_wrong_policy_is_refused_when_it_is_read(wrong: dict[str, object], text: str) -> None:
    given_ = {"windows": [{"days": ["mon"], "opens": "22:00", "closes": "04:00"}], **wrong}
    with pytest.raises(ValidationError, match=text):
        MaintenancePolicy.model_validate(given_)


def test_zones_come_from_the_package() -> None:
    assert zone("Europe/Berlin").key == "Europe/Berlin"
    assert datetime(2026, 7, 1, tzinfo=zone("America/Argentina/Buenos_Aires")).utcoffset() == timedelta(hours=-3)


clocks = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 45]))
windows = st.builds(
    MaintenanceWindow, days=st.sets(st.sampled_from(WEEK), min_size=1).map(tuple), opens=clocks, closes=clocks
)
policies = st.builds(
    MaintenancePolicy,
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Chatham"]),
    windows=st.lists(windows, min_size=1, max_size=3).map(tuple),
    holidays=st.sets(st.dates(date(2026, 3, 20), date(2026, 4, 10)), max_size=5).map(tuple),
)
moments = st.datetimes(datetime(2026, 3, 25), datetime(2026, 4, 5), timezones=st.just(UTC))  # noqa: DTZ001
lengths = st.timedeltas(timedelta(0), timedelta(days=2))


@given(policies, moments)
def test_the_three_answers_agree(rules: MaintenancePolicy, now: datetime) -> None:
    end, start = maintenance.closes_at(rules, now), maintenance.next_opening(rules, now)
    assert maintenance.open_at(rules, now) == (end is not None)
    if start is not None:
        assert start > now
        assert maintenance.open_at(rules, start)
        assert not maintenance.open_at(rules, start - timedelta(microseconds=1))
        assert end is None or end < start, "windows that touch are one"
    if end is not None and end < now + timedelta(days=maintenance.HORIZON_DAYS - 3):
        assert end > now
        assert not maintenance.open_at(rules, end)
        assert maintenance.open_at(rules, end - timedelta(microseconds=1))


@given(policies, moments, lengths)
def test_what_fits_ends_inside_and_what_is_shorter_fits_too(
    rules: MaintenancePolicy, now: datetime, eta: timedelta
) -> None:
    fits = maintenance.will_fit(rules, eta, now)
    if fits:
        assert maintenance.open_at(rules, now)
        assert eta == timedelta(0) or maintenance.open_at(rules, now + eta - timedelta(microseconds=1))
        assert maintenance.will_fit(rules, eta / 2, now)
    opening = maintenance.fitting_opening(rules, eta, now)
    assert opening is None or (opening > now and maintenance.will_fit(rules, eta, opening))


@given(policies, moments)
def test_intervals_are_apart_and_in_order(rules: MaintenancePolicy, now: datetime) -> None:
    found = list(maintenance.intervals(rules, now))
    assert all(start < end for start, end in found)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


@settings(max_examples=30, deadline=None)
@given(policies, moments)
def test_open_is_what_the_clock_on_the_wall_says(rules: MaintenancePolicy, now: datetime) -> None:
    """Away from the days on which the clock changes, against a reading that knows no intervals."""
    here = zone(rules.time_zone)
    local = now.astimezone(here).replace(second=0, microsecond=0)
    days = [local + timedelta(days=n) for n in (-2, -1, 0, 1, 2)]
    if len({day.utcoffset() for day in days}) > 1:
        return
    expected = False
    for window in rules.windows:
        for day in (local.date(), local.date() - timedelta(days=1)):
            if WEEK[day.weekday()] in window.days and day not in rules.holidays:
                passes_midnight = window.closes <= window.opens
                if day == local.date():
                    expected |= window.opens <= local.time() and (passes_midnight or local.time() < window.closes)
                else:
                    expected |= passes_midnight and local.time() < window.closes
    assert maintenance.open_at(rules, local) == expected
