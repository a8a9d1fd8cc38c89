"""The steps and the checklist that every scaling runbook has."""

from __future__ import annotations

from workflows.model import Kind, StepSpec

CHECKLIST = (
    ("load-test", "Load testing completed in staging"),
    ("staging", "Scaling change deployed to staging first"),
    ("improvement", "Metrics monitored and confirm improvement"),
    ("headroom", "Capacity headroom added (don't run at 100%)"),
    ("cost", "Cost impact calculated"),
    ("alerts", "Monitoring alerts adjusted for new baselines"),
    ("rollback-plan", "Rollback plan documented"),
)
"""The document's scaling checklist, word for word."""

GATES = (
    ("approve-scaling", "Make the change? With from, to, staging's figures, capacity, cost, and the way back"),
    ("keep-scaling", "Only when it does worse afterwards: keep the change?"),
)

STEPS = (
    StepSpec(id="settings", title="Look at the function and its limits", kind=Kind.LOOK),
    StepSpec(id="reports", title="Memory, durations and cold starts before", kind=Kind.LOOK),
    StepSpec(id="latency", title="Latency before", kind=Kind.LOOK),
    StepSpec(id="database", title="Database connections before", kind=Kind.LOOK),
    StepSpec(id="errors", title="Errors before", kind=Kind.LOOK),
    StepSpec(id="tier", title="Tier of the database cluster", kind=Kind.LOOK),
    StepSpec(id="proposal", title="The change as a diff of the repository", kind=Kind.LOOK),
    StepSpec(id="merge", title="Wait for the merged commit (way merge)", kind=Kind.WAIT),
    StepSpec(id="staging-stage", title="Look up the staging stage", kind=Kind.LOOK),
    StepSpec(
        id="rehearse",
        title="The same change on staging, with a load test",
        kind=Kind.CHANGE,
        undo="staging is put back",
    ),
    StepSpec(
        id="load-before", title="Load test before", kind=Kind.CHANGE, undo="nothing: only reads are sent (staging only)"
    ),
    StepSpec(id="approve-scaling", title="Approval", kind=Kind.GATE),
    StepSpec(id="capture", title="Record exactly what is live", kind=Kind.LOOK),
    StepSpec(id="apply", title="Make the change", kind=Kind.CHANGE, undo="the former setting or release is put back"),
    StepSpec(id="ledger", title="Enter a deployment in the ledger", kind=Kind.CHANGE, undo="a later entry corrects it"),
    StepSpec(id="health", title="Verify /health", kind=Kind.LOOK),
    StepSpec(
        id="load-after", title="Load test after", kind=Kind.CHANGE, undo="nothing: only reads are sent (staging only)"
    ),
    StepSpec(id="watch", title="Let traffic run on the change", kind=Kind.WAIT),
    StepSpec(id="reports-after", title="Memory, durations and cold starts after", kind=Kind.LOOK),
    StepSpec(id="latency-after", title="Latency after", kind=Kind.LOOK),
    StepSpec(id="database-after", title="Database connections after", kind=Kind.LOOK),
    StepSpec(id="errors-after", title="Errors after", kind=Kind.LOOK),
    StepSpec(id="alarms", title="The function's alarms", kind=Kind.LOOK),
    StepSpec(
        id="drift", title="Record what the repository has to catch up with", kind=Kind.CHANGE, undo="it is closed"
    ),
    StepSpec(id="ticket", title="Ask for the repository to catch up", kind=Kind.TELL),
    StepSpec(id="expiry", title="Start the run that ends a temporary change", kind=Kind.TELL),
    StepSpec(id="notify", title="Tell the team", kind=Kind.TELL),
)
