"""What a collection is, and whether its documents can be updated in batches."""

from __future__ import annotations

from typing import Any

import pymongo.errors

from activities.batch_models import CollectionCheck, UpdateOrder
from activities.errors import lasting
from activities.mongo_clients import Db
from activities.update_rules import WHOLE, decode, touched_paths

_UNAUTHORIZED = 13


def check_collection(db: Db, order: UpdateOrder) -> CollectionCheck:
    """Look at the collection.

    Raises:
        NoCollection, NotACollection: there is none of that name, or it is a view, time-series or capped collection.
        ShardKey: the update writes a field of the shard key.
        NoTransactions: a journal is wanted, and the server has no transactions to keep it exact.
    """
    name = order.collection
    _refuse_what_it_is(db, name)
    _refuse_shard_key(db, order)
    transactions = _has_transactions(db)
    if order.journal and not transactions:
        raise lasting(
            "an undo journal needs transactions, which this server has not: it is no replica set. Leave journal out, "
            "and rely on the backup",
            type="NoTransactions",
        )
    collection = db.get_collection(name)
    documents = collection.estimated_document_count()
    matching = collection.count_documents(decode(order.filter))
    size, average = _sizes(db, name)
    build = db.client.get_database("admin").command("buildInfo")
    return CollectionCheck(
        summary=f"{matching:,} of about {documents:,} documents of {name} match"
        + (f", {size / 1e6:,.1f} MB" if size else ""),
        documents=documents,
        matching=matching,
        size_bytes=size,
        average_bytes=average,
        server=server_name(build),
        transactions=transactions,
    )


def server_name(build: dict[str, Any]) -> str:
    if "secantusVersion" in build:
        return f"embedded SecantusDB {build['secantusVersion']}, not MongoDB"
    return f"MongoDB {build.get('version', 'of unknown version')}"


def _refuse_what_it_is(db: Db, name: str) -> None:
    found = next(iter(db.list_collections(filter={"name": name})), None)
    if found is None:
        others = sorted(other for other in db.list_collection_names() if not other.startswith(("system.", "_runbook_")))
        known = ", ".join(others[:20]) or "none"
        raise lasting(
            f"{db.name} has no collection '{name}'; there are: {known}. Start again with one of them",
            type="NoCollection",
        )
    options = found.get("options", {})
    if found.get("type") == "view":
        base = options.get("viewOn")
        raise lasting(f"'{name}' is a view of '{base}': update '{base}' instead", type="NotACollection")
    if found.get("type") == "timeseries":
        raise lasting(
            f"'{name}' is a time-series collection: MongoDB changes only its metaField, and not in batches of _id. "
            "Write it into a new collection instead",
            type="NotACollection",
        )
    if options.get("capped"):
        raise lasting(
            f"'{name}' is a capped collection, whose documents may not change their size. Copy it to a plain one first",
            type="NotACollection",
        )


def _refuse_shard_key(db: Db, order: UpdateOrder) -> None:
    try:
        config = db.client.get_database("config").get_collection("collections")
        entry = config.find_one({"_id": f"{db.name}.{order.collection}"})
    except pymongo.errors.OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        return  # who may not ask is told by the server itself, at the trial's first update of a key field
    key = list((entry or {}).get("key", {}))
    for path in touched_paths(order.update):
        for field in key:
            if path in (WHOLE, field) or field.startswith(f"{path}.") or path.startswith(f"{field}."):
                raise lasting(
                    f"the update writes {path}, and the collection is sharded by {', '.join(key)}: many documents "
                    "cannot change their shard at once. Leave the field out, or reshard the collection",
                    type="ShardKey",
                )


def _has_transactions(db: Db) -> bool:
    hello = db.client.get_database("admin").command("hello")
    return bool(hello.get("setName") or hello.get("msg") == "isdbgrid")


def _sizes(db: Db, name: str) -> tuple[int | None, int | None]:
    try:
        stats = db.command("collStats", name)
    except pymongo.errors.OperationFailure:
        return None, None
    size, average = stats.get("size"), stats.get("avgObjSize")
    return (int(size) if size is not None else None, int(average) if average is not None else None)
