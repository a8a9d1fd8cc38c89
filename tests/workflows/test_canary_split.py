"""Whether a split is the wanted one: by hand-checked figures, and by properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.canary_split import split_seen


@pytest.mark.parametrize(
    ("percent", "restored", "replaced", "far"),
    [
        (10, 0, 0, False),  # nothing yet
        (10, 0, 20, False),  # at 10 % twenty requests miss it one time in eight
        (10, 0, 200, True),
        (50, 30, 40, False),
        (50, 10, 60, True),
        (10, 10_500, 89_500, False),  # surely not chance, and of no matter
        (10, 20_000, 80_000, True),
        (100, 500, 3, False),  # stragglers of the moment of the promotion
        (100, 300, 200, True),
    ],
)
def test_what_is_far(percent: int, restored: int, replaced: int, far: bool) -> None:
    assert split_seen(percent, restored=restored, replaced=replaced).far is far


def test_the_chance_is_the_binomial_one() -> None:
    exact = 2 * math.fsum(math.comb(20, k) * 0.5**20 for k in range(5 + 1))
    assert split_seen(50, restored=5, replaced=15).p == pytest.approx(exact)


@given(percent=st.integers(1, 99), total=st.integers(1, 5000), share=st.floats(0, 1))
def test_nothing_else_than_a_probability_and_never_far_where_it_was_wanted(
    percent: int, total: int, share: float
) -> None:
    hits = round(total * share)
    seen = split_seen(percent, restored=hits, replaced=total - hits)
    assert 0 <= seen.p <= 1
    right = round(total * percent / 100)
    assert not split_seen(percent, restored=right, replaced=total - right).far


@given(percent=st.integers(1, 99), total=st.integers(1990, 2010))
def test_the_two_ways_to_reckon_agree_where_they_meet(percent: int, total: int) -> None:
    hits = round(total * percent / 100 * 0.9)
    exact = split_seen(
        percent, restored=round(2000 * percent / 100 * 0.9), replaced=2000 - round(2000 * percent / 100 * 0.9)
    )
    near = split_seen(percent, restored=hits, replaced=total - hits)
    assert near.p == pytest.approx(exact.p, abs=0.06)
