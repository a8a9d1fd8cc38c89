"""Memory runs short: how much is used, whether it grows, and what can help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio import workflow

from activities.metrics import Window
from activities.symptom_logs import SymptomLogs
from activities.symptom_models import Points, Reports
from workflows.model import RunbookResult
from workflows.performance_degradation import AFTER, CHECKLIST, GATES, tick_capacity, tick_common
from workflows.runbook import RunbookSpec
from workflows.symptom import Symptom, verdict_of
from workflows.symptom_looking import DIAGNOSTICS
from workflows.symptom_model import HighMemoryUsageInput
from workflows.symptom_readings import Headline, Readings
from workflows.symptom_remedies import Offer, Remedy, Rules


@workflow.defn(name="HighMemoryUsage")
class HighMemoryUsage(Symptom[HighMemoryUsageInput]):
    """Find out how near the function is to the end of its memory, and mend it.

    Lambda does report memory: ``Max Memory Used`` stands in the REPORT line of every invocation. The most that an
    environment used is compared with what it has (400 of 512 MB in the document, the same share of any other size), and
    environments whose use grows are told apart: more memory only gains time there. Ends when the same figure is under
    its threshold for a whole window.
    """

    remedies = (
        Remedy.MORE_MEMORY,
        Remedy.ROLL_BACK,
        Remedy.PROVISIONED_CONCURRENCY,
        Remedy.ADD_INDEX,
        Remedy.FIX_CODE,
    )
    spec = RunbookSpec(
        input=HighMemoryUsageInput,
        when="The function uses more than 400 of its 512 MB, or environments die.",
        steps=(*DIAGNOSTICS, *AFTER),
        checklist=CHECKLIST,
        gates=GATES,
        example={"stage": "production", "reason": "environments use nearly all of their memory", "requested_by": "ann"},
        locks=False,
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def rules(self) -> Rules:
        return Rules(
            memory_share=self.inp.above_share,
            memory_first=True,
            slow_ms=self.inp.slow_query.total_seconds() * 1000,
        )

    def headline(self, seen: Readings) -> Headline:
        return self._used(seen.reports)

    async def measure(self, step_id: str, window: Window, title: str | None = None) -> Headline:
        return self._used(await self.observe(step_id, SymptomLogs.reports, window, title=title))

    def _used(self, found: Reports | None) -> Headline:
        limit = self.inp.above_share
        if found is None or found.memory_used_mb is None or not found.memory_size_mb:
            return Headline(None, limit, "memory not measured")
        share = found.memory_used_mb / found.memory_size_mb
        text = f"{found.memory_used_mb:.0f} of {found.memory_size_mb} MB used ({share:.0%}, limit {limit:.0%})"
        return Headline(share, limit, text)

    def diagnosed(self, seen: Readings, offers: Sequence[Offer]) -> str:
        reports = seen.reports
        grows = reports is not None and bool(reports.growing)
        used = self.headline(seen)
        shape = "not known"
        if reports is not None and reports.invocations:
            shape = f"it grows, by up to {reports.growth_mb:.0f} MB an environment" if grows else "it does not grow"
        text = f"{used.text}; {shape}"
        self.check("slow-or-infrastructure", used.value is not None, text)
        tick_common(self, seen, offers)
        cause = verdict_of(offers, Remedy.ROLL_BACK if _is_regression(seen) else Remedy.MORE_MEMORY)
        self.check("root-cause", used.value is not None, f"{text}. {cause}")
        return f"{text}. {cause}"

    def measured_after(self, mended: bool, note: str, after: Readings | None) -> None:
        self.check("recovery", mended, note)
        if after is not None:
            tick_capacity(self, after)

    def points(self, seen: Readings) -> tuple[str, str, Points]:
        reports = seen.reports
        size = (reports.memory_size_mb or 0) if reports else 0
        points = tuple((at, used / size) for at, used in reports.points) if reports and size else ()
        return "most memory used, of what there is", "", points


def _is_regression(seen: Readings) -> bool:
    return seen.suspect is not None and bool(seen.suspect.recent and seen.suspect.worse_since)
