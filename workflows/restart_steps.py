"""The steps of a service restart, as the catalog lists them."""

from __future__ import annotations

from datetime import timedelta

from activities.stage import GatePolicy
from workflows.model import Kind, StepSpec

BEFORE = timedelta(minutes=10)
KEEP = GatePolicy(time_limit=timedelta(hours=1), on_timeout="approve")
"""Where the service is not well afterwards: unanswered, the new environments stay and traffic flows."""

FIRST = (
    StepSpec(id="settings", title="Look at the function and its limits", kind=Kind.LOOK),
    StepSpec(id="capture", title="Record exactly what is live", kind=Kind.LOOK),
    StepSpec(id="errors-before", title="Errors before", kind=Kind.LOOK),
    StepSpec(id="database", title="Database connections before", kind=Kind.LOOK),
    StepSpec(id="approve-restart", title="Approval", kind=Kind.GATE),
    StepSpec(id="stakeholders", title="Notify stakeholders", kind=Kind.TELL),
    StepSpec(id="mail-begin", title="Mail the stakeholders, of production", kind=Kind.TELL),
)
STOP = (
    StepSpec(id="watchdog", title="Start the watchdog that gives traffic back if this run dies", kind=Kind.TELL),
    StepSpec(
        id="stop-traffic",
        title="Stop accepting requests",
        kind=Kind.CHANGE,
        undo="the former limit of the function is put back, by this run or by its watchdog",
    ),
    StepSpec(id="drain", title="Wait for what is under way", kind=Kind.WAIT),
)
RESTART = (
    StepSpec(
        id="restart",
        title="Start every environment anew",
        kind=Kind.CHANGE,
        undo="the alias is pointed at the version that served before",
    ),
    StepSpec(
        id="redeploy",
        title="Deploy what was live, if it is not",
        kind=Kind.CHANGE,
        undo="nothing: it is the release that was live",
    ),
)
AFTER = (
    StepSpec(id="give-back", title="Give all traffic back", kind=Kind.CHANGE, undo="nothing: it is the undo itself"),
    StepSpec(id="health", title="Verify /health", kind=Kind.LOOK),
    StepSpec(id="watch", title="Let traffic run", kind=Kind.WAIT),
    StepSpec(id="errors-after", title="Errors since", kind=Kind.LOOK),
    StepSpec(id="database-after", title="Database connections after", kind=Kind.LOOK),
    StepSpec(id="notify", title="Tell stakeholders the end", kind=Kind.TELL),
    StepSpec(id="mail-end", title="Mail the stakeholders the end, of production", kind=Kind.TELL),
)


def rung_steps(ladder: tuple[int, ...]) -> tuple[StepSpec, ...]:
    """The steps of the way back to all traffic."""
    health = StepSpec(id="answers", title="Does it answer at all?", kind=Kind.LOOK)
    rungs = [
        spec
        for calls in ladder
        for spec in (
            StepSpec(
                id=f"let-in-{calls}", title=f"Let {calls} calls in at once", kind=Kind.CHANGE, undo="as stop-traffic"
            ),
            StepSpec(id=f"hold-{calls}", title=f"Watch {calls} calls at once", kind=Kind.WAIT),
            StepSpec(id=f"judge-{calls}", title=f"Judge {calls} calls at once", kind=Kind.LOOK),
        )
    ]
    return (*rungs[:1], health, *rungs[1:]) if rungs else ()


def limit_in_words(reserved: int | None) -> str:
    """A reserved concurrency, for people."""
    return "no limit of its own" if reserved is None else f"at most {reserved} calls at once"
