"""Which index makes which other one superfluous: the document's example, tables, and properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities import index_rules

LONG = (("project_id", 1), ("status", 1), ("created_at", -1))


def index(name: str, *keys: tuple[str, Any], **options: Any) -> dict[str, Any]:
    return {"name": name, "key": dict(keys), **options}


@pytest.mark.parametrize(
    ("short", "long", "expected"),
    [
        ((("project_id", 1), ("status", 1)), LONG, True),  # the document's own pair
        ((("project_id", -1), ("status", -1)), LONG, True),  # read backwards
        ((("project_id", 1), ("status", -1)), LONG, False),
        ((("status", 1), ("project_id", 1)), LONG, False),
        ((("status", 1),), LONG, False),
        (LONG, LONG, True),
        ((*LONG, ("owner", 1)), LONG, False),
        ((("project_id", "hashed"),), LONG, False),
    ],
)
def test_prefixes(short: Any, long: Any, expected: bool) -> None:
    assert index_rules.is_prefix(short, long) is expected


def test_a_longer_index_covers_the_wanted_one_and_the_wanted_one_a_shorter() -> None:
    short, identity = index("short", ("project_id", 1.0), ("status", 1)), index("_id_", ("_id", 1))
    assert index_rules.made_redundant(LONG, [identity, short]) == ["short"]
    assert index_rules.covering((("project_id", 1),), False, [identity, short]) == "short"
    assert index_rules.covering(LONG, False, [identity, short]) is None
    assert index_rules.made_redundant((("_id", 1), ("a", 1)), [identity]) == []


@pytest.mark.parametrize(
    "option",
    [
        {"unique": True},
        {"sparse": True},
        {"partialFilterExpression": {"a": 1}},
        {"expireAfterSeconds": 5},
        {"hidden": True},
    ],
)
def test_an_index_that_does_more_than_answer_queries_is_never_redundant(option: dict[str, Any]) -> None:
    assert index_rules.made_redundant(LONG, [index("short", ("project_id", 1), **option)]) == []


def test_what_does_not_hold_every_document_covers_nothing() -> None:
    for option in ("sparse", "partialFilterExpression", "collation", "hidden"):
        assert index_rules.covering((("project_id", 1),), False, [index("x", *LONG, **{option: {"a": 1}})]) is None
    assert index_rules.covering((("project_id", 1),), True, [index("x", *LONG)]) is None, "it would not be unique"
    assert index_rules.covering((("project_id", 1),), False, [index("x", *LONG, unique=True)]) == "x"


keys = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([1, -1])),
    min_size=1,
    max_size=3,
    unique_by=lambda k: k[0],
)


@given(keys, keys, keys)
def test_covering_is_an_order(one: Any, two: Any, three: Any) -> None:
    assert index_rules.is_prefix(one, one)
    if index_rules.is_prefix(one, two) and index_rules.is_prefix(two, three):
        assert index_rules.is_prefix(one, three)
    if index_rules.is_prefix(one, two) and index_rules.is_prefix(two, one):
        assert {name for name, _ in one} == {name for name, _ in two}
