"""The short form of ``make chaos``: one runbook whose worker dies all the time; and that the proof can fail at all."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from temporalio.client import Client

from sandbox.api.stack import secret_parameter
from sandbox.house import House
from tests.chaos.__main__ import broken_off
from tests.chaos.ground import Ending, Ground
from tests.chaos.matrix import Row, rows
from tests.chaos.scenario import Scenario, at
from tests.chaos.scenarios import SCENARIOS, sessions
from tests.chaos.surroundings import surroundings
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


async def test_whatever_a_runbook_could_leave_changed_is_seen(house: House, runs: Client, tmp_path: Path) -> None:
    on, stage = Ground(house, runs, tmp_path), "staging"
    site = at(on, stage)
    before = surroundings(on)
    assert surroundings(on) == before
    functions, parameters, secrets = site.aws("lambda"), site.aws("ssm"), site.aws("secretsmanager")
    parameter = {"Name": secret_parameter(stage, "ApiKeys"), "Type": "SecureString", "Overwrite": True}
    value = site.secret("ApiKeys")
    index = sessions(on, stage).create_index("left_behind")
    functions.put_function_concurrency(FunctionName=site.stack, ReservedConcurrentExecutions=7)
    parameters.put_parameter(**parameter, Value="another")
    secrets.create_secret(Name="left-behind", SecretString="value")
    try:
        now = surroundings(on)
    finally:
        sessions(on, stage).drop_index(index)
        functions.delete_function_concurrency(FunctionName=site.stack)
        parameters.put_parameter(**parameter, Value=value)
        secrets.delete_secret(SecretId="left-behind", ForceDeleteWithoutRecovery=True)
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
    assert changed == {"indexes of state_api_staging.sessions", "staging limit", parameter["Name"], "left-behind"}
    assert surroundings(on) == before


def test_a_proof_that_broke_off_is_no_good_end() -> None:
    shown = [{"scenario": "limit", "fault": "before"}, {"scenario": "pool", "fault": "after"}]
    rows = broken_off("limit", ("before", "after"), shown)
    assert [(row["scenario"], row["fault"], row["mark"]) for row in rows] == [("limit", "after", "✘")]


def ending(
    outcome: str = "completed", state: str = "good", left: tuple[str, ...] = (), api: bool = True, **effects: int
) -> Ending:
    found = {"live": "broken"}
    return Ending(outcome, "", {"api": api}, list(left), found, {"live": state}, Counter(effects))


def mark(disturbed: Ending, fault: str = "after", scenario: Scenario = ROLLBACK) -> str:
    return Row(scenario, fault, disturbed, ending(deployments=1, pages=1)).mark


def test_what_is_made_twice_or_left_or_missing_is_no_good_end() -> None:
    assert mark(ending(deployments=1, pages=1)) == "="
    assert mark(ending(deployments=2, pages=1)) == "✘"
    assert mark(ending(deployments=1)) == "✘", "a page that never came"
    assert mark(ending(state="broken", deployments=1, pages=1)) == "✘"
    assert mark(ending("failed", "good", deployments=1, pages=1)) == "✘", "failed, and not as it was found"
    assert mark(ending("failed", "broken", ("alias",), deployments=1, pages=1)) == "✘"
    assert mark(ending("failed", "broken")) == "↩"
    elsewhere = ending("failed", "broken")
    elsewhere.changed = ["staging limit"]
    assert mark(elsewhere) == "✘", "it was not what the run is for, and it is not as it was found"
    assert "staging limit is not as before" in Row(ROLLBACK, "after", elsewhere, ending(pages=1)).verdict
    assert mark(ending("failed", "broken", deployments=2)) == "✘"
    unconfirmed = ending(api=False, deployments=1, pages=1)
    assert (mark(unconfirmed), mark(unconfirmed, "mixed")) == ("✘", "≈"), "only where what it checks was failing"
    assert mark(unconfirmed, "database dies") == "✘"
    timed = dataclasses.replace(ROLLBACK, measures=frozenset({"api"}))
    assert mark(unconfirmed, "database dies", timed) == "≈", "the API has no answer without its database"
    assert mark(unconfirmed, "temporal dies", timed) == "✘"
