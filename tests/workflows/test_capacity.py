"""The arithmetic of scaling: what fits, what it costs, what is refused."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.database import Connections
from activities.function_capacity import FunctionState
from activities.symptom_models import Reports
from workflows import capacity, prices
from workflows.capacity import Assessed
from workflows.load_verdict import Change, Compared, Failed, compare, compare_failed, compare_tests, judged

HOUR = timedelta(hours=1)


def state(**more: object) -> FunctionState:
    given: dict[str, object] = {"version": "1", "memory_mb": 512, "timeout_s": 30, "account_limit": 1000}
    return FunctionState.model_validate({"summary": "", **given, "reservable": 900, **more})


def reports(**more: object) -> Reports:
    given: dict[str, object] = {"invocations": 36_000, "average_ms": 100, "memory_used_mb": 300, "cold_starts": 36}
    return Reports.model_validate({"summary": "", **given, **more})


def database(current: int | None, available: int | None) -> Connections:
    return Connections(summary="", current=current, available=available, ping_ms=1, server="MongoDB")


def test_memory_is_priced_by_what_ran() -> None:
    """36,000 calls an hour x 730 h x 0.1 s x 0.5 GB x $0.0000166667."""
    cost = capacity.memory(1024, state(), reports(), HOUR).cost
    assert cost.startswith("$21.90 → $43.80 a month for the same durations")
    assert prices.AS_OF in cost
    assert "$21.90 with staging's (x 0.50)" in capacity.memory(1024, state(), reports(), HOUR, 0.5).cost
    assert "not known" in capacity.memory(1024, state(), None, HOUR).cost


@pytest.mark.parametrize(("wanted", "refused"), [(512, True), (374, True), (375, False), (256, True), (1024, False)])
def test_memory_that_would_not_do_is_refused(wanted: int, refused: bool) -> None:
    assert bool(capacity.memory(wanted, state(), reports(), HOUR).refused) is refused


@pytest.mark.parametrize(
    ("assessed", "headroom", "priced"),
    [
        (capacity.memory(1024, state(), reports(), HOUR), True, True),
        (capacity.memory(1024, state(), reports(memory_used_mb=900), HOUR), False, True),
        (capacity.memory(1024, state(), None, HOUR), False, False),
        (capacity.provisioned(5, state(reserved=10), reports()), True, True),
        (capacity.provisioned(10, state(reserved=10), reports()), False, True),
        (capacity.provisioned(5, state(reservable=None), reports()), False, True),
        (capacity.provisioned(720, state(), reports()), True, True),
        (capacity.provisioned(721, state(), reports()), False, True),
        (capacity.pool(5, 10, state(reserved=10), None, database(40, 60), None), True, True),
        (capacity.pool(9, 10, state(reserved=10), None, database(40, 60), None), False, True),
        (capacity.pool(5, 10, state(), None, None, None), False, True),
    ],
)
def test_headroom_and_a_sum_are_said_only_where_figures_show_them(
    assessed: Assessed, headroom: bool, priced: bool
) -> None:
    assert (assessed.headroom, assessed.priced) == (headroom, priced)


def test_provisioned_concurrency_costs_whether_used_or_not() -> None:
    """5 x 0.5 GB x 730 h x 3600 s x $0.0000041667."""
    assert "$0.00 → $27.38" in capacity.provisioned(5, state(), reports()).cost
    assert "36 of 36000 calls (0.1%)" in capacity.provisioned(5, state(), reports()).need
    assert "cannot help" in capacity.provisioned(5, state(), reports(cold_starts=0)).need


@pytest.mark.parametrize(
    ("executions", "found", "refused"),
    [
        (5, {}, False),
        (0, {}, True),
        (0, {"provisioned": 5}, False),
        (5, {"provisioned": 5}, True),
        (900, {}, False),
        (901, {}, True),
        (11, {"reserved": 10}, True),
        (10, {"reserved": 10}, False),
    ],
)
def test_more_than_the_limits_allow_is_refused(executions: int, found: dict[str, int], refused: bool) -> None:
    assert bool(capacity.provisioned(executions, state(**found), reports()).refused) is refused


def test_the_documents_pool_of_150_is_refused_with_the_arithmetic() -> None:
    """The document raises the pool from 100 to 150 against an M10, 'if connections are exhausted'."""
    found = capacity.pool(150, 100, state(), reports(), database(1400, 100), None)
    assert found.refused
    assert "150 x 1000 environments = 150000; the server takes 1500, 80% of it are 1200" in found.refused
    assert "at most 1 a pool, or a reserved concurrency of 8" in found.refused


@given(
    wanted=st.integers(1, 300),
    now=st.integers(1, 300),
    most=st.integers(1, 1000),
    current=st.integers(0, 2000),
    available=st.integers(0, 2000),
)
def test_a_larger_pool_is_allowed_exactly_where_it_fits(
    wanted: int, now: int, most: int, current: int, available: int
) -> None:
    found = capacity.pool(wanted, now, state(reserved=most), None, database(current, available), None)
    fits = wanted * most <= int((current + available) * 0.8)
    assert bool(found.refused) is (wanted == now or (wanted > now and not fits))


def test_what_is_not_known_allows_only_less() -> None:
    assert capacity.pool(20, 10, state(), None, database(5, None), None).refused
    assert not capacity.pool(5, 10, state(), None, database(5, None), None).refused
    assert "tier M10 takes 1500" in capacity.pool(1, 10, state(), None, None, "M10").capacity


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (1000, 800, Change.BETTER),
        (1000, 950, Change.SAME),
        (1000, 1090, Change.SAME),
        (1000, 1200, Change.WORSE),
        (0, 0, Change.SAME),
        (None, 5, Change.UNKNOWN),
    ],
)
def test_figures_are_compared_beyond_chance(before: float | None, after: float | None, change: Change) -> None:
    assert compare(before, after).change is change


def of_p95(p95: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"p95_ms": p95, "p95_low_ms": low, "p95_high_ms": high}


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (of_p95(157, 150, 170), of_p95(250, 230, 280), Change.WORSE),
        (of_p95(250, 230, 280), of_p95(157, 150, 170), Change.BETTER),
        (of_p95(157, 150, 240), of_p95(250, 230, 280), Change.SAME),
        (of_p95(157, 120, None), of_p95(250, 180, None), Change.SAME),
        (of_p95(157, 156, 158), of_p95(159, 159, 160), Change.SAME),
        ({"p95_ms": 157.0}, {"p95_ms": 250.0}, Change.WORSE),
        ({}, of_p95(250, 230, 280), Change.UNKNOWN),
    ],
)
def test_load_tests_are_compared_beyond_what_so_few_requests_show(
    before: dict[str, float | None], after: dict[str, float | None], change: Change
) -> None:
    assert compare_tests(before, after).change is change


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ((0.0, 1000), (0.0, 1000), Change.SAME),
        ((0.0, 1000), (0.004, 1000), Change.SAME),
        ((0.0, 1000), (0.02, 1000), Change.WORSE),
        ((0.02, 1000), (0.0, 1000), Change.BETTER),
        ((0.05, 1000), (0.06, 1000), Change.SAME),
        ((0.0, 20), (0.05, 20), Change.SAME),
        ((0.0, 20), (0.5, 20), Change.WORSE),
        ((1.0, 1000), (1.0, 1000), Change.SAME),
        ((None, None), (0.5, 1000), Change.UNKNOWN),
        ((0.0, 1000), (None, 0), Change.UNKNOWN),
    ],
)
def test_failed_calls_are_compared_in_points_and_beyond_chance(
    before: tuple[float | None, float | None], after: tuple[float | None, float | None], change: Change
) -> None:
    assert compare_failed(Failed(*before), Failed(*after)).change is change


@pytest.mark.parametrize(
    ("found", "failed", "change"),
    [
        (Change.BETTER, Change.WORSE, Change.WORSE),
        (Change.UNKNOWN, Change.WORSE, Change.WORSE),
        (Change.BETTER, Change.SAME, Change.BETTER),
        (Change.WORSE, Change.SAME, Change.WORSE),
        (Change.BETTER, Change.BETTER, Change.BETTER),
        (Change.SAME, Change.BETTER, Change.BETTER),
        (Change.UNKNOWN, Change.BETTER, Change.BETTER),
        (Change.WORSE, Change.BETTER, Change.UNKNOWN),
        (Change.BETTER, Change.UNKNOWN, Change.BETTER),
        (Change.WORSE, Change.UNKNOWN, Change.WORSE),
    ],
)
def test_more_failed_calls_are_worse_whatever_the_figure_says(found: Change, failed: Change, change: Change) -> None:
    assert judged(Compared(found, "900 → 90 ms"), Compared(failed, "0.0% → 5.0%", "failed"), "p95").change is change


@given(st.floats(1, 1e5), st.floats(1, 1e5), st.floats(1, 1e5))
def test_an_alarm_is_only_ever_lowered_and_never_below_the_usual(old: float, before: float, after: float) -> None:
    fitted = capacity.threshold(old, before, after)
    assert fitted is None or after <= fitted < old
