"""Horizontal scaling of database connections: the pool of every execution environment."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from activities.function_capacity import FunctionState, Setting
from activities.tier import ClusterTier
from workflows import capacity
from workflows.capacity import Assessed
from workflows.load_verdict import Change, Compared
from workflows.model import RunbookResult
from workflows.runbook import RunbookSpec
from workflows.scaling import Seen
from workflows.scaling_change import ScalingChange
from workflows.scaling_model import ConnectionPoolScalingInput
from workflows.scaling_steps import CHECKLIST, GATES, STEPS


@workflow.defn(name="ConnectionPoolScaling")
class ConnectionPoolScaling(ScalingChange[ConnectionPoolScalingInput]):
    """Give every execution environment another connection pool, where all pools together fit the cluster.

    Read the connections in use and what the cluster takes, live; work out pool x environments, now and after; refuse a
    larger pool that does not fit, with the arithmetic and what would fit; staging first, with a load test before and
    after; ask; change (deploy the merged commit, or the variable that the code reads); compare connections and errors.
    """

    figure = "connections in use"
    unit = "connections"
    spec = RunbookSpec(
        input=ConnectionPoolScalingInput,
        when="Database connections are exhausted under load. On Lambda the cure is often a smaller pool.",
        steps=STEPS,
        checklist=CHECKLIST,
        gates=GATES,
        example={
            "stage": "production",
            "reason": "connections exhausted at the 9:00 peak",
            "requested_by": "ann",
            "max_pool_size": 10,
            "way": "merge",
        },
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def preflight(self, inp: ConnectionPoolScalingInput) -> None:
        if inp.way == "direct" and self.stage.source.pool_variable is None:
            raise self.stop(
                f"the code of {inp.stage} reads its pool size from no variable (source.pool_variable), so only a "
                "deployment changes it. Use way=merge",
                "NoPoolVariable",
            )
        if inp.way == "direct" and inp.min_pool_size is not None:
            raise self.stop("min_pool_size stands in the repository only. Use way=merge", "NoPoolVariable")
        await super().preflight(inp)

    def wanted(self) -> Setting:
        return Setting(max_pool_size=self.inp.max_pool_size, min_pool_size=self.inp.min_pool_size)

    def former(self, found: FunctionState) -> Setting:
        return Setting(max_pool_size=found.max_pool_size or 0)

    def assess(self, seen: Seen, tier: str | None) -> Assessed:
        now = seen.state.max_pool_size or self.stage.source.pool_size
        return capacity.pool(self.inp.max_pool_size, now, seen.state, seen.reports, seen.database, tier)

    async def _cluster_tier(self) -> str | None:
        found = await self.observe("tier", ClusterTier.tier, self.stage)
        return found.tier if found else None

    def measure(self, seen: Seen) -> float | None:
        current = seen.database.current if seen.database else None
        return float(current) if current is not None else None

    def verdict(self, before: Seen, after: Seen) -> Compared:
        """More connections in use are what a larger pool is for, and no reason to ask whether to take it back."""
        found = super().verdict(before, after)
        more = found.change is Change.WORSE and not found.figure  # of connections, and not by the load test
        larger = self.inp.max_pool_size > (before.state.max_pool_size or self.stage.source.pool_size)
        if more and larger and workflow.patched("a-larger-pool-has-more"):
            return Compared(Change.UNKNOWN, f"{found.text}, as a larger pool has; errors and durations tell more")
        return found
