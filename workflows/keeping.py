"""Who may keep a change that does badly."""

from __future__ import annotations

from temporalio import workflow

from activities.stage import GatePolicy, Stage


def keepers(stage: Stage, gate_id: str, unanswered: GatePolicy) -> GatePolicy:
    """The policy of a gate that asks whether a change stays which does badly.

    Who decides is the stage's to say, as at every gate, and somebody always does. How long it waits and what silence
    means is ``unanswered``'s, unless the stage has a policy for this very gate.
    """
    own = stage.gates.get(gate_id)
    if own is not None:
        return own
    who = stage.gate(gate_id)
    silence = {"time_limit": unanswered.time_limit, "on_timeout": unanswered.on_timeout}
    rules = who.model_copy(update={"approvals": max(1, who.approvals), **silence})
    differs = rules != unanswered and workflow.patched("keeping-is-decided-as-everything")
    return rules if differs else unanswered
