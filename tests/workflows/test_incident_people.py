"""Whom an incident tells and invites, and that it says so only of those whom it has reached."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.client import Client

from tests.patience import soon
from tests.workflows.incident_world import World, begin, send, working
from tests.workflows.probe import progress, until
from workflows.model import ChecklistItem, RunState, State


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


def item(state: RunState, name: str) -> ChecklistItem:
    return next(item for item in state.checklist if item.id == name)


OTHERS = "engineering lead, product and customer success"


@pytest.mark.parametrize(
    ("channels", "down", "says", "note"),
    [
        ({"stakeholders": ["team@example.org"]}, set(), "Mail goes to", "told"),
        ({"stakeholders": ["team@example.org"]}, {"mail"}, "Mail goes to", "not told"),
        ({"stakeholders": []}, set(), "Tell by hand", "not told"),
        ({"stakeholders": ["team@example.org"], "mail": []}, set(), "Tell by hand", "not told"),
    ],
)
async def test_it_says_who_is_told_and_what_to_set_where_nobody_can_be(
    client: Client, channels: dict[str, Any], down: set[str], says: str, note: str
) -> None:
    world = World("none", channels=channels)
    world.down = down
    async with working(client, world) as queue:
        handle = await begin(client, queue, severity="P1")
        await soon(lambda: bool(world.pages))
        state = await until(handle, lambda s: f"{note}: {OTHERS}" in (item(s, "team").note or ""), 30)
        declared = next(m for _, m in world.said if m.title.startswith("INCIDENT DECLARED"))
        assert f"**{says}:** {OTHERS}" in declared.text
        assert "Also told" not in declared.text
        assert item(state, "team").done == (note == "told")
        if says == "Tell by hand":
            warned = next(entry for entry in state.timeline if entry.level == "warning" and OTHERS in entry.text)
            assert f"set stakeholders and mail in [stages.{state.stage}.channels]" in warned.text
            assert world.mails == []
        await handle.terminate()


async def test_the_team_is_there_when_somebody_is_on_it_though_no_pager_was(client: Client) -> None:
    world = World("none")
    world.down = {"pagerduty", "webhook"}
    async with working(client, world) as queue:
        handle = await begin(client, queue, severity="P1")
        state = await until(handle, lambda s: s.step("notify") is not None and s.step("notify").state is State.DONE)
        assert not item(state, "team").done
        await send(handle, "acknowledge")
        assert item(await progress(handle), "team").done
        await handle.terminate()
