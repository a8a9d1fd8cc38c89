"""QuickRollback against the real house: a broken release goes, and nothing else happens."""

from __future__ import annotations

import asyncio
import json

import pytest

from sandbox import connections
from sandbox.aws.scenarios import StuckRollback
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, failure, finished, progress, until
from workflows.model import Outcome, State

# First what changes nothing: the broken release stays for the next test.


async def test_a_dry_run_changes_nothing(site: Site) -> None:
    before = site.snapshot()
    told = len(site.received())
    handle = await site.start("QuickRollback", dry_run=True)
    result = await finished(handle)
    assert result.outcome is Outcome.DRY_RUN
    assert result.summary.startswith("would "), result.summary
    assert any("back to good" in line for line in result.would_change)
    assert site.snapshot() == before
    assert len(site.received()) == told
    await keep(handle, "QuickRollback", "dry-run")


async def test_a_rejected_rollback_changes_nothing(site: Site) -> None:
    before = site.snapshot()
    handle = await site.start("QuickRollback")
    await until(handle, lambda s: s.open_gate() is not None)
    await handle.signal("reject", {"by": "bob", "reason": "fix forward"})
    error = await failure(handle)
    assert (error.type, error.message) == (
        "Rejected",
        "bob said no at 'approve-rollback': fix forward. Nothing had been changed",
    )
    assert site.snapshot() == before
    await keep(handle, "QuickRollback", "rejected")


@pytest.mark.parametrize(
    ("inp", "kind", "text"),
    [
        ({"stage": "prod"}, "UnknownStage", "there is no stage 'prod'"),
        ({"strategy": "sideways"}, "BadInput", "strategy: Input should be 'redeploy', 'alias'"),
        ({"to": "no-such-release", "strategy": "alias"}, "NoTarget", "no published version"),
        ({"to": "no-such-release"}, "TargetUnhealthy", "there is no saved build no-such-release"),
        ({"strategy": "cloudformation"}, "NothingToContinue", "UPDATE_COMPLETE"),
    ],
)
async def test_what_cannot_be_is_said_at_once(site: Site, inp: dict[str, str], kind: str, text: str) -> None:
    error = await failure(await site.start("QuickRollback", **inp), 30)
    assert (error.type, text in error.message) == (kind, True), error.message


