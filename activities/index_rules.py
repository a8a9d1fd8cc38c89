"""Which index makes which other one superfluous. Pure functions of index specifications.

An index whose keys begin with all keys of another one answers everything that the other answers: ``{project_id,
status}`` is a prefix of ``{project_id, status, created_at}``, and redundant beside it. That holds with every direction
turned round too, and not for an index that does more than answer queries or does not hold every document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Keys = Sequence[tuple[str, Any]]

_BINDING = ("unique", "sparse", "partialFilterExpression", "expireAfterSeconds", "collation", "hidden")
"""Options by which an index does something that a longer one beside it does not do."""


def keys_of(index: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The keys of an index as ``listIndexes`` shows it. Whole numbers are plain, whatever number type was stored."""
    return [
        (name, int(direction) if isinstance(direction, int | float) else direction)
        for name, direction in index["key"].items()
    ]


def is_prefix(short: Keys, long: Keys) -> bool:
    """Whether every query that ``short`` serves is served by ``long``: its keys begin it, or begin it all reversed."""
    begin = list(long)[: len(short)]
    if len(begin) < len(short):
        return False
    return begin == list(short) or begin == _reversed(short)


def _reversed(keys: Keys) -> list[tuple[str, Any]]:
    if not all(isinstance(direction, int) for _, direction in keys):
        return []
    return [(name, -direction) for name, direction in keys]


def same_keys(one: Keys, other: Keys) -> bool:
    return list(one) == list(other)


def plain(index: Mapping[str, Any]) -> bool:
    """Whether the index only answers queries, over every document."""
    return not any(index.get(option) for option in _BINDING)


def covering(wanted: Keys, unique: bool, existing: Iterable[Mapping[str, Any]]) -> str | None:
    """The name of an index that makes the wanted one redundant; None when there is none."""
    if unique:
        return None
    for index in existing:
        whole = not (index.get("sparse") or index.get("partialFilterExpression") or index.get("collation"))
        if whole and not index.get("hidden") and is_prefix(wanted, keys_of(index)):
            return str(index["name"])
    return None


def made_redundant(wanted: Keys, existing: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the indexes that are redundant beside the wanted one, by name; the index on ``_id`` never is."""
    return [
        str(index["name"])
        for index in existing
        if index["name"] != "_id_"
        and plain(index)
        and not same_keys(keys_of(index), wanted)
        and is_prefix(keys_of(index), wanted)
    ]
