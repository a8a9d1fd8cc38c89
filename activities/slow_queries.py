"""The forms of slow queries, and the index that one lacks. Pure functions of commands, plans and indexes.

A form is a query without the values that it asked for: those are the application's data and stay in the database.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from bson import ObjectId
from bson.json_util import RELAXED_JSON_OPTIONS, dumps

from activities import index_rules

Command = Mapping[str, Any]

_RANGES = {"$lt": "<", "$lte": "<=", "$gt": ">", "$gte": ">="}
_EQUAL = {"$eq": "=", "$in": "in"}
_MOST_KEYS = 6
"""A proposal with more keys than this is for a person to think about."""

WASTE = 10
"""A plan that reads so many times the documents it returns lacks an index, even if it uses one."""

FEW = 100
"""Documents that may be read for one query before anybody speaks of waste."""


class Form(NamedTuple):
    """What decides the plan of a query."""

    collection: str
    kind: str
    filter: Mapping[str, Any]
    sort: tuple[tuple[str, int], ...]

    def described(self) -> str:
        fields = ", ".join(f"{name}: {sign}" for name, sign in _signs(self.filter))
        sort = "{" + ", ".join(f"{name}: {way}" for name, way in self.sort) + "}"
        return f"{self.kind} {{{fields}}}" + (f" sort {sort}" if self.sort else "")


def form_of(namespace: str, command: Command) -> Form | None:
    """The form of a command as the profiler shows it; None for what is no query of a collection."""
    collection = namespace.partition(".")[2]
    if not collection or collection.startswith("system."):
        return None
    if "find" in command:
        return Form(collection, "find", _mapping(command.get("filter")), _sort(command.get("sort")))
    if "count" in command or "distinct" in command:
        kind = "count" if "count" in command else "distinct"
        return Form(collection, kind, _mapping(command.get("query")), ())
    if "findAndModify" in command or "findandmodify" in command:
        return Form(collection, "findAndModify", _mapping(command.get("query")), _sort(command.get("sort")))
    if "aggregate" in command:
        stages = [stage for stage in command.get("pipeline") or () if isinstance(stage, Mapping)]
        match = _mapping(stages[0].get("$match")) if stages else {}
        rest = stages[1:] if match else stages
        sort = _sort(rest[0].get("$sort")) if rest else ()
        return Form(collection, "aggregate", match, sort)
    for kind, name in (("update", "updates"), ("delete", "deletes")):
        if kind in command or "q" in command:
            first = next(iter(command.get(name) or ()), command)
            return Form(collection, kind if kind in command else "write", _mapping(_mapping(first).get("q")), ())
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _sort(value: Any) -> tuple[tuple[str, int], ...]:
    return tuple((str(name), int(way)) for name, way in _mapping(value).items() if isinstance(way, int | float))


def _signs(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each field with how it is asked for; what is no plain comparison is shown by its operator."""
    found: list[tuple[str, str]] = []
    for name, value in query.items():
        if name == "$and" and isinstance(value, Sequence):
            found += [pair for part in value for pair in _signs(_mapping(part))]
        elif name.startswith("$"):
            found.append((name, "…"))
        elif isinstance(value, Mapping) and any(key.startswith("$") for key in value):
            found.append((name, " ".join(dict.fromkeys(_EQUAL.get(op) or _RANGES.get(op) or op for op in value))))
        else:
            found.append((name, "="))
    return found


class Proposal(NamedTuple):
    keys: tuple[tuple[str, int], ...]
    note: str | None = None
    """Why there are no keys, when there are none."""


def missing_index(form: Form, indexes: Iterable[Mapping[str, Any]]) -> Proposal:
    """The index that the form lacks: what is equal first, then the sort, then ranges (MongoDB's own rule).

    The keys are empty where an index would not help, is there already, or is not for a rule to decide.
    """
    equal: list[str] = []
    ranges: list[str] = []
    for name, sign in _signs(form.filter):
        if name.startswith("$"):
            return Proposal((), f"it has {name}: no single index is sure to help")
        signs = set(sign.split())
        if signs <= {"=", "in"}:
            equal.append(name)
        elif signs <= set(_RANGES.values()):
            ranges.append(name)
        else:
            return Proposal((), f"{name} is asked for with {sign}: an index may not help")
    sorted_by = [name for name, _ in form.sort]
    keys = [(name, 1) for name in equal if name not in sorted_by]
    keys += [pair for pair in form.sort if pair not in keys]
    keys += [(name, 1) for name in ranges if name not in dict(keys)]
    if not keys or [name for name, _ in keys] == ["_id"]:
        return Proposal((), "it asks for every document: no index helps")
    if len(keys) > _MOST_KEYS:
        return Proposal((), f"an index of {len(keys)} fields is for a person to decide")
    known = list(indexes)
    there = index_rules.covering(keys, False, known)
    if there is not None:
        return Proposal((), f"index {there} has these keys already, and the planner does not use it")
    return Proposal(tuple(keys))


def lacks_index(plan: str | None, sorts: bool, examined: int | None, returned: int | None) -> bool:
    """Whether the plan says that an index is missing."""
    if plan == "COLLSCAN":
        return examined is None or examined > FEW
    if examined is None or plan is None:
        return False
    wasteful = examined > FEW and examined > WASTE * max(returned or 0, 1)
    return wasteful or (sorts and examined > FEW)


def sorts_in_memory(explained: Mapping[str, Any]) -> bool:
    """Whether the winning plan sorts by itself, because no index gives the order."""

    def walk(value: Any) -> bool:
        if isinstance(value, Mapping):
            return value.get("stage") == "SORT" or any(walk(inner) for inner in value.values())
        return isinstance(value, list) and any(walk(inner) for inner in value)

    return walk(explained.get("queryPlanner", {}).get("winningPlan", {}))


def without_values(query: Mapping[str, Any]) -> dict[str, Any]:
    """The filter with other values of the same types, as relaxed Extended JSON: it has the same plan and tells
    nothing."""
    plain: dict[str, Any] = json.loads(dumps(_blank(query), json_options=RELAXED_JSON_OPTIONS))
    return plain


def _blank(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _blank(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_blank(value[0])] if value else []
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return 0
    if isinstance(value, float):
        return 0.0
    if isinstance(value, datetime):
        return datetime(2020, 1, 1, tzinfo=UTC)
    if isinstance(value, ObjectId):
        return ObjectId("0" * 24)
    return "none"
