"""How a symptom is looked at: the document's diagnostic steps, side by side."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from datetime import datetime, timedelta
from typing import TypeVar

from temporalio import workflow

from activities.database import Database
from activities.deployment_models import FindTarget
from activities.deployments import Deployments
from activities.function_capacity import FunctionCapacity
from activities.metrics import Window
from activities.profiler import Profiler
from activities.symptom_logs import SymptomLogs
from activities.symptom_metrics import SymptomMetrics
from activities.symptom_models import Points, RequestsAsked, SetProfiler, SlowAsked, SlowQueries
from workflows.details import length
from workflows.model import Kind, Phase, StepSpec
from workflows.runbook import Runbook, Undo
from workflows.symptom_model import RECORDED, SymptomInput
from workflows.symptom_readings import Headline, Readings, Suspect

I = TypeVar("I", bound=SymptomInput)  # noqa: E741

DIAGNOSTICS = (
    StepSpec(id="latency", title="Gateway latency and function duration", kind=Kind.LOOK),
    StepSpec(id="errors", title="Errors minute by minute", kind=Kind.LOOK),
    StepSpec(id="reports", title="Cold starts and memory, from the REPORT lines", kind=Kind.LOOK),
    StepSpec(id="requests", title="Requests by status, route and client", kind=Kind.LOOK),
    StepSpec(id="requests-earlier", title="The same for the time before", kind=Kind.LOOK),
    StepSpec(id="gateway", title="The gateway's access log", kind=Kind.LOOK),
    StepSpec(id="kinds", title="Kinds of errors in the log", kind=Kind.LOOK),
    StepSpec(id="database", title="Database: ping and connections", kind=Kind.LOOK),
    StepSpec(id="settings", title="The function's memory, time-out and concurrency", kind=Kind.LOOK),
    StepSpec(id="profiler", title="How the database profiles", kind=Kind.LOOK),
    StepSpec(id="profile", title="Profile slow queries", kind=Kind.CHANGE, undo="the former level is set"),
    StepSpec(id="profiling", title="Let the profiler record", kind=Kind.WAIT),
    StepSpec(id="slow-queries", title="Slow queries, their plans and missing indexes", kind=Kind.LOOK),
    StepSpec(id="profile-back", title="Put the profiler back", kind=Kind.CHANGE, undo="it is as it was"),
    StepSpec(id="deployments", title="Recent deployments", kind=Kind.LOOK),
    StepSpec(id="before-deployment", title="How it was before the last deployment", kind=Kind.LOOK),
)
"""The document's diagnostic steps. They run side by side."""

_ROLLING = timedelta(minutes=1)
"""The end of a deployment of which no start is recorded: its traffic moves before it is said to be finished."""


_SHORTEST = timedelta(seconds=1)


