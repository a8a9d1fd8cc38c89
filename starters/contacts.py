"""``runbooks contacts``: who to call, and where to look."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from activities.contacts import ROLES
from activities.settings import load_settings
from starters.output import AsJson, Output


def contacts(as_json: AsJson = False) -> None:
    """Who to call: the engineer on call this week, the roles, and the useful links. Works without Temporal."""
    found = load_settings().contacts
    rows: list[tuple[str, str]] = []
    if found.on_call is None:
        rows.append(("On-call engineer", "nobody is named: add [contacts.on_call] to the settings"))
    else:
        person, until = found.on_call.turn(datetime.now(UTC))
        rows.append(("On-call engineer", f"{person.described()} (until {until:%Y-%m-%d %H:%M %Z})"))
    for role in dict.fromkeys([*ROLES, *found.roles]):
        title = ROLES.get(role, role.replace("_", " ").capitalize())
        named = found.roles.get(role)
        rows.append((title, named.described() if named else f"nobody is named: add [contacts.roles.{role}]"))
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for title, who in rows:
        table.add_row(Text(title, "bold"), Text(who))
    links = [Text(f"{name}: {url}") for name, url in found.links.items()]
    Output(as_json).show({"people": dict(rows), "links": found.links}, Group(table, Text(""), *links))
