"""The rules of a gate, as pure functions: who may answer, what counts, when it is decided."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from activities.stage import GatePolicy
from workflows import signatures
from workflows.model import Approval, Decision, Gate, Signing


class Refused(Exception):
    """A decision that does not fit; the message says why and what would fit."""


def plan_hash(plan: dict[str, Any]) -> str:
    """Twelve hex digits that name exactly this plan: same facts, same hash, whatever their order."""
    return signatures.digest(plan)[:12]


def drift(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What changed between the plan that was asked about and the plan as it is now, one line a fact."""
    return [
        f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if (key in before, before.get(key)) != (key in after, after.get(key))
    ]


def open_gate(
    gate_id: str,
    question: str,
    plan: dict[str, Any],
    policy: GatePolicy,
    requester: str | None,
    now: datetime,
    signing: Signing | None = None,
) -> Gate:
    """A gate by its policy.

    Where the requester may not approve and is not known, one more approval is asked for: of n + 1 different people at
    least n did not ask for the run.
    """
    unknown = requester is None and not policy.requester_may_approve
    return Gate(
        id=gate_id,
        question=question,
        plan=plan,
        plan_hash=plan_hash(plan),
        needed=policy.approvals + (1 if unknown else 0),
        approvers=policy.approvers,
        requester=requester,
        requester_may_approve=policy.requester_may_approve,
        on_timeout=policy.on_timeout,
        opened_at=now,
        deadline=now + policy.time_limit,
        signing=signing,
    )


def same_person(a: str | None, b: str | None) -> bool:
    """Names are compared without case and outer blanks, so that 'Ann' cannot approve what 'ann' asked for."""
    return a is not None and b is not None and a.strip().casefold() == b.strip().casefold()


def find_gate(gates: list[Gate], gate_id: str | None, state: str = "open") -> Gate:
    """The gate that a message is about.

    Raises:
        Refused: none, or several, fit.
    """
    fitting = [gate for gate in gates if gate.state == state]
    if gate_id is not None:
        fitting = [gate for gate in fitting if gate.id == gate_id]
        if not fitting:
            others = ", ".join(gate.id for gate in gates if gate.state == state) or "none"
            raise Refused(f"gate '{gate_id}' is not {state}; {state} now: {others}")
    if not fitting:
        raise Refused(f"no gate is {state}")
    if len(fitting) > 1:
        raise Refused(f"several gates are {state}, name one: {', '.join(gate.id for gate in fitting)}")
    return fitting[-1]


def check(gate: Gate, decision: Decision) -> None:
    """Whether this decision may count at this gate.

    Raises:
        Refused: it may not, with the reason.
    """
    if decision.plan_hash is not None and decision.plan_hash != gate.plan_hash:
        raise Refused(f"the plan is now {gate.plan_hash}, not {decision.plan_hash}: read it again before you decide")
    if gate.signing is not None:
        _check_proof(gate, gate.signing, decision)
    named = [person for person in gate.approvers if same_person(person, decision.by)]
    withdrawing = decision.decision == "reject" and same_person(decision.by, gate.requester)
    if gate.approvers and not named and not withdrawing:
        raise Refused(f"{decision.by} may not answer '{gate.id}'; these may: {', '.join(gate.approvers)}")
    if decision.decision == "approve" and not gate.requester_may_approve and same_person(decision.by, gate.requester):
        raise Refused(f"{decision.by} asked for this run and may not approve it; somebody else has to")
    if decision.decision == "approve" and any(same_person(a.by, decision.by) for a in gate.approvals):
        raise Refused(f"{decision.by} has approved already; {missing(gate)} more needed, from other people")


def _check_proof(gate: Gate, signing: Signing, decision: Decision) -> None:
    """Whether the decision is signed by whom it names, for this gate of this run with this plan, and is no repeat."""
    instead = signed_command(gate, decision.decision)
    if decision.proof is None:
        raise Refused(f"'{gate.id}' takes signed decisions only. Instead, from where your key is: {instead}")
    key = key_of(signing, decision.by)
    if key is None:
        known = ", ".join(sorted(signing.keys)) or "nobody"
        raise Refused(f"no key is registered for {decision.by}; one is for: {known}")
    if signatures.nonce_of(decision.proof) in signing.used:
        raise Refused("this signed decision has counted before, and counts only once. Sign anew: " + instead)
    if not signatures.holds(key, gate, decision):
        raise Refused(
            f"the signature is not {decision.by}'s for this gate, plan {gate.plan_hash} and run. Sign anew: {instead}"
        )


def key_of(signing: Signing, person: str) -> str | None:
    """The registered key of a person."""
    return next((key for name, key in signing.keys.items() if same_person(name, person)), None)


def signed_command(gate: Gate, word: str) -> str:
    """The line that answers a gate which takes signed decisions only."""
    run = gate.signing.workflow_id if gate.signing else "ID"
    return f"runbooks {word} {run} --gate {gate.id} --plan {gate.plan_hash} --by 'YOUR NAME' --key YOUR-KEY.pem"


def able(gate: Gate) -> int:
    """How many people hold a key with which they could approve this gate."""
    people = list(gate.signing.keys) if gate.signing else []
    return sum(
        (not gate.approvers or any(same_person(person, named) for named in gate.approvers))
        and (gate.requester_may_approve or not same_person(person, gate.requester))
        for person in people
    )


def count(gate: Gate, decision: Decision, now: datetime) -> None:
    """Count a decision that :func:`check` let pass, and settle the gate when it is decided. One no settles it."""
    answer = Approval(
        by=decision.by, decision=decision.decision, at=now, reason=decision.reason, plan_hash=gate.plan_hash
    )
    if gate.signing is not None and decision.proof is not None:
        gate.signing.used.append(signatures.nonce_of(decision.proof))
        answer.key, answer.proof = signatures.fingerprint(key_of(gate.signing, decision.by) or ""), decision.proof
    gate.approvals.append(answer)
    if decision.decision == "reject":
        gate.state = "rejected"
    elif missing(gate) == 0:
        gate.state = "approved"


def missing(gate: Gate) -> int:
    """Approvals still needed."""
    return max(0, gate.needed - sum(a.decision == "approve" for a in gate.approvals))


def revoke(gate: Gate, by: str) -> None:
    """Take one's own approval back; the gate is open again when it had been decided by it.

    Raises:
        Refused: the step it released has begun, or this person has not approved.
    """
    if gate.state == "begun":
        raise Refused(f"the step that '{gate.id}' released has begun: send abort instead, which undoes it")
    kept = [a for a in gate.approvals if not (a.decision == "approve" and same_person(a.by, by))]
    if len(kept) == len(gate.approvals):
        raise Refused(f"{by} has no approval at '{gate.id}' to take back")
    gate.approvals = kept
    if gate.state == "approved" and missing(gate) > 0:
        gate.state = "open"


def ask_again(gate: Gate, plan: dict[str, Any], now: datetime, keys: dict[str, str] | None = None) -> None:
    """The world is no longer what was asked about: same question, new plan, nobody has answered yet."""
    if gate.signing is not None and keys is not None:
        gate.signing.keys = keys
    gate.deadline = now + (gate.deadline - gate.opened_at)
    gate.opened_at = now
    gate.plan = plan
    gate.plan_hash = plan_hash(plan)
    gate.approvals = []
    gate.state = "open"
    gate.asked += 1
