"""The undo journal of a batched update: for each changed document, the touched fields before and after.

Batch and journal entries are written in one transaction, so an entry says exactly what the update did, whoever else
writes meanwhile. Undoing reads document and entry in one transaction too, and leaves alone what no longer carries the
value that the update wrote.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteMany, InsertOne, ReplaceOne, UpdateMany, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection

from activities.batch_ranges import within
from activities.errors import lasting
from activities.update_rules import WHOLE

REVERT_DOCUMENTS = 500
REVERT_BYTES = 8 * 1024 * 1024
MOST_ENTRY_BYTES = 16 * 1024 * 1024 - 4096

LONGEST = timedelta(days=90)
"""How long entries of a run stay that nobody ended, or that was terminated."""

FIRST = {"journal": "opened"}
"""``_id`` of an entry that is older than all others, so that it expires first: while it is there, none is missing."""

_OLDER_BY = timedelta(hours=1)
"""More than the clocks of two workers differ."""

_EXPIRY = "expires_first_to_last"
"""Index by which entries expire, of a journal with a first entry. One of older journals has another name."""

Document = dict[str, Any]
Documents = Collection[Document]


def touched(fields: tuple[str, ...]) -> dict[str, int] | None:
    """The projection that reads the touched fields and ``_id``."""
    return None if fields == (WHOLE,) else dict.fromkeys(("_id", *fields), 1)


def open_journal(journal: Documents) -> None:
    """Make the journal's collection. Its entries stay for the whole run, however long that takes."""
    first = {"at": datetime.now(UTC) - _OLDER_BY, "kept": True}
    journal.update_one({"_id": FIRST}, {"$setOnInsert": first}, upsert=True)
    if not _expiry(journal):
        journal.create_index("at", name=_EXPIRY, expireAfterSeconds=int(LONGEST.total_seconds()))


def close_journal(journal: Documents, keep: timedelta) -> None:
    """Let the server drop entries by itself so long after they were written. An older journal keeps its own time."""
    wanted = int(keep.total_seconds())
    now = _expiry(journal)
    if now.get(_EXPIRY, 0) == wanted or (now and _EXPIRY not in now):
        return
    if now:
        journal.drop_index(_EXPIRY)
    journal.create_index("at", name=_EXPIRY, expireAfterSeconds=wanted)


def is_whole(journal: Documents) -> bool:
    """Whether no entry has expired; also true where that cannot be told."""
    return _EXPIRY not in _expiry(journal) or journal.find_one({"_id": FIRST}) is not None


def left_alone(journal: Documents) -> int:
    """Entries of documents that somebody has changed since, when all others are put back."""
    return journal.count_documents({"_id": {"$ne": FIRST}})


def _expiry(journal: Documents) -> dict[str, int]:
    """Seconds after which entries expire, by the name of the index."""
    indexes = journal.index_information()
    return {name: int(index["expireAfterSeconds"]) for name, index in indexes.items() if "expireAfterSeconds" in index}


def update_with_journal(
    collection: Documents,
    journal: Documents,
    id_condition: Any,
    query: Document,
    update: Any,
    fields: tuple[str, ...],
) -> int:
    """Update a batch and write down what it does, all or nothing. Returns the number of changed documents.

    Raises:
        TooLargeForJournal: the touched fields of one document do not fit into one entry.
    """
    projection = touched(fields)

    def work(session: ClientSession) -> int:
        before = {_key(doc): doc for doc in collection.find(within(id_condition, query), projection, session=session)}
        if not before:
            return 0
        collection.update_many(within(id_condition, query), update, session=session)
        now = datetime.now(UTC)
        entries = []
        ids = [doc["_id"] for doc in before.values()]
        for after in collection.find({"_id": {"$in": ids}}, projection, session=session):
            former = before[_key(after)]
            entry = {"_id": after["_id"], "before": _values(former), "after": _values(after), "at": now}
            sides = bson.encode(entry["before"]), bson.encode(entry["after"])
            if len(sides[0]) + len(sides[1]) > MOST_ENTRY_BYTES:
                raise lasting(
                    f"the touched fields of document {after['_id']!r}, before and after, do not fit into an entry of "
                    "the journal (16 MB). Run without journal, and rely on the backup",
                    type="TooLargeForJournal",
                )
            if sides[0] != sides[1]:
                entries.append(entry)
        _enter(journal, entries, session)
        return len(entries)

    with collection.database.client.start_session() as session:
        return session.with_transaction(work)


