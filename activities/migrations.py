"""A migration's looks at the database: how large, what is left to do, what the query costs, what stands in the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import pymongo
import pymongo.errors
from temporalio import activity

from activities import index_rules, mongo_clients
from activities.errors import classified
from activities.migration_models import (
    Index,
    Kind,
    Logged,
    LookRequest,
    MigrationEntry,
    MigrationState,
    Query,
    QueryCost,
)
from activities.patience import patiently
from activities.records import Records
from activities.secret_refs import SecretResolver
from activities.stage import Stage
from activities.update_rules import decode

Document = dict[str, Any]
Client = mongo_clients.Client
Base = pymongo.database.Database[Document]

PAGE = 20
"""Documents that the measured query reads: a page of the API's list."""

_QUERY_LIMIT_MS = 20_000
"""A query that takes longer is too slow to be measured, and that is what is said."""

_TIMES = 5
_UNAUTHORIZED = 13
_NO_SUCH_COLLECTION = 26
_TIMED_OUT = 50


class Migrations:
    def __init__(self, resolver: SecretResolver, records: Records) -> None:
        self._resolver = resolver
        self._records = records

    @activity.defn(name="migrations.look")
    @classified("look at what is to be migrated")
    def look(self, wanted: LookRequest) -> MigrationState:
        """Sizes, documents left, the query's cost, and what stands in the way. Counting a large collection takes time:
        it heartbeats.

        A view, a time-series collection, a field of the shard key, an absent collection are ``problems``, no errors.
        """
        with connect(self._resolver, wanted.stage) as client:
            base = client.get_database(wanted.stage.database.name)
            return patiently(lambda: self._state(base, wanted), f"looking at {wanted.collection}")

    def _state(self, base: Base, wanted: LookRequest) -> MigrationState:
        kind = _kind(base, wanted.collection)
        server = _server(base.client)
        if kind != "collection":
            problem = _PROBLEMS[kind].format(name=f"{base.name}.{wanted.collection}")
            return MigrationState(
                summary=problem, server=server, kind=kind, documents=0, cost=QueryCost(), problems=(problem,)
            )
        size = _stats(base, {"collStats": wanted.collection})
        documents = base[wanted.collection].estimated_document_count()
        remaining = change_plan = None
        if wanted.filter is not None:
            remaining = base[wanted.collection].count_documents(decode(wanted.filter))
            change_plan = _planned(base, wanted.collection, Query(filter=wanted.filter))
        cost = _cost(base, wanted.collection, wanted.query)
        indexes = [dict(index) for index in base[wanted.collection].list_indexes()]
        found = _indexes(base, wanted, indexes)
        problems = [*_conflicts(wanted, indexes), *_shard_key(base, wanted)]
        left = f", {remaining} left to migrate" if remaining is not None else ""
        if wanted.index is not None:
            there = "is there" if found["index_ready"] else "is not there"
            left = f", index {wanted.index.name} {there}"
        return MigrationState(
            summary=f"{documents} documents{left}; query: {cost.described()} ({server})",
            server=server,
            kind=kind,
            documents=documents,
            collection_bytes=_figure(size.get("size")),
            database_bytes=_figure(_stats(base, {"dbStats": 1}).get("dataSize")),
            remaining=remaining,
            cost=cost,
            change_plan=change_plan,
            problems=tuple(problems),
            **found,
        )

    @activity.defn(name="migrations.log")
    @classified("write to the migration log")
    def log(self, entry: MigrationEntry) -> Logged:
        """Add a migration to the log in the records store; the same entry again changes nothing."""
        moment = entry.began_at.strftime("%Y%m%dT%H%M%S")
        name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in entry.id)
        location = self._records.store_json(f"migrations/{entry.stage}/{moment}-{name}.json", entry)
        return Logged(summary=f"migration log: {entry.kind} {entry.outcome}", location=location)


