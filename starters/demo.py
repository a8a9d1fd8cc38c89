"""``runbooks demo``: a broken deployment and a real run that mends it, on this machine, in a minute or two."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starters.demo_capacity import Restart, Scale
from starters.demo_incident import Outage
from starters.demo_migration import Migration
from starters.demo_play import STAGE, Play, percent
from starters.demo_rotation import Rotation
from starters.demo_symptoms import Errors, Slow
from starters.output import AsJson, Output
from workflows.canary_judge import Limits
from workflows.canary_model import CanaryRollbackInput
from workflows.canary_rollback import CanaryRollback
from workflows.quick_rollback import QuickRollback
from workflows.rollback_model import QuickRollbackInput

if TYPE_CHECKING:
    from sandbox.traffic import Stats


class Scenario(StrEnum):
    ROLLBACK = "rollback"
    CANARY = "canary"
    MIGRATION = "migration"
    RESTART = "restart"
    SCALE = "scale"
    ROTATION = "rotation"
    INCIDENT = "incident"
    SLOW = "slow"
    ERRORS = "errors"


class _Rollback(Play):
    """The release before the broken one comes back at once."""

    runbook = QuickRollback
    rate = 5.0

    def request(self, before: Stats) -> QuickRollbackInput:
        reason = f"{percent(before)} of requests fail since the last deploy"
        return QuickRollbackInput(stage=STAGE, reason=reason, requested_by=self.requester)


class _Canary(Play):
    """It comes back step by step, judged against the broken one over the same seconds."""

    runbook = CanaryRollback
    rate = 12.0

    def request(self, before: Stats) -> CanaryRollbackInput:
        reason = f"{percent(before)} of requests fail, perhaps since the last deploy"
        return CanaryRollbackInput(
            stage=STAGE,
            reason=reason,
            requested_by=self.requester,
            bake=timedelta(seconds=15),
            judge_every=timedelta(seconds=3),
            patience=timedelta(minutes=1),
            limits=Limits(min_sample=15),
        )


_PLAYS: dict[Scenario, type[Play]] = {
    Scenario.ROLLBACK: _Rollback,
    Scenario.CANARY: _Canary,
    Scenario.MIGRATION: Migration,
    Scenario.RESTART: Restart,
    Scenario.SCALE: Scale,
    Scenario.ROTATION: Rotation,
    Scenario.INCIDENT: Outage,
    Scenario.SLOW: Slow,
    Scenario.ERRORS: Errors,
}


def demo(
    scenario: Annotated[
        Scenario,
        typer.Argument(
            help="rollback: back at once. canary: back step by step, with bakes of 15 s instead of 15 min. "
            "migration: 50,000 documents, a killed worker, an abort that is undone. "
            "restart: all traffic stopped, the worker killed, and traffic back. scale: no cold starts for a while. "
            "rotation: new API keys, a grace of seconds instead of 30 days, the old ones refused. "
            "incident: a dead release, from the alarm to the post-mortem. "
            "slow: a missing index is found and built. errors: a bad release is told from all else, and rolled back."
        ),
    ] = Scenario.ROLLBACK,
    auto_approve: Annotated[bool, typer.Option("--auto-approve", help="Answer the run's questions with yes.")] = False,
    documents: Annotated[
        int | None, typer.Option("--documents", min=1000, help="How many 'migration' has: 50,000 if you do not say.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """See it work on a sandbox of its own, which is gone afterwards: a rollback that asks, or a large migration."""
    output = Output(as_json)
    attended = output.live and sys.stdin.isatty() and not auto_approve
    play = _PLAYS[scenario](output, attended)
    if isinstance(play, Migration):
        play.documents = documents or play.documents
    elif documents:
        raise typer.BadParameter("only 'migration' has documents", param_hint="--documents")
    with _undisturbed(), ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="runbooks-demo-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        return play.play(stack, root)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: by cleaning up."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
