"""Vertical scaling: more memory for the function, and with it more CPU."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from activities.function_capacity import FunctionState, Setting
from workflows import capacity
from workflows.capacity import Assessed
from workflows.model import RunbookResult
from workflows.runbook import RunbookSpec
from workflows.scaling import Seen
from workflows.scaling_change import ScalingChange
from workflows.scaling_model import VerticalScalingInput
from workflows.scaling_steps import CHECKLIST, GATES, STEPS


@workflow.defn(name="VerticalScaling")
class VerticalScaling(ScalingChange[VerticalScalingInput]):
    """Give the function another memory size: staging first, with a load test before and after.

    Confirm the need from REPORT lines and durations; refuse a size that is in use already; show the diff of
    sst.config.ts; change staging and measure it; ask with staging's figures, capacity and cost; change the stage
    (deploy the merged commit, or directly and recorded as drift); compare before and after; fit alarms; see to the end
    of a temporary change. Worse than before: asked, and taken back.
    """

    figure = "average duration"
    spec = RunbookSpec(
        input=VerticalScalingInput,
        when="Lambda is bottlenecked by CPU, not I/O, or uses nearly all of its memory.",
        steps=STEPS,
        checklist=CHECKLIST,
        gates=GATES,
        example={"stage": "production", "reason": "CPU-bound: 900 ms a call", "requested_by": "ann", "memory_mb": 1024},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def wanted(self) -> Setting:
        return Setting(memory_mb=self.inp.memory_mb)

    def former(self, found: FunctionState) -> Setting:
        return Setting(memory_mb=found.memory_mb)

    def assess(self, seen: Seen, tier: str | None) -> Assessed:
        return capacity.memory(self.inp.memory_mb, seen.state, seen.reports, self.inp.window, self.staging_ratio())

    def cost(self) -> str:
        """With what staging has shown of the durations."""
        return self.assess(self._seen, None).cost

    def measure(self, seen: Seen) -> float | None:
        return seen.reports.average_ms if seen.reports else None
