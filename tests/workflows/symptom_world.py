"""A scripted world for the runbooks of a symptom: readings that are bad until the right remedy has run."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.database import Connections
from activities.deployment_models import FindTarget, RollbackTarget
from activities.function_capacity import FunctionState
from activities.incidents import Opened, OpenIncident
from activities.messages import Announcement, Attempt, Delivery, TicketRef, TicketRequest
from activities.metrics import Window
from activities.releases import ReleaseFacts
from activities.reports import RunRecord, render
from activities.stage import Stage
from activities.symptom_metrics import whole_minutes
from activities.symptom_models import (
    ErrorKinds,
    ErrorMinutes,
    LatencyParts,
    Minute,
    ProfilerLevel,
    Reports,
    Requests,
    RequestsAsked,
    SetProfiler,
    SlowAsked,
    SlowQueries,
)
from tests.workflows.bare_stage import bare_stage
from workflows import policy
from workflows.converter import data_converter
from workflows.high_error_rate import HighErrorRate
from workflows.high_memory_usage import HighMemoryUsage
from workflows.model import Outcome, RunbookResult
from workflows.performance_degradation import PerformanceDegradation
from workflows.plugin import _runner
from workflows.symptom_readings import Readings
from workflows.symptom_remedies import Remedy

DEPLOYED_AGO = timedelta(minutes=40)
"""Longer than the window of half an hour, so that 'before' is before."""


class World:
    """``sick`` is measured until all of ``cures`` have run (names of runbooks), and ``well`` from then on."""

    def __init__(self, sick: Readings, well: Readings, *cures: str, **policies: Any) -> None:
        self.sick, self.well, self.cures = sick, well, set(cures)
        self.policies = policies
        self.children: list[tuple[str, dict[str, Any]]] = []
        self.child_fails: dict[str, str] = {}
        self.hold: dict[str, asyncio.Event] = {}
        """By name of a runbook: the run below answers when this is set."""
        self.profiler: list[tuple[int, int]] = []
        self.level: ProfilerLevel | None = ProfilerLevel(summary="off", level=0, slow_ms=100)
        self.incidents: list[OpenIncident] = []
        self.told: list[str] = []
        self.tickets: list[str] = []
        self.reports: list[dict[str, str]] = []
        self.down: set[str] = set()
        self.fail_after: str | None = None
        self.per_minute: Callable[[datetime], float] | None = None
        """Share of failures of a minute, where a test is about the course of time."""

    def readings(self) -> Readings:
        done = {name for name, _ in self.children}
        return self.well if self.cures and self.cures <= done else self.sick

    def did(self, name: str) -> None:
        if self.fail_after == name:
            self.fail_after = None
            raise ApplicationError(f"the worker died after {name}", type="Died")

    def give(self, name: str, value: Any) -> Any:
        if value is None or name in self.down:
            raise ApplicationError(f"{name} is down", type="Down", non_retryable=True)
        return value

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(
            name,
            {
                "rollback": {"metrics_delay": "PT1S"},
                "gates": {f"apply-{remedy}": {"approvals": 0} for remedy in Remedy},
                **self.policies,
            },
        )

    # --- what is measured ---------------------------------------------------------------------------------------

    def _at(self, window: Window) -> Readings:
        """What is measured of this window: before the deployment it was well, if that is when the trouble began."""
        suspect = self.sick.suspect
        before = window.end < activity.info().started_time - timedelta(minutes=20)
        if before and suspect is not None and suspect.worse_since:
            return self.well
        return self.readings()

    @activity.defn(name="metrics.latency_parts")
    async def latency(self, window: Window) -> LatencyParts:
        return self.give("latency", self._at(window).latency)

    @activity.defn(name="metrics.error_minutes")
    async def errors(self, window: Window) -> ErrorMinutes:
        found = self._at(window).errors
        if self.give("errors", found).rate is None:
            return found
        rate = found.rate or 0.0
        inner = whole_minutes(window)  # metrics know no other ones
        if inner is None:
            return ErrorMinutes(summary="no whole minute")
        moments = [inner.start + timedelta(minutes=n) for n in range(int(inner.length.total_seconds() // 60))]
        share = self.per_minute or (lambda _at: rate)
        minutes = tuple(Minute(at=at, requests=100, failed=round(100 * share(at))) for at in moments)
        failed = sum(one.failed for one in minutes)
        return ErrorMinutes(
            summary="", requests=100 * len(minutes), failed=failed, rate=failed / (100 * len(minutes)), minutes=minutes
        )

    @activity.defn(name="insights.reports")
    async def report_lines(self, window: Window) -> Reports:
        return self.give("reports", self._at(window).reports)

    @activity.defn(name="insights.requests")
    async def requests(self, asked: RequestsAsked) -> Requests:
        if asked.source == "gateway":
            return self.readings().gateway or Requests(summary="no log group of the gateway")
        if asked.window.end < activity.info().started_time - timedelta(minutes=5):
            return self.give("requests", self._at(asked.window).earlier)
        return self.give("requests", self._at(asked.window).requests)

    @activity.defn(name="insights.errors")
    async def kinds(self, window: Window) -> ErrorKinds:
        return self.give("kinds", self._at(window).kinds)

    @activity.defn(name="database.connections")
    async def connections(self, _stage: Stage) -> Connections:
        return self.give("database", self.readings().connections)

    @activity.defn(name="functions.capacity")
    async def settings(self, _stage: Stage) -> FunctionState:
        return self.give("settings", self.readings().settings)

    @activity.defn(name="profiler.level")
    async def profiler_level(self, _stage: Stage) -> ProfilerLevel:
        return self.give("profiler", self.level)

    @activity.defn(name="profiler.set")
    async def profiler_set(self, order: SetProfiler) -> ProfilerLevel:
        self.profiler.append((order.level, order.slow_ms))
        self.did("profiler.set")
        return ProfilerLevel(summary="set", level=order.level, slow_ms=order.slow_ms)

    @activity.defn(name="profiler.slow")
    async def slow(self, asked: SlowAsked) -> SlowQueries:
        assert asked.until > asked.since
        return self.give("slow", self.readings().slow)

    @activity.defn(name="deployments.find_target")
    async def find_target(self, _wanted: FindTarget) -> RollbackTarget:
        suspect = self.give("deployments", self.readings().suspect)
        ago = DEPLOYED_AGO if suspect.recent else timedelta(days=9)
        return RollbackTarget(
            summary="from new back to old",
            strategy="redeploy",
            current=ReleaseFacts(release="bbbbbbb", label="new", deployed_at=activity.info().started_time - ago),
            target=ReleaseFacts(release="aaaaaaa", label="old"),
            sources={},
        )

    # --- people, and runs below ---------------------------------------------------------------------------------

    @activity.defn(name="incidents.open")
    async def open_incident(self, problem: OpenIncident) -> Opened:
        self.incidents.append(problem)
        return Opened(summary="opened", workflow_id=f"incident-{problem.key}", new=True)

    @activity.defn(name="world.child")
    async def child(self, runbook: str, inp: dict[str, Any]) -> RunbookResult:
        if held := self.hold.get(runbook):
            await held.wait()
        if fault := self.child_fails.get(runbook):
            kind = fault.partition(":")[0]
            raise ApplicationError(fault, type=kind, non_retryable=True)
        self.children.append((runbook, inp))
        return RunbookResult(
            runbook=runbook, outcome=Outcome.COMPLETED, summary=f"{runbook} done", stage=inp["stage"], facts={"x": 1}
        )

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        self.told.append(message.title)
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="tickets.create")
    async def ticket(self, request: TicketRequest) -> TicketRef:
        self.tickets.append(request.text)
        return TicketRef(system="tickets", id="7")

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        self.reports.append(render(record))
        return {"html": "s3://records/report.html"}

    def activities(self) -> list[Any]:
        methods = (getattr(self, name) for name in dir(type(self)))
        return [method for method in methods if hasattr(method, "__temporal_activity_definition")]


@workflow.defn(dynamic=True, sandboxed=False)
class Below:
    """Any run below, in one go."""

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> RunbookResult:
        given = workflow.payload_converter().from_payload(args[0].payload, dict)
        try:
            result: RunbookResult = await workflow.execute_activity(
                "world.child",
                args=[workflow.info().workflow_type, given],
                result_type=RunbookResult,
                **policy.CHANGE,
            )
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError):
                raise ApplicationError(cause.message, type=cause.type, non_retryable=True) from None
            raise
        return result


@contextlib.asynccontextmanager
async def working(client: Client, world: World, queue: str | None = None) -> AsyncIterator[str]:
    """A worker of this world, on a queue of its own unless one is named, with stand-ins for the runs below."""
    queue = queue or f"symptom-{uuid.uuid4()}"
    config = client.config()
    config["data_converter"] = data_converter
    config["plugins"] = []  # the plugin would add the real runs of the stand-ins' names
    async with Worker(
        Client(**config),
        task_queue=queue,
        workflows=[PerformanceDegradation, HighMemoryUsage, HighErrorRate, Below],
        activities=world.activities(),
        workflow_runner=_runner(SandboxedWorkflowRunner()),
    ):
        yield queue


async def begin(client: Client, queue: str, runbook: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {
        "stage": f"stage-{uuid.uuid4().hex[:8]}",
        "reason": "it is slow",
        "requested_by": "ann",
        "look_every": "PT2M30S",
        **inp,
    }
    return await client.start_workflow(runbook, given, id=f"symptom-{uuid.uuid4()}", task_queue=queue)
