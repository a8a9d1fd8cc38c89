"""A scripted world for DatabaseMigration: two stages with a collection each, and stand-ins for the runs below it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.api import Health, HealthCheck, SampleCall
from activities.batch_models import Reverted, UpdateOrder
from activities.database import Connections
from activities.deployment_models import (
    CheckTarget,
    Deployed,
    DeployInput,
    FindTarget,
    Former,
    Recorded,
    RollbackTarget,
    TargetCheck,
)
from activities.locks import Locks
from activities.messages import Announcement, Attempt, Delivery
from activities.migration_models import (
    IndexBuilt,
    IndexDropped,
    IndexOrder,
    IndexProgress,
    Logged,
    LookRequest,
    MigrationEntry,
    MigrationState,
    QueryCost,
)
from activities.releases import LedgerEntry, ReleaseFacts
from activities.reports import RunRecord, render
from activities.stage import Stage
from activities.stages import Signers
from tests.workflows.bare_stage import bare_stage
from workflows import policy
from workflows.converter import data_converter
from workflows.database_migration import DatabaseMigration
from workflows.model import Outcome, RunbookResult
from workflows.plugin import _runner
from workflows.stage_lock import StageLock

INDEX = {
    "kind": "add_index",
    "collection": "sessions",
    "keys": {"owner": 1, "created_at": -1},
    "query": {"owner": "user-1"},
}
BACKFILL = {"kind": "backfill_field", "collection": "sessions", "field": "environment", "value": "production"}
UPDATE = {
    "kind": "update_documents",
    "collection": "sessions",
    "filter": {"status": "done"},
    "update": {"$set": {"status": "completed"}},
}
NAME = "owner_1_created_at_-1"
BACKUP = "s3://backups/production/1"


class World:
    """``done`` lists every change in order, as ``stage: what``. Faults are switched by name in ``fail``."""

    def __init__(self, **production: Any) -> None:
        self.policies: dict[str, dict[str, Any]] = {"production": production, "staging": {}}
        self.done: list[str] = []
        self.documents = {"production": 10_000, "staging": 1_000}
        self.backup = BACKUP
        self.left = {"production": 4_000, "staging": 500}
        self.index: dict[str, str | None] = {"production": None, "staging": None}
        self.live = {"production": "old", "staging": "old"}
        self.size = 2 * 1024**3
        self.fail: dict[str, str] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.late: list[int] = []
        """Documents that old code writes before each look that follows an update."""
        self.connected: list[int] = []
        """Connections of production, a look at a time; the last one stays."""
        self.took: list[float] = []
        """Milliseconds of the query on production after an update, a look at a time; the last one stays."""
        self.well = True
        self.uses_index = True
        self.look_extra: dict[str, Any] = {}
        self.log: list[MigrationEntry] = []
        self.children: list[tuple[str, dict[str, Any]]] = []
        self.told: list[str] = []
        self.keys: dict[str, str] = {}
        self.reports: list[dict[str, str]] = []

    def did(self, stage: str, what: str) -> None:
        self.done.append(f"{stage}: {what}")

    # --- stages -------------------------------------------------------------------------------------------------

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        kind = name.partition("-")[0]
        if kind not in ("production", "staging"):
            raise ApplicationError(f"there is no stage {name!r}", type="UnknownStage", non_retryable=True)
        return bare_stage(
            name,
            {
                "production": kind == "production",
                "database": {"uri": "env:NONE", "name": f"d_{kind}"},
                "deploy": {"engine": "cloudformation"},
                **self.policies[kind],
            },
        )

    @activity.defn(name="stages.signers")
    async def signers(self) -> Signers:
        return Signers(keys=self.keys)

    # --- the database -------------------------------------------------------------------------------------------

    @activity.defn(name="migrations.look")
    async def look(self, asked: LookRequest) -> MigrationState:
        if fault := self.fail.get("look"):
            raise ApplicationError(fault, type="Mongo18")
        stage = asked.stage.name.partition("-")[0]
        if self.late and asked.filter is not None and f"{stage}: update" in self.done:
            self.left[stage] += self.late.pop(0)
        ready = self.index[stage] is not None
        uses = ready and self.uses_index
        took = 2.0 if uses else 80.0
        if self.took and "production: update" in self.done and stage == "production":
            took = self.took.pop(0) if len(self.took) > 1 else self.took[0]
        cost = QueryCost(
            plan="IXSCAN" if uses else "COLLSCAN",
            index=self.index[stage] if uses else None,
            docs_examined=20 if uses else self.documents[stage],
            latency_ms=took,
        )
        state = {
            "summary": f"{self.documents[stage]} documents",
            "server": "MongoDB 8.0",
            "kind": "collection",
            "documents": self.documents[stage],
            "collection_bytes": self.size if stage == "production" else 1024**2,
            "remaining": self.left[stage] if asked.filter is not None else None,
            "cost": cost,
            "index_ready": ready if asked.index else None,
        }
        return MigrationState.model_validate({**state, **self.look_extra})

    @activity.defn(name="migrations.log")
    async def enter(self, entry: MigrationEntry) -> Logged:
        self.log.append(entry)
        return Logged(summary="entered", location=f"s3://records/{entry.id}")

    @activity.defn(name="indexes.build")
    async def build(self, order: IndexOrder) -> IndexBuilt:
        stage = order.stage.name.partition("-")[0]
        self.index[stage] = order.index.name  # before it may fail: half-built is there
        if fault := self.fail.get(f"build {stage}"):
            raise ApplicationError(fault, type="DuplicateValues", non_retryable=True)
        self.did(stage, "index")
        if held := self.hold.get("build"):
            await held.wait()
        return IndexBuilt(summary="built", built=True, seconds=1.0)

    @activity.defn(name="indexes.progress")
    async def progress(self, _order: IndexOrder) -> IndexProgress:
        return IndexProgress(summary="40 %", percent=40)

    @activity.defn(name="indexes.drop")
    async def drop(self, order: IndexOrder) -> IndexDropped:
        stage = order.stage.name.partition("-")[0]
        if fault := self.fail.get(f"drop {stage}"):
            raise ApplicationError(fault, type="Mongo13", non_retryable=True)
        self.index[stage] = None
        self.did(stage, "drop index")
        return IndexDropped(summary="dropped", dropped=True)

    @activity.defn(name="batches.revert")
    async def revert(self, order: UpdateOrder) -> Reverted:
        stage = order.stage.name.partition("-")[0]
        assert order.journal
        if fault := self.fail.get(f"revert {stage}"):
            raise ApplicationError(fault, type="Mongo13", non_retryable=True)
        self.did(stage, "revert")
        return Reverted(summary="reverted", reverted=1, kept=0)

    @activity.defn(name="database.connections")
    async def connections(self, stage: Stage) -> Connections:
        current = 10
        if self.connected and stage.name.startswith("production"):
            current = self.connected.pop(0) if len(self.connected) > 1 else self.connected[0]
        summary = f"{current} connections"
        return Connections(summary=summary, current=current, available=90, ping_ms=1, server="MongoDB 8.0")

    # --- the service and its code -------------------------------------------------------------------------------

    @activity.defn(name="api.health")
    async def health(self, check: HealthCheck) -> Health:
        assert check.path == "/health/ready"
        n = check.consecutive if self.well else 0
        return Health(summary="ready" if self.well else "not ready", ok=self.well, consecutive=n, checks=5)

    @activity.defn(name="api.sample_calls")
    async def sample(self, _stage: Stage) -> SampleCall:
        return SampleCall(summary="GET /sessions: HTTP 200", ok=True, status=200, latency_ms=5)

    @activity.defn(name="deployments.capture")
    async def capture(self, stage: Stage) -> Former:
        label = self.live[stage.name.partition("-")[0]]
        return Former(summary=f"live is {label}", live=ReleaseFacts(release=label, label=label))

    @activity.defn(name="deployments.find_target")
    async def find_target(self, wanted: FindTarget) -> RollbackTarget:
        return RollbackTarget(
            summary=f"to {wanted.to}",
            strategy="redeploy",
            current=ReleaseFacts(release=self.live[wanted.stage.name.partition("-")[0]]),
            target=ReleaseFacts(release=wanted.to, label=wanted.to),
            sources={},
        )

    @activity.defn(name="deployments.check_target")
    async def check_target(self, asked: CheckTarget) -> TargetCheck:
        ok = asked.target.release != "gone"
        return TargetCheck(summary="", ok=ok, problems=() if ok else ("there is no saved build gone",))

    @activity.defn(name="deployments.deploy")
    async def deploy(self, order: DeployInput) -> Deployed:
        stage = order.stage.name.partition("-")[0]
        if fault := self.fail.get(f"deploy {order.release.name}"):
            raise ApplicationError(fault, type="DeployFailed", non_retryable=True)
        self.live[stage] = order.release.name
        self.did(stage, f"deploy {order.release.name}")
        now = order.release.deployed_at or "2026-01-20T03:00:00Z"
        return Deployed.model_validate(
            {
                "summary": "deployed",
                "changed": True,
                "version": "2",
                "code_sha256": "x",
                "started_at": now,
                "finished_at": now,
                "how": "deployed",
            }
        )

    @activity.defn(name="deployments.record")
    async def record(self, _entry: LedgerEntry) -> Recorded:
        return Recorded(summary="entered", location="s3://ledger/1")

    # --- runs below ---------------------------------------------------------------------------------------------

    @activity.defn(name="world.child")
    async def child(self, runbook: str, inp: dict[str, Any]) -> RunbookResult:
        """What a run below does in one go."""
        stage = str(inp["stage"]).partition("-")[0]
        self.children.append((runbook, inp))
        if held := self.hold.get(runbook):
            await held.wait()
        facts: dict[str, Any] = {}
        match runbook:
            case "DatabaseBackup":
                self.did(stage, "backup")
                facts = {
                    "backup": self.backup,
                    "verified": True,
                    "created_at": activity.info().started_time.isoformat(),
                }
            case "BatchedUpdate":
                assert inp["approved"] is True
                facts = {"updated": self.left[stage], "journal": "_runbook_journal_1" if inp["journal"] else None}
                self.left[stage] = 0
                self.did(stage, "update")
            case "RestoreDrill":
                self.did(stage, f"drill {inp['backup']}")
                facts = {"identical": True, "restore_seconds": 3.0}
            case "DatabaseRestore":
                self.did(stage, f"restore {inp['backup']} {inp['then']}")
        if fault := self.fail.get(f"{runbook} {stage}"):
            left = [fault.removeprefix("left: ")] if fault.startswith("left: ") else []
            bad = RunbookResult(
                runbook=runbook, outcome=Outcome.FAILED, summary=fault, stage=inp["stage"], left_undone=left
            )
            kind = "LeftUndone" if left else "Cancelled" if fault == "cancelled" else "Failed"
            raise ApplicationError(fault, bad, type=kind, non_retryable=True)
        return RunbookResult(
            runbook=runbook, outcome=Outcome.COMPLETED, summary=f"{runbook} done", stage=inp["stage"], facts=facts
        )

    # --- people -------------------------------------------------------------------------------------------------

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        self.told.append(message.title)
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        self.reports.append(render(record))
        return {"md": "s3://records/1.md"}

    def activities(self) -> list[Any]:
        methods = (getattr(self, name) for name in dir(type(self)))
        return [method for method in methods if hasattr(method, "__temporal_activity_definition")]


async def _below(runbook: str, payload: tuple[Any, ...]) -> RunbookResult:
    """A run that is done before it hears of a cancel: what it did is its caller's to undo."""
    doing = workflow.start_activity(
        "world.child", args=[runbook, payload[0]], result_type=RunbookResult, **policy.CHANGE
    )
    try:
        while True:
            try:
                result: RunbookResult = await asyncio.shield(doing)
                break
            except asyncio.CancelledError:
                continue
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, ApplicationError) and cause.type == "Cancelled":  # one that does hear of it
            raise asyncio.CancelledError from None
        if isinstance(cause, ApplicationError):
            raise ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True) from None
        raise
    return result


