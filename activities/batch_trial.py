"""What an update does, tried on copies of a few documents before the first real one is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection

from activities.batch_models import Trial, UpdateOrder
from activities.errors import lasting
from activities.mongo_clients import Db
from activities.update_rules import decode

_MOST_BYTES = 32 * 1024 * 1024
_SCRATCH = "_runbook_trial_"


def scratch_name(key: str) -> str:
    return f"{_SCRATCH}{key}"


def try_update(db: Db, order: UpdateOrder, key: str, documents: int) -> Trial:
    """Copy a few matching documents into a collection of their own, with the same validator, and update them twice.

    Raises:
        NotRepeatable: a second application would change documents again, and the filter still finds them. A worker that
            is killed repeats up to one batch a partition, so such an update would come out wrong.
    """
    query, update = decode(order.filter), decode(order.update)
    scratch = scratch_name(key)
    db.drop_collection(scratch)
    try:
        copies = _samples(db.get_collection(order.collection), query, documents)
        db.create_collection(scratch, **_options(db, order.collection))
        if not copies:
            return Trial(summary="no document matches: there is nothing to try", tried=0, changed=0)
        collection = db.get_collection(scratch)
        collection.insert_many(copies, bypass_document_validation=True)
        changed = collection.update_many(query, update).modified_count
        left = collection.count_documents(query)
        repeatable = left == 0 or _repeatable(collection, query, update)
    finally:
        db.drop_collection(scratch)
    if not repeatable:
        raise lasting(
            "the filter still finds documents that have been updated, and updating them again changes them again: a "
            "batch that is repeated after a crash would be wrong. Add a mark to the update and the filter, such as "
            '{"$set": {"migration": "2024-06"}} and {"migration": {"$ne": "2024-06"}}',
            type="NotRepeatable",
        )
    after = "no copy matches the filter any more" if left == 0 else f"{left} copies still match the filter"
    return Trial(
        summary=f"tried on {len(copies)} copies: {changed} changed, {after}",
        tried=len(copies),
        changed=changed,
        leaves_filter=left == 0,
        repeatable=True,
    )


def _samples(collection: Collection[dict[str, Any]], query: dict[str, Any], most: int) -> Sequence[RawBSONDocument]:
    """The first matching documents, at the most as many bytes as a worker can spare."""
    raw = collection.with_options(codec_options=collection.codec_options.with_options(document_class=RawBSONDocument))
    found: list[RawBSONDocument] = []
    size = 0
    with raw.find(query).limit(most) as cursor:
        for document in cursor:
            found.append(document)
            size += len(document.raw)
            if size >= _MOST_BYTES:
                break
    return found


def _options(db: Db, name: str) -> dict[str, Any]:
    """What decides whether a document may be written, and which ones a filter finds."""
    known: dict[str, Any] = next(iter(db.list_collections(filter={"name": name})), {}).get("options", {})
    wanted = ("validator", "validationLevel", "validationAction", "collation")
    return {option: known[option] for option in wanted if option in known}


def _repeatable(collection: Collection[dict[str, Any]], query: dict[str, Any], update: Any) -> bool:
    """Whether a second application leaves all as it is. The current date is no difference that matters."""
    dated = {path.split(".")[0] for path in update.get("$currentDate", {})} if isinstance(update, dict) else set()

    def state() -> list[bytes]:
        found = collection.find().sort("_id")
        return [bson.encode({name: value for name, value in doc.items() if name not in dated}) for doc in found]

    before = state()
    collection.update_many(query, update)
    return state() == before
