"""The calls that the tests of real procedures make, held against those that are kept, and the policies made of them.

``make permissions`` runs those tests and writes ``activities/calls.json`` and the documents under ``deploy/`` anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from activities.calls import Calls, kept
from activities.permissions import documents

ROOT = Path(__file__).parent.parent
REFERENCES = ("secretsmanager:GetSecretValue", "ssm:GetParameter")
"""Every runbook may have to read a reference: whose clients are made first, and kept for the others, is chance."""

RECORDING = os.environ.get("RECORD_CALLS") == "1"


def settle(seen: Calls) -> None:
    """Fail when a call was made that no policy allows; when recording, keep it."""
    known = kept()
    unknown = seen.missing_from(known)
    if RECORDING:
        for system in ("aws", "mongodb", "atlas"):
            for workflow, calls in getattr(seen, system).items():
                for call in calls:
                    known.add(system, workflow, call)  # type: ignore[arg-type]
        write(known)
        return
    assert not unknown, (
        "the policies under deploy/ lack calls that these tests have just made. Run the same tests with RECORD_CALLS=1 "
        "(all of them: make permissions) and read the difference: is each of them needed? " + "; ".join(unknown)
    )


def write(calls: Calls) -> None:
    """Keep the calls, and make the documents of them."""
    for workflow in list(calls.aws):
        for call in REFERENCES:
            calls.add("aws", workflow, call)
        if "logs:StartQuery" in calls.aws[workflow]:
            calls.add("aws", workflow, "logs:StopQuery")  # only a query that takes too long is stopped
    ordered = {system: dict(sorted(getattr(calls, system).items())) for system in ("aws", "mongodb", "atlas")}
    (ROOT / "activities" / "calls.json").write_text(json.dumps(ordered, indent=1) + "\n")
    for name, document in documents(calls).items():
        path = ROOT / "deploy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    write(kept())
