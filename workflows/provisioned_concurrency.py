"""Provisioned concurrency: environments that are started before anybody calls."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from activities.alarms import AlarmSettings, UtilisationAlarm
from activities.function_capacity import FunctionState, Setting
from workflows import capacity
from workflows.capacity import Assessed
from workflows.load_verdict import Change, Compared, compare
from workflows.model import RunbookResult
from workflows.runbook import RunbookSpec, Undo
from workflows.scaling import Seen
from workflows.scaling_change import ScalingChange
from workflows.scaling_model import ProvisionedConcurrencyInput
from workflows.scaling_steps import CHECKLIST, GATES, STEPS


@workflow.defn(name="ProvisionedConcurrency")
class ProvisionedConcurrency(ScalingChange[ProvisionedConcurrencyInput]):
    """Keep so many environments of the alias ready, so that nobody waits for a cold start.

    Count who waits for starts now; refuse more than the function's or the account's limit allows; staging first, with a
    load test before and after; ask with cost (they cost whether used or not) and capacity; provision and wait until all
    are ready; compare; an alarm tells when nearly all are in use. 0 ends it.
    """

    figure = "share of cold starts"
    unit = "of 1000 calls"
    spec = RunbookSpec(
        input=ProvisionedConcurrencyInput,
        when="Many calls wait for cold starts.",
        steps=STEPS,
        checklist=CHECKLIST,
        gates=GATES,
        example={
            "stage": "production",
            "reason": "cold starts of 4 s after the deploy",
            "requested_by": "ann",
            "executions": 5,
            "expires_after": "PT12H",
        },
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def wanted(self) -> Setting:
        return Setting(provisioned=self.inp.executions)

    def former(self, found: FunctionState) -> Setting:
        return Setting(provisioned=found.provisioned or 0)

    def assess(self, seen: Seen, tier: str | None) -> Assessed:
        return capacity.provisioned(self.inp.executions, seen.state, seen.reports)

    def measure(self, seen: Seen) -> float | None:
        """Cold starts of a thousand calls."""
        found = seen.reports
        if found is None or not found.invocations or found.cold_starts is None:
            return None
        return 1000 * found.cold_starts / found.invocations

    def verdict(self, before: Seen, after: Seen) -> Compared:
        """What it is for decides, not the load test: a warm environment is as quick without it."""
        if self.inp.executions == 0:
            return Compared(Change.SAME, "ended, as was asked for")
        return compare(self.measure(before), self.measure(after), self.unit)

    async def own_alarms(self) -> list[str]:
        there = (self._seen.state.provisioned or 0) > 0
        wanted = self.inp.executions > 0
        done = await self.change(
            "alarm-use",
            AlarmSettings.utilisation,
            UtilisationAlarm(stage=self.stage, present=wanted),
            would="set the alarm of provisioned use",
            undo=Undo(
                "put the alarm of provisioned use back",
                AlarmSettings.utilisation,
                UtilisationAlarm(stage=self.stage, present=there),
            ),
            title="Alarm of provisioned use",
        )
        self._made = self._made.model_copy(update={"utilisation_alarm": there})
        return [done.summary] if done else []
