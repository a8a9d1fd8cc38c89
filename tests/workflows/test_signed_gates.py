"""Gates that take signed decisions only: what a signature is bound to, and what a run does with all others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from temporalio.client import Client, WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.worker import Replayer

from activities.stage import GatePolicy, Stage
from starters.keys import public_of, signed
from starters.problems import Problem
from tests.histories import keep
from tests.workflows import migration_world
from tests.workflows.probe import Probe, World, at_gate, begin, failure, progress, until, working
from workflows import gates
from workflows.model import Decision, Gate, Outcome, RunbookResult, RunState, Signing
from workflows.plugin import RunbooksPlugin

NOW = datetime(2026, 1, 20, 3, 0, tzinfo=UTC)
KEYS = {name: Ed25519PrivateKey.generate() for name in ("bob", "cid", "eve")}
REGISTERED = {name: public_of(KEYS[name]) for name in ("bob", "cid")}
PLAN = {"release": "abc1234", "version": "7"}


def signing(**changes: Any) -> Signing:
    return Signing.model_validate({"workflow_id": "run-1", "run": "first", "keys": dict(REGISTERED), **changes})


def gate(sign: Signing | None = None, gate_id: str = "go", plan: dict[str, Any] | None = None, **policy: Any) -> Gate:
    rules = GatePolicy.model_validate(policy)
    return gates.open_gate(gate_id, "Go?", dict(plan or PLAN), rules, "ann", NOW, sign or signing())


def state_of(*open_gates: Gate) -> RunState:
    return RunState(runbook="Probe", workflow_id="run-1", run_id="x", started_at=NOW, gates=list(open_gates))


def proven(g: Gate, by: str, word: str = "approve", key: str | None = None, **more: Any) -> Decision:
    """A decision as the command line signs it."""
    said = Decision.model_validate({"decision": word, "by": by, "plan_hash": g.plan_hash, **more})
    return signed(KEYS[key or by], state_of(g), said)


def take(g: Gate, decision: Decision) -> str:
    gates.check(g, decision)
    gates.count(g, decision, NOW)
    return g.state


def test_a_signed_yes_counts_and_leaves_its_proof() -> None:
    g = gate()
    decision = proven(g, "bob", reason="looks right")
    assert take(g, decision) == "approved"
    (kept,) = g.approvals
    assert kept.proof == decision.proof
    assert len(kept.key or "") == 12


def test_without_a_signature_it_says_what_to_do_instead() -> None:
    g = gate()
    with pytest.raises(gates.Refused) as refused:
        gates.check(g, Decision(decision="approve", by="bob"))
    assert f"runbooks approve run-1 --gate go --plan {g.plan_hash} --by 'YOUR NAME' --key" in str(refused.value)
    with pytest.raises(gates.Refused, match="runbooks reject run-1"):
        gates.check(g, Decision(decision="reject", by="bob"))


OTHERS: dict[str, tuple[Gate, Gate]] = {
    "another run of the same id": (gate(signing(run="other")), gate()),
    "another workflow": (gate(signing(workflow_id="run-2")), gate()),
    "another gate": (gate(gate_id="other"), gate()),
    "the gate asked before": (gate(), gate().model_copy(update={"asked": 2})),
    "an earlier gate of that id": (gate(), gate(signing(asked_before=1))),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_signature_holds_for_one_question_of_one_run(case: str) -> None:
    made_for, sent_to = OTHERS[case]
    decision = proven(made_for, "bob").model_copy(update={"gate": None})
    with pytest.raises(gates.Refused, match="is not bob's for this gate, plan"):
        gates.check(sent_to, decision)


def test_a_signature_is_bound_to_the_whole_plan_not_to_its_short_hash() -> None:
    decision = proven(gate(), "bob")
    other = gate(plan=PLAN | {"version": "8"})
    other.plan_hash = gate().plan_hash  # as if somebody had found a plan with the same twelve digits
    with pytest.raises(gates.Refused, match="is not bob's"):
        gates.check(other, decision)


@pytest.mark.parametrize(
    "change",
    [{"by": "cid"}, {"decision": "reject"}, {"reason": "another"}, {"proof": "0" * 32 + "." + "A" * 86 + "=="}],
)
def test_nothing_of_a_signed_decision_can_be_changed(change: dict[str, Any]) -> None:
    g = gate()
    with pytest.raises(gates.Refused, match="the signature is not"):
        gates.check(g, proven(g, "bob").model_copy(update=change))


def test_only_registered_keys_count() -> None:
    g = gate()
    with pytest.raises(gates.Refused, match="no key is registered for eve; one is for: bob, cid"):
        gates.check(g, proven(g, "eve"))
    with pytest.raises(gates.Refused, match="is not bob's"):
        gates.check(g, proven(g, "bob", key="eve"))


def test_a_decision_that_was_taken_back_cannot_be_played_again() -> None:
    g = gate(approvals=2)
    first = proven(g, "bob")
    take(g, first)
    gates.revoke(g, "bob")
    padded = first.model_copy(update={"proof": f"{(first.proof or '')[:-3]}{_sibling((first.proof or '')[-3])}=="})
    for again in (first, padded):
        with pytest.raises(gates.Refused, match="counts only once"):
            gates.check(g, again)
    assert take(g, proven(g, "bob")) == "open", "signed anew it counts"
    assert take(g, proven(g, "cid")) == "approved"


def _sibling(letter: str) -> str:
    """Another last letter of base64 that stands for the same bytes."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return alphabet[alphabet.index(letter) ^ 1]


