"""CloudFormation stacks: their state, what happened to them, and waiting until they are at rest."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import botocore.exceptions
from pydantic import Field
from temporalio import activity

from activities.errors import classified, lasting
from activities.evidence import Finding
from activities.progress import pause
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import StackTypeDef

HEALTHY = frozenset(
    {
        "CREATE_COMPLETE",
        "UPDATE_COMPLETE",
        "IMPORT_COMPLETE",
        "UPDATE_ROLLBACK_COMPLETE",
        "IMPORT_ROLLBACK_COMPLETE",
        "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS",
        "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS",
    }
)
"""States in which every resource is as one template says. After a roll-back that is the template before the last."""

WORKING = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"})
"""States at rest after an operation that did what was asked."""

_BEGINS = frozenset({"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"})
_ROLLING_BACK = frozenset(
    {"UPDATE_ROLLBACK_FAILED", "UPDATE_ROLLBACK_IN_PROGRESS", "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS"}
)
_SHOWN = 10
_CANCELLED = "cancelled"


class StackEvent(Facts):
    """One line of a stack's history."""

    at: datetime
    resource: str = Field(description="Logical id; the stack's own name for the stack as a whole")
    status: str
    reason: str | None = None
    token: str | None = Field(None, description="ClientRequestToken of the operation that it belongs to")


class StackStatus(Finding):
    """How a stage's stack is."""

    applicable: bool = Field(description="False for a stage without a CloudFormation stack")
    stack: str | None = None
    status: str | None = None
    healthy: bool | None = Field(
        None, description="Every resource is as one template says; absent where not applicable"
    )
    reason: str | None = None
    updated_at: datetime | None = None
    last_events: tuple[StackEvent, ...] = Field((), description="Newest first")


class Stacks:
    def __init__(self, cloudformation: CloudFormationClient, poll: float = 2.0) -> None:
        """``poll`` is the time between two looks at a stack that is changing, in seconds."""
        self._cf = cloudformation
        self._poll = poll

    @activity.defn(name="stacks.status")
    @classified("read the stack's status")
    def status(self, stage: Stage) -> StackStatus:
        """The stack's state and its newest events. A stage without a stack is not an error: ``applicable`` is false.

        Raises:
            NoStack: the stage names a stack that does not exist.
        """
        if stage.stack is None:
            return StackStatus(summary="no CloudFormation stack: not applicable to this stage", applicable=False)
        stack = self.get(stage)
        state = stack["StackStatus"]
        healthy = state in HEALTHY
        return StackStatus(
            summary=f"{stage.stack} is {state}" + ("" if healthy else ", which is not healthy"),
            applicable=True,
            stack=stage.stack,
            status=state,
            healthy=healthy,
            reason=stack.get("StackStatusReason"),
            updated_at=stack.get("LastUpdatedTime") or stack["CreationTime"],
            last_events=tuple(self.events(stage, limit=_SHOWN)),
        )

    def get(self, stage: Stage) -> StackTypeDef:
        """The stack as CloudFormation describes it."""
        name = self.name(stage)
        try:
            return self._cf.describe_stacks(StackName=name)["Stacks"][0]
        except botocore.exceptions.ClientError as error:
            if "does not exist" in str(error):
                raise lasting(
                    f"there is no stack {name!r} in {stage.region}. Correct the stage's 'stack' in the settings",
                    type="NoStack",
                ) from None
            raise

    def name(self, stage: Stage) -> str:
        if stage.stack is None:
            raise lasting(
                f"stage {stage.name!r} has no CloudFormation stack. Name it as the stage's 'stack', "
                "or use the strategy 'redeploy' or 'alias'",
                type="NoStack",
            )
        return stage.stack

    def events(self, stage: Stage, limit: int = 200) -> list[StackEvent]:
        """The newest events, newest first."""
        found: list[StackEvent] = []
        pages = self._cf.get_paginator("describe_stack_events").paginate(StackName=self.name(stage))
        for page in pages:
            for event in page["StackEvents"]:
                if len(found) == limit:
                    return found
                found.append(
                    StackEvent(
                        at=event["Timestamp"],
                        resource=event["LogicalResourceId"],
                        status=event["ResourceStatus"],
                        reason=event.get("ResourceStatusReason"),
                        token=event.get("ClientRequestToken"),
                    )
                )
        return found

    def outcome_before(self, stage: Stage, moment: datetime, within: timedelta) -> StackEvent | None:
        """How the stack's last operation before ``moment`` ended, if it ended no longer before than ``within``."""
        for event in self.events(stage, limit=1000):
            at_rest = event.resource == stage.stack and not event.status.endswith("IN_PROGRESS")
            if at_rest and moment - within <= event.at <= moment:
                return event
        return None

    def failure(self, stage: Stage, token: str | None = None, *, rolling_back: bool = False) -> str:
        """Why the last operation failed: the first resource that did, with CloudFormation's reason.

        ``rolling_back`` looks at the last roll-back alone and not at the update before it.
        """
        events = self.events(stage)
        if token is not None and any(event.token == token for event in events):
            events = [event for event in events if event.token == token]
        failed: StackEvent | None = None
        for event in events:  # newest first, so the last one kept is the first one that happened
            if event.resource == stage.stack:
                if event.status in _BEGINS or (rolling_back and event.status == "UPDATE_ROLLBACK_IN_PROGRESS"):
                    break
            elif event.status.endswith("FAILED") and _CANCELLED not in (event.reason or "").lower():
                failed = event
        if failed is None:
            return "CloudFormation names no resource that failed; look at the stack's events"
        return f"{failed.resource}: {(failed.reason or failed.status)[:300]}"

    def template(self, stage: Stage) -> str:
        """The text of the template that the stack has now."""
        body = self._cf.get_template(StackName=self.name(stage), TemplateStage="Original")["TemplateBody"]
        return body if isinstance(body, str) else json.dumps(body)

    def settle(self, stage: Stage, timeout: timedelta, phase: str) -> str:
        """Wait, with heartbeats, until no operation is under way; returns the state it came to rest in.

        Raises:
            StackTimeout: it is still at work after ``timeout``.
            WorkerStopping: see :func:`activities.progress.pause`.
        """
        give_up = time.monotonic() + timeout.total_seconds()
        while True:
            state = self.get(stage)["StackStatus"]
            if not state.endswith("IN_PROGRESS"):
                return state
            if time.monotonic() > give_up:
                raise lasting(
                    f"{stage.stack} is still {state} after {timeout}. Look at its events; 'aws cloudformation "
                    "cancel-update-stack' ends an update that hangs",
                    type="StackTimeout",
                )
            pause(self._poll, phase, status=state)


def continuable(stage: Stage, status: str) -> None:
    """Refuse to continue a roll-back where there is none, naming what fits the state instead.

    Raises:
        NothingToContinue: CloudFormation continues only from ``UPDATE_ROLLBACK_FAILED``.
    """
    if status in _ROLLING_BACK:
        return
    if status.startswith("UPDATE_") and status.endswith("IN_PROGRESS"):
        remedy = "Wait for its end; 'aws cloudformation cancel-update-stack' ends an update early"
    elif status in ("CREATE_FAILED", "UPDATE_FAILED"):
        remedy = "From this state it is 'aws cloudformation rollback-stack'"
    else:
        remedy = "To go back from a state of rest, deploy the former release: strategy 'redeploy' or 'alias'"
    raise lasting(
        f"{stage.stack} is {status}; a roll-back is continued only from UPDATE_ROLLBACK_FAILED. {remedy}",
        type="NothingToContinue",
    )