async def test_the_last_good_release_comes_back(site: Site) -> None:
    broken, before = site.health()["release"], site.updates()
    handle = await site.start("QuickRollback")
    state = await until(handle, lambda s: s.open_gate() is not None)
    plan = state.gates[0].plan
    assert plan["strategy"] == "redeploy"
    assert str(plan["from"]).startswith("broken")
    await handle.signal("approve", {"by": "bob"})
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED, result
    assert site.health()["release"] != broken
    assert site.updates() == before + 1
    done = {item.id: item.done for item in result.checklist}
    assert done == {
        "api": True,
        "errors": True,
        "database": True,
        "metrics": True,
        "stakeholders": True,
        "ticket": True,
        "post-mortem": False,
    }
    assert any("was rolled back" in json.dumps(message) for message in site.received("slack"))
    assert any("Investigate" in json.dumps(ticket) for ticket in site.received("github"))
    bucket, _, key = result.report["html"].removeprefix("s3://").partition("/")
    html = site.aws("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    assert "<h2>Checklist</h2>" in html
    await keep(handle, "QuickRollback", "redeploy")
    await keep(site.client.get_workflow_handle("stage-lock/production"), "StageLock", "one-holder")


@pytest.mark.long
async def test_by_alias(site: Site) -> None:
    before, broken = site.updates(), site.health()
    handle = await site.start("QuickRollback", strategy="alias")
    await approve(handle)
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED, result
    assert site.updates() == before, "an alias is re-pointed, nothing is deployed"
    alias = site.aws("lambda").get_alias(FunctionName=site.stack, Name="live")
    assert alias["FunctionVersion"] != broken["version"]
    await keep(handle, "QuickRollback", "alias")


@pytest.mark.long
async def test_by_continuing_a_stuck_roll_back(site: Site) -> None:
    site.deploy("good")
    stuck = StuckRollback(site.stack, connections.session(), site.environment["AWS_ENDPOINT_URL"])
    stuck.stick()
    handle = await site.start("QuickRollback", strategy="cloudformation")
    await approve(handle)
    error = await failure(handle)
    assert error.type == "LeftUndone", "what the stack refuses cannot be taken back either, until it is cured"
    assert "RollbackBlocker" in error.message
    stuck.cure()
    handle = await site.start("QuickRollback", strategy="cloudformation")
    await approve(handle)
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED, result
    stack = site.aws("cloudformation").describe_stacks(StackName=site.stack)["Stacks"][0]
    assert stack["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
    assert site.health()["label"] == "good"
    await keep(handle, "QuickRollback", "cloudformation")


@pytest.mark.long
async def test_by_the_teams_own_command(site: Site, worker: WorkerProcess) -> None:
    wrapper = site.house.layout.bin / "roll-back"
    wrapper.write_text('#!/bin/sh\nexec sst deploy --stage "$1"\n')
    wrapper.chmod(0o755)
    worker.stop()
    worker.environment["RUNBOOKS_STAGES__PRODUCTION__DEPLOY__COMMAND"] = '["roll-back", "{stage}"]'
    worker.start()
    handle = await site.start("QuickRollback", strategy="command")
    await approve(handle)
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED, result
    assert site.health()["label"] == "good"
    assert "ran roll-back" in str((await progress(handle)).step("roll-back").summary)
    await keep(handle, "QuickRollback", "command")


async def test_abort_after_the_change_puts_the_former_release_back(site: Site) -> None:
    broken = site.health()["release"]
    handle = await site.start("QuickRollback")
    await approve(handle)
    await until(handle, lambda s: s.step("watch").state is State.WAITING)
    assert site.health()["release"] != broken
    await handle.signal("abort", {"by": "bob", "reason": "it was the database"})
    error = await failure(handle)
    assert error.type == "Aborted"
    assert "Everything that was begun has been undone" in error.message
    assert site.health()["release"] == broken
    await keep(handle, "QuickRollback", "aborted-after-the-change")


@pytest.mark.long
async def test_the_worker_is_killed_at_the_gate_and_during_the_deploy(site: Site, worker: WorkerProcess) -> None:
    before = site.updates()
    handle = await site.start("QuickRollback")
    await until(handle, lambda s: s.open_gate() is not None)
    worker.kill()
    await handle.signal("approve", {"by": "bob"})  # answered while no worker is there: nothing is lost
    worker.start()
    deadline = asyncio.get_running_loop().time() + 60
    while site.updates() == before:  # until CloudFormation itself says that the deployment has begun
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    worker.kill()
    worker.start()
    result = await finished(handle, 150)
    assert result.outcome is Outcome.COMPLETED, result
    assert site.updates() == before + 1, "exactly one deployment"
    assert (await progress(handle)).step("roll-back").state is State.DONE
    await keep(handle, "QuickRollback", "worker-killed")


@pytest.mark.long
async def test_slack_down_is_said_and_decides_nothing(site: Site) -> None:
    site.house.fault("slack", "http", status=503)
    try:
        handle = await site.start("QuickRollback", strategy="alias")
        await approve(handle)
        result = await finished(handle)
    finally:
        site.house.mend("slack")
    assert result.outcome is Outcome.COMPLETED
    timeline = " | ".join(entry.text for entry in (await progress(handle)).timeline)
    assert "slack: " in timeline
    assert "HTTP 503" in timeline
    stakeholders = next(item for item in result.checklist if item.id == "stakeholders")
    assert stakeholders.done, "they are mailed"
    assert "nobody took the chat message" in str(stakeholders.note)
    await keep(handle, "QuickRollback", "slack-down")
