"""Incident against the real house: a broken release, from the alarm to the closed action item."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import timedelta

import pytest

from activities.incident_policy import IncidentPolicy
from activities.incidents import OpenIncident, open_incident
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, finished, progress, until
from workflows.incident_state import Situation
from workflows.model import Outcome

VARIABLE = "RUNBOOKS_STAGES__PRODUCTION__INCIDENTS"


def hurried() -> str:
    """The document's policy, but what is watched for minutes is watched for seconds."""
    policy = IncidentPolicy()
    rules = {
        name: rule.model_copy(update={"watch_every": timedelta(seconds=2), "stable_for": timedelta(seconds=6)})
        for name, rule in policy.severities.items()
    }
    return policy.model_copy(update={"severities": rules}).model_dump_json()


@pytest.fixture
def quick(worker: WorkerProcess) -> Iterator[None]:
    worker.stop()
    worker.environment[VARIABLE] = hurried()
    worker.start()
    yield
    worker.stop()
    del worker.environment[VARIABLE]


async def test_a_broken_release_from_the_alarm_to_the_last_action(quick: None, site: Site) -> None:
    problem = OpenIncident(
        stage="production",
        reason="more than a quarter of the requests fail",
        key=f"errors-{uuid.uuid4().hex[:6]}",
        alert="sns-1",
        source="alarm errors-production",
        severity="P1",
    )
    opened = await open_incident(site.client, "runbooks", problem)
    assert (await open_incident(site.client, "runbooks", problem)).workflow_id == opened.workflow_id
    handle = site.client.get_workflow_handle(opened.workflow_id)
    state = await until(handle, lambda s: s.open_gate() is not None)
    gate = state.open_gate()
    assert gate is not None
    assert (gate.plan["runbook"], str(gate.plan["to"]).split()[0]) == ("QuickRollback", "good")
    seen = Situation.model_validate(await handle.query("situation"))
    assert seen.conclusion is not None
    assert (seen.conclusion.branch, seen.conclusion.causes[0].id) == ("errors", "deployment")
    assert seen.conclusion.failed == ()
    await handle.execute_update("acknowledge", {"by": "carla"})
    await handle.signal("approve", {"by": "bob"})
    run = str((await handle.describe()).run_id)[-8:]
    await approve(site.client.get_workflow_handle(f"{opened.workflow_id}/run-recover-1-{run}"))
    await until(handle, lambda s: any(e.text.startswith("resolved") for e in s.timeline), 120)
    assert site.health()["label"] == "good"
    assert await handle.execute_update("action", {"by": "carla", "text": "a canary first", "owner": "bob"}) == "A1"
    await handle.execute_update("action", {"by": "bob", "do": "done", "id": "A1"})
    await handle.execute_update("post_mortem", {"by": "carla"})
    result = await finished(handle)
    assert result.outcome is Outcome.COMPLETED
    assert [item.id for item in result.checklist if not item.done] == []
    received = json.dumps(site.received())
    for said in ("INCIDENT DECLARED - P1", "Resolved after", "trigger", "resolve"):
        assert said in received
    seen = Situation.model_validate(await handle.query("situation"))
    bucket, _, key = seen.documents["html"].removeprefix("s3://").partition("/")
    html = site.aws("s3").get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    assert "<svg" in html
    assert "QuickRollback" in html
    _, _, key = seen.documents["ics"].removeprefix("s3://").partition("/")
    assert b"BEGIN:VEVENT" in site.aws("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    assert (await progress(handle)).outcome is Outcome.COMPLETED
    await keep(handle, "Incident", "broken-release")
