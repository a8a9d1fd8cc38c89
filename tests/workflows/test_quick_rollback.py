"""QuickRollback in a scripted world: what a no, an abort and a failure leave, and who is told."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.testing import WorkflowEnvironment

from activities.api import Health, HealthCheck
from activities.deployment_models import AliasPointed, Continued, Former, PointAlias
from activities.functions import Routing
from activities.messages import Delivery, Mail
from activities.releases import ReleaseFacts
from activities.stage import Stage
from tests.histories import keep
from tests.workflows.canary_world import NEW, World, steady, working
from tests.workflows.probe import failure, progress, until
from workflows.model import Outcome, RunbookResult, State


class RollbackWorld(World):
    """A stage whose API answers again after the rollback, or does not."""

    def __init__(self, *, well: bool = False, **policies: Any) -> None:
        quick = {"metrics_delay": "PT0S", "error_window": "PT1S", "health_interval": "PT0.1S"}
        given = {"rollback": quick, "gates": {"approve-rollback": {"approvals": 0}}, "stack": "the-stack", **policies}
        super().__init__(old=steady(), new=steady(), **given)
        self.well = well
        self.mails: list[Mail] = []
        self.mail_down = False
        self.refuses: ApplicationError | None = None

    @activity.defn(name="deployments.capture")
    async def capture(self, _stage: Stage) -> Former:
        live = ReleaseFacts(release="bbbbbbb", label="bad", version=NEW)
        return Former(summary="live is bad", live=live, routing=Routing(alias="live", version=NEW, revision_id="r"))

    @activity.defn(name="deployments.continue_rollback")
    async def continue_rollback(self, _stage: Stage) -> Continued:
        if self.refuses is not None:
            raise self.refuses
        return Continued(summary="complete", status="UPDATE_ROLLBACK_COMPLETE")

    @activity.defn(name="deployments.point_alias")
    async def point(self, order: PointAlias) -> AliasPointed:
        self.alias = self.alias.model_copy(update={"version": order.version})
        return AliasPointed(
            summary=f"at {order.version}", changed=True, alias="live", version=order.version, former_version=NEW
        )

    @activity.defn(name="notifications.mail")
    async def mail(self, mail: Mail) -> Delivery:
        if self.mail_down:
            raise ApplicationError("nobody took it", type="NobodyTookIt", non_retryable=True)
        self.mails.append(mail)
        return Delivery(delivered_by="ses")

    @activity.defn(name="api.health")
    async def health(self, _check: HealthCheck) -> Health:
        return Health(summary="healthy" if self.well else "not healthy", ok=self.well, consecutive=0, checks=1)


async def begin(client: Client, queue: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "500s", "requested_by": "ann", **inp}
    return await client.start_workflow("QuickRollback", given, id=f"rollback-{uuid.uuid4()}", task_queue=queue)


@pytest.mark.parametrize("how", [pytest.param("reject", marks=pytest.mark.long), "abort"])
async def test_a_continued_roll_back_is_said_to_stay(temporal: WorkflowEnvironment, how: str) -> None:
    world = RollbackWorld()
    async with working(temporal.client, world) as queue:
        with temporal.with_time_skipping_disabled():
            handle = await begin(temporal.client, queue, strategy="cloudformation")
            gate = (await until(handle, lambda s: s.open_gate() is not None)).open_gate()
            await handle.signal(how, {"by": "bob"})
            error = await failure(handle)
    assert gate is not None
    assert "No ends the run, but nothing puts back what was live" in gate.question
    assert error.type == "LeftUndone"
    assert "NOT put back: the roll-back of the-stack is complete" in error.message, error.message
    assert "has been undone" not in error.message
    assert [entry.release for entry in world.ledger] == ["aaaaaaa"], "nothing says that the former release is live"
    await keep(handle, "QuickRollback", "cloudformation-stays")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("NothingToContinue", "Nothing had been changed"),
        ("DeployFailed", "NOT put back: the roll-back of the-stack was begun, and may have changed the stack"),
    ],
)
async def test_a_roll_back_that_cannot_be_continued_says_what_it_may_have_done(
    client: Client, kind: str, said: str
) -> None:
    world = RollbackWorld()
    world.refuses = ApplicationError("no", type=kind, non_retryable=True)
    async with working(client, world) as queue:
        error = await failure(await begin(client, queue, strategy="cloudformation"))
    assert said in error.message, error.message
    assert ("Nothing had been changed" in error.message) is (kind == "NothingToContinue")
    assert world.ledger == []


async def test_an_abort_before_the_change_has_changed_nothing(client: Client) -> None:
    world = RollbackWorld(gates={})
    async with working(client, world) as queue:
        handle = await begin(client, queue, strategy="cloudformation")
        await until(handle, lambda s: s.open_gate() is not None)
        await handle.signal("abort", {"by": "bob"})
        assert "Nothing had been changed" in (await failure(handle)).message


async def test_a_no_puts_back_what_was_live_by_alias(temporal: WorkflowEnvironment) -> None:
    world = RollbackWorld()
    async with working(temporal.client, world) as queue:
        with temporal.with_time_skipping_disabled():
            handle = await begin(temporal.client, queue, strategy="alias")
            gate = (await until(handle, lambda s: s.open_gate() is not None)).open_gate()
            await handle.signal("reject", {"by": "bob"})
            assert "has been undone" in (await failure(handle)).message
        state = await progress(handle)
    assert gate is not None
    assert gate.question.endswith("No puts back what was live")
    assert world.alias.version == NEW
    assert [entry.release for entry in world.ledger] == ["aaaaaaa", "bbbbbbb"]
    assert state.step("roll-back").state is State.UNDONE  # type: ignore[union-attr]


async def test_who_asked_may_not_keep_in_production_what_is_not_well(temporal: WorkflowEnvironment) -> None:
    world = RollbackWorld(production=True)
    async with working(temporal.client, world) as queue:
        with temporal.with_time_skipping_disabled():
            handle = await begin(temporal.client, queue, strategy="alias")
            gate = (await until(handle, lambda s: s.open_gate() is not None)).open_gate()
            assert gate is not None
            await handle.signal("approve", {"by": "ann"})
            state = await until(handle, lambda s: any("may not approve it" in entry.text for entry in s.timeline))
            assert state.open_gate() is not None
            await handle.signal("approve", {"by": "bob"})
            result = RunbookResult.model_validate(await handle.result())
    assert gate.id == "keep-rollback"
    assert (gate.deadline - gate.opened_at, gate.on_timeout) == (timedelta(hours=1), "approve")
    assert result.outcome is Outcome.COMPLETED
    await keep(handle, "QuickRollback", "kept-by-another")


@pytest.mark.parametrize(
    ("gates", "needed"),
    [
        pytest.param({"default": {"approvals": 2}}, 2, marks=pytest.mark.long),
        pytest.param({"default": {"approvals": 0}}, 1, marks=pytest.mark.long),
        ({"default": {"approvals": 2}, "keep-rollback": {"approvals": 3}}, 3),
        pytest.param({}, 1, marks=pytest.mark.long),
    ],
)
async def test_as_many_keep_a_rollback_as_the_stage_says_and_silence_keeps_it(
    temporal: WorkflowEnvironment, gates: dict[str, Any], needed: int
) -> None:
    world = RollbackWorld(gates={"approve-rollback": {"approvals": 0}, **gates})
    async with working(temporal.client, world) as queue:
        with temporal.with_time_skipping_disabled():
            handle = await begin(temporal.client, queue, strategy="alias")
            gate = (await until(handle, lambda s: s.open_gate() is not None)).open_gate()
            await handle.signal("reject", {"by": "bob"})
            await failure(handle)
    assert gate is not None
    assert gate.needed == needed
    limit = (timedelta(hours=24), "reject") if "keep-rollback" in gates else (timedelta(hours=1), "approve")
    assert (gate.deadline - gate.opened_at, gate.on_timeout) == limit


TO = {"stakeholders": ["team@example.org"]}


@pytest.mark.parametrize(
    ("policies", "down", "mails", "done", "note"),
    [
        ({"production": True, "channels": TO}, False, 1, True, "mailed team@example.org by ses; told slack"),
        ({"production": True, "channels": TO}, True, 0, False, "nobody took the mail to the stakeholders; told slack"),
        pytest.param(
            {"production": True}, False, 0, True, "told slack; the settings name nobody to mail", marks=pytest.mark.long
        ),
        pytest.param({"channels": TO}, False, 0, True, "told slack", marks=pytest.mark.long),
    ],
)
async def test_stakeholders_of_production_are_mailed(
    temporal: WorkflowEnvironment, policies: dict[str, Any], down: bool, mails: int, done: bool, note: str
) -> None:
    world = RollbackWorld(well=True, **policies)
    world.mail_down = down
    async with working(temporal.client, world) as queue:
        handle = await begin(temporal.client, queue, strategy="alias")
        result = RunbookResult.model_validate(await handle.result())
    item = next(item for item in result.checklist if item.id == "stakeholders")
    assert (item.done, item.note) == (done, note)
    assert len(world.mails) == mails
    assert all("Reason: 500s" in mail.text and mail.title == world.told[-1] for mail in world.mails)
    if mails:
        await keep(handle, "QuickRollback", "stakeholders-mailed")
