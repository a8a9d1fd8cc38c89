"""What a run counts for the team's dashboards. Counted once, never again when a history is replayed; no secret, no name
of a person."""

from __future__ import annotations

from temporalio import workflow


def count(metric: str, description: str, **labels: str) -> None:
    """One more of ``runbooks_<metric>``; the type of the run is a label of every metric by itself."""
    workflow.metric_meter().create_counter(f"runbooks_{metric}", description).add(1, dict(labels))


def closed(stage: str | None, outcome: str) -> None:
    count("runs_closed", "Runs that have ended, by outcome", stage=stage or "unknown", outcome=outcome)


def undo_failed(stage: str | None) -> None:
    count("undo_failures", "Changes that could not be put back", stage=stage or "unknown")


def gate_expired(stage: str | None, gate: str) -> None:
    count("gates_expired", "Gates that nobody answered in time", stage=stage or "unknown", gate=gate)


def clock_missed(stage: str | None, severity: str, clock: str) -> None:
    count(
        "clocks_missed",
        "Clocks of incidents that were missed",
        stage=stage or "unknown",
        severity=severity,
        clock=clock,
    )
