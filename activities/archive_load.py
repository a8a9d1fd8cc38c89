"""Restoring an archive, and comparing what was restored with it.

Nothing is dropped before the whole archive has been read and found unaltered. How far a restore is stands in the target
itself, in one document, so that a retry goes on with the collection it stopped in and no other restore is taken for it.
In a copy that document stays: it says what the copy was restored from, and by which run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pymongo
import pymongo.errors
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.write_concern import WriteConcern

from activities.archive_dump import (
    Beat,
    Client,
    check,
    described,
    live_content,
    live_count,
    stored_documents,
)
from activities.archive_format import (
    RESTORING,
    CollectionEntry,
    Damaged,
    Manifest,
    from_json,
    normal_index,
    normal_options,
)
from activities.archive_store import Folder
from activities.errors import lasting
from activities.patience import patiently

_MARK = f"{RESTORING}.mark"
_DUPLICATE, _NO_NAMESPACE = 11000, 26
_SHOWN = 20


@dataclass
class Difference:
    """What a comparison found."""

    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    collections: int = 0
    documents: int = 0
    indexes: int = 0


def load(
    client: Client,
    into: str,
    folder: Folder,
    reference: str,
    key: str,
    beat: Beat,
    *,
    scratch: bool,
    replace: bool,
    swapping: Callable[[], None] = lambda: None,
) -> Manifest:
    """Restore an archive into the database ``into``.

    With ``replace`` each collection is loaded beside the real one and swapped with it when all are there and verified:
    readers and writers meet the old contents until then, and a restore that fails half-way has changed nothing.

    Args:
        key: which restore this is; only the same one goes on where an earlier try stopped.
        scratch: whatever is in the target may be dropped.
        swapping: called before the first of the old contents goes.

    Raises:
        DamagedBackup: before anything was dropped.
        TargetNotEmpty: it is neither scratch nor to be replaced.
    """
    mark = _mark(client, into)
    mine = mark is not None and mark.get("key") == key
    if not mine and not scratch and not replace and (found := _names(client, into)):
        raise lasting(
            f"database {into!r} is not empty (it has {found[0]}). Name another as 'into', or drop it by hand",
            type="TargetNotEmpty",
        )
    manifest, problems = check(folder, beat)
    if manifest is None or problems:
        raise lasting(f"{reference} cannot be restored: {'; '.join(problems[:5])}", type="DamagedBackup")
    if mark is None or not mine:
        _clear(client, into, everything=scratch)
        mark = {"_id": "restore", "key": key, "reference": reference, "done": []}
        client[into][_MARK].insert_one(mark)
    done: set[str] = set(mark["done"])
    work = [(f"{RESTORING}.{number:04d}", entry) for number, entry in enumerate(manifest.collections)]
    for beside, entry in work:
        if entry.name not in done and _is_loaded_first(entry, replace):
            _load_one(client, into, beside if replace else entry.name, entry, folder, beat)
            _remember(client, into, done, entry.name)
    if replace:
        swapping()
        for beside, entry in work:
            if f"{entry.name}/swapped" not in done:
                _swap(client, into, beside, entry, folder, beat)
                _remember(client, into, done, f"{entry.name}/swapped")
    if replace:
        client[into].drop_collection(_MARK)
    return manifest


def compare(client: Client, into: str, manifest: Manifest, beat: Beat) -> Difference:
    """What in the database ``into`` is not as the manifest says: collections, options, indexes, counts, contents.

    Where the provider keeps the documents itself there are no checksums, and counts have to lie between those taken
    before and after the snapshot.
    """
    found = Difference()
    there = {entry.name: entry for entry in described(client, into)}
    for name in sorted(there.keys() - {entry.name for entry in manifest.collections}):
        found.differences.append(f"{name} is not in the backup")
    for entry in manifest.collections:
        restored = there.get(entry.name)
        if restored is None:
            found.differences.append(f"{entry.name} is missing")
            continue
        found.collections += 1
        found.indexes += len(entry.indexes)
        found.differences += _described_otherwise(entry, restored)
        if entry.kind != "view":
            _contents(client, into, entry, found, beat)
    return found


def discard(client: Client, into: str, *, key: str, copy: bool) -> bool:
    """Drop what one restore put into a database: a ``copy`` wholly, of the real one only what is beside the real data.

    Returns whether there was something.
    """
    mark = _mark(client, into)
    return mark is not None and mark.get("key") == key and _clear(client, into, everything=copy)


def drop_all(client: Client, into: str) -> bool:
    """Drop all that is in a scratch database, whoever put it there. Returns whether there was something."""
    return _clear(client, into, everything=True)


def shown(differences: list[str]) -> tuple[str, ...]:
    """At most twenty of them, and how many more there are."""
    rest = len(differences) - _SHOWN
    return tuple(differences[:_SHOWN]) + ((f"and {rest} more",) if rest > 0 else ())


def _is_loaded_first(entry: CollectionEntry, replace: bool) -> bool:
    """Views and time series cannot be renamed, so they are not loaded beside what they replace."""
    return not replace or entry.kind == "collection"


def _load_one(client: Client, into: str, name: str, entry: CollectionEntry, folder: Folder, beat: Beat) -> None:
    database = client[into]
    database.drop_collection(name)
    database.create_collection(name, check_exists=False, **from_json(entry.options))
    if entry.kind == "view":
        return
    # Raw documents pass the driver unread. What an older rule of the collection let in has to come back, too.
    target = database.get_collection(name, write_concern=WriteConcern("majority"))
    bypass = True if "validator" in entry.options else None
    loaded = 0
    for batch in _or_damaged(folder, entry):
        beat(phase := f"restoring {entry.name}: {loaded:,} of {entry.documents:,} documents")
        patiently(partial(_insert, target, batch, bypass), phase)  # a majority can take its time
        loaded += len(batch)
    _verify(client, into, name, entry, beat)
    # Last of all: an index with an expiry lets the server delete what has just been restored.
    if entry.indexes:
        specs = [_spec(index) for index in entry.indexes]
        patiently(
            lambda: database.command("createIndexes", name, indexes=specs),
            f"building {len(specs)} indexes of {entry.name}",
        )


def _insert(target: Collection[dict[str, Any]], batch: list[bytes], bypass: bool | None) -> None:
    """Insert those that are not there yet.

    The collection is new, so one that is there comes from a try whose answer was lost: the driver makes it a second
    time, and a server that was restarted need not know that. What has arrived is verified at the end, but for time
    series and what expires, as ever.
    """
    try:
        target.insert_many(map(RawBSONDocument, batch), ordered=False, bypass_document_validation=bypass)
    except pymongo.errors.BulkWriteError as error:
        found = error.details or {}
        if found.get("writeConcernErrors") or any(one["code"] != _DUPLICATE for one in found["writeErrors"]):
            raise


def _verify(client: Client, into: str, name: str, entry: CollectionEntry, beat: Beat) -> None:
    """Read back what was written, where the server keeps documents as they are."""
    if entry.kind != "collection" or "expireAfterSeconds" in entry.options:
        return
    content = live_content(client, into, name, beat, f"verifying {entry.name} in")
    if (content.documents, content.digest()) != (entry.documents, entry.content):
        raise lasting(
            f"{entry.name}: {content.documents:,} documents arrived in {into}, the backup has {entry.documents:,}, or "
            "their contents differ. Does something else write into the target?",
            type="RestoredDiffers",
        )


def _swap(client: Client, into: str, beside: str, entry: CollectionEntry, folder: Folder, beat: Beat) -> None:
    if entry.kind != "collection":
        _load_one(client, into, entry.name, entry, folder, beat)
        return
    try:
        client[into][beside].rename(entry.name, dropTarget=True)
    except pymongo.errors.OperationFailure as error:
        if error.code != _NO_NAMESPACE:
            raise
        # An earlier try has swapped it, and died before it could say so.


def _or_damaged(folder: Folder, entry: CollectionEntry) -> Iterator[list[bytes]]:
    try:
        yield from stored_documents(folder, entry)
    except Damaged as error:
        raise lasting(f"{entry.name} was damaged while it was restored: {error}", type="DamagedBackup") from None


def _spec(index: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = from_json(index)
    return {name: value for name, value in spec.items() if name not in ("ns", "background")}


def _described_otherwise(entry: CollectionEntry, restored: CollectionEntry) -> list[str]:
    differences = []
    if entry.kind != restored.kind:
        differences.append(f"{entry.name} is a {restored.kind}, the backup has a {entry.kind}")
    if normal_options(entry.options) != normal_options(restored.options):
        differences.append(f"{entry.name}: other options (validator, collation, capped or the like)")
    wanted = {index["name"]: normal_index(index) for index in entry.indexes}
    there = {index["name"]: normal_index(index) for index in restored.indexes}
    for name in sorted(wanted.keys() | there.keys()):
        if name not in there:
            differences.append(f"{entry.name}: index {name} is missing")
        elif name not in wanted:
            differences.append(f"{entry.name}: index {name} is not in the backup")
        elif wanted[name] != there[name]:
            differences.append(f"{entry.name}: index {name} is another one")
    return differences


def _contents(client: Client, into: str, entry: CollectionEntry, found: Difference, beat: Beat) -> None:
    if entry.file is None or entry.kind == "timeseries":
        count = live_count(client, into, entry.name, beat)
        found.documents += count
        most = entry.documents if entry.documents_after is None else entry.documents_after
        low, high = sorted((entry.documents, most))
        if entry.kind == "timeseries":
            found.notes.append(f"{entry.name}: a time series is compared by its count, the server rearranges documents")
        if not (low <= count <= high or (entry.expires and count <= high)):
            wanted = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            found.differences.append(f"{entry.name}: {count:,} documents, the backup has {wanted}")
        return
    content = live_content(client, into, entry.name, beat, "comparing")
    found.documents += content.documents
    if entry.expires and content.documents < entry.documents:
        gone = entry.documents - content.documents
        found.notes.append(f"{entry.name}: {gone:,} documents have expired since they were restored and verified")
    elif content.documents != entry.documents:
        found.differences.append(f"{entry.name}: {content.documents:,} documents, the backup has {entry.documents:,}")
    elif content.digest() != entry.content:
        found.differences.append(f"{entry.name}: {content.documents:,} documents as in the backup, but other contents")


def _mark(client: Client, into: str) -> dict[str, Any] | None:
    return client[into][_MARK].find_one({"_id": "restore"})


def _remember(client: Client, into: str, done: set[str], what: str) -> None:
    done.add(what)
    client[into][_MARK].update_one({"_id": "restore"}, {"$set": {"done": sorted(done)}})


def _names(client: Client, into: str) -> list[str]:
    return sorted(name for name in client[into].list_collection_names() if not name.startswith("system."))


def _clear(client: Client, into: str, *, everything: bool) -> bool:
    """Drop collections one by one: that needs no right to drop databases. Without ``everything`` only a restore's."""
    names = [name for name in _names(client, into) if everything or name.startswith(RESTORING)]
    # The mark goes last: until then it is known whose remains these are.
    for name in sorted(names, key=lambda name: name == _MARK):
        client[into].drop_collection(name)
    return bool(names)
