"""Deploy and BackupCheck in scripted worlds."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.api import Health, HealthCheck
from activities.backup_models import Backup, BackupOf, FindBackup, FoundBackup, Verified
from activities.deployment_models import FindTarget, RollbackTarget
from activities.locks import Locks
from activities.logs import LogErrors
from activities.messages import Announcement, Attempt, Delivery
from activities.metrics import ErrorRate, Window
from activities.reports import RunRecord
from activities.stage import Stage
from tests.histories import keep
from tests.workflows.bare_stage import bare_stage
from tests.workflows.migration_world import World as CodeWorld
from tests.workflows.probe import at_gate, failure, until
from workflows.model import Outcome, RunbookResult


class DeployWorld(CodeWorld):
    def __init__(self, rate: float | None = 0.0, **policies: Any) -> None:
        gates = {"approve-deploy": {"approvals": 0}}
        super().__init__(**{"gates": gates, **policies})
        self.rate = rate

    @activity.defn(name="deployments.find_target")
    async def find_target(self, wanted: FindTarget) -> RollbackTarget:
        if self.live[wanted.stage.name.partition("-")[0]] == wanted.to:
            raise ApplicationError(f"{wanted.to} is live already", type="AlreadyLive", non_retryable=True)
        return await super().find_target(wanted)

    @activity.defn(name="api.health")
    async def health(self, check: HealthCheck) -> Health:
        n = check.consecutive if self.well else 0
        return Health(summary="healthy" if self.well else "not healthy", ok=self.well, consecutive=n, checks=5)

    @activity.defn(name="metrics.error_rate")
    async def error_rate(self, _window: Window) -> ErrorRate:
        return ErrorRate(summary="measured", rate=self.rate, period_s=60)

    @activity.defn(name="logs.errors")
    async def log_errors(self, _window: Window) -> LogErrors:
        return LogErrors(summary="counted", rate=self.rate)


@contextlib.asynccontextmanager
async def working(client: Client, world: Any) -> AsyncIterator[str]:
    queue = f"small-{uuid.uuid4()}"
    locks = Locks(client, queue)
    hosts: tuple[object, ...] = (world, locks)
    methods = [getattr(host, name) for host in hosts for name in dir(host)]
    activities = [method for method in methods if hasattr(method, "__temporal_activity_definition")]
    async with Worker(client, task_queue=queue, activities=activities):
        yield queue


async def begin(client: Client, queue: str, runbook: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": f"production-{uuid.uuid4().hex[:8]}", "reason": "test", "requested_by": "ann", **inp}
    return await client.start_workflow(runbook, given, id=f"{runbook}-{uuid.uuid4()}", task_queue=queue)


async def finished(handle: Any) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))


# --- Deploy ---------------------------------------------------------------------------------------------------------


async def test_a_release_is_deployed_and_stays_when_the_service_is_well(temporal: WorkflowEnvironment) -> None:
    world = DeployWorld()
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, "Deploy", release="new")
        result = await finished(handle)
        await keep(handle, "Deploy", "deployed")
    assert result.outcome is Outcome.COMPLETED
    assert world.live["production"] == "new"
    assert all(item.done for item in result.checklist), result.checklist
    assert "new is live on" in world.told[-1]


async def test_not_healthy_brings_back_what_was_live(temporal: WorkflowEnvironment) -> None:
    world = DeployWorld()
    world.well = False
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, "Deploy", release="new")
        error = await failure(handle)
        await keep(handle, "Deploy", "not-healthy")
    assert error.type == "Unhealthy"
    assert "Everything that was begun has been undone" in error.message
    assert world.done == ["production: deploy new", "production: deploy old"]


@pytest.mark.parametrize("rate", [0.2, None])
async def test_errors_or_none_measured_is_asked_about_and_no_answer_is_a_no(
    temporal: WorkflowEnvironment, rate: float | None
) -> None:
    world = DeployWorld(rate)
    async with working(temporal.client, world) as queue:
        error = await failure(await begin(temporal.client, queue, "Deploy", release="new"))
    assert error.type == "GateExpired"
    assert world.live["production"] == "old"


async def test_what_is_live_already_or_cannot_be_deployed_is_said_at_once(temporal: WorkflowEnvironment) -> None:
    world = DeployWorld()
    async with working(temporal.client, world) as queue:
        for more in ({}, {"dry_run": True}):
            result = await finished(await begin(temporal.client, queue, "Deploy", release="old", **more))
            assert "nothing to deploy" in result.summary
        error = await failure(await begin(temporal.client, queue, "Deploy", release="gone"))
    assert error.type == "ReleaseUnusable"
    assert (world.done, world.told[:-1]) == ([], [])


async def test_a_deployment_by_others_while_people_think_is_asked_about_again(client: Client) -> None:
    world = DeployWorld(gates={"approve-deploy": {"approvals": 1}})
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Deploy", release="new")
        await until(handle, at_gate)
        world.live["production"] = "between"
        await handle.signal("approve", {"by": "bob"})
        state = await until(handle, lambda s: at_gate(s) and s.open_gate().plan["live"] == "between")
        assert state.open_gate().asked == 2
        await handle.signal("reject", {"by": "bob"})
        assert (await failure(handle)).type == "Rejected"
    assert world.done == []


async def test_a_dry_run_deploys_nothing(temporal: WorkflowEnvironment) -> None:
    world = DeployWorld()
    async with working(temporal.client, world) as queue:
        result = await finished(await begin(temporal.client, queue, "Deploy", release="new", dry_run=True))
    assert result.outcome is Outcome.DRY_RUN
    assert any("deploy new" in line for line in result.would_change)
    assert (world.done, world.told) == ([], [])


async def test_the_gate_shows_what_is_live_and_an_abort_after_the_deploy_puts_it_back(client: Client) -> None:
    world = DeployWorld(gates={"approve-deploy": {"approvals": 1}})
    async with working(client, world) as queue:
        handle = await begin(client, queue, "Deploy", release="new")
        state = await until(handle, at_gate)
        assert state.open_gate().plan["live"] == "old"
        await handle.signal("approve", {"by": "bob"})
        await until(handle, lambda s: any(wait.id == "watch" for wait in s.waits))
        await handle.signal("abort", {"by": "bob"})
        assert (await failure(handle)).type == "Aborted"
    assert world.live["production"] == "old"


# --- BackupCheck ----------------------------------------------------------------------------------------------------


class BackupWorld:
    def __init__(self, age: timedelta | None, back: timedelta | None, ok: bool = True, provider: str = "atlas") -> None:
        self.age, self.back, self.ok, self.provider = age, back, ok, provider
        self.told: list[str] = []

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(name, {"backup": {"provider": self.provider}})

    @activity.defn(name="backups.latest")
    async def latest(self, wanted: FindBackup) -> FoundBackup:
        since = None if self.back is None else wanted.at - self.back
        if self.age is None:
            return FoundBackup(summary="there is no backup", restore_from=since)
        backup = Backup(
            summary="a backup",
            reference="s3://b/1",
            provider="archive",
            created_at=wanted.at - self.age,
            consistency="point in time",
        )
        return FoundBackup(summary="a backup", backup=backup, age_seconds=self.age.total_seconds(), restore_from=since)

    @activity.defn(name="backups.verify")
    async def verify(self, _asked: BackupOf) -> Verified:
        return Verified(summary="whole" if self.ok else "checksum differs", ok=self.ok)

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        self.told.append(message.title)
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="reports.write")
    async def write(self, _record: RunRecord) -> dict[str, str]:
        return {}


HOURS, DAYS = timedelta(hours=1), timedelta(days=1)


async def test_protected_today(temporal: WorkflowEnvironment) -> None:
    world = BackupWorld(20 * HOURS, 30 * DAYS)
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, "BackupCheck")
        result = await finished(handle)
        await keep(handle, "BackupCheck", "protected")
    assert result.outcome is Outcome.COMPLETED
    assert all(item.done for item in result.checklist)
    archive = BackupWorld(20 * HOURS, None, provider="archive")
    async with working(temporal.client, archive) as queue:
        result = await finished(await begin(temporal.client, queue, "BackupCheck"))
    assert {item.id: item.done for item in result.checklist}["point-in-time"] is False


@pytest.mark.parametrize(
    ("world", "said"),
    [
        (BackupWorld(None, 30 * DAYS), "there is no whole backup"),
        (BackupWorld(27 * HOURS, 30 * DAYS), "27 h old, the limit is 26 h"),
        (BackupWorld(HOURS, 30 * DAYS, ok=False), "damaged: checksum differs"),
        (BackupWorld(HOURS, 7 * DAYS), "only 7 d back can be restored, 30 d are wanted"),
        (BackupWorld(HOURS, None), "no moment can be restored"),
    ],
    ids=["none", "old", "damaged", "short", "off"],
)
async def test_what_does_not_hold_fails_and_is_told(
    temporal: WorkflowEnvironment, world: BackupWorld, said: str
) -> None:
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, "BackupCheck")
        error = await failure(handle)
        await keep(handle, "BackupCheck", "not-protected")
    assert error.type == "NotProtected"
    assert said in error.message, error.message
    assert any("BackupCheck" in title for title in world.told)
