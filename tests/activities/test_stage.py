"""Who may approve, by the settings of a stage."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.settings import load_settings
from activities.stage import GatePolicy, Stage
from tests.workflows.bare_stage import bare_stage
from workflows import symptom
from workflows.restore_rules import insisting

POLICIES = {"default": {"approvals": 2}, "approve-restore": {"approvals": 0, "time_limit": "PT1H"}}


def stage(production: bool, gates: dict[str, Any] | None = None) -> Stage:
    return bare_stage("stage", {"production": production, "gates": POLICIES if gates is None else gates})


@pytest.mark.parametrize("gates", [{}, POLICIES, {"default": GatePolicy(approvals=2)}])
@pytest.mark.parametrize("gate", ["any", "approve-restore"])
def test_in_production_who_asked_may_not_approve_whatever_else_a_policy_says(gates: dict[str, Any], gate: str) -> None:
    assert not stage(True, gates).gate(gate).requester_may_approve
    assert not insisting(stage(True, gates)).gate(gate).requester_may_approve
    assert stage(False, gates).gate(gate).requester_may_approve


@pytest.mark.parametrize("production", [True, False])
@pytest.mark.parametrize("may", [True, False])
def test_a_policy_that_says_it_is_taken_at_its_word(production: bool, may: bool) -> None:
    given = stage(production, {"default": {"requester_may_approve": may}})
    assert given.gate("any").requester_may_approve is may
    assert insisting(given).gate("approve-restore").requester_may_approve is may


def test_nothing_else_of_a_policy_is_changed() -> None:
    assert stage(True).gate("any").approvals == 2
    assert stage(True).gate("approve-restore").time_limit == timedelta(hours=1)


def test_a_history_says_what_held_when_the_run_began() -> None:
    """Runs of before this rule have it recorded that who asked may, and are to go on as they were."""
    told = stage(True).model_dump(mode="json")
    assert Stage.model_validate(told) == stage(True)
    told["gates"]["default"]["requester_may_approve"] = True
    assert Stage.model_validate(told).gate("any").requester_may_approve


def test_it_holds_for_the_settings_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "runbooks.toml"
    file.write_text(
        """
[stages.live]
name = "live"
production = true
function = "f"
url = "http://127.0.0.1:1"
api_key = "env:NONE"
log_group = "g"
gateway = { name = "a", stage = "live" }
database = { uri = "env:NONE", name = "d" }
gates.default.approvals = 2
"""
    )
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(file))
    assert not load_settings().stages["live"].gate("any").requester_may_approve


def test_which_remedy_is_tried_may_be_said_by_who_asked() -> None:
    assert symptom.CHOICE.requester_may_approve
