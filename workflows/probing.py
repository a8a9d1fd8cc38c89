"""Looking at everything at once: health, metrics, logs, database and deployments, each for a short time only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.api import Api, Confirm
from activities.database import Database
from activities.metrics import Window
from activities.signs import DeploymentsQuery, Signs
from workflows import policy
from workflows.diagnosis_evidence import DATABASE_ERRORS, Evidence
from workflows.model import Kind, RunbookInput, StepSpec
from workflows.runbook import Runbook
from workflows.steps import describe

I = TypeVar("I", bound=RunbookInput)  # noqa: E741
A = TypeVar("A")
R = TypeVar("R")

PROBES = (
    StepSpec(id="confirm", title="Confirm: does /health answer?", kind=Kind.LOOK),
    StepSpec(id="confirm-ready", title="Confirm: does /health/ready answer, and how fast?", kind=Kind.LOOK),
    StepSpec(id="metrics", title="Current metrics: errors, duration, throttles, gateway", kind=Kind.LOOK),
    StepSpec(id="lambda-log", title="Diagnostics: the function's log", kind=Kind.LOOK),
    StepSpec(id="gateway-log", title="Diagnostics: the gateway's log", kind=Kind.LOOK),
    StepSpec(id="database", title="Diagnostics: the database", kind=Kind.LOOK),
    StepSpec(id="deployments", title="Diagnostics: recent deployments", kind=Kind.LOOK),
)
"""The document's first look, step by step; they run side by side."""


class Probing(Runbook[I]):
    """A runbook that looks at everything at once. A source that fails is reported and costs only itself."""

    async def look_everywhere(self, window: timedelta, deployments_within: timedelta, prefix: str = "") -> Evidence:
        """All probes side by side, none longer than :data:`workflows.policy.PROBE` allows.

        ``prefix`` gives the steps of a later look names of their own, so that the first stays as it was seen.
        """
        now, stage = workflow.now(), self.stage
        seen = Evidence(taken_at=now, window=window)
        back = Window(stage=stage, start=now - window, end=now)
        titles = {step.id: step.title for step in PROBES}

        async def probe(step_id: str, activity: Callable[[Any, A], R], argument: A) -> R | None:
            title = titles[step_id] + (" (again)" if prefix else "")
            try:
                return await self.look(prefix + step_id, activity, argument, policy.PROBE, title=title)
            except ActivityError as error:
                if is_cancelled_exception(error):
                    raise
                why, kind = describe(error)
                if step_id == "database" and kind.startswith(DATABASE_ERRORS):
                    seen.database_problem = why
                else:
                    seen.failed[step_id] = why
                self.say(f"{title}: {why}", level="warning", source="provider")
                return None

        service = asyncio.gather(
            probe("confirm", Api.confirm, Confirm(stage=stage)),
            probe("confirm-ready", Api.confirm, Confirm(stage=stage, path="/health/ready")),
            probe("metrics", Signs.metrics, back),
        )
        around = asyncio.gather(
            probe("lambda-log", Signs.logs, back),
            probe("gateway-log", Signs.gateway_log, back),
            probe("database", Database.connections, stage),
            probe("deployments", Signs.deployments, DeploymentsQuery(stage=stage, since=now - deployments_within)),
        )
        await asyncio.gather(service, around)
        seen.health, seen.ready, seen.metrics = service.result()
        seen.logs, seen.gateway_log, seen.database, seen.deployments = around.result()
        return seen
