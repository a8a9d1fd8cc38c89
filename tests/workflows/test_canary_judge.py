"""The judge of a gradual rollback: what it may never say, what it has to see, and how often it may be wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.version_counts import LAST_BUCKET, VersionCounts, bucket_of, upper_ms
from workflows.canary_evidence import Sample, above, below, higher
from workflows.canary_judge import Decision, Judgement, Limits, Look, Verdict, judge, settle

LIMITS = Limits()
GOOD, WORSE, NOT_ENOUGH = Verdict.BETTER_OR_EQUAL, Verdict.WORSE, Verdict.NOT_ENOUGH
HARM = [GOOD, NOT_ENOUGH, WORSE]
CURE = [True, None, False]


def side(invocations: int, errors: int = 0, *durations_ms: float, version: str = "7") -> VersionCounts:
    """Counts; the given durations are repeated until every invocation has one."""
    repeated = [durations_ms[number % len(durations_ms)] for number in range(invocations)] if durations_ms else []
    return VersionCounts.of(version, invocations=invocations, errors=errors, durations_ms=repeated)


def look(restored: VersionCounts | None, replaced: VersionCounts | None) -> Look:
    return Look(restored=restored, replaced=replaced)


def errors(n1: int, x1: int, n2: int, x2: int) -> Look:
    return look(side(n1, x1), side(n2, x2, version="8"))


@st.composite
def counts(draw: st.DrawFn) -> VersionCounts:
    invocations = draw(st.integers(0, 2000))
    return side(
        invocations, draw(st.integers(0, invocations)), *draw(st.lists(st.floats(0.1, 40_000), max_size=4)), version="v"
    )


looks = st.lists(st.builds(look, counts(), counts()), min_size=1, max_size=6)


# --- what is said of chances is true: by enumeration of everything that can happen, not by sampling ------------------


def binomial(n: int, rate: float) -> Iterator[tuple[int, float]]:
    for x in range(n + 1):
        yield x, math.comb(n, x) * rate**x * (1 - rate) ** (n - x)


rates = st.floats(0, 1)
sizes = st.integers(0, 9)


@given(sizes, sizes, rates, st.floats(0, 1), st.floats(0.2, 2), st.floats(0, 0.3))
def test_one_look_is_no_evidence_against_a_true_claim(
    n1: int, n2: int, second: float, under: float, ratio: float, margin: float
) -> None:
    first = under * min(1.0, ratio * second + margin)
    expected = sum(
        p1 * p2 * math.exp(higher([Sample(n1, x1, n2, x2)], ratio=ratio, margin=margin))
        for (x1, p1), (x2, p2) in product(binomial(n1, first), binomial(n2, second))
    )
    assert expected <= 1 + 1e-9


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), rates), min_size=2, max_size=2))
def test_nor_are_several_looks_with_other_rates_and_weights_each(each: list[tuple[int, int, float]]) -> None:
    outcomes = [
        [(Sample(n1, x1, n2, x2), p1 * p2) for (x1, p1), (x2, p2) in product(binomial(n1, rate), binomial(n2, rate))]
        for n1, n2, rate in each
    ]
    expected = sum(p * q * math.exp(higher([a, b], late=True)) for (a, p), (b, q) in product(*outcomes))
    assert expected <= 1 + 1e-9


@given(st.integers(0, 40), st.floats(0.001, 0.5), st.floats(0, 1))
def test_nor_is_a_rate_within_its_limit(n: int, limit: float, under: float) -> None:
    over = limit + (1 - limit) * under
    assert sum(p * math.exp(above([(n, x)], limit)) for x, p in binomial(n, limit * under)) <= 1 + 1e-9
    assert sum(p * math.exp(below([(n, x)], limit)) for x, p in binomial(n, over)) <= 1 + 1e-9


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.25])
def test_false_alarms_of_whole_bakes_stay_under_what_is_stated(rate: float) -> None:
    """Identical versions, at 10 and then 50 % of the traffic, a bad minute for both; any alarm at any look counts."""
    chance = random.Random(int(rate * 1000))
    limits = Limits(alpha=0.1, consecutive=1)
    bakes, worse, wrong_cure = 150, 0, 0
    for _ in range(bakes):
        seen: list[Look] = []
        judgements: list[Judgement] = []
        for minute in range(8):
            now = min(1.0, rate * (4 if minute == 5 else 1))
            n1, n2 = (20, 180) if minute < 4 else (100, 100)
            x1, x2 = (sum(chance.random() < now for _ in range(n)) for n in (n1, n2))
            seen.append(errors(n1, x1, n2, x2))
            judgements.append(judge(seen, limits))
        worse += any(judgement.verdict is WORSE for judgement in judgements)
        wrong_cure += any(judgement.improved for judgement in judgements)
    assert worse <= limits.alpha * bakes
    assert wrong_cure <= limits.alpha * bakes


@given(looks)
def test_never_worse_than_itself(seen: list[Look]) -> None:
    same = [look(each.restored, each.restored) for each in seen]
    judgement = judge(same, LIMITS)
    assert judgement.verdict is not WORSE
    assert judgement.improved is not True


# --- what holds for all counts ---------------------------------------------------------------------------------------


@given(looks)
def test_never_good_without_the_minimum_sample(seen: list[Look]) -> None:
    judgement = judge(seen, LIMITS)
    sides = zip(*((each.restored, each.replaced) for each in seen), strict=True)
    totals = [sum(each.invocations for each in of_one if each) for of_one in sides]
    if min(totals) < LIMITS.min_sample:
        assert judgement.verdict is not GOOD
        assert judgement.improved is None
        assert not judgement.within_limits
    assert judgement.measured


@given(looks, st.data())
def test_more_errors_never_improve_what_is_said(seen: list[Look], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(seen) - 1))
    restored = seen[at].restored
    assert restored is not None
    more = data.draw(st.integers(restored.errors, restored.invocations))
    after = [*seen]
    after[at] = look(restored.model_copy(update={"errors": more}), seen[at].replaced)
    first, second = judge(seen, LIMITS), judge(after, LIMITS)
    assert HARM.index(second.verdict) >= HARM.index(first.verdict)
    assert CURE.index(second.improved) >= CURE.index(first.improved)
    assert second.certain or not first.certain


@given(counts(), counts())
def test_sides_swapped_swap_worse_and_better(one: VersionCounts, other: VersionCounts) -> None:
    there, back = judge([look(one, other)], LIMITS).p_values, judge([look(other, one)], LIMITS).p_values
    for aspect in ("errors", "latency"):
        assert back[f"{aspect}_better"] <= there[f"{aspect}_worse"]
        # The price of finding a late break too is all that lies between them.
        assert there[f"{aspect}_worse"] == pytest.approx(min(1.0, back[f"{aspect}_better"] / 0.9), rel=0.02)


@given(looks)
def test_judgements_travel_unchanged(seen: list[Look]) -> None:
    judgement = judge(seen, LIMITS)
    assert Judgement.model_validate_json(judgement.model_dump_json()) == judgement
    assert [Look.model_validate_json(each.model_dump_json()) for each in seen] == seen
    assert judge(seen, LIMITS) == judgement


# --- where other judges go wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n1", "x1", "n2", "x2", "verdict", "improved"),
    [
        pytest.param(500, 25, 500, 0, WORSE, None, id="a baseline without errors is a baseline"),
        pytest.param(50, 15, 450, 0, WORSE, None, id="also at a tenth of the traffic"),
        pytest.param(20, 15, 180, 0, WORSE, None, id="harm that is plain needs no minimum sample"),
        pytest.param(0, 0, 0, 0, NOT_ENOUGH, None, id="no traffic"),
        pytest.param(0, 0, 900, 270, NOT_ENOUGH, None, id="no traffic for the version brought back"),
        pytest.param(900, 0, 0, 0, NOT_ENOUGH, None, id="no traffic for the version replaced"),
        pytest.param(5, 1, 5, 0, NOT_ENOUGH, None, id="one error at low traffic is no alarm"),
        pytest.param(200, 1, 200, 0, GOOD, None, id="one stray error is no alarm"),
        pytest.param(5000, 4, 5000, 0, GOOD, None, id="a difference within the healthy rate is no harm"),
        pytest.param(100_000, 95, 100_000, 10, GOOD, None, id="even when it is sure"),
        pytest.param(500, 0, 500, 150, GOOD, True, id="the cure"),
        pytest.param(50, 0, 450, 135, GOOD, True, id="the cure at a tenth of the traffic"),
        pytest.param(500, 15, 500, 150, GOOD, True, id="better is better, though above the limit"),
        pytest.param(500, 150, 500, 150, NOT_ENOUGH, False, id="not the deploy"),
        pytest.param(500, 20, 500, 21, NOT_ENOUGH, None, id="as bad as far as can be seen: wait"),
        pytest.param(50_000, 12_500, 50_000, 15_000, NOT_ENOUGH, False, id="a little better is no cure"),
        pytest.param(10_000_000, 100_000, 10_000_000, 3_000_000, GOOD, True, id="ten million"),
        pytest.param(10_000_000, 3_000_000, 10_000_000, 100_000, WORSE, False, id="ten million, worse"),
    ],
)
def test_errors(n1: int, x1: int, n2: int, x2: int, verdict: Verdict, improved: bool | None) -> None:
    judgement = judge([errors(n1, x1, n2, x2)], LIMITS)
    assert judgement.verdict is verdict, judgement.reasons
    assert judgement.improved is improved, judgement.reasons


SLOW, QUICK = (2500.0, 4000.0), (60.0, 90.0, 130.0)


@pytest.mark.parametrize(
    ("restored", "replaced", "verdict", "improved"),
    [
        pytest.param(side(300, 0, *QUICK), side(300, 0, *SLOW), GOOD, True, id="cured"),
        pytest.param(side(300, 0, *SLOW), side(300, 0, *QUICK), WORSE, None, id="slower"),
        pytest.param(side(300, 0, *SLOW), side(300, 0, *SLOW), NOT_ENOUGH, False, id="the database is slow for both"),
        pytest.param(side(300, 0, *QUICK), side(300, 0, *QUICK), GOOD, None, id="equal"),
        pytest.param(side(300, 0, 140.0), side(300, 0, 120.0), GOOD, None, id="within the tolerance"),
        pytest.param(side(300, 0, 250.0), side(300, 0, 100.0), WORSE, None, id="slower within the absolute limit"),
        pytest.param(side(300, 0, *[90.0] * 29, 3000.0), side(300, 0, 90.0), GOOD, None, id="a few cold starts"),
        pytest.param(side(300, 0), side(300, 0, 90.0), GOOD, None, id="not timed"),
        pytest.param(side(300, 0, 100.0), side(300, 100, 20.0), GOOD, True, id="failures are quick: not slower"),
        pytest.param(side(300, 100, 20.0), side(300, 0, *SLOW), WORSE, None, id="quick failures are no cure"),
        pytest.param(side(300, 100, 20.0), side(300, 100, *SLOW), NOT_ENOUGH, None, id="quicker, still failing: ask"),
        pytest.param(side(9000, 0, 100.0), side(9000, 0, 100.0), GOOD, False, id="nothing to cure"),
    ],
)
def test_latency(restored: VersionCounts, replaced: VersionCounts, verdict: Verdict, improved: bool | None) -> None:
    judgement = judge([look(restored, replaced)], LIMITS)
    assert judgement.verdict is verdict, judgement.reasons
    assert judgement.improved is improved, judgement.reasons


def test_low_traffic_adds_up_over_the_looks() -> None:
    minutes = [errors(4, 0, 36, 11)] * 40
    assert judge(minutes[:5], LIMITS).verdict is NOT_ENOUGH
    assert judge(minutes, LIMITS).improved is True


def test_a_bad_minute_of_both_is_no_harm() -> None:
    calm, storm = errors(450, 0, 50, 0), errors(50, 30, 450, 270)
    assert judge([calm] * 8, LIMITS).verdict is GOOD
    # Each minute hits both alike. Added up, one has 13 % errors (750 of 5,750) and the other 57 % (6,750 of 11,750).
    mixed = [calm] * 10 + [storm] * 25
    assert judge(mixed, LIMITS).improved is not True
    assert judge([look(each.replaced, each.restored) for each in mixed], LIMITS).verdict is not WORSE


def test_a_break_in_the_middle_of_a_good_bake_is_certain_at_the_next_look() -> None:
    good = [errors(300, 2, 300, 15)] * 12
    assert judge(good, LIMITS).improved is True
    broken = judge([*good, errors(300, 90, 300, 15)], LIMITS)
    assert broken.verdict is WORSE
    assert broken.certain
    assert settle([*[judge(good, LIMITS)] * 3, broken], LIMITS) is Decision.WORSE


# --- nothing left to compare with ------------------------------------------------------------------------------------


def test_at_all_of_the_traffic_it_is_held_against_limits_and_the_past() -> None:
    def alone(invocations: int, failed: int, earlier: VersionCounts, *durations_ms: float) -> Judgement:
        return judge([look(side(invocations, failed, *durations_ms), None)] * 3, LIMITS, earlier=earlier)

    past = side(1000, 300, *SLOW, version="8")
    fine = alone(500, 0, past)
    assert (fine.verdict, fine.improved, fine.within_limits) == (GOOD, None, True)
    better = alone(500, 15, past)
    assert (better.verdict, better.within_limits) == (GOOD, False)
    assert alone(500, 250, past).verdict is WORSE
    assert alone(500, 15, side(1000, 1, version="8")).verdict is WORSE
    assert alone(500, 0, past, *SLOW).verdict is GOOD
    assert alone(500, 0, side(1000, 0, *QUICK, version="8"), *SLOW).verdict is WORSE
    assert alone(10, 0, past).verdict is NOT_ENOUGH
    assert alone(500, 25, side(0, 0, version="8")).verdict is WORSE


# --- cannot measure is not bad ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (look(None, side(100, 50)), "could not be measured"),
        (look(side(100, 50), None), "could not be measured"),
        (look(side(100).model_copy(update={"errors": 101}), side(100)), "can't be"),
    ],
)
def test_a_failed_look_is_neither_good_nor_bad(last: Look, why: str) -> None:
    harm = [errors(500, 100, 500, 0)] * 3
    judgement = judge([*harm, last], LIMITS)
    assert (judgement.measured, judgement.verdict, judgement.improved) == (False, NOT_ENOUGH, None)
    assert why in judgement.reasons[0]
    # The next look that succeeds goes on with all that was seen.
    assert judge([*harm, last, errors(1, 0, 1, 0)], LIMITS).verdict is WORSE


def test_nothing_looked_at_is_not_measured() -> None:
    assert judge([], LIMITS).measured is False
    assert settle([], LIMITS) is Decision.WAIT


@pytest.mark.parametrize("number", [float("nan"), -1, 1.5])
def test_counts_are_counts(number: float) -> None:
    with pytest.raises(ValueError, match="invocations"):
        VersionCounts.model_validate({"version": "7", "invocations": number, "errors": 0})
    with pytest.raises(ValueError, match="latency"):
        VersionCounts.model_validate({"version": "7", "invocations": 1, "errors": 0, "latency": {LAST_BUCKET + 1: 1}})


# --- what judgements come to -----------------------------------------------------------------------------------------

CURED = Judgement(verdict=GOOD, improved=True)
HARMLESS = Judgement(verdict=GOOD)
SAME = Judgement(verdict=NOT_ENOUGH, improved=False)
EQUAL = Judgement(verdict=GOOD, improved=False)
BAD = Judgement(verdict=WORSE, improved=False)
TERRIBLE = Judgement(verdict=WORSE, certain=True)
UNSURE = Judgement(verdict=NOT_ENOUGH)
BLIND = Judgement(verdict=NOT_ENOUGH, measured=False)


@pytest.mark.parametrize(
    ("judgements", "decision", "with_proof"),
    [
        ([CURED], Decision.WAIT, Decision.WAIT),
        ([CURED, CURED], Decision.GO_ON, Decision.GO_ON),
        ([HARMLESS, CURED], Decision.GO_ON, Decision.WAIT),
        ([HARMLESS, HARMLESS], Decision.GO_ON, Decision.WAIT),
        ([CURED, UNSURE], Decision.WAIT, Decision.WAIT),
        ([BAD], Decision.WAIT, Decision.WAIT),
        ([CURED, BAD], Decision.WAIT, Decision.WAIT),
        ([BAD, BAD], Decision.WORSE, Decision.WORSE),
        ([CURED, TERRIBLE], Decision.WORSE, Decision.WORSE),
        ([TERRIBLE, CURED], Decision.WAIT, Decision.WAIT),
        ([SAME, SAME], Decision.NOT_THE_DEPLOY, Decision.NOT_THE_DEPLOY),
        ([SAME, EQUAL], Decision.NOT_THE_DEPLOY, Decision.NOT_THE_DEPLOY),
        ([BAD, SAME], Decision.WAIT, Decision.WAIT),
        ([HARMLESS, EQUAL], Decision.WAIT, Decision.WAIT),
        ([CURED, BLIND, CURED], Decision.GO_ON, Decision.GO_ON),
        ([BAD, BLIND, BAD], Decision.WORSE, Decision.WORSE),
        ([CURED, CURED, BLIND], Decision.WAIT, Decision.WAIT),
        ([BAD, BLIND, BLIND, BLIND], Decision.UNMEASURED, Decision.UNMEASURED),
        ([BLIND, BLIND, BLIND, CURED], Decision.WAIT, Decision.WAIT),
    ],
)
def test_settling(judgements: list[Judgement], decision: Decision, with_proof: Decision) -> None:
    assert settle(judgements, LIMITS) is decision
    assert settle(judgements, LIMITS, proof=True) is with_proof


# --- counts that add up ----------------------------------------------------------------------------------------------


@given(st.integers(0, LAST_BUCKET))
def test_a_buckets_edge_is_in_it(bucket: int) -> None:
    assert bucket_of(upper_ms(bucket)) == bucket
    assert bucket_of(upper_ms(bucket) * 1.001) == min(bucket + 1, LAST_BUCKET)


@pytest.mark.parametrize("milliseconds", [0, -5, float("nan"), 1])
def test_what_is_no_duration_is_none(milliseconds: float) -> None:
    assert bucket_of(milliseconds) == 0


def test_counts_add_up() -> None:
    one, other = side(3, 1, 10, 20, 30), side(2, 2, 20, 900, version="8")
    both = one.plus(other)
    assert (both.version, both.invocations, both.errors, both.timed) == ("7", 5, 3, 5)
    assert both.slower_than(bucket_of(100)) == 1
    assert both.error_rate == 0.6
    assert side(0).error_rate is None
    assert both.percentile_ms(0.5) == pytest.approx(20, rel=0.13)
    assert side(0).percentile_ms(0.5) is None
