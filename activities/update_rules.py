"""Which updates of many documents are taken, decided before any database is asked. Pure functions, no I/O.

Filter and update come as MongoDB Extended JSON, because people type them. Every rule raises :class:`BadUpdate` with a
line that says what to write instead. What only the server can know (a bad expression, a validator of the collection) is
found out on copies of a few documents before the first real batch; see :mod:`activities.batch_plan`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import bson
from bson import json_util
from bson.codec_options import DatetimeConversion

Document = dict[str, Any]
Update = Document | list[Document]

OPERATORS = frozenset(
    f"${name}"
    for name in "set unset rename inc mul min max currentDate addToSet pull pullAll push pop bit".split()  # noqa: SIM905
)
"""Update operators that change documents which exist. ``$setOnInsert`` is not among them: nothing is inserted."""

STAGES = frozenset({"$set", "$addFields", "$unset", "$project", "$replaceRoot", "$replaceWith"})
"""The stages that MongoDB takes in an update's pipeline."""

RUN_CODE = frozenset({"$where", "$function", "$accumulator"})
"""Operators that run JavaScript: slow, often switched off, and not to be typed into an operations tool."""

WHOLE = "*"
"""Stands in the list of touched fields for the whole document."""

_COLLECTION = re.compile(r"^[^\x00$]{1,120}$")
_OWN = "_runbook_"
"""Collections of this product begin so."""