def _enter(journal: Documents, entries: list[Document], session: ClientSession) -> None:
    """Insert entries; of a document that is updated again (a late writer had changed it back) the newer one stays."""
    if not entries:
        return
    ids = [entry["_id"] for entry in entries]
    known = {_key(entry) for entry in journal.find({"_id": {"$in": ids}}, {"_id": 1}, session=session)}
    requests: list[InsertOne[Document] | ReplaceOne[Document]] = [
        ReplaceOne({"_id": entry["_id"]}, entry) if _key(entry) in known else InsertOne(entry) for entry in entries
    ]
    journal.bulk_write(requests, ordered=False, session=session)


def revert_some(collection: Documents, journal: Documents, whole: bool) -> tuple[int, int] | None:
    """Put the next entries back. Returns how many documents were reverted and left alone; None when all is done."""
    entries = _next_entries(journal)
    if not entries:
        return None
    ids = [entry["_id"] for entry in entries]
    names = () if whole else {name for entry in entries for part in ("before", "after") for name in entry[part]}
    projection = dict.fromkeys(("_id", *names), 1) if names else None

    def work(session: ClientSession) -> tuple[int, int]:
        current = {_key(doc): doc for doc in collection.find({"_id": {"$in": ids}}, projection, session=session)}
        changes: list[UpdateOne | ReplaceOne[Document]] = []
        done, kept = [], []
        for entry in entries:
            document = current.get(_key(entry))
            if document is None or not _carries(document, entry, whole):
                kept.append(entry["_id"])
                continue
            done.append(entry["_id"])
            changes.append(_change(entry, whole))
        if changes:
            collection.bulk_write(changes, ordered=False, session=session)
        marks: list[DeleteMany | UpdateMany] = []
        if done:
            marks.append(DeleteMany({"_id": {"$in": done}}))
        if kept:
            marks.append(UpdateMany({"_id": {"$in": kept}}, {"$set": {"kept": True}}))
        journal.bulk_write(marks, session=session)
        return len(done), len(kept)

    with collection.database.client.start_session() as session:
        return session.with_transaction(work)


def _next_entries(journal: Documents) -> list[Document]:
    """Entries that have not been looked at yet, as many as fit in memory."""
    found: list[Document] = []
    size = 0
    raw = journal.with_options(codec_options=journal.codec_options.with_options(document_class=RawBSONDocument))
    with raw.find({"kept": {"$exists": False}}).limit(REVERT_DOCUMENTS) as cursor:
        for document in cursor:
            found.append(bson.decode(document.raw, journal.codec_options))
            size += len(document.raw)
            if size >= REVERT_BYTES:
                break
    return found


def _carries(document: Document, entry: Document, whole: bool) -> bool:
    """Whether the document has, in the touched fields, still exactly what the update wrote."""
    names: Iterable[str] = document if whole else {*entry["before"], *entry["after"]}
    now = {name: document[name] for name in names if name in document and name != "_id"}
    after = entry["after"]
    return now.keys() == after.keys() and all(_same(now[name], after[name]) for name in now)


def _change(entry: Document, whole: bool) -> UpdateOne | ReplaceOne[Document]:
    before, after = entry["before"], entry["after"]
    if whole:
        return ReplaceOne({"_id": entry["_id"]}, before)
    parts: Document = {}
    if restored := {
        name: value for name, value in before.items() if name not in after or not _same(value, after[name])
    }:
        parts["$set"] = restored
    if added := dict.fromkeys((name for name in after if name not in before), ""):
        parts["$unset"] = added
    return UpdateOne({"_id": entry["_id"]}, parts)


def _values(document: Document) -> Document:
    return {name: value for name, value in document.items() if name != "_id"}


def _same(one: Any, other: Any) -> bool:
    """The same value of the same type."""
    return bson.encode({"v": one}) == bson.encode({"v": other})


def _key(document: Document) -> bytes:
    """An ``_id`` of any type as something to look up by."""
    return bson.encode({"v": document["_id"]})