@workflow.defn(name="BatchedUpdate", sandboxed=False)
class StandInUpdate:
    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await _below("BatchedUpdate", payload)


@workflow.defn(name="DatabaseBackup", sandboxed=False)
class StandInBackup:
    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await _below("DatabaseBackup", payload)


@workflow.defn(name="RestoreDrill", sandboxed=False)
class StandInDrill:
    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await _below("RestoreDrill", payload)


@workflow.defn(name="DatabaseRestore", sandboxed=False)
class StandInRestore:
    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await _below("DatabaseRestore", payload)


@contextlib.asynccontextmanager
async def working(client: Client, world: World) -> AsyncIterator[str]:
    """A worker for migrations on a queue of its own, with stand-ins for the runs below them."""
    queue = f"migration-{uuid.uuid4()}"
    locks = Locks(client, queue)
    config = client.config()
    config["data_converter"] = data_converter
    config["plugins"] = []  # the plugin would add the real runs of the stand-ins' names
    bare = Client(**config)
    async with Worker(
        bare,
        task_queue=queue,
        workflows=[DatabaseMigration, StageLock, StandInUpdate, StandInBackup, StandInDrill, StandInRestore],
        activities=[*world.activities(), locks.request, locks.release, locks.is_running],
        workflow_runner=_runner(SandboxedWorkflowRunner()),
    ):
        yield queue


async def begin(client: Client, queue: str, change: dict[str, Any], **inp: Any) -> WorkflowHandle[Any, Any]:
    """Start a migration on stages of its own."""
    tag = uuid.uuid4().hex[:8]
    given = {
        "stage": f"production-{tag}",
        "staging_stage": f"staging-{tag}",
        "reason": "test",
        "requested_by": "ann",
        "change": change,
        "late_writers": "PT0S",
        **inp,
    }
    return await client.start_workflow(
        "DatabaseMigration", given, id=f"migration-{tag}", task_queue=queue, static_summary="a migration"
    )