_READ = json_util.JSONOptions(tz_aware=True, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


class BadUpdate(ValueError):
    """The update cannot be run as it was typed; the text says why and what to write instead."""


def check_collection(name: str) -> str:
    """The name, when it can be that of a collection of the application."""
    if not _COLLECTION.match(name) or name != name.strip():
        raise BadUpdate(f"{name!r} cannot be the name of a collection")
    if name.startswith(("system.", _OWN)):
        raise BadUpdate(f"'{name}' belongs to the server or to these runbooks: name a collection of the application")
    return name


def check_filter(query: Document, *, all_documents: bool) -> Document:
    """The filter, when it may be used.

    Raises:
        BadUpdate: it is empty although not all documents are meant, runs code, or is not Extended JSON.
    """
    _decoded(query, "filter")
    _no_code(query, "filter")
    if not query and not all_documents:
        raise BadUpdate('the filter is empty: every document would be updated. Say "all_documents": true if so')
    if query and all_documents:
        raise BadUpdate("all_documents is for an empty filter; this one is not empty: leave one of the two out")
    return query


def check_update(update: Update) -> Update:
    """The update, when it may be used: operators or a pipeline of the allowed kind that leave ``_id`` alone."""
    _decoded(update, "update")
    _no_code(update, "update")
    if not update:
        raise BadUpdate('the update is empty: give operators such as {"$set": {"status": "active"}}, or a pipeline')
    for stage in update if isinstance(update, list) else ():
        _check_stage(stage)
    if isinstance(update, dict):
        _check_operators(update)
    touched = touched_paths(update)
    if any(path == "_id" or path.startswith("_id.") for path in touched):
        raise BadUpdate("the update touches _id, which no document can change: leave it out")
    return update


def decode(value: Any) -> Any:
    """BSON values out of Extended JSON (canonical, relaxed or legacy)."""
    return json_util.loads(json.dumps(value), json_options=_READ) if value is not None else None


def encode(value: Any) -> Any:
    """Extended JSON, canonical so that every type survives, as plain data."""
    text = json_util.dumps(value, json_options=json_util.CANONICAL_JSON_OPTIONS)
    return json.loads(text)


def touched_paths(update: Update) -> tuple[str, ...]:
    """The paths that the update writes; :data:`WHOLE` where a stage makes the document anew."""
    found: list[str] = []
    if isinstance(update, dict):
        for operator, fields in update.items():
            found += fields
            if operator == "$rename":
                found += (str(name) for name in fields.values())
    else:
        for stage in update:
            name, value = next(iter(stage.items()))
            if name in ("$set", "$addFields"):
                found += value
            elif name == "$unset":
                found += [value] if isinstance(value, str) else value
            else:
                found.append(WHOLE)
                if name == "$project" and value.get("_id", 1) not in (0, False):
                    found += [path for path in value if path.startswith("_id") and value[path] not in (1, True)]
    return tuple(dict.fromkeys(found))


def touched_fields(update: Update) -> tuple[str, ...]:
    """The top-level fields whose former values an undo needs; only :data:`WHOLE` when it needs the whole document."""
    paths = touched_paths(update)
    if WHOLE in paths:
        return (WHOLE,)
    return tuple(dict.fromkeys(path.split(".")[0] for path in paths))


def describe_update(update: Update) -> str:
    """The update in a few words, for people: its operators or stages and the fields they write."""
    fields = ["the whole document" if path == WHOLE else path for path in touched_paths(update)]
    names = list(update) if isinstance(update, dict) else [next(iter(stage)) for stage in update]
    shown = ", ".join(fields[:6]) + (f" and {len(fields) - 6} more" if len(fields) > 6 else "")
    return f"{', '.join(dict.fromkeys(names))} of {shown}"


def _check_operators(update: Document) -> None:
    plain = [name for name in update if not name.startswith("$")]
    if plain:
        raise BadUpdate(f"'{plain[0]}' is not an operator: a whole document would be replaced. Write it under $set")
    for name, fields in update.items():
        if name not in OPERATORS:
            raise BadUpdate(f"{name} is not allowed; these are: {', '.join(sorted(OPERATORS))}")
        if not isinstance(fields, dict) or not fields:
            raise BadUpdate(f"{name} takes an object of fields and values, with at least one field")
        if name == "$rename" and not all(isinstance(to, str) and to for to in fields.values()):
            raise BadUpdate("$rename takes an object of old names and new names")
        for path in fields:
            _check_path(path, name)


def _check_path(path: str, operator: str) -> None:
    parts = path.split(".")
    if not all(parts):
        raise BadUpdate(f"{operator}: {path!r} is no path of a field")
    named = [part for part in parts if part.startswith("$[") and part != "$[]"]
    if named:
        raise BadUpdate(f"{operator}: {named[0]} needs array filters, which are not taken: use a pipeline with $map")


def _check_stage(stage: Document) -> None:
    if not isinstance(stage, dict) or len(stage) != 1:
        raise BadUpdate("each stage of a pipeline is an object with exactly one field, its operator")
    name, value = next(iter(stage.items()))
    if name not in STAGES:
        raise BadUpdate(f"{name} is no stage of an update's pipeline; these are: {', '.join(sorted(STAGES))}")
    texts = [value] if isinstance(value, str) else value
    if name == "$unset":
        if not isinstance(texts, list) or not texts or not all(isinstance(path, str) and path for path in texts):
            raise BadUpdate("$unset takes the name of a field or a list of names")
    elif name != "$replaceWith" and (not isinstance(value, dict) or not value):
        raise BadUpdate(f"{name} takes an object, which is not empty")
    elif name == "$replaceRoot" and set(value) != {"newRoot"}:
        raise BadUpdate("$replaceRoot takes an object with one field, newRoot")


def _decoded(value: Any, what: str) -> None:
    try:
        bson.encode({"value": decode(value)})
    except Exception as error:
        # bson raises errors of many kinds; all of them mean that a value is not what its marker says. Their text
        # quotes the value, so only the kind is passed on.
        kind = type(error).__name__
        raise BadUpdate(
            f"the {what} is not Extended JSON ({kind}): look at values marked with $oid, $date, ..."
        ) from None


def _no_code(value: Any, what: str) -> None:
    for key in _keys(value):
        if key in RUN_CODE:
            raise BadUpdate(f"the {what} uses {key}, which runs code on the server: say it with plain operators")


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _keys(inner)
