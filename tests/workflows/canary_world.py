"""A scripted world for CanaryRollback: two versions with chosen faults behind an alias, and everything around them."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.api import Health, HealthCheck, SampleCall
from activities.canary import Measure, Measured
from activities.database import Connections
from activities.deployment_models import CheckTarget, FindTarget, Recorded, RollbackTarget, TargetCheck
from activities.in_flight import InFlight, InFlightQuery, RunFound
from activities.locks import Locks
from activities.logs import LogErrors
from activities.messages import Announcement, Attempt, Delivery, TicketRef, TicketRequest
from activities.metrics import ErrorRate, Window
from activities.releases import LedgerEntry, ReleaseFacts
from activities.reports import RunRecord, render
from activities.stacks import StackStatus
from activities.stage import Stage
from activities.traffic_models import AliasShare, Restore, Shifted, Split, TrafficRouting
from activities.version_counts import VersionCounts, bucket_of
from tests.workflows.bare_stage import bare_stage
from workflows.canary_rollback import CanaryRollback
from workflows.stage_lock import StageLock

OLD, NEW = "1", "2"
"""The version to go back to, and the one that is live."""

Behaviour = Callable[[datetime], tuple[float, float]]
"""Error rate (0 to 1) and duration in ms of a version at a moment."""


def steady(errors: float = 0.0, ms: float = 40.0) -> Behaviour:
    return lambda _at: (errors, ms)


class World:
    """``rate`` is in requests a second. Every change of the alias stands in ``shifts`` with the share of OLD."""

    def __init__(self, old: Behaviour, new: Behaviour, rate: float = 5.0, **policies: Any) -> None:
        self.behaviour = {OLD: old, NEW: new}
        self.rate = rate
        self.policies = policies
        self.alias = AliasShare(version=NEW)
        self.found = self.alias
        self.shifts: list[tuple[datetime, float]] = []
        self.looks: list[Measure] = []
        self.blind: Callable[[datetime], bool] = lambda _at: False
        self.skew: float | None = None
        self.migrating: tuple[RunFound, ...] = ()
        self.ledger: list[LedgerEntry] = []
        self.told: list[str] = []
        self.reports: list[dict[str, str]] = []
        self.look_held: asyncio.Event | None = None
        """Where set, a look is answered when this is."""
        self.fail_after: str | None = None
        """Name of an activity that does its work and then dies, once."""

    def share(self) -> float:
        return 1.0 if self.alias.version == OLD else self.alias.weights.get(OLD, 0.0)

    def did(self, name: str) -> None:
        """Called when the effect is there and the answer is not."""
        if self.fail_after == name:
            self.fail_after = None
            raise ApplicationError(f"the worker died after {name}", type="Died")

    # --- the stage ----------------------------------------------------------------------------------------------

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        judged = {"rollback": {"metrics_delay": "PT1S"}, "gates": {"approve-rollback": {"approvals": 0}}}
        return bare_stage(name, judged | self.policies)

    @activity.defn(name="runs.in_flight")
    async def in_flight(self, asked: InFlightQuery) -> InFlight:
        assert "DatabaseMigration" in asked.runbooks
        return InFlight(summary=f"{len(self.migrating)} in flight", runs=self.migrating)

    @activity.defn(name="deployments.find_target")
    async def find_target(self, _wanted: FindTarget) -> RollbackTarget:
        return RollbackTarget(
            summary="from bad back to good",
            strategy="alias",
            current=ReleaseFacts(release="bbbbbbb", label="bad", version=self.alias.version),
            target=ReleaseFacts(release="aaaaaaa", label="good", version=OLD, code_sha256="code-of-old"),
            sources={},
        )

    @activity.defn(name="deployments.check_target")
    async def check_target(self, _asked: CheckTarget) -> TargetCheck:
        return TargetCheck(summary="good", ok=True)

    @activity.defn(name="deployments.record")
    async def record(self, entry: LedgerEntry) -> Recorded:
        self.ledger.append(entry)
        return Recorded(summary="entered", location="s3://ledger/1")

    # --- traffic ------------------------------------------------------------------------------------------------

    @activity.defn(name="traffic.routing")
    async def routing(self, _stage: Stage) -> TrafficRouting:
        return TrafficRouting(summary=self.alias.described(), version=self.alias.version, alias=self.alias)

    @activity.defn(name="traffic.shift")
    async def shift(self, order: Split) -> Shifted:
        assert order.target_code == "code-of-old", "the target is pinned"
        self._point(AliasShare(version=order.before.version, weights={order.target: order.percent / 100}))
        self.did("traffic.shift")
        return Shifted(summary=f"{order.percent} %", changed=True, percent=order.percent)

    @activity.defn(name="traffic.promote")
    async def promote(self, order: Split) -> Shifted:
        self._point(AliasShare(version=order.target))
        self.did("traffic.promote")
        return Shifted(summary="promoted", changed=True, percent=100)

    @activity.defn(name="traffic.restore")
    async def restore(self, order: Restore) -> Shifted:
        self._point(order.before.alias)
        self.did("traffic.restore")
        return Shifted(summary=f"restored {order.before.alias.described()}", changed=True, percent=0)

    def _point(self, wanted: AliasShare) -> None:
        self.alias = wanted
        self.shifts.append((_now(), self.share()))

    # --- what is measured ---------------------------------------------------------------------------------------

    @activity.defn(name="canary.measure")
    async def measure(self, asked: Measure) -> Measured:
        self.looks.append(asked)
        if self.look_held is not None:
            await self.look_held.wait()
        if self.blind(asked.end):
            return Measured(
                summary="blind", counts=dict.fromkeys(asked.versions), problems=("log group g does not exist",)
            )
        share = self.share() if self.skew is None else self.skew
        total = self.rate * (asked.end - asked.start).total_seconds()
        counts: dict[str, VersionCounts | None] = {}
        for version in asked.versions:
            errors, ms = self.behaviour[version](asked.end)
            invocations = round(total * (share if version == OLD else 1 - share))
            failed = round(invocations * errors)
            good = invocations - failed
            latency = {bucket_of(ms): good} if good else {}
            counts[version] = VersionCounts(version=version, invocations=invocations, errors=failed, latency=latency)
        return Measured(summary="counted", counts=counts)

    @activity.defn(name="metrics.error_rate")
    async def error_rate(self, _window: Window) -> ErrorRate:
        return ErrorRate(summary="0 errors", invocations=100, errors=0, rate=0.0, period_s=60)

    @activity.defn(name="logs.errors")
    async def log_errors(self, _window: Window) -> LogErrors:
        return LogErrors(summary="0 error lines", errors=0, requests=100, rate=0.0)

    @activity.defn(name="api.health")
    async def health(self, check: HealthCheck) -> Health:
        return Health(summary="healthy", ok=True, consecutive=check.consecutive, checks=check.consecutive)

    @activity.defn(name="api.sample_calls")
    async def sample(self, _stage: Stage) -> SampleCall:
        return SampleCall(summary="GET /sessions: HTTP 200", ok=True, status=200, latency_ms=5)

    @activity.defn(name="stacks.status")
    async def stack(self, _stage: Stage) -> StackStatus:
        return StackStatus(summary="UPDATE_COMPLETE", applicable=True, healthy=True)

    @activity.defn(name="database.connections")
    async def connections(self, _stage: Stage) -> Connections:
        return Connections(summary="10 connections", current=10, available=90, ping_ms=1, server="MongoDB")

    # --- people -------------------------------------------------------------------------------------------------

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        self.told.append(message.title)
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="tickets.create")
    async def ticket(self, _request: TicketRequest) -> TicketRef:
        return TicketRef(system="tickets", id="7")

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        self.reports.append(render(record))
        return {"html": "s3://records/report.html"}


@contextlib.asynccontextmanager
async def working(client: Client, world: World) -> AsyncIterator[str]:
    """A worker of this world on a queue of its own."""
    queue = f"canary-{uuid.uuid4()}"
    locks = Locks(client, queue)
    hosts: tuple[object, ...] = (world, locks)
    methods = [getattr(host, name) for host in hosts for name in dir(host)]
    activities = [method for method in methods if hasattr(method, "__temporal_activity_definition")]
    # The plugin of the client brings every workflow with it.
    assert {CanaryRollback, StageLock}
    async with Worker(client, task_queue=queue, activities=activities):
        yield queue


async def begin(client: Client, queue: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "more 500s", "requested_by": "ann", **inp}
    return await client.start_workflow("CanaryRollback", given, id=f"canary-{uuid.uuid4()}", task_queue=queue)


def _now() -> datetime:
    """Server time: with time being skipped it is not this machine's."""
    return activity.info().started_time
