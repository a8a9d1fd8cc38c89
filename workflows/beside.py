"""Runs that another run starts and does not wait for: they go on when it has ended, and when it is terminated."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow

from workflows.model import Kind, RunbookInput
from workflows.runbook import Runbook

BesideHandle = workflow.ChildWorkflowHandle[Any, Any]


async def start_beside(run: Runbook[Any], step_id: str, runbook: str, inp: RunbookInput, *, title: str) -> BesideHandle:
    """Start ``runbook`` as a step of ``run``, so that nothing that happens to ``run`` ends it.

    It has started when this returns: what must not happen without it can be done from here on.
    """
    async with run._step(step_id, title, Kind.TELL) as step:
        child_id = f"{run.state.workflow_id}/{step_id}-{workflow.info().run_id[:8]}"
        handle = await workflow.start_child_workflow(
            runbook,
            inp.model_dump(mode="json", exclude_none=True),
            id=child_id,
            static_summary=f"{runbook} for {run.state.workflow_id}",
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            priority=run._priority(),
        )
        step.summary = f"{runbook} runs as {child_id}"
        run.say(step.summary)
    if run._aborted is not None:  # the SDK has spent the cancellation on the start, which cannot be cancelled any more
        raise asyncio.CancelledError("stopped after this step")
    return handle
