"""A scripted world for ServiceRestart: a function with a limit, environments that hang or do not, people."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from activities.api import Health, HealthCheck
from activities.deployment_models import AliasPointed, Deployed, DeployInput, Former, PointAlias
from activities.function_capacity import FunctionState, Limited, LimitOrder, Restarted, RestartOrder
from activities.functions import Routing
from activities.locks import Locks
from activities.logs import LogErrors
from activities.messages import Announcement, Delivery, Mail
from activities.metrics import Window
from activities.releases import ReleaseFacts
from activities.stage import Stage
from tests.workflows.canary_world import World, steady
from worker.activities import activity_methods

QUICK: dict[str, Any] = {"drain": "PT0S", "hold": "PT1S", "patience": "PT1S"}


class RestartWorld(World):
    """``errors`` is the share of invocations that fail, by the version that serves."""

    def __init__(self, errors: Callable[[str], float], reserved: int | None = None, **policies: Any) -> None:
        quick = {"metrics_delay": "PT0S", "error_window": "PT1S", "health_interval": "PT0.1S"}
        super().__init__(old=steady(), new=steady(), rollback=quick, gates={"default": {"approvals": 0}}, **policies)
        self.errors = errors
        self.reserved = reserved
        self.former = reserved
        self.version = "1"
        self.limits: list[int | None] = []
        self.marks: set[str] = set()
        self.state: dict[str, Any] = {}
        self.invocations = 200
        self.mails: list[Mail] = []
        self.down: set[str] = set()
        """Names of activities that fail for good."""
        self.answer: Callable[[], Awaitable[None]] | None = None
        """How the person who is told of a gate answers it."""

    def must_work(self, name: str) -> None:
        if name in self.down:
            raise ApplicationError(f"{name} is refused", type="AccessDenied", non_retryable=True)

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        if self.answer and message.title.startswith("Waits for you"):
            await self.answer()
        return await super().announce(message)

    @activity.defn(name="notifications.mail")
    async def mail(self, mail: Mail) -> Delivery:
        self.must_work("mail")
        self.mails.append(mail)
        return Delivery(delivered_by="ses", attempts=())

    @activity.defn(name="functions.capacity")
    async def capacity(self, _stage: Stage) -> FunctionState:
        found = {"version": self.version, "memory_mb": 512, "timeout_s": 30, "reserved": self.reserved}
        return FunctionState(summary="a function", **(found | {"reservable": 900} | self.state))

    @activity.defn(name="functions.limit")
    async def limit(self, order: LimitOrder) -> Limited:
        self.must_work(f"limit {order.concurrency}")
        if self.reserved != order.concurrency and self.reserved not in order.known:
            return Limited(summary="somebody else's limit stays", changed=False, left=True)
        changed, self.reserved = self.reserved != order.concurrency, order.concurrency
        if changed:
            self.limits.append(order.concurrency)
        self.did("functions.limit")
        return Limited(summary=f"limit {order.concurrency}", changed=changed, concurrency=order.concurrency)

    @activity.defn(name="functions.restart")
    async def restart(self, order: RestartOrder) -> Restarted:
        self.must_work("restart")
        changed = order.key not in self.marks
        if changed:
            self.marks.add(order.key)
            self.version = str(int(self.version) + 1)
        return Restarted(summary=f"version {self.version}", changed=changed, version=self.version)

    @activity.defn(name="deployments.capture")
    async def capture(self, _stage: Stage) -> Former:
        routing = Routing(alias="live", version=self.version, revision_id="r")
        return Former(
            summary="live is good", live=ReleaseFacts(release="aaaaaaa", version=self.version), routing=routing
        )

    @activity.defn(name="deployments.deploy")
    async def deploy(self, order: DeployInput) -> Deployed:
        now = activity.info().started_time
        return Deployed(
            summary="it was live already",
            changed=False,
            release=order.release.release,
            version=self.version,
            code_sha256="c",
            started_at=now,
            finished_at=now,
            how="",
        )

    @activity.defn(name="deployments.point_alias")
    async def point(self, order: PointAlias) -> AliasPointed:
        former, self.version = self.version, order.version
        return AliasPointed(
            summary=f"at {order.version}", changed=True, alias="live", version=order.version, former_version=former
        )

    @activity.defn(name="logs.errors")
    async def log_errors(self, _window: Window) -> LogErrors:
        requests = self.invocations if self.reserved != 0 else 0
        errors = round(requests * self.errors(self.version))
        rate = errors / requests if requests else None
        return LogErrors(summary=f"{errors} error lines", errors=errors, requests=requests, rate=rate)

    @activity.defn(name="api.health")
    async def health(self, check: HealthCheck) -> Health:
        ok = self.reserved != 0 and self.errors(self.version) < 1
        return Health(summary="healthy" if ok else "not healthy", ok=ok, consecutive=int(ok), checks=1)


class Boundaries(Interceptor):
    """Calls ``at`` after every activity of the run, with its number and id, before its answer goes out."""

    def __init__(self, run: str, at: Callable[[int, str], Any]) -> None:
        self.run, self.at, self.count = run, at, 0

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        outer = self

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                result = await super().execute_activity(input)
                info = activity.info()
                if info.workflow_id == outer.run:
                    outer.count += 1
                    await outer.at(outer.count, info.activity_id)
                return result

        return Inbound(next)


@contextlib.asynccontextmanager
async def working(client: Client, world: World, *interceptors: Interceptor) -> AsyncIterator[str]:
    """A worker of this world on a queue of its own."""
    queue = f"restart-{uuid.uuid4()}"
    methods = [method for host in (world, Locks(client, queue)) for method in activity_methods(host)]
    async with Worker(client, task_queue=queue, activities=methods, interceptors=list(interceptors)):
        yield queue


async def begin(client: Client, queue: str, run: str | None = None, **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "it hangs", "requested_by": "ann", **inp}
    return await client.start_workflow("ServiceRestart", given, id=run or f"restart-{uuid.uuid4()}", task_queue=queue)


async def watchdog_of(client: Client, handle: WorkflowHandle[Any, Any]) -> WorkflowHandle[Any, Any] | None:
    """The watchdog that this run has started, if it has."""
    run_id = (await handle.describe()).raw_description.workflow_execution_info.first_run_id
    found = client.get_workflow_handle(f"{handle.id}/watchdog-{run_id[:8]}")
    try:
        await found.describe()
    except Exception:
        return None
    return found