class Looking(Runbook[I]):
    """The part of a symptom's runbook that measures."""

    def __init__(self) -> None:
        super().__init__()
        self._series: dict[datetime, float] = {}
        """What is charted: the measurement over time."""

    @abstractmethod
    async def measure(self, step_id: str, window: Window, title: str | None = None) -> Headline:
        """The same measurement alone, over one stretch of time."""

    @abstractmethod
    def points(self, seen: Readings) -> tuple[str, str, Points]:
        """Title, unit and points of the chart."""

    # --- looking ------------------------------------------------------------------------------------------------

    def _until(self) -> datetime:
        """CloudWatch is behind by so much."""
        return workflow.now() - self.stage.rollback.metrics_delay

    async def _diagnose(self, since: datetime | None = None) -> Readings:
        """Everything that does not wait for one another, side by side. A source that is down is reported.

        ``since``: nothing before it is looked at, because a remedy was applied then.
        """
        self._enter(Phase.LOOKING)
        end = self._until()
        start = end - self.inp.window
        if since is not None:
            start = min(max(start, since), end - _SHORTEST)
        window = Window(stage=self.stage, start=start, end=end)
        earlier = window.model_copy(update={"start": window.start - window.length, "end": window.start})
        requests, gateway = RequestsAsked(window=window), RequestsAsked(window=window, source="gateway")
        (
            (latency, errors, reports, kinds, settings),
            (now, then, access),
            (database, slow, suspect),
        ) = await asyncio.gather(
            asyncio.gather(
                self.observe("latency", SymptomMetrics.latency_parts, window),
                self.observe("errors", SymptomMetrics.error_minutes, window),
                self.observe("reports", SymptomLogs.reports, window),
                self.observe("kinds", SymptomLogs.errors, window),
                self.observe("settings", FunctionCapacity.capacity, self.stage),
            ),
            asyncio.gather(
                self.observe("requests", SymptomLogs.requests, requests),
                self.observe("requests-earlier", SymptomLogs.requests, RequestsAsked(window=earlier)),
                self.observe("gateway", SymptomLogs.requests, gateway),
            ),
            asyncio.gather(
                self.observe("database", Database.connections, self.stage),
                self._slow_queries(window),
                self._suspect(),
            ),
        )
        seen = Readings(
            window=window.length,
            latency=latency,
            errors=errors,
            reports=reports,
            slow=slow,
            connections=database,
            settings=settings,
            requests=now,
            earlier=then,
            gateway=access,
            kinds=kinds,
            suspect=suspect,
        )
        self._series |= dict(self.points(seen)[2])
        return seen

    async def _slow_queries(self, window: Window) -> SlowQueries | None:
        """By the profiler, switched on for a while and put back; by what is recorded already; or by Atlas."""
        over = self.inp.slow_query / RECORDED
        wanted_ms = max(1, round(over.total_seconds() * 1000))
        level = await self.observe("profiler", Profiler.level, self.stage)
        since, until = window.start, workflow.now()
        records = level is not None and bool(level.level) and (level.level == 2 or level.slow_ms <= wanted_ms)
        if level is not None and level.level is not None and not records and self.inp.profile_for:
            before = SetProfiler(
                stage=self.stage, level=level.level, slow_ms=level.slow_ms, sample_rate=level.sample_rate
            )
            wanted = SetProfiler(stage=self.stage, level=1, slow_ms=wanted_ms)
            await self.change(
                "profile",
                Profiler.set,
                wanted,
                would=f"profile queries of {wanted_ms} ms or more for {length(self.inp.profile_for)}",
                undo=Undo(f"set the profiler to level {before.level} again", Profiler.set, before),
            )
            since = workflow.now()
            await self.wait("profiling", self.inp.profile_for, "let the profiler record slow queries")
            until = max(workflow.now(), since + timedelta(seconds=1))
            asked = SlowAsked(stage=self.stage, since=since, until=until, over=over)
            slow = await self.observe("slow-queries", Profiler.slow, asked)
            await self.change("profile-back", Profiler.set, before, would="put the profiler back", undo=None)
            self.undone_by_design()  # the profiler is as it was, and nothing else of this run is to be undone
            return slow
        return await self.observe(
            "slow-queries", Profiler.slow, SlowAsked(stage=self.stage, since=since, until=until, over=over)
        )

    async def _suspect(self) -> Suspect | None:
        """The last deployment, and whether it was well before it."""
        strategy = self.stage.rollback.strategy
        wanted = FindTarget(stage=self.stage, strategy="redeploy" if strategy == "cloudformation" else strategy)
        target = await self.observe("deployments", Deployments.find_target, wanted)
        if target is None:
            return None
        at = target.current.deployed_at
        recent = at is not None and workflow.now() - at <= self.inp.suspect_within
        worse: bool | None = None
        note = "not measured"
        if at is not None and recent:
            end = target.current.started_at or at - _ROLLING
            window = Window(stage=self.stage, start=end - self.inp.window, end=end)
            before = await self.measure("before-deployment", window)
            worse, note = before.well, before.text
        return Suspect(target.current.name, target.target.name, at, recent, worse, note)
