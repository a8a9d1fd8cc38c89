"""CanaryRollback on a real alias, with the worker stopped after every activity that it ever begins.

At each boundary the effect is there and its answer is lost. Wherever that happens the alias has to be where it was
found or where the step under way wants it, and the next worker has to bring the run to its right end.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from activities.deployment_models import FindTarget, RollbackTarget
from activities.locks import Locks
from activities.stage import Stage
from activities.traffic import Traffic
from tests.activities.site import Site
from tests.workflows.canary_world import NEW, OLD, World, steady
from worker.activities import activity_methods

RUN: dict[str, Any] = {"judge_every": "PT1S", "bake": "PT3S", "patience": "PT10S", "limits": {"min_sample": 1}}


class RealAlias(World):
    """The scripted world, but for the function: its alias is the one in the embedded AWS."""

    def __init__(self, site: Site, **behaviour: Any) -> None:
        super().__init__(
            rate=200,
            **behaviour,
            rollback={"metrics_delay": "PT0S", "error_window": "PT0S"},
            gates={"approve-rollback": {"approvals": 0}},
        )
        self.site = site
        self.traffic = Traffic(site.aws.functions, site.aws.apigateway)

    def shares(self) -> tuple[str, dict[str, float]]:
        alias = self.site.aws.functions.get_alias(FunctionName=self.site.service, Name="live")
        return alias["FunctionVersion"], dict(alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}))

    def share(self) -> float:
        version, weights = self.shares()
        return 1.0 if version == OLD else weights.get(OLD, 0.0)

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return Stage.model_validate({**self.site.stage().model_dump(), **self.policies, "name": name, "stack": None})

    @activity.defn(name="deployments.find_target")
    async def find_target(self, wanted: FindTarget) -> RollbackTarget:
        found = await super().find_target(wanted)
        target, current = self.site.facts("good"), self.site.facts("broken")
        return found.model_copy(update={"target": target, "current": current})


class Stopping(Interceptor):
    """Lets each activity have its effect once without its answer ever arriving."""

    def __init__(self, only: tuple[str, ...] = ("",)) -> None:
        """``only``: how the names of the activities begin after which the worker dies."""
        self.only = only
        self.died_after: list[str] = []
        self.dead = asyncio.Event()
        self.wanted: Any = None

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        stopping = self

        class Inbound(ActivityInboundInterceptor):
            async def execute_activity(self, input: ExecuteActivityInput) -> Any:
                info = activity.info()
                if info.activity_type.startswith("traffic.") and info.activity_type != "traffic.routing":
                    stopping.wanted = (info.activity_type, input.args[0])
                result = await super().execute_activity(input)
                name = f"{info.activity_id} ({info.activity_type})"
                dies = info.activity_type.startswith(stopping.only)
                if dies and name not in stopping.died_after and not info.activity_id.startswith(("judge-", "tell-")):
                    stopping.died_after.append(name)
                    stopping.dead.set()
                    await activity.wait_for_worker_shutdown()
                    raise ApplicationError("the worker is gone", type="Died")
                return result

        return Inbound(next)


def expected(wanted: Any) -> tuple[str, dict[str, float]]:
    """What the last traffic order makes of the alias."""
    kind, order = wanted
    if kind == "traffic.shift":
        return NEW, {OLD: order.percent / 100}
    if kind == "traffic.promote":
        return OLD, {}
    return order.before.alias.version, order.before.alias.weights


@pytest.mark.long
@pytest.mark.parametrize("cure", [pytest.param(True, marks=pytest.mark.long), False], ids=["promoted", "restored"])
async def test_no_stop_of_the_worker_leaves_the_alias_in_an_unknown_state(
    client: Client, site: Site, cure: bool
) -> None:
    good, bad = steady(), steady(errors=0.3)
    world = RealAlias(site, old=good if cure else bad, new=bad if cure else good)
    found = world.shares()
    assert found == (NEW, {})
    queue, stopping = f"boundaries-{uuid.uuid4()}", Stopping()
    traffic_names = {"traffic.routing", "traffic.shift", "traffic.promote", "traffic.restore"}
    methods: list[Callable[..., Any]] = [
        method
        for host in (world, Locks(client, queue))
        for method in activity_methods(host)
        if activity._Definition.must_from_callable(method).name not in traffic_names
    ] + activity_methods(world.traffic)
    handle = await client.start_workflow(
        "CanaryRollback",
        {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "500s", "requested_by": "ann", **RUN},
        id=f"boundaries-{uuid.uuid4()}",
        task_queue=queue,
    )
    ended = asyncio.create_task(handle.result())
    with ThreadPoolExecutor(4) as pool:
        while not ended.done():
            stopping.dead.clear()
            worker = Worker(
                client, task_queue=queue, activities=methods, activity_executor=pool, interceptors=[stopping]
            )
            async with worker:
                dying = asyncio.create_task(stopping.dead.wait())
                await asyncio.wait({dying, ended}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
                dying.cancel()
            now = world.shares()
            assert now == (expected(stopping.wanted) if stopping.wanted else found), stopping.died_after[-1]
    boundaries = " ".join(stopping.died_after)
    if cure:
        await ended
        for step in ("shift-10 ", "shift-50 ", "promote ", "ledger ", "record "):
            assert step in boundaries
        assert world.shares() == (OLD, {})
    else:
        with pytest.raises(WorkflowFailureError) as failed:
            await ended
        assert isinstance(failed.value.cause, ApplicationError)
        assert failed.value.cause.type == "Worse"
        assert "undo-shift-10 " in boundaries
        assert world.shares() == found
