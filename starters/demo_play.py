"""What every demonstration shares: a sandbox, a broken release, a run that mends it, and what clients see of it all."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from starters import reports, runs, screen
from starters.live import Follower
from starters.output import Output
from starters.problems import Code
from starters.runs import Ended, Started
from starters.sandbox_commands import environment_of, opened
from starters.session import Session, connected, me
from starters.worker_child import WorkerChild
from workflows.model import Decision, Gate, RunbookInput, RunState
from workflows.runbook import Runbook

if TYPE_CHECKING:
    from sandbox.house import House
    from sandbox.traffic import Stats, Traffic

STAGE = "production"

ENOUGH = 40
"""Requests behind a figure that is shown."""

PATIENCE = 20.0
"""Seconds to wait for that many."""

HURRY = {
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__ERROR_WINDOW": "PT12S",
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__METRICS_DELAY": "PT2S",
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__HEALTH_INTERVAL": "PT0.5S",
}
"""What differs from the real thing, where the errors of ten minutes are looked at: nobody wants to watch that long."""

APPROVER = "demo colleague"
"""Who says yes: in production it cannot be who asked."""


class Play:
    """A demonstration, scene by scene. A scenario says which runbook mends it, and how."""

    runbook: ClassVar[type[Runbook[Any]]]
    rate: ClassVar[float]
    """Requests a second: enough to see a difference within seconds, with power to spare on two cores."""
    hurry: ClassVar[dict[str, str]] = HURRY

    def request(self, before: Stats) -> RunbookInput:
        """What the run is started with, after clients saw ``before``."""
        raise NotImplementedError

    def __init__(self, output: Output, attended: bool) -> None:
        self._output = output
        self._attended = attended
        self._began = time.monotonic()
        self.requester = me() or "demo"
        self.copies: dict[str, Path] = {}
        """What is kept beside the report when the sandbox is gone."""

    def play(self, stack: ExitStack, root: Path) -> int:
        self._scene("starting a whole sandbox: Temporal and its UI, AWS, MongoDB, the people's tools")
        house = stack.enter_context(opened(root, self._aside))
        house.up(ports=self.ports(), attached=True)
        self._aside(f"the API's good release is live on {STAGE}")
        environment = stack.enter_context(environment_of(house))
        own = {"TMPDIR": str(_made(root / "tmp"))}  # whatever the worker leaves goes with the rest
        child = stack.enter_context(
            WorkerChild(environment | self.hurry | own, house.layout.log("worker"), self._aside)
        )
        self._aside(f"the worker runs as process {child.pid}: kill -9 it if you like, the run survives that")
        traffic = house.traffic(STAGE, self.rate, 600)
        stack.callback(traffic.stop)
        good = self._measured(traffic, 4)
        self._aside(f"clients see: {_seen(good)}")

        before = self.trouble(house, traffic)

        started = self.begin(before)
        self._output.line(f"  the run in the Temporal UI: {started.ui}")
        with self.meanwhile(child, traffic):
            state = self._watch(started.id)
        end = connected(lambda session: runs.ended(session, started.id))

        after = self._measured(traffic, 1)
        self.afterwards(house, end)
        return self._curtain(house, started, state, end, before, after)

    def ports(self) -> dict[str, int]:
        """Ports of the sandbox that have to be others than usual."""
        return {}

    def trouble(self, house: House, traffic: Traffic) -> Stats:
        """What goes wrong first. Returns what clients see of it."""
        self._scene("deploying a release that is broken")
        entry = house.deploy(STAGE, "broken")
        before = self._measured(traffic, 1)
        self._aside(f"release {entry.release} is live; clients see: {_seen(before)}", "bold red")
        return before

    def begin(self, before: Stats) -> Started:
        """How the run comes about."""
        self._scene(f"starting {self.runbook.__name__}")
        request = self.request(before)
        return connected(lambda session: runs.begin(session, self.runbook, request))

    def meanwhile(self, _child: WorkerChild, _traffic: Traffic) -> AbstractContextManager[None]:
        """What else happens while the run runs."""
        return nullcontext()

    def afterwards(self, house: House, end: Ended) -> None:
        """What is to be seen when the run has ended."""

    def below(self, _run: str, _gate: Gate) -> str | None:
        """The run below that asks next, where a yes at this gate begins one."""
        return None

    def _watch(self, run: str) -> RunState | None:
        """Show the run, and answer its questions or let them be answered."""
        follower = Follower(self._output)
        while True:
            state = connected(lambda session: follower.follow(session, run, until_gate=True))
            gate = state.open_gate() if state else None
            if gate is None:
                return state
            decision = self._answer(gate)
            said = connected(lambda session, sent=decision: runs.update(session, run, "decide", sent))  # type: ignore[misc]
            self._aside(f"{decision.by} answers {decision.decision}: {said}")
            if decision.decision == "approve" and (child := self.below(run, gate)):
                self._watch(child)

    def _answer(self, gate: Gate) -> Decision:
        yes = True
        if self._attended:
            self._output.line(f"\n{gate.question}", "bold")
            yes = typer.confirm(f"Answer as {APPROVER!r}: approve?", default=True)
        return Decision(
            decision="approve" if yes else "reject",
            by=APPROVER,
            gate=gate.id,
            plan_hash=gate.plan_hash,
            reason=None if self._attended else "the demo answers by itself",
        )

    def _curtain(
        self, house: House, started: Started, state: RunState | None, end: Ended, before: Stats, after: Stats
    ) -> int:
        healthy = end.well and after.error_rate is not None and after.error_rate < 0.01
        self._scene("the end")
        self._output.line(f"  {end.outcome}: {end.summary}", "bold green" if end.well else "bold red")
        self._output.line(f"  before: {_seen(before)}", "red")
        self._output.line(f"  after:  {_seen(after)}", "green" if healthy else "bold red")
        if state and not self._output.live:
            self._output.console.print(screen.checklist_view(state.checklist), soft_wrap=True)
        files = self._report(started) | self.copies
        stored = end.result.report if end.result else {}
        self._output.line(f"\n  report: {stored.get('html', 'not stored')}")
        self._output.line(f"  copy:   {files['html']}")
        self._output.line(f"  run:    {started.ui}")
        seconds = time.monotonic() - self._began
        if self._attended:
            typer.prompt("\nLook around; Enter stops everything", default="", show_default=False, prompt_suffix=" ")
        self._aside(f"cleaning up (it took {seconds:.0f} s)")
        if self._output.json:
            self._output.show(_document(started, end, before, after, healthy, files, seconds))
        return Code.DONE if healthy else Code.RUN_FAILED

    def _report(self, started: Started) -> dict[str, Path]:
        async def fetch(session: Session) -> dict[str, Path]:
            return await reports.save(session, started.id, reports.DEFAULT_DIRECTORY)

        return connected(fetch)

    def _measured(self, traffic: Traffic, at_least: float) -> Stats:
        """What clients see from now on, over enough requests."""
        began = time.monotonic()
        while True:
            time.sleep(0.2)
            passed = time.monotonic() - began
            stats = traffic.stats(last_seconds=passed)
            if passed >= at_least and (stats.sent >= ENOUGH or passed > PATIENCE):
                return stats

    def _scene(self, title: str) -> None:
        self._output.line(f"\n▸ {title}", "bold cyan")

    def _aside(self, text: str, style: str = "dim") -> None:
        self._output.line(f"  {text}", style)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def percent(stats: Stats) -> str:
    return "no answer" if stats.error_rate is None else f"{stats.error_rate:.0%}"


def _seen(stats: Stats) -> str:
    if stats.error_rate is None:
        return "no request was answered"
    return f"{stats.error_rate:.1%} errors of {stats.sent} requests, p95 {stats.p95_ms:.0f} ms"


def _document(
    started: Started, end: Ended, before: Stats, after: Stats, healthy: bool, files: dict[str, Path], seconds: float
) -> dict[str, Any]:
    return {
        "id": started.id,
        "ui": started.ui,
        "outcome": end.outcome,
        "summary": end.summary,
        "healthy": healthy,
        "error_rate_before": before.error_rate,
        "error_rate_after": after.error_rate,
        "checklist": [item.model_dump(mode="json") for item in end.result.checklist] if end.result else [],
        "report": end.result.report if end.result else {},
        "copy": {kind: str(file) for kind, file in files.items()},
        "seconds": round(seconds, 1),
    }
