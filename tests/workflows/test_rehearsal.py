"""A rehearsal goes through every runbook without changing anything, and says what would not work."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.messages import Attempt, Delivery, PageEnd
from activities.rehearsals import Case, CasesOf, Rehearsals, SecretsRead, references
from activities.secret_refs import SecretResolver
from activities.settings import Rehearsal as RehearsalSettings
from activities.settings import Settings, Slack
from activities.stage import Stage
from tests.workflows.probe import Probe, World, failure, outcome, progress
from worker.activities import rehearsed
from workflows.catalog import RUNBOOKS
from workflows.model import Outcome, RunbookResult, State
from workflows.rehearsal import Rehearsal

PROBE = {"stage": "somewhere", "reason": "example", "requested_by": "zoe", "incident": "INC-9", "to": 4}


class Rehearsed(World):
    """A world in which every case is a Probe."""

    def __init__(self, *cases: dict[str, Any], unreadable: tuple[str, ...] = (), pager: bool = True) -> None:
        super().__init__()
        self.list = [Case(runbook="Probe", input=case) for case in cases]
        self.unreadable, self.pager_works = unreadable, pager
        self.ended: list[PageEnd] = []

    @activity.defn(name="rehearsal.cases")
    async def cases(self, asked: CasesOf) -> Any:
        return {"summary": f"{len(self.list)} runbooks", "cases": [case.model_dump() for case in self.list]}

    @activity.defn(name="rehearsal.secrets")
    async def secrets(self, stage: Stage) -> SecretsRead:
        return SecretsRead(summary="secrets", read=3, unreadable=self.unreadable)

    @activity.defn(name="notifications.resolve_page")
    async def resolve_page(self, end: PageEnd) -> Delivery:
        self.ended.append(end)
        if not self.pager_works:
            raise ApplicationError("pagerduty: HTTP 400", type="NobodyTookIt", non_retryable=True)
        return Delivery(delivered_by="pagerduty", attempts=(Attempt(provider="pagerduty", ok=True, detail="HTTP 202"),))


@asynccontextmanager
async def rehearsing(client: Client, world: Rehearsed, **inp: Any) -> AsyncIterator[WorkflowHandle[Any, Any]]:
    queue = f"rehearsal-{uuid.uuid4()}"
    activities = [
        *(world.resolve, world.read, world.set, world.announce, world.write),
        *(world.cases, world.secrets, world.resolve_page),
    ]
    async with Worker(client, task_queue=queue, workflows=[Probe], activities=activities):
        given = {"stage": "stage-x", "reason": "monthly rehearsal", "requested_by": "ann", **inp}
        yield await client.start_workflow("Rehearsal", given, id=f"rehearsal-{uuid.uuid4()}", task_queue=queue)


async def test_every_runbook_is_tried_and_nothing_is_changed(client: Client) -> None:
    world = Rehearsed(PROBE)
    async with rehearsing(client, world) as handle:
        result = RunbookResult.model_validate(await handle.result())
        child = await progress(client.get_workflow_handle(f"{handle.id}/probe"))
        state = await progress(handle)
    assert (result.outcome, result.facts["rehearsed"], result.facts["would_work"]) == (Outcome.COMPLETED, 1, 1)
    assert all(item.done for item in result.checklist)
    assert world.done == []
    assert (child.dry_run, child.stage, child.requested_by) == (True, "stage-x", "ann"), (
        "for this stage, not the example's"
    )
    assert child.reason == "rehearsal: monthly rehearsal"
    assert state.step("probe").summary.startswith("would work: ")
    assert state.step("probe").evidence == {"would_change": 2}
    assert [end.key for end in world.ended] == [f"{handle.id}/pager"]


async def test_what_would_not_work_is_named_and_told(client: Client) -> None:
    world = Rehearsed({**PROBE, "to": 99}, unreadable=("could not read the secret env:X",), pager=False)
    async with rehearsing(client, world) as handle:
        error = await failure(handle)
        state = await progress(handle)
    assert error.type == "NotReady"
    for part in ("Probe (BadInput: Probe takes", "could not read the secret env:X", "the pager (no provider"):
        assert part in error.message, error.message
    result = outcome(error)
    assert not any(item.done for item in result.checklist)
    assert state.step("probe").state is State.FAILED
    assert any(message.title.startswith("Rehearsal on stage-x: failed") for message in world.told)


async def test_a_dry_rehearsal_tells_nobody(client: Client) -> None:
    world = Rehearsed(PROBE)
    async with rehearsing(client, world, dry_run=True) as handle:
        result = RunbookResult.model_validate(await handle.result())
    assert result.outcome is Outcome.DRY_RUN
    assert (world.ended, world.told) == ([], [])


# --- what the worker knows -------------------------------------------------------------------------------------------


def test_every_runbook_of_the_catalog_is_rehearsed_with_an_input_it_takes() -> None:
    cases = {case.runbook: case.input for case in rehearsed()}
    assert set(cases) == {runbook.__name__ for runbook in RUNBOOKS} - {"Rehearsal"}
    probe = Rehearsal.__new__(Rehearsal)
    for runbook in RUNBOOKS:
        if runbook is not Rehearsal:
            given = {**cases[runbook.__name__], "stage": "staging", "reason": "rehearsal", "dry_run": True}
            runbook.spec.input.model_validate(given)
    assert probe.spec.changes is False


class Keys:
    """Some secrets by reference."""

    def __init__(self, **values: str) -> None:
        self.values = values

    def resolve(self, ref: str) -> str:
        if ref not in self.values.values():
            raise ApplicationError(f"could not read the secret {ref}", type="SecretUnusable", non_retryable=True)
        return "value"


def of(stage: Stage, settings: Settings, resolver: Any, *names: str) -> Rehearsals:
    return Rehearsals(settings, resolver, [Case(runbook=name, input={"to": 1}) for name in names])


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("RUNBOOKS_CONFIG", "none.toml")
    return Settings(rehearsal=RehearsalSettings(skip=("B",), inputs={"C": {"to": 3}}))


async def test_a_team_leaves_runbooks_out_and_gives_its_own_inputs(settings: Settings) -> None:
    stage = await World().resolve("stage-x")
    found = of(stage, settings, SecretResolver, "A", "B", "C").cases(CasesOf(stage="stage-x"))
    assert [(case.runbook, case.input) for case in found.cases] == [("A", {"to": 1}), ("C", {"to": 3})]
    assert found.left_out == ("B",)
    only = of(stage, settings, SecretResolver, "A", "B", "C").cases(CasesOf(stage="stage-x", only=("C",)))
    assert [case.runbook for case in only.cases] == ["C"]


async def test_secrets_of_the_stage_and_of_its_own_providers_are_read(settings: Settings) -> None:
    stage = (await World().resolve("stage-x")).model_copy(update={"api_key": "env:KEY"})
    settings.providers.slack = {"slack": Slack(webhook="env:HOOK"), "other": Slack(webhook="env:OTHER")}
    assert set(references(stage)) == {"env:KEY", "env:NONE"}
    found = of(stage, settings, Keys(key="env:KEY")).secrets(stage)
    assert found.read == 1
    assert set(found.unreadable) == {f"could not read the secret {ref}" for ref in ("env:HOOK", "env:NONE")}
