"""The report of a run on this machine: fetched from the records store, or rendered from a run that still goes on."""

from __future__ import annotations

import re
from pathlib import Path

from temporalio.client import WorkflowExecutionStatus

from activities.clients import Aws
from activities.records import Records
from activities.reports import RunRecord, render
from starters.problems import Code, Problem
from starters.runs import described, ended, state_of
from starters.session import Session
from workflows.model import RunState

DEFAULT_DIRECTORY = Path("reports")


async def save(session: Session, workflow_id: str, directory: Path) -> dict[str, Path]:
    """Write the report's files below ``directory``, in a folder named as the run.

    Returns:
        The files by format.

    Raises:
        Problem: there is no such run, or its report is not where the run says.
    """
    description = await described(session, workflow_id)
    if description.status is WorkflowExecutionStatus.RUNNING:
        state = await state_of(session, workflow_id)
        contents = {kind: text.encode() for kind, text in _so_far(state).items()}
    else:
        contents = _stored(session, await _locations(session, workflow_id))
    folder = directory / re.sub(r"[^\w.-]+", "-", workflow_id)
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"report.{kind}" for kind in contents}
    for kind, file in files.items():
        file.write_bytes(contents[kind])
    return files


def _so_far(state: RunState) -> dict[str, str]:
    document = state.model_dump(mode="json")
    document |= {"outcome": "not ended yet", "summary": f"{state.phase.value}, {state.percent} % of the steps are over"}
    record = RunRecord(
        stage=state.stage or "unknown", workflow_id=state.workflow_id, run_id=state.run_id, state=document
    )
    return render(record)


async def _locations(session: Session, workflow_id: str) -> dict[str, str]:
    end = await ended(session, workflow_id)
    # A cancelled or terminated run has no result; then only its state knows.
    found = end.result.report if end.result else (await state_of(session, workflow_id)).report
    if not found:
        raise Problem(f"{workflow_id} has no report: {end.summary}", Code.CONFLICT)
    return found


def _stored(session: Session, locations: dict[str, str]) -> dict[str, bytes]:
    records = Records(Aws(session.settings).s3, session.settings)
    contents: dict[str, bytes] = {}
    for kind, location in locations.items():
        content = records.fetch(location)
        if content is None:
            raise Problem(f"the report is no longer at {location}", Code.CONFLICT)
        contents[kind] = content
    return contents
