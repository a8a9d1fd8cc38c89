"""Whom an incident tells and invites, and that it says so only of those whom it has reached."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import Client

from activities.contacts import Contact, Contacts
from tests.histories import keep
from tests.patience import soon
from tests.workflows.incident_world import World, begin, send, working
from tests.workflows.probe import progress, until
from workflows.incident import Incident
from workflows.incident_model import (
    Acknowledge,
    ActionItem,
    Choose,
    Held,
    Mitigated,
    Resolve,
    SetCause,
    SetSeverity,
    TakeCommand,
)
from workflows.model import Answer, By, ChecklistItem, Message, Note, RunState, State


def timeline(state: RunState) -> str:
    return "\n".join(entry.text for entry in state.timeline)


def item(state: RunState, name: str) -> ChecklistItem:
    return next(item for item in state.checklist if item.id == name)


SENT: dict[str, type[Message]] = {
    "acknowledge": Acknowledge,
    "command": TakeCommand,
    "severity": SetSeverity,
    "cause": SetCause,
    "recover": Choose,
    "mitigated": Mitigated,
    "resolve": Resolve,
    "action": ActionItem,
    "post_mortem": Held,
    "approve": Answer,
    "reject": Answer,
    "note": Note,
    "abort": By,
}


def test_what_the_page_tells_people_without_the_command_line_to_send_is_taken() -> None:
    page = (Path(__file__).parents[2] / "docs/runbooks/Incident.md").read_text()
    rows = re.findall(r"^\| `runbooks .*?\| (?:signals? )?((?:`\w+`,? )+)`(\{.*?\})` \|", page, re.M)
    told = {name: json.loads(given) for names, given in rows for name in re.findall(r"\w+", names)}
    assert told.keys() == SENT.keys()
    taken = workflow._Definition.must_from_class(Incident)
    for name, given in told.items():
        assert name in taken.updates or name in taken.signals, name
        assert SENT[name].model_validate(given)


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
        state = await until(handle, lambda s: f"; {note}: {OTHERS}" in (item(s, "team").note or ""), 30)
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


ANN = Contact(name="Ann Archer", mail="ann@example.org")


@pytest.mark.parametrize(
    ("stakeholders", "people", "down", "to", "by_hand"),
    [
        (["team@example.org"], (ANN,), set(), ("team@example.org", "ann@example.org"), "carla"),
        ([], (ANN,), set(), ("ann@example.org",), "carla"),
        (["team@example.org"], (), {"mail"}, None, "ann, carla"),
        ([], (), set(), None, "ann, carla"),
    ],
)
async def test_responders_are_invited_and_it_counts_only_when_the_invitation_was_taken(
    client: Client,
    stakeholders: list[str],
    people: tuple[Contact, ...],
    down: set[str],
    to: tuple[str, ...] | None,
    by_hand: str,
) -> None:
    world = World("none", channels={"stakeholders": stakeholders})
    world.contacts = Contacts(roles={str(number): person for number, person in enumerate(people)})
    async with working(client, world) as queue:
        handle = await begin(client, queue, severity="P1")
        await soon(lambda: bool(world.pages))
        await send(handle, "acknowledge")
        await send(handle, "command", to="carla")
        world.down = down
        await send(handle, "resolve", cause="a typo")
        state = await until(handle, lambda s: "Resolved after" in timeline(s))
        assert item(state, "post-mortem").done == (to is not None)
        told = next(entry for entry in state.timeline if f"Tell them by hand: {by_hand}; " in entry.text)
        assert told.level == "warning"
        if to is None:
            assert "NOBODY WAS INVITED: do it" in (item(state, "post-mortem").note or "")
        else:
            mail = world.mails[-1]
            assert (mail.to, f"Tell them by hand: {by_hand}" in mail.text) == (to, True)
            assert "To be told by hand: carla" in (mail.calendar or "").replace("\r\n ", "")
            assert all(f"mailto:{address}" in (mail.calendar or "").replace("\r\n ", "") for address in to)
        warned = "nobody was invited to the post-mortem: set stakeholders and mail in [stages."
        assert (warned in timeline(state)) == (not stakeholders and not people)
        await handle.terminate()


@pytest.mark.long
async def test_the_same_incident_another_time_gets_a_ticket_of_its_own_for_its_rollback(client: Client) -> None:
    """Its id comes again, and a ticket system gives back the ticket that it has under a key."""
    world, name = World("errors"), f"incident-{uuid.uuid4()}"
    async with working(client, world) as queue:
        for time in range(2):
            given = {"stage": name, "reason": "more 500s", "requested_by": "alarm", "severity": "P1"}
            handle = await client.start_workflow("Incident", given, id=name, task_queue=queue)
            await until(handle, lambda s: s.open_gate() is not None)
            await handle.signal("approve", {"by": "bob"})
            await until(handle, lambda s: "recovery" in [item.id for item in s.checklist if item.done], 30)
            assert [request.labels for request in world.tickets] == [("incident", "rollback")] * (time + 1)
            if time == 1:
                await keep(handle, "Incident", "a-second-time")
            await handle.terminate()
            world.fault, world.live = "errors", "2"
    assert len({request.key for request in world.tickets}) == 2


def test_an_address_is_found_by_any_name_that_somebody_signs_with() -> None:
    contacts = Contacts(roles={"lead": ANN, "silent": Contact(name="Bob")})
    for name in ("Ann Archer", " ann archer", "ann@example.org", "ANN"):
        assert contacts.mail_of(name) == "ann@example.org"
    for name in ("Bob", "Archer", "example.org", ""):
        assert contacts.mail_of(name) is None
