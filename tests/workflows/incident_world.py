"""A scripted world for Incident and Diagnosis: a service whose faults are chosen, and everything around it.

``fault`` is what is wrong from now on; the remedy that cures it is ``cure``. A rollback really runs as a child.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.api import Confirm, Confirmed, Health, HealthCheck, SampleCall
from activities.charts import Chart, Line
from activities.contacts import Contacts
from activities.database import Connections
from activities.deployment_models import (
    AliasPointed,
    CheckTarget,
    FindTarget,
    Former,
    PointAlias,
    Recorded,
    RollbackTarget,
    TargetCheck,
)
from activities.functions import Routing
from activities.incidents import Incidents
from activities.locks import Locks
from activities.log_kinds import LogCounts
from activities.logs import LogErrors
from activities.messages import Announcement, Attempt, Delivery, Mail, Page, PageEnd, TicketRef, TicketRequest
from activities.metrics import ErrorRate, Window
from activities.post_mortem import PostMortem, Written, addressed, invitation, render
from activities.pulse import Pulse, TakePulse
from activities.releases import LedgerEntry, ReleaseFacts
from activities.reports import RunRecord
from activities.signs import DeploymentsQuery, GatewayLog, RecentDeployments, Series, VitalLogs, VitalMetrics
from activities.stacks import StackStatus
from activities.stage import Stage
from tests.workflows.bare_stage import bare_stage
from workflows.incident import Incident
from workflows.incident_state import Situation
from workflows.quick_rollback import QuickRollback

FAULTS = ("dead", "errors", "latency", "throttling", "none")


class World:
    """Everything that the incident can look at, tell and change, with what was done to it."""

    def __init__(self, fault: str = "errors", **policies: Any) -> None:
        self.fault = fault
        self.cure = "QuickRollback"
        self.policies = policies
        self.contacts = Contacts()
        self.live = "2"
        self.pages: list[tuple[datetime, Page]] = []
        self.page_ends: list[PageEnd] = []
        self.said: list[tuple[datetime, Announcement]] = []
        self.mails: list[Mail] = []
        self.tickets: list[TicketRequest] = []
        self.written: list[PostMortem] = []
        self.documents: list[dict[str, str]] = []
        self.changes: list[tuple[datetime, str]] = []
        self.probed: list[tuple[datetime, str]] = []
        self.down: set[str] = set()
        """Names of activities that fail, or of pagers that take nothing."""
        self.hanging: set[str] = set()
        """Names of activities that never answer."""
        self.hold: dict[str, asyncio.Event] = {}
        """By name of an activity that tells people: it answers when this is set."""
        self.held: list[str] = []
        """Who waits, or has waited, for that."""

    @property
    def bad(self) -> bool:
        return self.fault != "none"

    async def _reached(self, name: str) -> None:
        self.probed.append((_now(), name))
        if name in self.hanging:
            await asyncio.sleep(3600)
        if name in self.down:
            raise ApplicationError(f"{name} is down", type="Unavailable")

    async def _let_go(self, name: str) -> None:
        if name in self.hold:
            self.held.append(name)
            await self.hold[name].wait()

    # --- looking --------------------------------------------------------------------------------------------------

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(
            name,
            {
                "rollback": {"metrics_delay": "PT0S", "error_window": "PT1S", "strategy": "alias"},
                "channels": {"stakeholders": ["team@example.org"]},
                "waive_gates_in_incident": True,
                **self.policies,
            },
        )

    @activity.defn(name="api.confirm")
    async def confirm(self, asked: Confirm) -> Confirmed:
        await self._reached("confirm")
        dead = self.fault == "dead"
        return Confirmed(
            summary=f"GET {asked.path}: HTTP {502 if dead else 200}",
            path=asked.path,
            ok=not dead,
            status=502 if dead else 200,
            latency_ms=9,
            failed=3 if dead else 0,
        )

    @activity.defn(name="signs.metrics")
    async def metrics(self, _window: Window) -> VitalMetrics:
        await self._reached("metrics")
        figures: dict[str, Any] = {
            "invocations": 300,
            "errors": 0,
            "throttles": 0,
            "duration_ms": 40,
            "duration_max_ms": 90,
            "requests": 300,
            "gateway_5xx": 0,
            "gateway_ms": 60,
            "integration_ms": 50,
            "timeout_ms": 30_000,
            "memory_mb": 512,
        }
        match self.fault:
            case "dead":
                figures |= {"errors": 290, "gateway_5xx": 290}
            case "errors":
                figures |= {"gateway_5xx": 150}
            case "latency":
                figures |= {"duration_ms": 6000, "duration_max_ms": 9000, "integration_ms": 6100, "gateway_ms": 6200}
            case "throttling":
                figures |= {"throttles": 200, "gateway_5xx": 200, "reserved": 1, "concurrent": 1}
        return VitalMetrics(summary=f"fault: {self.fault}", **figures)

    @activity.defn(name="signs.logs")
    async def logs(self, _window: Window) -> VitalLogs:
        await self._reached("logs")
        kinds = {"dead": LogCounts(startup=90), "errors": LogCounts(code=150)}.get(self.fault, LogCounts())
        return VitalLogs(summary="log", lines=kinds, reports=300, cold_starts=1, init_ms=200, memory_used_mb=100)

    @activity.defn(name="signs.gateway_log")
    async def gateway_log(self, _window: Window) -> GatewayLog:
        await self._reached("gateway_log")
        return GatewayLog(summary="routes", routes={"GET /sessions": 150} if self.fault == "errors" else {})

    @activity.defn(name="database.connections")
    async def connections(self, _stage: Stage) -> Connections:
        await self._reached("database")
        return Connections(summary="10 connections", current=10, available=990, ping_ms=1, server="MongoDB")

    @activity.defn(name="signs.deployments")
    async def deployments(self, query: DeploymentsQuery) -> RecentDeployments:
        await self._reached("deployments")
        entry = LedgerEntry(
            app="a",
            stage=query.stage.name,
            release="bbbbbbb",
            label="broken",
            engine="sst",
            deployed_at=_now() - timedelta(minutes=3),
            deployed_by="ci",
        )
        return RecentDeployments(summary="deployed: broken", live="broken", entries=(entry,))

    @activity.defn(name="signs.pulse")
    async def pulse(self, _asked: TakePulse) -> Pulse:
        await self._reached("pulse")
        return Pulse(
            summary=f"fault: {self.fault}",
            health_ok=self.fault != "dead",
            health="HTTP 502" if self.fault == "dead" else "HTTP 200",
            ready_ok=self.fault != "dead",
            ready="HTTP 200",
            error_rate=0.5 if self.fault in ("dead", "errors") else 0.0,
            throttled=200 if self.fault == "throttling" else 0,
            latency_ms=6200 if self.fault == "latency" else 60,
        )

    @activity.defn(name="signs.series")
    async def series(self, window: Window) -> Series:
        points = tuple((window.start + timedelta(minutes=n), float(n)) for n in range(5))
        return Series(
            summary="1", charts=(Chart(title="Errors a minute", unit="", lines=(Line(name="5xx", points=points),)),)
        )

    @activity.defn(name="api.health")
    async def health(self, check: HealthCheck) -> Health:
        ok = self.fault != "dead" and check.path not in self.down
        return Health(summary="healthy" if ok else "not healthy", ok=ok, consecutive=5 if ok else 0, checks=5)

    @activity.defn(name="api.sample_calls")
    async def sample(self, _stage: Stage) -> SampleCall:
        ok = self.fault not in ("dead", "errors")
        return SampleCall(summary="GET /sessions: HTTP 200", ok=ok, status=200 if ok else 500, latency_ms=5)

    # --- telling --------------------------------------------------------------------------------------------------

    @activity.defn(name="notifications.page")
    async def page(self, page: Page) -> Delivery:
        await self._let_go("page")
        attempts = []
        for name in page.channels.page:
            ok = name not in self.down
            attempts.append(Attempt(provider=name, ok=ok, detail="taken" if ok else "HTTP 503"))
            if ok:
                self.pages.append((_now(), page))
                return Delivery(delivered_by=name, attempts=tuple(attempts))
        if not page.channels.page:
            return Delivery()
        raise ApplicationError("nobody took the page", type="NobodyTookIt", non_retryable=True)

    @activity.defn(name="notifications.resolve_page")
    async def resolve_page(self, end: PageEnd) -> Delivery:
        self.page_ends.append(end)
        return Delivery(delivered_by=end.delivered_by)

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        await self._let_go("announce")
        if "chat" in self.down:
            raise ApplicationError("slack is down", type="NobodyTookIt")
        self.said.append((_now(), message))
        return Delivery(delivered_by=message.channels.chat[0], attempts=())

    @activity.defn(name="notifications.mail")
    async def mail(self, mail: Mail) -> Delivery:
        await self._let_go("mail")
        if "mail" in self.down:
            raise ApplicationError("no mail server took it", type="NobodyTookIt")
        self.mails.append(mail)
        return Delivery(delivered_by="ses")

    @activity.defn(name="tickets.create")
    async def ticket(self, request: TicketRequest) -> TicketRef:
        await self._let_go("ticket")
        self.tickets.append(request)
        return TicketRef(system="tickets", id=str(len(self.tickets)), url=f"http://tickets/{len(self.tickets)}")

    @activity.defn(name="reports.write")
    async def report(self, _record: RunRecord) -> dict[str, str]:
        await self._let_go("report")
        return {"html": "s3://records/report.html"}

    @activity.defn(name="post_mortem.write")
    async def write(self, post_mortem: PostMortem) -> Written:
        await self._let_go("write")
        self.written.append(post_mortem)
        self.documents.append(render(post_mortem))
        calendar, attendees, by_hand = None, (), ()
        if post_mortem.meeting:
            meeting, by_hand = addressed(post_mortem.meeting, self.contacts)
            calendar, attendees = invitation(meeting).decode(), meeting.attendees
        documents = {kind: f"s3://records/{kind}" for kind in ("md", "html", "log", *(["ics"] if calendar else []))}
        return Written(summary="written", documents=documents, calendar=calendar, attendees=attendees, by_hand=by_hand)

    # --- what a rollback touches ----------------------------------------------------------------------------------

    @activity.defn(name="deployments.find_target")
    async def find_target(self, _wanted: FindTarget) -> RollbackTarget:
        return RollbackTarget(
            summary="from broken back to good",
            strategy="alias",
            current=ReleaseFacts(release="bbbbbbb", label="broken", version=self.live),
            target=ReleaseFacts(release="aaaaaaa", label="good", version="1", code_sha256="code-of-good"),
            sources={},
        )

    @activity.defn(name="deployments.check_target")
    async def check_target(self, _asked: CheckTarget) -> TargetCheck:
        return TargetCheck(
            summary="good", ok="target" not in self.down, problems=("gone",) if "target" in self.down else ()
        )

    @activity.defn(name="deployments.capture")
    async def capture(self, _stage: Stage) -> Former:
        routing = Routing(alias="live", version=self.live, revision_id="r")
        return Former(summary="as found", live=ReleaseFacts(release="bbbbbbb", version=self.live), routing=routing)

    @activity.defn(name="deployments.point_alias")
    async def point_alias(self, asked: PointAlias) -> AliasPointed:
        self.changes.append((_now(), f"alias → {asked.version}"))
        before, self.live = self.live, asked.version
        if self.cure == "QuickRollback":
            self.fault = "none"
        return AliasPointed(summary="pointed", changed=True, alias="live", version=asked.version, former_version=before)

    @activity.defn(name="deployments.record")
    async def record(self, _entry: LedgerEntry) -> Recorded:
        return Recorded(summary="recorded", location="s3://records/ledger")

    @activity.defn(name="metrics.error_rate")
    async def error_rate(self, _window: Window) -> ErrorRate:
        return ErrorRate(summary="0 errors", invocations=100, errors=0, rate=0.0, period_s=60)

    @activity.defn(name="logs.errors")
    async def log_errors(self, _window: Window) -> LogErrors:
        return LogErrors(summary="0 error lines", errors=0, requests=100, rate=0.0)

    @activity.defn(name="stacks.status")
    async def stack(self, _stage: Stage) -> StackStatus:
        return StackStatus(summary="UPDATE_COMPLETE", applicable=True, healthy=True)


@contextlib.asynccontextmanager
async def working(client: Client, world: World, queue: str | None = None) -> AsyncIterator[str]:
    """A worker of this world, on a queue of its own unless one is named."""
    queue = queue or f"incident-{uuid.uuid4()}"
    hosts: tuple[object, ...] = (world, Locks(client, queue), Incidents(client, queue))
    methods = [getattr(host, name) for host in hosts for name in dir(type(host))]
    activities = [method for method in methods if hasattr(method, "__temporal_activity_definition")]
    assert {Incident, QuickRollback}  # the plugin of the client brings every workflow with it
    async with Worker(client, task_queue=queue, activities=activities):
        yield queue


async def begin(client: Client, queue: str, runbook: str = "Incident", **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "more 500s", "requested_by": "alarm", **inp}
    return await client.start_workflow(runbook, given, id=f"incident-{uuid.uuid4()}", task_queue=queue)


async def situation(handle: WorkflowHandle[Any, Any]) -> Situation:
    return Situation.model_validate(await handle.query("situation"))


async def send(handle: WorkflowHandle[Any, Any], update: str, **message: Any) -> Any:
    return await handle.execute_update(update, {"by": "ann", **message})


def _now() -> datetime:
    """Server time: with time being skipped it is not this machine's."""
    return activity.info().started_time
