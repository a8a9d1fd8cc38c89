"""The quick commands and the contacts, as far as they need no stage of their own."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.contacts import Contact, OnCall
from starters.problems import Code, Problem
from starters.quick import length
from tests.starters.conftest import Cli, House

PEOPLE = (Contact(name="Ann", phone="+1 555 0100"), Contact(name="Bob"), Contact(name="Cleo"))


@pytest.mark.parametrize(("text", "seconds"), [("15m", 900), ("30s", 30), ("2h", 7200), ("1d", 86400), (" 5m ", 300)])
def test_a_length_of_time(text: str, seconds: int) -> None:
    assert length(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "15", "m", "0m", "-5m", "1.5h", "15 minutes"])
def test_what_is_no_length_is_said(text: str) -> None:
    with pytest.raises(Problem, match="takes a number and s, m, h or d"):
        length(text)


@pytest.mark.parametrize(
    ("now", "name"),
    [
        ("2026-01-05T09:00", "Ann"),
        ("2026-01-12T08:59", "Ann"),
        ("2026-01-12T09:00", "Bob"),
        ("2026-01-26T09:00", "Ann"),
        ("2025-12-01T00:00", "Ann"),
    ],
)
def test_who_is_on_call(now: str, name: str) -> None:
    rotation = OnCall(people=PEOPLE, since=date(2026, 1, 5))
    who, until = rotation.turn(datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert who.name == name
    assert until.weekday() == 0


@given(st.integers(0, 5000), st.integers(1, 30))
def test_somebody_is_on_call_at_every_hour_and_hands_over_in_order(hours: int, days: int) -> None:
    rotation = OnCall(people=PEOPLE, since=date(2026, 1, 5), days=days, time_zone="Europe/Berlin")
    now = datetime(2026, 1, 5, 12, tzinfo=UTC) + timedelta(hours=hours)
    who, until = rotation.turn(now)
    assert now < until <= now + timedelta(days=days, hours=1)
    after, _ = rotation.turn(until)
    assert PEOPLE.index(after) == (PEOPLE.index(who) + 1) % len(PEOPLE)


CONTACTS = """
[contacts.roles.infrastructure_lead]
name = "Dora"
mail = "dora@example.org"

[contacts.on_call]
since = 2026-01-05
people = [{ name = "Ann", phone = "+1 555 0100" }]
"""


async def test_contacts_say_who_is_named_and_who_is_not(house: House, cli: Cli, tmp_path: Path) -> None:
    settings = tmp_path / "runbooks.toml"
    settings.write_text(settings.read_text().replace("[aws]", f"{CONTACTS}\n[aws]", 1))
    said = await cli("contacts", "--json")
    assert said.code == Code.DONE, said.err
    people = said.document["people"]
    assert people["On-call engineer"].startswith("Ann, +1 555 0100 (until ")
    assert people["Infrastructure lead"] == "Dora, dora@example.org"
    assert "[contacts.roles.database_administrator]" in people["Database administrator"]
    assert "AWS CloudWatch Console" in said.document["links"]


@pytest.mark.parametrize("command", ["logs", "errors", "status"])
async def test_a_stage_that_does_not_exist_is_said(house: House, cli: Cli, command: str) -> None:
    said = await cli("quick", command, "nowhere")
    assert said.code == Code.CONFLICT
    assert "there is no stage 'nowhere'" in said.err


async def test_a_runbook_that_the_catalog_has_not_is_said(house: House, cli: Cli) -> None:
    said = await cli("quick", "rollback", "production", "--reason", "500s")
    assert said.code == Code.CONFLICT
    assert "QuickRollback" in said.err