def test_the_rules_about_people_hold_beside_the_signature() -> None:
    g = gate(approvals=2, approvers=["bob"])
    with pytest.raises(gates.Refused, match="cid may not answer"):
        gates.check(g, proven(g, "cid"))
    assert gates.able(g) == 1
    assert gates.able(gate(signing(keys=REGISTERED | {"Ann": REGISTERED["bob"]}), requester_may_approve=False)) == 2


def test_who_signs_has_to_name_the_plan() -> None:
    g = gate()
    for plan in (None, "0123456789ab", g.plan_hash[:6]):
        with pytest.raises(Problem, match=f"Then answer with --plan {g.plan_hash}"):
            signed(KEYS["bob"], state_of(g), Decision(decision="approve", by="bob", plan_hash=plan))


def test_a_plan_that_does_not_have_the_hash_it_claims_is_not_signed() -> None:
    g = gate()
    g.plan["release"] = "evil"
    with pytest.raises(Problem, match="the plan of 'go' is"):
        signed(KEYS["bob"], state_of(g), Decision(decision="approve", by="bob", plan_hash=g.plan_hash))


json_plans = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
)


@given(plan=json_plans, by=st.sampled_from(["bob", "BOB", " bob "]), word=st.sampled_from(["approve", "reject"]))
def test_what_was_signed_over_the_wire_holds_in_the_run(plan: dict[str, Any], by: str, word: str) -> None:
    g = gate(plan=plan or PLAN)
    over_the_wire = Gate.model_validate_json(g.model_dump_json())
    decision = proven(over_the_wire, by, word, key="bob")
    take(g, Decision.model_validate_json(decision.model_dump_json()))
    assert g.state == ("approved" if word == "approve" else "rejected")


def test_stages_of_older_runs_ask_for_no_signature() -> None:
    assert not Stage.model_fields["signed_approvals"].default


# --- in a run --------------------------------------------------------------------------------------------------------


def world(**policies: Any) -> World:
    made = World(**policies)
    made.keys = dict(REGISTERED)
    return made


async def sign(handle: Any, by: str, word: str = "approve") -> dict[str, Any]:
    state = await until(handle, at_gate)
    said = Decision.model_validate({"decision": word, "by": by, "plan_hash": state.open_gate().plan_hash})
    return signed(KEYS[by], state, said).model_dump(mode="json", exclude_none=True)


async def test_a_signal_from_the_ui_is_answered_on_the_timeline_and_a_signed_update_counts(client: Client) -> None:
    there = world()
    async with working(client, there) as queue:
        handle = await begin(client, queue)
        await until(handle, at_gate)
        await handle.signal("approve", {"by": "bob"})
        state = await until(handle, lambda s: any("takes signed decisions only" in e.text for e in s.timeline))
        assert state.open_gate() is not None
        assert there.done == []
        page = await handle.query("__temporal_workflow_metadata")
        assert "only decisions signed" in str(page)
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("decide", {"decision": "approve", "by": "bob"})
        assert "signed decisions only" in str(refused.value.cause)
        await handle.execute_update("decide", await sign(handle, "bob"))
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
        assert result.outcome is Outcome.COMPLETED
        assert result.approvals[0].key
        assert "signed, key" in there.reports[0]["html"]
        history = await handle.fetch_history()
    replayed = await Replayer(workflows=[Probe], plugins=[RunbooksPlugin()]).replay_workflow(history)
    assert replayed.replay_failure is None


