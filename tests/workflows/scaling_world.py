"""A scripted world for the scaling runbooks: production and staging with memory, environments, pools and alarms."""

from __future__ import annotations

import uuid
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.alarms import Alarm, Alarms, AlarmSet, Threshold, UtilisationAlarm
from activities.api import Health, HealthCheck
from activities.config_files import ConfigAt, Drift, DriftRecorded, Proposal
from activities.database import Connections
from activities.deployment_models import Deployed, DeployInput, Former
from activities.function_capacity import Applied, ApplyOrder, FunctionState, Setting
from activities.load_models import LoadOrder, LoadReport, Second
from activities.logs import LogErrors
from activities.metrics import ErrorRate, Latency, Window
from activities.releases import ReleaseFacts
from activities.stage import Stage
from activities.symptom_models import Reports
from activities.tier import Tier
from tests.workflows.canary_world import World, steady

COMMIT = "c0ffee1"


class ScalingWorld(World):
    """``speed`` says how long a call takes with a memory size, by stage; more memory is twice as quick by default."""

    def __init__(self, **policies: Any) -> None:
        quick = {"metrics_delay": "PT0S", "error_window": "PT1S", "health_interval": "PT0.1S"}
        source = {"pool_variable": "POOL"}
        given = {"rollback": quick, "gates": {"default": {"approvals": 0}}, "source": source, **policies}
        super().__init__(old=steady(), new=steady(), **given)
        self.id = uuid.uuid4().hex[:8]
        """Ends the names of its stages: a stage's lock outlives the test that took it."""
        first = Setting(memory_mb=512, provisioned=0, max_pool_size=0)
        self.settings = {"production": first, "staging": first}
        self.releases = {"production": "aaaaaaa", "staging": "aaaaaaa"}
        self.reserved: int | None = None
        self.used_mb = 380.0
        self.connections_left = 900
        self.more_connections = 0
        """In use once a stage has the change."""
        self.tier: str | None = None
        self.helps = {"production": True, "staging": True}
        self.fails = {"production": 0.0, "staging": 0.0}
        """Share of calls that fail once a stage has the change."""
        self.failed_before = {"production": 0.0, "staging": 0.0}
        self.slowness = 1.0
        self.measurable = True
        """Whether a load test gets any answer that can be counted."""
        self.healthy = True
        self.alarms_at = {"slow-production": 3000.0, "slow-staging": 3000.0}
        self.utilisation: list[bool] = []
        self.loads: list[LoadOrder] = []
        self.loadable = True
        self.drifts: list[Drift] = []
        self.order: list[str] = []
        self.merged: set[str] = set()

    def changed(self, stage: str) -> bool:
        return self.settings[stage] != Setting(memory_mb=512, provisioned=0, max_pool_size=0)

    def slow(self, stage: str) -> float:
        """Milliseconds of a call."""
        ms = 800.0 if not self.changed(stage) else 400.0 if self.helps[stage] else 1200.0
        return ms * self.slowness

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        found = await super().resolve(name)
        return found.model_copy(update={"production": kind(name) == "production", "function": f"f-{name}"})

    @activity.defn(name="functions.capacity")
    async def capacity(self, stage: Stage) -> FunctionState:
        now = self.settings[kind(stage.name)]
        return FunctionState(
            summary="a function",
            version="1",
            release=self.releases[kind(stage.name)],
            memory_mb=now.memory_mb or 0,
            timeout_s=30,
            reserved=self.reserved,
            account_limit=1000,
            reservable=900,
            provisioned=now.provisioned or None,
            max_pool_size=now.max_pool_size or None,
        )

    @activity.defn(name="functions.apply")
    async def apply(self, order: ApplyOrder) -> Applied:
        name = kind(order.stage.name)
        now = self.settings[name]
        wanted = {key: value for key, value in order.setting if value is not None}
        if order.only_if is not None:
            expected = [(key, value) for key, value in order.only_if if value is not None]
            if any(getattr(now, key) not in (value, wanted.get(key)) for key, value in expected):
                return Applied(summary="somebody else's setting stays", changed=False, left=True)
        self.settings[name] = now.model_copy(update=wanted)
        self.order.append(f"{name} {order.setting.described()}")
        return Applied(summary=order.setting.described(), changed=True, version="2")

    @activity.defn(name="insights.reports")
    async def report_lines(self, window: Window) -> Reports:
        name = kind(window.stage.name)
        cold = 0 if self.settings[name].provisioned else 20
        return Reports(
            summary="reports",
            invocations=1000,
            average_ms=self.slow(name),
            cold_starts=cold,
            init_average_ms=900,
            memory_size_mb=512,
            memory_used_mb=self.used_mb,
            environments=12,
        )

    @activity.defn(name="metrics.latency")
    async def latency(self, window: Window) -> Latency:
        ms = self.slow(kind(window.stage.name))
        return Latency(
            summary="latency", average_ms=ms, p50_ms=ms, p95_ms=ms * 2, p99_ms=ms * 3, samples=9, period_s=60
        )

    def failing(self, stage: str) -> float:
        return (self.fails if self.changed(stage) else self.failed_before)[stage]

    @activity.defn(name="metrics.error_rate")
    async def error_rate(self, window: Window) -> ErrorRate:
        rate = self.failing(kind(window.stage.name))
        return ErrorRate(summary="errors", invocations=1000, errors=round(1000 * rate), rate=rate, period_s=60)

    @activity.defn(name="logs.errors")
    async def log_errors(self, _window: Window) -> LogErrors:
        return LogErrors(summary="0 error lines", errors=0, requests=100, rate=0.0)

    @activity.defn(name="database.connections")
    async def connections(self, stage: Stage) -> Connections:
        current = 600 + (self.more_connections if self.changed(kind(stage.name)) else 0)
        return Connections(
            summary="connections", current=current, available=self.connections_left, ping_ms=1, server="MongoDB"
        )

    @activity.defn(name="atlas.tier")
    async def cluster_tier(self, _stage: Stage) -> Tier:
        return Tier(summary="a tier", tier=self.tier)

    @activity.defn(name="config.propose")
    async def propose(self, asked: ConfigAt) -> Proposal:
        has_it = asked.release in self.merged
        diff = None if has_it else "-  memory: 512\n+  memory: 1024\n"
        return Proposal(summary="a diff", path="sst.config.ts", diff=diff, has_it=has_it)

    @activity.defn(name="config.drift")
    async def drift(self, drift: Drift) -> DriftRecorded:
        self.drifts.append(drift)
        return DriftRecorded(summary=f"drift {drift.state}", location="s3://drift")

    @activity.defn(name="deployments.capture")
    async def capture(self, stage: Stage) -> Former:
        return Former(summary="live", live=ReleaseFacts(release=self.releases[kind(stage.name)], version="1"))

    @activity.defn(name="deployments.deploy")
    async def deploy(self, order: DeployInput) -> Deployed:
        name = kind(order.stage.name)
        self.releases[name] = str(order.release.release)
        memory = 1024 if order.release.release == COMMIT else 512
        self.settings[name] = self.settings[name].model_copy(update={"memory_mb": memory})
        self.order.append(f"{name} {order.release.release}")
        now = activity.info().started_time
        return Deployed(
            summary="deployed", changed=True, version="2", code_sha256="c", started_at=now, finished_at=now, how=""
        )

    @activity.defn(name="alarms.find")
    async def alarms(self, stage: Stage) -> Alarms:
        name = f"slow-{kind(stage.name)}"
        slow = Alarm(name=name, metric="Duration", statistic="p95", threshold=self.alarms_at[name])
        return Alarms(summary="1 alarm", alarms=(slow, Alarm(name="e", metric="Errors", statistic="Sum", threshold=5)))

    @activity.defn(name="alarms.threshold")
    async def threshold(self, order: Threshold) -> AlarmSet:
        if order.only_if in (None, self.alarms_at[order.name]):
            self.alarms_at[order.name] = order.threshold
        return AlarmSet(summary=f"{order.name} at {self.alarms_at[order.name]:g}", changed=True)

    @activity.defn(name="alarms.utilisation")
    async def utilisation_alarm(self, order: UtilisationAlarm) -> AlarmSet:
        self.utilisation.append(order.present)
        return AlarmSet(summary="alarm of use", changed=True)

    @activity.defn(name="load.run")
    async def load(self, order: LoadOrder) -> LoadReport:
        if not self.loadable or (order.stage.production and not order.production_allowed):
            raise ApplicationError("production is not loaded so", type="TargetRefused", non_retryable=True)
        self.loads.append(order)
        self.order.append(f"load {kind(order.stage.name)}")
        now, ms = activity.info().started_time, self.slow(kind(order.stage.name))
        rate = self.failing(kind(order.stage.name))
        if not self.measurable:
            nothing = {"sent": 0, "answered": 0, "failed": 0, "throughput": 0}
            return LoadReport.model_validate({"summary": "no answer", "began_at": now, "ended_at": now, **nothing})
        return LoadReport(
            summary="1000 requests",
            began_at=now,
            ended_at=now,
            sent=1000,
            answered=1000,
            failed=round(1000 * rate),
            error_rate=rate,
            throughput=50,
            p50_ms=ms,
            p95_ms=ms * 2,
            p95_low_ms=ms * 1.9,
            p95_high_ms=ms * 2.1,
            p99_ms=ms * 3,
            seconds=(Second(at=now, answered=1000, failed=0, p95_ms=ms),),
        )

    @activity.defn(name="api.health")
    async def health(self, _check: HealthCheck) -> Health:
        return Health(summary="healthy" if self.healthy else "not healthy", ok=self.healthy, consecutive=5, checks=5)


def kind(name: str) -> str:
    return name.partition("-")[0]


async def begin(client: Client, queue: str, world: ScalingWorld, runbook: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    """Start a run on production, unless ``inp`` says another stage."""
    given = {"stage": "production", "reason": "slow", "requested_by": "ann", **inp}
    if "Scaling" in runbook or runbook == "ProvisionedConcurrency":
        given.setdefault("staging", "staging")
    if runbook == "ScalingExpiry":
        del given["staging"]
    named = {key: f"{value}-{world.id}" for key, value in given.items() if key in ("stage", "staging")}
    return await client.start_workflow(runbook, given | named, id=f"scaling-{uuid.uuid4()}", task_queue=queue)
