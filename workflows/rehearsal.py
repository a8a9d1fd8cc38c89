"""Rehearsal: would the runbooks of a stage work today?"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from pydantic import Field
from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.messages import PageEnd
from activities.notifications import Notifications
from activities.rehearsals import Case, CasesOf, Rehearsals
from workflows.model import Kind, RunbookInput, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec
from workflows.steps import describe

SIDE_BY_SIDE = 4
"""Dry runs at once. They only look, but they look at production."""


class RehearsalInput(RunbookInput):
    only: tuple[str, ...] = Field((), description="Names of the runbooks to rehearse; empty means all of them")


@workflow.defn(name="Rehearsal")
class Rehearsal(Runbook[RehearsalInput]):
    """Go through every runbook of a stage as a dry run, and say which would not work today.

    A dry run really looks: at the release to go back to, the alias, the metrics, the newest backup, the database with
    its roles. Beside that, every secret that the stage refers to is read, and the pager is told the end of a page that
    never began, which tries its route and calls nobody. Nothing else is changed or announced. When something would not
    work the run ends as failed, and the stage's chat hears what.
    """

    spec = RunbookSpec(
        input=RehearsalInput,
        when="Monthly, after a change of the settings, credentials or permissions, and before a risky week.",
        steps=(
            StepSpec(id="cases", title="List the runbooks", kind=Kind.LOOK),
            StepSpec(id="secrets", title="Read every secret that the stage refers to", kind=Kind.LOOK),
            StepSpec(id="pager", title="Try the pager's route", kind=Kind.TELL),
        ),
        checklist=(
            ("secrets", "Every secret can be read"),
            ("pager", "The pager takes messages"),
            ("runbooks", "Every runbook would work today"),
        ),
        gates=(),
        example={"stage": "production", "reason": "monthly rehearsal", "requested_by": "ann"},
        changes=False,
    )

    def __init__(self) -> None:
        super().__init__()
        self._wrong: list[str] = []

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: RehearsalInput) -> str:
        found = await self.look("cases", Rehearsals.cases, CasesOf(stage=inp.stage, only=inp.only))
        await self._secrets()
        await self._pager()
        slots = asyncio.Semaphore(SIDE_BY_SIDE)
        told = await asyncio.gather(*(self._rehearse(case, slots) for case in found.cases))
        broken = [line for line in told if line is not None]
        would = len(found.cases) - len(broken)
        self.check("runbooks", not broken, f"{would} of {len(found.cases)} would work")
        self.facts |= {"rehearsed": len(found.cases), "would_work": would, "left_out": ", ".join(found.left_out)}
        self._wrong += broken
        if self._wrong:
            raise self.stop(f"would not work on {self.stage.name} today: {'; '.join(self._wrong)}", "NotReady")
        return f"all {would} runbooks would work on {self.stage.name} today"

    async def _secrets(self) -> None:
        found = await self.observe("secrets", Rehearsals.secrets, self.stage)
        if found is None:
            self._wrong.append("the stage's secrets (could not be looked at)")
            return
        self.check("secrets", not found.unreadable, found.summary)
        self._wrong += found.unreadable

    async def _pager(self) -> None:
        end = PageEnd(
            channels=self.stage.channels,
            key=self.key("pager"),
            title=f"Rehearsal on {self.stage.name}: nothing has happened, this only tries the route",
        )
        would = "tell the pager the end of a page that never began"
        delivery = await self.tell("pager", Notifications.resolve_page, end, would=would)
        if self.inp.dry_run:
            return
        if delivery is None:
            self.check("pager", False, "no pager took it")
            self._wrong.append("the pager (no provider took a message)")
            return
        refused = [attempt for attempt in delivery.attempts if not attempt.ok]
        for attempt in refused:
            self.say(f"{attempt.provider}: {attempt.detail}", level="warning", source="provider")
        self._wrong += [f"{attempt.provider} ({attempt.detail})" for attempt in refused]
        names = ", ".join(attempt.provider for attempt in delivery.attempts if attempt.ok)
        taken = f"taken by {names}" if names else "the stage names no pager"
        self._find_step("pager", None, Kind.TELL).summary = taken
        self.check("pager", not refused, taken)

    async def _rehearse(self, case: Case, slots: asyncio.Semaphore) -> str | None:
        """One runbook as a dry run of its own. Returns what would not work, None when it would."""
        step_id = kebab(case.runbook)
        async with slots:
            try:
                async with self._step(step_id, f"Rehearse {case.runbook}", Kind.LOOK) as step:
                    result = await workflow.execute_child_workflow(
                        case.runbook,
                        self._as_rehearsal(case),
                        id=f"{self.state.workflow_id}/{step_id}",
                        static_summary=f"rehearsal of {case.runbook} on {self.stage.name}",
                        cancellation_type=workflow.ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
                        parent_close_policy=workflow.ParentClosePolicy.REQUEST_CANCEL,
                        priority=self._priority(),
                        result_type=RunbookResult,
                    )
                    changes = len(result.would_change)
                    step.summary = f"would work: {result.summary}"
                    step.evidence = {"would_change": changes}
            except FailureError as error:
                if self.stops(error):
                    raise
                message, kind = describe(error)
                self.say(f"{case.runbook} would not work ({kind}): {message}", level="warning")
                return f"{case.runbook} ({kind}: {message})"
            return None

    def _as_rehearsal(self, case: Case) -> dict[str, Any]:
        """The case's input for this stage, as a dry run that belongs to this run and to no incident."""
        own = {key: value for key, value in case.input.items() if key not in ("incident", "severity")}
        asked = {"requested_by": self.inp.requested_by} if self.inp.requested_by else {}
        reason = f"rehearsal: {self.inp.reason}"[:500]
        return {**own, **asked, "stage": self.stage.name, "reason": reason, "dry_run": True}


def kebab(name: str) -> str:
    """``QuickRollback`` as ``quick-rollback``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
