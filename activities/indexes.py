"""Building an index on the server, watching it, and taking it away.

An index build is the server's: it goes on when its client is gone, and only ``dropIndexes`` ends it.
"""

from __future__ import annotations

import time
from typing import Any

import pymongo
import pymongo.errors
from temporalio import activity

from activities import index_rules
from activities.errors import classified, lasting
from activities.migration_models import IndexBuilt, IndexDropped, IndexOrder, IndexProgress
from activities.migrations import Base, Client, connect
from activities.patience import patiently
from activities.secret_refs import SecretResolver

_UNAUTHORIZED = 13
_NO_SUCH_COLLECTION, _NO_SUCH_INDEX = 26, 27
_OTHER_OPTIONS, _OTHER_KEYS, _DUPLICATES, _BUILD_ABORTED = 85, 86, 11000, 276
_REMEDIES = {
    _OTHER_OPTIONS: (
        "IndexConflict",
        "an index with these keys or this name has other options. Drop it, or name another",
    ),
    _OTHER_KEYS: ("IndexConflict", "an index of this name has other keys. Name another"),
    _DUPLICATES: ("DuplicateValues", "documents have the same values, which a unique index forbids. Mend them first"),
    _BUILD_ABORTED: ("BuildAborted", "somebody dropped it while it was built. Ask who, and start again"),
}
_BUILD = "Index Build"


class Indexes:
    def __init__(self, resolver: SecretResolver) -> None:
        self._resolver = resolver

    @activity.defn(name="indexes.build", no_thread_cancel_exception=True)
    @classified("build the index")
    def build(self, order: IndexOrder) -> IndexBuilt:
        """Build the index and wait until it is ready. One that is being built already is waited for.

        Cancelled, it takes the index away again, finished or not: ask for no index that is there.

        Raises:
            IndexConflict: an index of that name, or with these keys, is there and is another one.
            DuplicateValues: a unique index, and values that are not.
            BuildAborted: somebody dropped it meanwhile.
        """
        began = time.monotonic()
        with connect(self._resolver, order.stage) as client, connect(self._resolver, order.stage) as beside:
            base = client.get_database(order.stage.database.name)
            command = {"createIndexes": order.collection, "indexes": [_specification(order)]}
            phase = f"building {order.index.name}"
            try:
                answer = patiently(
                    lambda: base.command(command),
                    phase,
                    seen=lambda: {"percent": _percent(beside, order)},
                    stop=lambda: _drop(beside.get_database(base.name), order),
                )
            except pymongo.errors.OperationFailure as error:
                kind, remedy = _REMEDIES.get(error.code or 0, ("", ""))
                if not kind:
                    raise
                raise lasting(f"could not build index {order.index.name}: {remedy}", type=kind) from None
        built = answer.get("numIndexesBefore") != answer.get("numIndexesAfter")
        seconds = round(time.monotonic() - began, 1)
        name = f"index {order.index.name} {order.index.described()}"
        return IndexBuilt(
            summary=f"{name} built in {seconds:g} s" if built else f"{name} is there", built=built, seconds=seconds
        )

    @activity.defn(name="indexes.progress")
    @classified("ask how far the index build is")
    def progress(self, order: IndexOrder) -> IndexProgress:
        """How far the build is. A server that does not say, or a user that may not ask, gives no figure."""
        with connect(self._resolver, order.stage) as client:
            percent = _percent(client, order)
        known = f"{percent:.0f} %" if percent is not None else "how far is not known (role clusterMonitor shows it)"
        return IndexProgress(summary=f"building {order.index.name}: {known}", percent=percent)

    @activity.defn(name="indexes.drop")
    @classified("drop the index")
    def drop(self, order: IndexOrder) -> IndexDropped:
        """Take the index away, finished or being built. One that is not there is gone.

        Raises:
            IndexConflict: what has this name is another index.
        """
        with connect(self._resolver, order.stage) as client:
            base = client.get_database(order.stage.database.name)
            other = [
                index
                for index in base[order.collection].list_indexes()
                if index["name"] == order.index.name
                and not index_rules.same_keys(index_rules.keys_of(index), order.index.keys)
            ]
            if other:
                raise lasting(f"index {order.index.name} has other keys now: it is not dropped", type="IndexConflict")
            dropped = _drop(base, order)
        state = "dropped" if dropped else "was not there"
        return IndexDropped(summary=f"index {order.index.name} {state}", dropped=dropped)


def _specification(order: IndexOrder) -> dict[str, Any]:
    specification: dict[str, Any] = {"key": dict(order.index.keys), "name": order.index.name}
    return {**specification, "unique": True} if order.index.unique else specification


def _drop(base: Base, order: IndexOrder) -> bool:
    try:
        base.command({"dropIndexes": order.collection, "index": order.index.name})
    except pymongo.errors.OperationFailure as error:
        if error.code in (_NO_SUCH_COLLECTION, _NO_SUCH_INDEX):
            return False
        raise
    return True


def _percent(client: Client, order: IndexOrder) -> float | None:
    """Of the slowest node or shard that builds it, from ``$currentOp``."""
    pipeline = [{"$currentOp": {"allUsers": True, "idleConnections": True}}]
    try:
        operations = list(client.get_database("admin").aggregate(pipeline))
    except pymongo.errors.PyMongoError:
        return None
    namespace = f"{order.stage.database.name}.{order.collection}"
    shares = [
        100 * progress["done"] / progress["total"]
        for operation in operations
        if str(operation.get("msg", "")).startswith(_BUILD) and operation.get("ns") in (namespace, None)
        for progress in [operation.get("progress")]
        if isinstance(progress, dict) and progress.get("total")
    ]
    return round(min(shares), 1) if shares else None
