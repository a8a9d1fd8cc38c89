"""Worker Deployment Versioning on a real server: a run of 30 days goes on across a deploy."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.common import VersioningBehavior
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities.locks import Locks
from tests.conftest import temporal_binary
from tests.patience import eventually
from tests.workflows.probe import Probe, ProbeInput, World, begin, progress, until
from worker.versioning import BUILD, NAME, deployment, to_make_current
from workflows.catalog import WORKFLOWS
from workflows.model import Outcome, Phase, RunbookResult


@workflow.defn(name="Probe")
class Later(Probe):
    """The Probe as the next release has it: it looks once more after the lamp was lit, behind a patch."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ProbeInput) -> str:
        summary = await super().procedure(inp)
        if workflow.patched("look-once-more"):
            await self.look("once-more", World.read, "lamp", title="Look at the lamp once more")
        return summary


class Release:
    """One version of the workers on one queue."""

    def __init__(self, client: Client, world: World, queue: str, build: str, probe: type) -> None:
        self.environment = {NAME: queue, BUILD: build}
        locks = Locks(client, queue)
        self.worker = Worker(
            client,
            task_queue=queue,
            workflows=[probe],
            activities=[
                *(world.resolve, world.read, world.set, world.announce, world.write),
                *(locks.request, locks.release, locks.is_running),
            ],
            deployment_config=deployment(self.environment),
        )

    @asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[None]:
        """Run it, and make it current by the command that the worker itself tells."""
        async with self.worker:

            async def made_current() -> bool:
                argv = shlex.split(to_make_current(self.environment))
                process = await asyncio.create_subprocess_exec(
                    temporal_binary(),
                    *argv[1:],
                    "--address",
                    address,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                return await process.wait() == 0

            await eventually(made_current, "the version is current; the server hears of its pollers first", every=0.5)
            yield


async def builds(handle: WorkflowHandle[Any, Any]) -> list[str]:
    """Under which build each task of the run was done, without repeats."""
    seen: list[str] = []
    for event in (await handle.fetch_history()).events:
        if event.HasField("workflow_task_completed_event_attributes"):
            build = event.workflow_task_completed_event_attributes.deployment_version.build_id
            if seen[-1:] != [build]:
                seen.append(build)
    return seen


async def test_a_run_of_thirty_days_crosses_a_deploy(temporal: WorkflowEnvironment) -> None:
    client, queue = temporal.client, f"versions-{uuid.uuid4().hex[:8]}"
    address, world = client.service_client.config.target_host, World(**{"turn-it": {"approvals": 0}})
    async with Release(client, world, queue, "a", Probe).running(address):
        with temporal.with_time_skipping_disabled():
            handle = await begin(client, queue, bake="P30D")
        await until(handle, lambda state: state.phase is Phase.WAITING, 60)
        async with Release(client, world, queue, "b", Later).running(address):
            pass  # the new release is current, and both are there
    async with Release(client, world, queue, "b", Later).running(address):
        assert (await progress(handle)).phase is Phase.WAITING, "it still waits, now under the new release"
        await temporal.fast_forward(handle)
        result = RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
        state = await progress(handle)
    assert result.outcome is Outcome.COMPLETED
    assert await builds(handle) == ["a", "b"]
    assert state.step("bake").summary == "waited 30 d"
    assert state.step("once-more").summary == "lamp is at 2", "the new release's step, in a run that began before it"
    assert timedelta(days=30) <= state.timeline[-1].at - state.started_at


@pytest.mark.parametrize("cls", WORKFLOWS, ids=lambda cls: cls.__name__)
def test_no_workflow_names_a_behaviour_of_its_own(cls: type) -> None:
    """An unversioned worker's tasks would all be refused by the server, and the runs would stand still."""
    behaviour = workflow._Definition.must_from_class(cls).versioning_behavior
    assert behaviour in (None, VersioningBehavior.UNSPECIFIED)
