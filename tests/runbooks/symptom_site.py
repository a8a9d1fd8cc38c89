"""A stage with steady traffic, on which symptoms are made for real."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client

from sandbox.api import data
from sandbox.house import House
from sandbox.traffic import Traffic
from tests.patience import eventually
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, until
from workflows.model import RunbookResult

STAGES = ("staging", "production")

HURRY = {
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__ERROR_WINDOW": "PT4S",
    "RUNBOOKS_STAGES__PRODUCTION__ROLLBACK__METRICS_DELAY": "PT2S",
}
"""A worker that does not let traffic run for long after a rollback."""

_UNSEEN = timedelta(seconds=5)
"""The end of the log that a run leaves out: the metrics' delay, and up to two seconds that Insights rounds away."""


@contextmanager
def traffic(site: Site, rate: float, client: int = 0) -> Iterator[Traffic]:
    driving = site.house.traffic("production", rate, 600, client)
    try:
        yield driving
    finally:
        driving.stop()


@contextmanager
def placed(house: House, worker: WorkerProcess, runs: Client, rate: float) -> Iterator[Site]:
    """Production with a good release, and traffic all the time: before the trouble, in it, and after it."""
    site = Site(house, runs)
    with worker.set(HURRY):
        site.deploy("good")
        with traffic(site, rate):
            yield site


@contextmanager
def filled(site: Site, sessions: int) -> Iterator[None]:
    """Both stages with so many sessions, and afterwards with as many as always.

    Each request of the next load test would sort them all.
    """
    for stage in STAGES:
        site.house.fill(stage, sessions)
    yield
    for stage in STAGES:
        data.seed(site.database(stage), fresh=True)


def _answers(site: Site, statuses: str, since: datetime, until: datetime) -> int:
    group = tomllib.loads(site.house.layout.settings.read_text())["stages"][site.stage]["log_group"]
    start, end = (int(moment.timestamp() * 1000) for moment in (since, until))
    if end <= start:
        return 0
    pages = site.aws("logs").get_paginator("filter_log_events")
    asked = pages.paginate(logGroupName=group, startTime=start, endTime=end, filterPattern='"statusCode"')
    lines = [event["message"] for page in asked for event in page["events"] if event["message"].startswith("{")]
    return sum(str(json.loads(line).get("statusCode", "")).startswith(statuses) for line in lines)


async def logged(site: Site, statuses: str, least: int, since: datetime, patience: float = 120) -> None:
    """Until a run that begins now sees so many answers with statuses that begin so.

    What clients were just answered is no measure: the log is behind, and a run does not look at its very end.
    """

    async def seen() -> bool:
        return _answers(site, statuses, since, now() - _UNSEEN) >= least

    await eventually(seen, f"{least} answers of {statuses}..", patience, every=0.5)


async def without_errors(site: Site, window: timedelta) -> None:
    """Until the trouble of another test is out of the window: what was as bad before a release is not its fault."""

    async def clean() -> bool:
        return _answers(site, "5", now() - window - _UNSEEN, now()) == 0

    await eventually(clean, f"{window} without errors", every=0.5)


def now() -> datetime:
    return datetime.now(UTC)


async def approve(site: Site, run: str, gate: str, patience: float = 120) -> dict[str, Any]:
    handle = site.client.get_workflow_handle(run)
    state = await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == gate, patience)
    await handle.signal("approve", {"by": "bob", "gate": gate})
    gate_now = state.open_gate()
    assert gate_now is not None
    return dict(gate_now.plan)


def done(result: RunbookResult) -> dict[str, bool]:
    return {item.id: item.done for item in result.checklist}
