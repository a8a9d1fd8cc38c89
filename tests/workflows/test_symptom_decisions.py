"""What a symptom is made of and what can help: tables of cases, and what holds for any readings."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.symptom_metrics import whole_minutes
from activities.symptom_models import (
    ErrorMinutes,
    Minute,
    RouteCount,
)
from tests.workflows.bare_stage import bare_stage
from tests.workflows.symptom_cases import (
    BEFORE_GONE,
    GONE,
    HALF_HOUR,
    HAMMERED,
    NOW,
    QUERY,
    SCENARIOS,
    WELL,
    WRONG_CALL,
    but,
    database,
    errors,
    function,
    latency,
    reports,
    requests,
    slow,
)
from workflows.capacity import pool
from workflows.symptom_children import child_input, pool_size
from workflows.symptom_errors import MINUTE, crowd, lasting_window, missing_routes, picture, sustained
from workflows.symptom_model import PerformanceDegradationInput
from workflows.symptom_readings import Readings, take_apart
from workflows.symptom_recovery import Recovery
from workflows.symptom_remedies import BY_PEOPLE, RUNBOOK_OF, Remedy, Rules, judged


@pytest.mark.parametrize("query", [{"filter": {"$where": "1"}}, {"collection": "system.users"}, {"sort": (("a", 0),)}])
def test_a_slow_query_that_may_not_be_measured_is_left_to_people(query: dict[str, Any]) -> None:
    seen = but(slow=slow(QUERY.model_copy(update=query)))
    inp = PerformanceDegradationInput(stage="production", reason="slow")
    assert child_input(Remedy.ADD_INDEX, but(slow=slow(QUERY)), inp, "slow") is not None
    assert child_input(Remedy.ADD_INDEX, seen, inp, "slow") is None


# --- latency taken apart --------------------------------------------------------------------------------------------


def test_each_part_is_the_difference_of_two_measurements() -> None:
    cold = reports(cold_starts=100, init_average_ms=500.0)
    apart = take_apart(but(latency=latency(2600, 2580, 2500), reports=cold, slow=slow(QUERY)))
    # 1800 requests in 30 minutes are 60 in the 60 seconds of the profile: 54 s in 60 requests are 900 ms each.
    assert (apart.gateway_ms, apart.init_ms, apart.network_ms) == (20, 50, 30)
    assert (apart.function_ms, apart.database_ms) == (1600, 900)
    assert sum(apart.parts().values()) == apart.total_ms
    assert apart.largest() == "code"


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"latency": latency(100, 300, 90)}, "longer than its whole latency"),
        ({"latency": latency(600, 590, 2500)}, "longer than the gateway waited"),
        ({"slow": slow(QUERY, total_ms=600_000)}, "others than this API query the database"),
    ],
)
def test_a_reading_that_cannot_be_is_a_data_problem(changed: dict[str, Any], problem: str) -> None:
    apart = take_apart(but(**changed))
    assert any(problem in one for one in apart.problems), apart.problems
    assert all(value >= 0 for value in apart.parts().values())


_MS = st.none() | st.floats(0, 30_000)


@given(_MS, _MS, _MS, st.integers(0, 1000), st.floats(0, 20_000), st.none() | st.floats(0, 1e7))
def test_parts_are_never_negative_nor_more_than_the_whole(
    total: float | None,
    integration: float | None,
    duration: float | None,
    cold: int,
    init: float,
    queries: float | None,
) -> None:
    measured = latency(total, integration, duration)  # type: ignore[arg-type]
    recorded = slow().model_copy(update={"total_ms": queries})
    seen = but(latency=measured, reports=reports(cold_starts=cold, init_average_ms=init), slow=recorded)
    apart = take_apart(seen)
    parts = {name: value for name, value in apart.parts().items() if name != "start of environments"}
    assert all(value >= 0 for value in apart.parts().values())
    if not apart.problems and None not in (total, integration, duration):
        inside = sum(parts.values()) + (apart.init_ms or 0)
        assert inside <= (total or 0) + 3 * max(5.0, 0.05 * (total or 0)) + 1e-6


def test_nothing_measured_is_not_zero() -> None:
    apart = take_apart(Readings(window=HALF_HOUR))
    assert apart.total_ms is None
    assert apart.parts() == {}


# --- remedies: for each scenario the right one fits, and each plausible wrong one does not ---------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_right_remedy_fits_and_the_wrong_ones_are_refused_with_figures(name: str) -> None:
    seen, right, wrong = SCENARIOS[name]
    offers = {offer.remedy: offer for offer in judged(Remedy, seen, Rules())}
    assert {remedy for remedy in right if not offers[remedy].fits} == set(), offers
    assert {remedy for remedy in wrong if offers[remedy].fits is not False} == set(), offers
    assert all(offer.why for offer in offers.values())


def test_the_strongest_comes_first_and_what_cannot_help_last() -> None:
    ranked = judged(Remedy, SCENARIOS["bad release"][0], Rules())
    assert ranked[0].remedy is Remedy.ROLL_BACK
    fits = [{True: 0, None: 1, False: 2}[offer.fits] for offer in ranked]
    assert fits == sorted(fits)


@given(
    st.sets(st.sampled_from(sorted(set(WELL.__dataclass_fields__) - {"window"}))), st.sampled_from(sorted(SCENARIOS))
)
def test_what_was_not_measured_never_speaks_for_a_change(missing: set[str], name: str) -> None:
    """Losing a source makes an offer unknown. It makes one fit only where a finding stands alone without the figure
    that had weighed it down; and a database that does not answer is itself a finding."""
    seen = SCENARIOS[name][0]
    blind = Readings(**{f: None if f in missing else getattr(seen, f) for f in seen.__dataclass_fields__})
    before = {offer.remedy: offer.fits for offer in judged(Remedy, seen, Rules())}
    after = {offer.remedy: offer.fits for offer in judged(Remedy, blind, Rules())}
    newly = {remedy for remedy in Remedy if after[remedy] and not before[remedy]} - {Remedy.NETWORK}
    allowed = {Remedy.ADD_INDEX, Remedy.PROVISIONED_CONCURRENCY, Remedy.TIMEOUT, Remedy.LIMIT_CLIENT}
    assert newly <= allowed, newly


def test_every_remedy_is_a_runbook_or_for_people() -> None:
    assert set(RUNBOOK_OF) | set(BY_PEOPLE) == set(Remedy)
    assert not set(RUNBOOK_OF) & set(BY_PEOPLE)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "primary"),
    [
        (WELL, "none"),
        (but(errors=errors(0.02)), "5xx"),
        (but(errors=errors(0.009)), "none"),
        (but(requests=HAMMERED), "4xx"),
        (but(requests=GONE, earlier=BEFORE_GONE), "4xx"),
        (but(requests=GONE, earlier=GONE), "none"),
        (but(requests=requests({200: 900, 401: 100})), "none"),
        (but(errors=None, requests=None, gateway=None), "unknown"),
        (but(errors=errors(0), requests=requests({200: 900, 500: 100})), "5xx"),
    ],
)
def test_the_primary_error_type(seen: Readings, primary: str) -> None:
    assert picture(seen, 0.01).primary == primary


def test_a_route_is_gone_or_never_was_or_its_ids_are_wrong() -> None:
    gone, unknown = missing_routes(GONE, BEFORE_GONE)
    assert ([one.route for one in gone], unknown) == (["GET /sessions/{id}"], ())
    gone, unknown = missing_routes(WRONG_CALL, BEFORE_GONE)
    assert (gone, [one.route for one in unknown]) == ((), ["GET /session"])
    both = requests({200: 90, 404: 10}, None, s200_sessions=90, s404_sessions=10)
    assert missing_routes(both, BEFORE_GONE) == ((), ()), "ids that do not exist are neither"


@pytest.mark.parametrize(
    ("good_until", "bad_from", "bad_until", "gone"),
    [
        (20, 20.1, 30, True),
        (20.5, 20, 30, True),  # the old version still answered for half a minute
        (29.9, 1, 30, False),  # in turns: ids that do not exist
        (30, 20, 29, False),
        (20.9, 20, 21, False),  # too short to tell from turns
    ],
)
def test_a_route_that_went_away_within_the_window_is_gone_too(
    good_until: float, bad_from: float, bad_until: float, gone: bool
) -> None:
    def at(minutes: float) -> datetime:
        return NOW + timedelta(minutes=minutes)

    routes = (
        RouteCount(status=200, route="GET /a", requests=90, first_at=at(0), last_at=at(good_until)),
        RouteCount(status=404, route="GET /a", requests=10, first_at=at(bad_from), last_at=at(bad_until)),
    )
    now = requests({200: 90, 404: 10}).model_copy(update={"routes": routes})
    assert bool(missing_routes(now, BEFORE_GONE)[0]) is gone


@pytest.mark.parametrize(
    ("now", "before", "kind"),
    [
        ({"a": 1800, "b": 100, "c": 100}, None, "one client"),
        ({"a": 700, "b": 600, "c": 500}, None, "no spike"),
        ({"a": 1100, "b": 100}, {"a": 100, "b": 100}, "one client"),
        ({"a": 1000}, {"a": 100}, "one client"),
        ({"a": 100, "b": 1000}, {"a": 100}, "one client"),
        ({"a": 400, "b": 400, "c": 400}, {"a": 100, "b": 100, "c": 100}, "general spike"),
        ({"a": 110, "b": 100}, {"a": 100, "b": 100}, "no spike"),
        ({"a": 1000}, None, "no spike"),
    ],
)
def test_one_client_apart_from_a_general_spike(now: dict[str, int], before: dict[str, int] | None, kind: str) -> None:
    earlier = requests({200: sum(before.values())}, before) if before else None
    found = crowd(requests({200: sum(now.values())}, now), earlier)
    assert found.kind == kind, found
    assert (found.client is not None) == (kind == "one client")


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 500), min_size=1),
)
def test_who_is_named_really_sends_the_most_or_added_the_most(now: dict[str, int], before: dict[str, int]) -> None:
    found = crowd(requests({200: sum(now.values())}, now), requests({200: sum(before.values())}, before))
    if found.kind == "one client":
        assert found.client is not None
        added = {name: n - before.get(name, 0) for name, n in now.items()}
        assert now[found.client] == max(now.values()) or added[found.client] == max(added.values())


def minutes(*rates: float, start: datetime = NOW - timedelta(minutes=10)) -> ErrorMinutes:
    found = tuple(
        Minute(at=start + timedelta(minutes=n), requests=100, failed=round(100 * rate))
        for n, rate in enumerate(rates)
        if rate >= 0
    )
    return ErrorMinutes(summary="", minutes=found)


@pytest.mark.parametrize(
    ("rates", "lasts"),
    [
        ((0.06,) * 10, True),
        ((0.05,) * 10, False),
        ((0.06,) * 9 + (0.04,), False),
        ((0.06,) * 5 + (0.04,) + (0.06,) * 4, False),
        ((-1,) * 5 + (0.9,) * 5, False),
        ((0.9,) + (-1,) * 8 + (0.9,), True),
        ((), False),
    ],
)
def test_above_the_limit_for_ten_minutes(rates: tuple[float, ...], lasts: bool) -> None:
    assert sustained(minutes(*rates), 0.05, timedelta(minutes=10), NOW) is lasts


@pytest.mark.parametrize(
    "lasting", [timedelta(seconds=20), timedelta(minutes=1), timedelta(minutes=10), timedelta(minutes=10, seconds=30)]
)
def test_whenever_it_is_looked_the_minutes_that_metrics_know_are_enough(lasting: timedelta) -> None:
    for second in range(61):
        end = NOW + timedelta(seconds=second, milliseconds=second)
        inner = whole_minutes(lasting_window(bare_stage("production", {}), end, lasting))
        assert inner is not None
        there = range(int(inner.length / MINUTE))
        found = tuple(Minute(at=inner.start + n * MINUTE, requests=100, failed=6) for n in there)
        assert sustained(ErrorMinutes(summary="", minutes=found), 0.05, lasting, end), second


def test_errors_that_are_not_known_are_not_sustained() -> None:
    assert not sustained(None, 0.05, timedelta(minutes=10), NOW)


# --- recovery -------------------------------------------------------------------------------------------------------


def look(recovery: Recovery, *wells: bool | None) -> list[str]:
    return [recovery.see(NOW + n * MINUTE, NOW + (n + 1) * MINUTE, well) for n, well in enumerate(wells)]


@pytest.mark.parametrize(
    ("wells", "verdict"),
    [
        ((True, True, True), "mended"),
        ((True, True, False, True, True), "watching"),
        ((True, True, False, True, True, True), "mended"),
        ((False,) * 6, "not_mended"),
        ((None,) * 6, "not_known"),
        ((True, None, None, None, True, True), "mended"),
        ((True, None, None, None, None, None), "not_mended"),
    ],
)
def test_gone_when_a_whole_window_was_good(wells: tuple[bool | None, ...], verdict: str) -> None:
    assert look(Recovery(NOW, 3 * MINUTE, 6 * MINUTE), *wells)[-1] == verdict


@given(st.lists(st.sampled_from((True, False, None)), min_size=1, max_size=20))
def test_never_mended_without_so_many_good_slices_after_the_last_bad_one(wells: list[bool | None]) -> None:
    verdicts = look(Recovery(NOW, 3 * MINUTE, 100 * MINUTE), *wells)
    for n, verdict in enumerate(verdicts):
        seen = wells[: n + 1]
        since = seen[len(seen) - seen[::-1].index(False) :] if False in seen else seen
        assert (verdict == "mended") == (since.count(True) >= 3) or "mended" in verdicts[:n]


# --- what a remedy's own runbook is started with --------------------------------------------------------------------


POOL_IN_CODE = 100


@given(
    st.integers(0, 2000),
    st.integers(0, 2000) | st.none(),
    st.integers(0, 3000) | st.none(),
    st.integers(0, 3000) | st.none(),
    st.integers(1, 200) | st.none(),
)
def test_the_pool_that_is_offered_is_never_refused_by_its_runbook(
    current: int, available: int | None, reserved: int | None, account: int | None, now: int | None
) -> None:
    state = function(reserved=reserved, account_limit=account, max_pool_size=now)
    seen = but(connections=database(current, available), settings=state)
    size = pool_size(seen)
    if size is not None and size != (now or POOL_IN_CODE):
        assert pool(size, now or POOL_IN_CODE, state, seen.reports, seen.connections, None).refused is None