async def test_a_signed_signal_counts_too_and_a_signed_no_ends_the_run(client: Client) -> None:
    async with working(client, world()) as queue:
        handle = await begin(client, queue)
        said = await sign(handle, "cid", "reject")
        said.pop("decision")
        await handle.signal("reject", said)
        assert (await failure(handle)).type == "Rejected"


async def test_keys_are_those_of_the_moment_when_the_gate_opens_and_is_asked_again(client: Client) -> None:
    there = world()
    async with working(client, there) as queue:
        handle = await begin(client, queue)
        yes = await sign(handle, "bob")
        there.keys = {"cid": REGISTERED["cid"]}  # bob has left
        there.numbers["dial"] = 5  # and the plan has drifted
        await handle.execute_update("decide", yes)
        state = await until(handle, lambda s: at_gate(s) and s.open_gate().asked == 2)
        said = Decision(decision="approve", by="bob", plan_hash=state.open_gate().plan_hash)
        payload = signed(KEYS["bob"], state, said).model_dump(mode="json", exclude_none=True)
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await handle.execute_update("decide", payload)
        assert "no key is registered for bob; one is for: cid" in str(refused.value.cause)
        await handle.execute_update("decide", await sign(handle, "cid"))
        await asyncio.wait_for(handle.result(), 180)


async def test_what_was_signed_for_a_gate_does_not_count_when_it_comes_again(client: Client) -> None:
    """Late writers are asked about again and again, with the same plan. Neither a yes that counted counts once more,
    nor one that was signed then and came too late."""
    there = migration_world.World(signed_approvals=True)
    there.keys = dict(REGISTERED)
    async with migration_world.working(client, there) as queue:
        handle = await migration_world.begin(client, queue, migration_world.BACKFILL, release="new")
        await until(handle, at_gate)
        there.late = [7, 7]
        await handle.execute_update("decide", await sign(handle, "bob"))

        def asked(times: int) -> Callable[[RunState], bool]:
            return lambda s: at_gate(s) and [gate.id for gate in s.gates].count("late-writers") == times

        first = (await until(handle, asked(1))).open_gate()
        counted, unused = await sign(handle, "bob"), await sign(handle, "cid")
        await handle.execute_update("decide", counted)
        second = (await until(handle, asked(2))).open_gate()
        assert first.plan_hash == second.plan_hash
        for again in (counted, unused):
            with pytest.raises(WorkflowUpdateFailedError) as refused:
                await handle.execute_update("decide", again)
            assert f"is not {again['by']}'s for this gate" in str(refused.value.cause)
        await handle.execute_update("decide", await sign(handle, "bob"))
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
        assert result.outcome is Outcome.COMPLETED
        await keep(handle, "DatabaseMigration", "late-writers-signed-twice")


async def test_a_gate_that_nobody_can_sign_says_so_at_once(client: Client) -> None:
    async with working(client, world(default={"approvers": ["zoe"]})) as queue:
        handle = await begin(client, queue)
        await until(handle, lambda s: any("0 of those who may answer have a key" in e.text for e in s.timeline))
        await handle.signal("abort", {"by": "ann"})
        assert (await failure(handle)).type == "Aborted"


async def test_nobody_can_start_a_run_as_if_it_went_on_from_another(client: Client) -> None:
    """State that one run hands to its next would otherwise be a way round every gate."""
    async with working(client, world()) as queue:
        handle = await begin(client, queue)
        await until(handle, at_gate)
        state = (await progress(handle)).model_dump(mode="json")
        forged = {"carried": {"input": {}, "state": state, "stage": {}, "cursor": {"lap": 0}}}
        other = await client.start_workflow("Probe", forged, id=f"forged{handle.id[5:]}", task_queue=queue)
        with pytest.raises(WorkflowFailureError) as refused:
            await asyncio.wait_for(other.result(), 180)
        assert getattr(refused.value.cause, "type", None) == "BadInput"
        await handle.terminate()
