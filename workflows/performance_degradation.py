"""Slow answers: where the time goes, what can help, and the proof that it did."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from temporalio import workflow

from activities.metrics import Window
from activities.symptom_logs import SymptomLogs
from activities.symptom_metrics import SymptomMetrics
from activities.symptom_models import LatencyParts, Points, Requests, RequestsAsked
from workflows.model import Kind, RunbookResult, StepSpec
from workflows.runbook import RunbookSpec
from workflows.symptom import Symptom, verdict_of
from workflows.symptom_looking import DIAGNOSTICS
from workflows.symptom_model import PerformanceDegradationInput
from workflows.symptom_readings import Headline, Readings, average_ms, take_apart
from workflows.symptom_remedies import Offer, Remedy, Rules, judged, memory_share

CHECKLIST = (
    ("slow-or-infrastructure", "Identified if slow queries or infrastructure issue"),
    ("indexes", "Checked database for missing indexes"),
    ("deployments", "Reviewed recent deployments for regressions"),
    ("cold-starts", "Verified Lambda is not cold-starting frequently"),
    ("memory", "Confirmed sufficient memory allocation"),
    ("recovery", "Monitored recovery after fixes applied"),
    ("root-cause", "Documented root cause"),
)
"""The document's performance degradation checklist, word for word."""

AFTER = (StepSpec(id="recovery", title="Measure again", kind=Kind.LOOK),)

GATES = (("apply-<remedy>", "Run this remedy? With what was measured, and why others cannot help. No offers the next"),)


@workflow.defn(name="PerformanceDegradation")
class PerformanceDegradation(Symptom[PerformanceDegradationInput]):
    """Find out where the time of slow answers goes, and mend it.

    Measure side by side: gateway latency, function duration, cold starts, memory, slow queries with their plans,
    connections, requests, recent deployments. Take the latency apart: gateway, start of environments, network, code,
    database. Rank what can help; refuse what cannot, with the figures. Each remedy is asked for, runs as its own
    runbook, and counts as one only when the same measurement has been back under its threshold for a whole window;
    otherwise the next is offered.
    """

    remedies = (
        Remedy.ADD_INDEX,
        Remedy.PROVISIONED_CONCURRENCY,
        Remedy.MORE_MEMORY,
        Remedy.CONNECTION_POOL,
        Remedy.ROLL_BACK,
        Remedy.LIMIT_CLIENT,
        Remedy.DATABASE_TIER,
        Remedy.NETWORK,
        Remedy.FIX_CODE,
    )
    spec = RunbookSpec(
        input=PerformanceDegradationInput,
        when="Answers are slow: above two seconds on average, where half a second is normal.",
        steps=(*DIAGNOSTICS, *AFTER),
        checklist=CHECKLIST,
        gates=GATES,
        example={"stage": "production", "reason": "answers take seconds since 14:00", "requested_by": "ann"},
        locks=False,
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def rules(self) -> Rules:
        return Rules(
            slow_ms=self.inp.slow_query.total_seconds() * 1000, normal_ms=self.inp.normal.total_seconds() * 1000
        )

    def headline(self, seen: Readings) -> Headline:
        return self._average(seen.latency, seen.gateway, seen.requests)

    async def measure(self, step_id: str, window: Window, title: str | None = None) -> Headline:
        latency, gateway, requests = await asyncio.gather(
            self.observe(step_id, SymptomMetrics.latency_parts, window, title=title),
            self.observe(f"{step_id}-gateway", SymptomLogs.requests, RequestsAsked(window=window, source="gateway")),
            self.observe(f"{step_id}-requests", SymptomLogs.requests, RequestsAsked(window=window)),
        )
        return self._average(latency, gateway, requests)

    def _average(self, latency: LatencyParts | None, gateway: Requests | None, requests: Requests | None) -> Headline:
        limit = self.inp.slower_than.total_seconds() * 1000
        value, source = average_ms(latency, gateway, requests)
        if value is None:
            return Headline(None, limit, "average response time not measured")
        return Headline(value, limit, f"average response time {value:.0f} ms by {source} (limit {limit:.0f} ms)")

    def diagnosed(self, seen: Readings, offers: Sequence[Offer]) -> str:
        apart = take_apart(seen)
        for problem in apart.problems:
            self.say(problem, level="warning")
        for name, value in apart.parts().items():
            self.facts[f"{name} ms"] = round(value, 1)
        largest = apart.largest()
        known = largest is not None and seen.slow is not None and seen.slow.count is not None
        self.check("slow-or-infrastructure", known, apart.described())
        tick_common(self, seen, offers)
        best = next((one for one in offers if one.fits), None)
        slow = self.headline(seen).well is False
        cause = f"{best.remedy}: {best.why}" if best and slow else "none of the known causes was found"
        text = f"{apart.described()}. {cause}"
        self.check("root-cause", bool(best) or not slow, text)
        return text

    def measured_after(self, mended: bool, note: str, after: Readings | None) -> None:
        self.check("recovery", mended, note)
        if after is not None:
            tick_capacity(self, after)

    def points(self, seen: Readings) -> tuple[str, str, Points]:
        return "average response time", "ms", seen.latency.points if seen.latency else ()


def tick_common(run: Symptom[Any], seen: Readings, offers: Sequence[Offer]) -> None:
    """The items that both symptoms of the document's section share."""
    slow = seen.slow
    run.check("indexes", slow is not None and slow.count is not None, verdict_of(offers, Remedy.ADD_INDEX))
    run.check("deployments", seen.suspect is not None, verdict_of(offers, Remedy.ROLL_BACK))
    tick_capacity(run, seen)


def tick_capacity(run: Symptom[Any], seen: Readings) -> None:
    """What a remedy may have put in order: looked at before it and after it."""
    (cold,) = judged((Remedy.PROVISIONED_CONCURRENCY,), seen, run.rules())
    run.check("cold-starts", cold.fits is False, cold.why)
    share, reports = memory_share(seen), seen.reports
    enough = share is not None and share <= run.rules().memory_share
    run.check("memory", enough, reports.summary if reports else "no REPORT line could be read")
