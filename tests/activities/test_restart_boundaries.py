"""ServiceRestart on a real function, with the worker stopped after every activity that it ever begins.

At each boundary the effect is there and its answer is lost. However often that happens, the next worker has to bring
the run to its right end, and the limit of the function back to what it was.
"""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.worker import Worker

from activities.function_capacity import FunctionCapacity
from activities.locks import Locks
from activities.stage import Stage
from tests.activities.site import POLL, Site
from tests.activities.test_canary_boundaries import Stopping
from tests.workflows.restart_world import QUICK, RestartWorld
from worker.activities import activity_methods

REAL = ("functions.", "deployments.")
CHANGES = ("functions.limit", "functions.restart", "deployments.deploy", "deployments.point_alias")


class RealFunction(RestartWorld):
    """The scripted world, but for the function: it is the one in the embedded AWS."""

    def __init__(self, site: Site, *, cured: bool) -> None:
        former = self.serving(site)
        super().__init__(lambda _version: 0.0 if cured and self.serving(site) != former else 0.5)
        self.site = site

    @staticmethod
    def serving(site: Site) -> str:
        return site.aws.functions.get_alias(FunctionName=site.service, Name="live")["FunctionVersion"]

    def limit_now(self) -> int | None:
        return self.site.aws.functions.get_function_concurrency(FunctionName=self.site.service).get(
            "ReservedConcurrentExecutions"
        )

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return Stage.model_validate({**self.site.stage().model_dump(), **self.policies, "name": name})


@pytest.mark.long
@pytest.mark.parametrize("cured", [pytest.param(True, marks=pytest.mark.long), False], ids=["cured", "no cure"])
async def test_no_stop_of_the_worker_keeps_traffic_out(client: Client, site: Site, cured: bool) -> None:
    world = RealFunction(site, cured=cured)
    site.aws.functions.put_function_concurrency(FunctionName=site.service, ReservedConcurrentExecutions=40)
    former, variables = world.serving(site), _variables(site)
    queue = f"boundaries-{uuid.uuid4()}"
    stopping = Stopping((*REAL, "locks.", "api.", "reports.") if cured else CHANGES)
    scripted = [
        method
        for host in (world, Locks(client, queue))
        for method in activity_methods(host)
        if not str(activity._Definition.must_from_callable(method).name).startswith(REAL)
    ]
    real = [*activity_methods(FunctionCapacity(site.aws.functions, poll=POLL)), *activity_methods(site.deployments)]
    handle = await client.start_workflow(
        "ServiceRestart",
        {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "it hangs", "requested_by": "ann", "ladder": [2], **QUICK},
        id=f"boundaries-{uuid.uuid4()}",
        task_queue=queue,
    )
    world.answer = lambda: handle.signal("approve", {"by": "bob"})
    ended, seen = asyncio.create_task(handle.result()), set[int | None]()
    with ThreadPoolExecutor(4) as pool:
        while not ended.done():
            stopping.dead.clear()
            async with Worker(
                client,
                task_queue=queue,
                activities=[*scripted, *real],
                activity_executor=pool,
                interceptors=[stopping],
                max_cached_workflows=0,  # a worker that is gone must not be waited for
            ):
                dying = asyncio.create_task(stopping.dead.wait())
                await asyncio.wait({dying, ended}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
                dying.cancel()
            seen.add(world.limit_now())
    boundaries = " ".join(stopping.died_after)
    for step in ("stop-traffic ", "restart ", "redeploy ", "let-in-2 "):
        assert step in boundaries
    assert {40, 0, 2} <= seen
    assert world.limit_now() == 40
    if cured:
        await ended
        assert "give-back " in boundaries
        assert world.serving(site) != former
        assert _variables(site) - variables == {"RUNBOOKS_RESTARTED"}, "the variables are all there, and one more"
    else:
        with pytest.raises(WorkflowFailureError):
            await ended
        assert "undo-stop-traffic " in boundaries
        assert world.serving(site) == former


def _variables(site: Site) -> set[str]:
    found: dict[str, Any] = dict(site.aws.functions.get_function_configuration(FunctionName=site.service))
    return set(found["Environment"]["Variables"])
