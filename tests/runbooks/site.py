"""What the tests of real procedures look at and touch: the deployed API, its stack, and runs."""

from __future__ import annotations

import asyncio
import tomllib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import httpx
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.releases import LedgerEntry
from sandbox import connections, mongodb
from sandbox.api.stack import secret_parameter
from sandbox.house import House
from sandbox.state import Vault
from tests.patience import SLOWER, eventually
from workflows.model import RunbookResult, RunState

STACK = "claude-projects-state-api-{stage}"


@dataclass
class Site:
    """One sandbox, as its user sees it."""

    house: House
    client: Client
    stage: str = "production"

    @cached_property
    def environment(self) -> dict[str, str]:
        return self.house.environment()

    def aws(self, service: str) -> Any:
        return connections.client(service, self.environment["AWS_ENDPOINT_URL"])

    def secret(self, name: str) -> str:
        """A secret as the API reads it."""
        path = secret_parameter(self.stage, name)
        return str(self.aws("ssm").get_parameter(Name=path, WithDecryption=True)["Parameter"]["Value"])

    def database(self, stage: str) -> str:
        """Connection string of a stage's database, as its operator has it."""
        port = next(part.ports["mongodb"] for part in self.house.status() if part.name == "mongodb")
        return mongodb.operator_uri(port, Vault.open(self.house.layout.vault), stage)

    @property
    def stack(self) -> str:
        return STACK.format(stage=self.stage)

    def deploy(self, release: str, **faults: Any) -> LedgerEntry:
        return self.house.deploy(self.stage, release, **faults)

    def health(self) -> dict[str, Any]:
        """What ``/health`` of the stage answers, with its HTTP status."""
        settings = tomllib.loads(self.house.layout.settings.read_text())
        answer = httpx.get(settings["stages"][self.stage]["url"] + "/health", timeout=30)
        return {"code": answer.status_code, **answer.json()}

    def updates(self) -> int:
        """How often the stack was updated, counted in its own events."""
        pages = self.aws("cloudformation").get_paginator("describe_stack_events").paginate(StackName=self.stack)
        return sum(
            event["ResourceStatus"] == "UPDATE_IN_PROGRESS" and event["LogicalResourceId"] == self.stack
            for page in pages
            for event in page["StackEvents"]
        )

    def deployed(self) -> Any:
        """What changes with whatever is done to the release."""
        functions = self.aws("lambda")
        live = functions.get_alias(FunctionName=self.stack, Name="live")
        latest = functions.get_function_configuration(FunctionName=self.stack)
        return live["RevisionId"], live["FunctionVersion"], latest["RevisionId"], latest["CodeSha256"], self.updates()

    def snapshot(self) -> dict[str, Any]:
        """Everything of the stage in AWS that a rollback could change."""
        name = self.stack
        functions, s3 = self.aws("lambda"), self.aws("s3")
        alias = functions.get_alias(FunctionName=name, Name="live")
        keys = [
            (bucket["Name"], item["Key"], item["ETag"])
            for bucket in s3.list_buckets()["Buckets"]
            for item in s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
            if not item["Key"].startswith("runs/")  # the reports of runs themselves
        ]
        return {
            "alias": (alias["FunctionVersion"], alias.get("RoutingConfig"), alias["RevisionId"]),
            "code": functions.get_function_configuration(FunctionName=name)["CodeSha256"],
            "versions": [v["Version"] for v in functions.list_versions_by_function(FunctionName=name)["Versions"]],
            "stack": self.aws("cloudformation").get_template(StackName=name)["TemplateBody"],
            "updates": self.updates(),
            "objects": sorted(keys),
        }

    def received(self, target: str = "") -> list[dict[str, Any]]:
        """What people received through the hub."""
        hub = next(f"http://127.0.0.1:{part.ports['hub']}" for part in self.house.status() if part.name == "hub")
        return list(httpx.get(f"{hub}/_control/received", params={"target": target} if target else {}).json())

    # --- runs ---------------------------------------------------------------------------------------------------

    async def start(self, runbook: str, **inp: Any) -> WorkflowHandle[Any, Any]:
        given = {"stage": self.stage, "reason": "500s since the deploy", "requested_by": "ann", **inp}
        return await self.client.start_workflow(
            runbook, given, id=f"{runbook}-{uuid.uuid4().hex[:8]}", task_queue="runbooks"
        )


async def progress(handle: WorkflowHandle[Any, Any]) -> RunState:
    return RunState.model_validate(await handle.query("progress"))


async def until(handle: WorkflowHandle[Any, Any], holds: Callable[[RunState], bool], patience: float = 60) -> RunState:
    """The run's state as soon as ``holds`` of it; fails with the last state seen."""
    seen: RunState | None = None

    async def look() -> RunState | None:
        nonlocal seen
        try:
            seen = await asyncio.wait_for(handle.query("progress", result_type=RunState), 5)
        except Exception:  # the worker is dead at the moment: that is what some of these tests are about
            return None
        if holds(seen):
            return seen
        assert seen.outcome is None, f"ended before that came about: {seen.model_dump_json(indent=1)}"
        return None

    return await eventually(look, lambda: seen.model_dump_json(indent=1) if seen else "no answer", patience)


async def approve(handle: WorkflowHandle[Any, Any], by: str = "bob") -> None:
    await until(handle, lambda state: state.open_gate() is not None)
    await handle.signal("approve", {"by": by})


async def ended(handle: WorkflowHandle[Any, Any], patience: float) -> Any:
    """What the run returned; when it does not end in time, says where it stands."""
    try:
        return await asyncio.wait_for(handle.result(), patience * SLOWER)
    except TimeoutError:
        raise AssertionError(f"still runs: {(await progress(handle)).model_dump_json(indent=1)}") from None


async def finished(handle: WorkflowHandle[Any, Any], patience: float = 90) -> RunbookResult:
    return RunbookResult.model_validate(await ended(handle, patience))


async def failure(handle: WorkflowHandle[Any, Any], patience: float = 90) -> ApplicationError:
    try:
        result = await ended(handle, patience)
    except WorkflowFailureError as error:
        if isinstance(error.cause, ApplicationError):
            return error.cause
        raise
    raise AssertionError(f"did not fail: {result}")
