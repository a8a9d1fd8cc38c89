"""The rules of a gate: tables for the cases people argue about, properties for all others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.stage import GatePolicy
from workflows import gates
from workflows.model import Decision, Gate

NOW = datetime(2026, 1, 20, 3, 0, tzinfo=UTC)
PLAN = {"release": "abc1234", "version": "7"}


def gate(requester: str | None = "ann", **policy: object) -> Gate:
    return gates.open_gate("go", "Go?", dict(PLAN), GatePolicy.model_validate(policy), requester, NOW)


def say(word: str, by: str, **more: object) -> Decision:
    return Decision.model_validate({"decision": word, "by": by, **more})


def answer(g: Gate, word: str, by: str, **more: object) -> str:
    decision = say(word, by, **more)
    gates.check(g, decision)
    gates.count(g, decision, NOW)
    return g.state


def test_one_yes_opens_a_gate_that_needs_one() -> None:
    assert answer(gate(), "approve", "bob") == "approved"


def test_two_different_people_where_two_are_needed() -> None:
    g = gate(approvals=2)
    assert answer(g, "approve", "bob") == "open"
    assert answer(g, "approve", "cid") == "approved"


@pytest.mark.parametrize("again", ["bob", "BOB", " Bob "])
def test_nobody_counts_twice(again: str) -> None:
    g = gate(approvals=2)
    answer(g, "approve", "bob")
    with pytest.raises(gates.Refused, match="has approved already; 1 more needed"):
        gates.check(g, say("approve", again))


@pytest.mark.parametrize("by", ["ann", "Ann", "ANN "])
def test_who_asked_may_not_approve_where_policy_says_so(by: str) -> None:
    with pytest.raises(gates.Refused, match="asked for this run and may not approve"):
        gates.check(gate(requester_may_approve=False), say("approve", by))


def test_who_asked_may_withdraw() -> None:
    assert answer(gate(requester_may_approve=False, approvers=["bob"]), "reject", "ann") == "rejected"


def test_an_unnamed_requester_costs_one_more_approval() -> None:
    g = gate(requester=None, requester_may_approve=False)
    assert answer(g, "approve", "bob") == "open"
    assert answer(g, "approve", "cid") == "approved"


def test_only_named_approvers_count() -> None:
    g = gate(approvers=["bob"])
    with pytest.raises(gates.Refused, match="these may: bob"):
        gates.check(g, say("approve", "mallory"))
    with pytest.raises(gates.Refused, match="these may: bob"):
        gates.check(g, say("reject", "mallory"))
    assert answer(g, "approve", "Bob") == "approved"


def test_one_no_settles_it() -> None:
    g = gate(approvals=3)
    answer(g, "approve", "bob")
    assert answer(g, "reject", "cid") == "rejected"


def test_an_answer_to_another_plan_is_refused() -> None:
    g = gate()
    with pytest.raises(gates.Refused, match="the plan is now"):
        gates.check(g, say("approve", "bob", plan_hash="000000000000"))
    assert answer(g, "approve", "bob", plan_hash=g.plan_hash) == "approved"


def test_revoke_reopens_until_the_step_has_begun() -> None:
    g = gate()
    answer(g, "approve", "bob")
    gates.revoke(g, "BOB")
    assert (g.state, gates.missing(g)) == ("open", 1)
    answer(g, "approve", "bob")
    g.state = "begun"
    with pytest.raises(gates.Refused, match="has begun: send abort"):
        gates.revoke(g, "bob")
    with pytest.raises(gates.Refused, match="no approval"):
        gates.revoke(gate(), "bob")


def test_asking_again_forgets_the_answers() -> None:
    g = gate(approvals=2)
    answer(g, "approve", "bob")
    gates.ask_again(g, {**PLAN, "version": "8"}, NOW + timedelta(hours=1))
    assert (g.state, gates.missing(g), g.asked) == ("open", 2, 2)
    assert g.deadline - g.opened_at == timedelta(hours=24)
    assert gates.drift(PLAN, g.plan) == ["version: 7 → 8"]


def test_the_gate_that_a_message_is_about() -> None:
    one, other = gate(), gate()
    other.id = "other"
    assert gates.find_gate([one, other], "other") is other
    with pytest.raises(gates.Refused, match="several gates are open"):
        gates.find_gate([one, other], None)
    with pytest.raises(gates.Refused, match="gate 'nope' is not open; open now: go, other"):
        gates.find_gate([one, other], "nope")
    with pytest.raises(gates.Refused, match="no gate is open"):
        gates.find_gate([], None)


plans = st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.none()))


@given(plans)
def test_a_plan_hash_does_not_depend_on_order(plan: dict[str, object]) -> None:
    assert gates.plan_hash(plan) == gates.plan_hash(dict(reversed(plan.items())))


@given(plans, plans)
def test_different_plans_have_different_hashes_and_a_drift(one: dict[str, object], other: dict[str, object]) -> None:
    same = {k: str(v) for k, v in one.items()} == {k: str(v) for k, v in other.items()}
    if not same:
        assert gates.plan_hash(one) != gates.plan_hash(other)
        assert gates.drift(one, other)


people = st.sampled_from(["ann", "bob", "cid", "dot", "BOB", "Ann "])
words = st.sampled_from(["approve", "reject"])


@given(
    st.integers(1, 4), st.booleans(), st.sampled_from(["ann", None]), st.lists(st.tuples(words, people), max_size=12)
)
def test_an_open_gate_was_approved_by_enough_others_or_rejected(
    needed: int, own: bool, requester: str | None, messages: list[tuple[str, str]]
) -> None:
    g = gate(requester=requester, approvals=needed, requester_may_approve=own)
    for word, by in messages:
        if g.state != "open":
            break
        try:
            answer(g, word, by)
        except gates.Refused:
            continue
    yes = {a.by.strip().casefold() for a in g.approvals if a.decision == "approve"}
    no = [a for a in g.approvals if a.decision == "reject"]
    if g.state == "approved":
        others = yes if own else yes - {(requester or min(yes)).casefold()}
        assert len(others) >= needed
        assert not no
    else:
        assert (g.state == "rejected") == bool(no)
