"""Slow queries as Atlas keeps them, in the form in which the profiler has them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx
from bson import json_util
from temporalio.exceptions import ApplicationError

from activities.atlas import Atlas
from activities.secret_refs import SecretResolver
from activities.stage import AtlasFacts
from activities.symptom_models import SlowAsked

Entry = dict[str, Any]


class AtlasAdvisor:
    def __init__(self, http: httpx.Client, resolver: SecretResolver) -> None:
        self._http, self._resolver = http, resolver
        self._clients: dict[AtlasFacts, Atlas] = {}

    def slow_queries(self, asked: SlowAsked) -> list[Entry] | None:
        """Entries like the profiler's; None where the stage names no cluster, or Atlas has no such log of it."""
        facts = asked.stage.backup.atlas
        if facts is None:
            return None
        atlas = self._clients.setdefault(facts, Atlas(facts, self._http, self._resolver))
        try:
            lines = atlas.slow_query_lines(asked.since, asked.until)
        except ApplicationError as error:
            if error.type == "Http404":
                return None
            raise
        over = asked.over.total_seconds() * 1000
        return [
            entry
            for entry in entries_of(lines)
            if entry["millis"] >= over and str(entry["ns"]).startswith(f"{asked.stage.database.name}.")
        ]


def entries_of(lines: Iterable[str]) -> list[Entry]:
    """Lines of a MongoDB log (JSON, 4.4 and later). A line of another kind is left out."""
    found = []
    for line in lines:
        try:
            attributes = json_util.loads(line)["attr"]
            found.append(
                {
                    "ns": str(attributes["ns"]),
                    "command": attributes["command"],
                    "millis": float(attributes["durationMillis"]),
                    "appName": attributes.get("appName"),
                    "docsExamined": attributes.get("docsExamined"),
                    "nreturned": attributes.get("nreturned"),
                }
            )
        except (KeyError, TypeError, ValueError, json.JSONDecodeError):
            continue
    return found