_PROBLEMS: dict[Kind, str] = {
    "view": "{name} is a view: migrate the collection that it shows",
    "timeseries": "{name} is a time-series collection: MongoDB updates and indexes these by rules of their own. "
    "Migrate it by writing a new collection",
    "absent": "there is no collection {name}. Correct the name",
}


def connect(resolver: SecretResolver, stage: Stage) -> Client:
    """A client for calls that may take long: it gives up on a server that is not there, never on one that works."""
    return mongo_clients.connect(resolver, stage.database.uri, maxPoolSize=3, tz_aware=True)


def _kind(base: Base, name: str) -> Kind:
    found = next(iter(base.list_collections(filter={"name": name})), None)
    if found is None:
        return "absent"
    known: dict[str, Kind] = {"view": "view", "timeseries": "timeseries"}
    return known.get(str(found.get("type")), "collection")


def _server(client: Client) -> str:
    build = client.get_database("admin").command("buildInfo")
    if "secantusVersion" in build:
        return f"embedded SecantusDB {build['secantusVersion']}, not MongoDB"
    return f"MongoDB {build.get('version', 'of unknown version')}"


def _stats(base: Base, command: Document) -> Document:
    """Statistics, or nothing where the user may not ask for them."""
    try:
        return dict(base.command(command))
    except pymongo.errors.OperationFailure as error:
        if error.code == _UNAUTHORIZED:
            return {}
        raise


