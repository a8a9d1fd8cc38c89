"""What a restore asks people about, and that they are always asked in production. Pure."""

from __future__ import annotations

from datetime import timedelta

from activities.stage import Stage
from workflows.backup_models import DatabaseRestoreInput
from workflows.model import Scalar

TAKES = "30 to 60 minutes"
"""The document's own figure. What it really takes is in the record of the last RestoreDrill."""

SAFETY_GOOD_FOR = timedelta(hours=1)
"""A safety backup older than this is made anew just before the real contents are replaced: an undo brings it back."""

GATES = ("approve-restore", "approve-finish")


def insisting(stage: Stage) -> Stage:
    """In production the gates of a restore are never waived by policy, and silence is never a yes."""
    if not stage.production:
        return stage
    gates = dict(stage.gates)
    for gate_id in GATES:
        rules = stage.gate(gate_id)
        gates[gate_id] = rules.model_copy(update={"approvals": max(rules.approvals, 1), "on_timeout": "reject"})
    return stage.model_copy(update={"gates": gates})


def plan_of(inp: DatabaseRestoreInput, backup: str, moment: str, real: str, into: str) -> dict[str, Scalar]:
    """What an approval releases.

    Args:
        backup: Which one, as people know it.
        moment: As it was then, the database will be.
        real: The database that the API works on.
        into: Where the backup is restored first, beside it.
    """
    ends = {
        "keep": f"it stays in {into}; {real} is not touched",
        "replace": f"all of {real} that is in the backup is replaced",
        "repoint": f"the API works on {into} from then on; {real} stays as it is, unused",
    }
    return {
        "stage": inp.stage,
        "backup": backup,
        "shows the database at": moment,
        "into first": into,
        "then": f"{inp.then}: {ends[inp.then]}",
        "takes": TAKES,
        "loses": "nothing" if inp.then == "keep" else f"every write after {moment}",
        "revert the deployment": inp.revert_deployment,
    }
