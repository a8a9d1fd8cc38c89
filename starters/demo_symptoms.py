"""``runbooks demo slow`` and ``runbooks demo errors``: a symptom is looked into, and another run mends its cause."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from starters import runs
from starters.demo_play import STAGE, Play, percent
from starters.problems import Problem
from starters.session import Session, connected
from workflows.high_error_rate import HighErrorRate
from workflows.model import Gate
from workflows.performance_degradation import PerformanceDegradation
from workflows.symptom_model import HighErrorRateInput, PerformanceDegradationInput
from workflows.symptom_remedies import Remedy

if TYPE_CHECKING:
    from sandbox.house import House
    from sandbox.traffic import Stats, Traffic

BRIEF: dict[str, Any] = {
    "window": timedelta(seconds=20),
    "stable_for": timedelta(seconds=8),
    "look_every": timedelta(seconds=2),
    "patience": timedelta(minutes=3),
}
"""The document's half hour and ten minutes, for somebody who watches."""

SESSIONS = 15_000


class Symptom(Play):
    """A remedy that is approved is a run of its own, with questions of its own."""

    def below(self, run: str, gate: Gate) -> str | None:
        by_people = gate.plan.get("by") in (None, "people")
        if by_people or not gate.id.startswith("apply-"):
            return None
        child = f"{run}/run-{gate.id.removeprefix('apply-')}"
        self._scene(f"{gate.plan['by']} does it, as a run of its own, and asks for the exact change")
        connected(lambda session: _begun(session, child))
        return child


async def _begun(session: Session, run: str) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    while True:
        try:
            await runs.described(session, run)
            return
        except Problem:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)


class Errors(Symptom):
    """A bad release: which requests fail, since when, what cannot help, and what does."""

    runbook = HighErrorRate
    rate = 6.0

    def trouble(self, house: House, traffic: Traffic) -> Stats:
        self._scene("deploying a release that is broken")
        house.deploy(STAGE, "broken")
        before = self._measured(traffic, 10)
        self._aside(f"clients see: {percent(before)} of requests fail", "bold red")
        return before

    def request(self, before: Stats) -> HighErrorRateInput:
        reason = f"{percent(before)} of requests fail"
        given = {**BRIEF, "profile_for": timedelta(0), "remedy": "add_index"}
        return HighErrorRateInput(stage=STAGE, reason=reason, requested_by=self.requester, **given)


class Slow(Symptom):
    """A missing index: where the time of slow answers goes, the plan of the slow query, and the index that it lacks."""

    runbook = PerformanceDegradation
    rate = 3.0

    def trouble(self, house: House, traffic: Traffic) -> Stats:
        self._scene(f"deploying a release that asks {SESSIONS:,} sessions in an order for which there is no index")
        for stage in ("staging", STAGE):
            house.fill(stage, SESSIONS)
        house.deploy(STAGE, "unindexed")
        before = self._measured(traffic, 25)  # the cold starts of the deployment are past
        self._aside(f"clients see: p95 {before.p95_ms or 0:.0f} ms", "bold red")
        return before

    def request(self, before: Stats) -> PerformanceDegradationInput:
        return PerformanceDegradationInput(
            stage=STAGE,
            reason=f"p95 is {before.p95_ms or 0:.0f} ms since the deploy",
            requested_by=self.requester,
            remedy=Remedy.ADD_INDEX,
            slower_than=timedelta(milliseconds=60),
            normal=timedelta(milliseconds=40),
            slow_query=timedelta(milliseconds=10),
            profile_for=timedelta(seconds=6),
            **BRIEF,
        )