def _figure(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None


# --- the query ------------------------------------------------------------------------------------------------------


def _cost(base: Base, collection: str, query: Query) -> QueryCost:
    find: Document = {"find": collection, "filter": decode(query.filter), "limit": PAGE}
    if query.sort:
        find["sort"] = dict(query.sort)
    explained = _explain(base, find, "executionStats") or _explain(base, find, "queryPlanner") or {}
    plan, index = winning(explained)
    stats = explained.get("executionStats", {})
    return QueryCost(
        plan=plan,
        index=index,
        docs_examined=_figure(stats.get("totalDocsExamined")),
        returned=_figure(stats.get("nReturned")),
        latency_ms=_latency(base, find),
    )


def _planned(base: Base, collection: str, query: Query) -> str | None:
    find: Document = {"find": collection, "filter": decode(query.filter)}
    plan, index = winning(_explain(base, find, "queryPlanner") or {})
    return f"{plan} of {index}" if index else plan


def _explain(base: Base, find: Document, verbosity: str) -> Document | None:
    """What the server says of its plan; nothing where it may not be asked or takes too long to try it out."""
    try:
        return dict(base.command({"explain": find, "verbosity": verbosity, "maxTimeMS": _QUERY_LIMIT_MS}))
    except pymongo.errors.OperationFailure as error:
        if error.code in (_UNAUTHORIZED, _TIMED_OUT):
            return None
        raise


def winning(explained: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The access path of the winning plan and its index. A plan of several paths is as good as its worst.

    On a sharded collection every shard has a plan. What cannot be read is not known, never guessed.
    """
    plan = explained.get("queryPlanner", {}).get("winningPlan", {})
    paths = list(_paths(plan))
    if any(path == "COLLSCAN" for path, _ in paths):
        return "COLLSCAN", None
    names = {index for _, index in paths if index}
    if not paths:
        return None, None
    return paths[0][0], ", ".join(sorted(names)) or None


_PATHS = (
    "COLLSCAN",
    "IXSCAN",
    "IDHACK",
    "EXPRESS_IXSCAN",
    "CLUSTERED_IXSCAN",
    "COUNT_SCAN",
    "DISTINCT_SCAN",
    "TEXT_MATCH",
)


def _paths(plan: Any) -> list[tuple[str, str | None]]:
    if isinstance(plan, list):
        return [path for part in plan for path in _paths(part)]
    if not isinstance(plan, Mapping):
        return []
    here = [(str(plan["stage"]), plan.get("indexName"))] if plan.get("stage") in _PATHS else []
    return here + [path for value in plan.values() if isinstance(value, list | Mapping) for path in _paths(value)]


def _latency(base: Base, find: Document) -> float | None:
    taken = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        try:
            base.command({**find, "maxTimeMS": _QUERY_LIMIT_MS})
        except pymongo.errors.OperationFailure as error:
            if error.code == _TIMED_OUT:
                return None
            raise
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken) * 1000, 2)


# --- indexes and shards ---------------------------------------------------------------------------------------------


def _indexes(base: Base, wanted: LookRequest, indexes: list[Document]) -> Document:
    unused = _unused(base, wanted.collection)
    if wanted.index is None:
        return {"unused": unused}
    keys = wanted.index.keys
    others = [index for index in indexes if not _is(index, wanted.index)]
    ready = len(others) < len(indexes) and not _building(base, wanted.collection, wanted.index.name)
    return {
        "index_ready": ready,
        "covered_by": index_rules.covering(keys, wanted.index.unique, others),
        "makes_redundant": tuple(index_rules.made_redundant(keys, others)),
        "unused": unused,
    }


def _is(index: Document, wanted: Index) -> bool:
    same = index["name"] == wanted.name and index_rules.same_keys(index_rules.keys_of(index), wanted.keys)
    return same and bool(index.get("unique")) == wanted.unique


def _conflicts(wanted: LookRequest, indexes: list[Document]) -> list[str]:
    if wanted.index is None:
        return []
    same = [index for index in indexes if index["name"] == wanted.index.name and not _is(index, wanted.index)]
    if not same:
        return []
    there = ", ".join(f"{name}: {direction}" for name, direction in index_rules.keys_of(same[0]))
    kind = " unique" if same[0].get("unique") else ""
    return [
        f"an index {wanted.index.name} is there already, with other keys or options: {{{there}}}{kind}. Name another"
    ]


def _statistics(base: Base, collection: str) -> list[Document]:
    """``$indexStats``, or nothing where the user may not ask for it."""
    try:
        return list(base[collection].aggregate([{"$indexStats": {}}]))
    except pymongo.errors.OperationFailure as error:
        if error.code in (_UNAUTHORIZED, _NO_SUCH_COLLECTION):
            return []
        raise


def _unused(base: Base, collection: str) -> tuple[str, ...]:
    """Indexes that no query used. A server that does not say since when it counts does not count."""
    seen: dict[str, int] = {}
    for entry in _statistics(base, collection):
        accesses = entry.get("accesses", {})
        if accesses.get("since") is None:
            continue
        name = str(entry["name"])  # once a node, or a shard
        seen[name] = seen.get(name, 0) + int(accesses.get("ops", 0))
    return tuple(sorted(name for name, uses in seen.items() if uses == 0 and name != "_id_"))


def _building(base: Base, collection: str, name: str) -> bool:
    return any(entry["name"] == name and entry.get("building") for entry in _statistics(base, collection))


def _shard_key(base: Base, wanted: LookRequest) -> list[str]:
    """A write of a field of the shard key moves documents between shards: never in passing."""
    if not wanted.touches or base.client.get_database("admin").command("hello").get("msg") != "isdbgrid":
        return []
    found = base.client.get_database("config")["collections"].find_one({"_id": f"{base.name}.{wanted.collection}"})
    return shard_key_problems(wanted.touches, (found or {}).get("key", {}))


def shard_key_problems(touches: tuple[str, ...], key: Mapping[str, Any]) -> list[str]:
    """Which written fields belong to the shard key (a field, what is inside it, or what it is inside of)."""
    hit = sorted(
        field
        for field in touches
        if any(field == part or field.startswith(f"{part}.") or part.startswith(f"{field}.") for part in key)
    )
    if not hit:
        return []
    return [f"{', '.join(hit)} belongs to the shard key: a change of it moves documents between shards. Not done here"]
