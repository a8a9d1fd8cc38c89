"""The short form of ``make chaos``: one runbook whose worker dies all the time; and that the proof can fail at all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from temporalio.client import Client

from sandbox.house import House
from tests.chaos.__main__ import broken_off
from tests.chaos.ground import Ending, Ground
from tests.chaos.matrix import Row, rows
from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import SCENARIOS
from tests.runbooks.conftest import WorkerProcess

BACKUP, ROLLBACK = (next(one for one in SCENARIOS if one.name == name) for name in ("backup", "rollback-alias"))


@pytest.mark.parametrize(
    ("scenario", "kills"), [(BACKUP, 6), pytest.param(ROLLBACK, 15, marks=pytest.mark.long)], ids=["backup", "rollback"]
)
async def test_killed_after_every_activity_a_runbook_ends_the_same(
    scenario: Scenario, kills: int, house: House, worker: WorkerProcess, runs: Client, tmp_path: Path
) -> None:
    worker.stop()  # it would take the tasks of the one that is to die
    (row,) = [row async for row in rows(Ground(house, runs, tmp_path), scenario, ("after",))]
    assert row.verdict == "the same end, nothing twice"
    assert row.ending.faults >= kills


def test_a_proof_that_broke_off_is_no_good_end() -> None:
    shown = [{"scenario": "limit", "fault": "before"}, {"scenario": "pool", "fault": "after"}]
    rows = broken_off("limit", ("before", "after"), shown)
    assert [(row["scenario"], row["fault"], row["mark"]) for row in rows] == [("limit", "after", "✘")]


def ending(
    outcome: str = "completed", state: str = "good", left: tuple[str, ...] = (), api: bool = True, **effects: int
) -> Ending:
    found = {"live": "broken"}
    return Ending(outcome, "", {"api": api}, list(left), found, {"live": state}, Counter(effects))


def mark(disturbed: Ending, fault: str = "after") -> str:
    return Row(ROLLBACK, fault, disturbed, ending(deployments=1, pages=1)).mark


def test_what_is_made_twice_or_left_or_missing_is_no_good_end() -> None:
    assert mark(ending(deployments=1, pages=1)) == "="
    assert mark(ending(deployments=2, pages=1)) == "✘"
    assert mark(ending(deployments=1)) == "✘", "a page that never came"
    assert mark(ending(state="broken", deployments=1, pages=1)) == "✘"
    assert mark(ending("failed", "good", deployments=1, pages=1)) == "✘", "failed, and not as it was found"
    assert mark(ending("failed", "broken", ("alias",), deployments=1, pages=1)) == "✘"
    assert mark(ending("failed", "broken")) == "↩"
    assert mark(ending("failed", "broken", deployments=2)) == "✘"
    unconfirmed = ending(api=False, deployments=1, pages=1)
    assert (mark(unconfirmed), mark(unconfirmed, "mixed")) == ("✘", "≈"), "only where what it checks was failing"
