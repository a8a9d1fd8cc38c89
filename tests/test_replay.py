"""Runs that began under earlier code go on under this code: every kept history replays without a difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from tests.histories import FOLDER
from tests.workflows.probe import Outer, Probe
from tests.workflows.test_waiting import Moment
from workflows.catalog import WORKFLOWS
from workflows.plugin import RunbooksPlugin

KEPT = sorted(FOLDER.glob("*/*.json"))


def read(path: Path) -> WorkflowHistory:
    """The history under the id that the run had: ids of the runs below it are made of that."""
    text = path.read_text()
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started["workflowId"], text)


def test_every_workflow_has_a_history() -> None:
    missing = {cls.__name__ for cls in WORKFLOWS} - {path.parent.name for path in KEPT}
    assert not missing, f"no history of {missing}: add a scenario that keeps one, then run make histories"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
async def test_a_kept_history_replays(path: Path) -> None:
    replayer = Replayer(workflows=[Moment, Outer, Probe], plugins=[RunbooksPlugin()])
    result = await replayer.replay_workflow(read(path), raise_on_replay_failure=False)
    assert result.replay_failure is None, (
        f"{path.parent.name}: a run that is under way would break with this code. Put the changed commands behind "
        f"workflow.patched('what-changed') and keep the old branch; record anew only what nobody runs any more. "
        f"{result.replay_failure}"
    )
