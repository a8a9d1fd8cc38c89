"""Writing an archive, and reading one back to see that it is whole.

Documents go from the cursor's raw batches through gzip into the store, one batch in memory at a time. On a replica set
all collections are read in one snapshot session, which shows the database at one moment; a server keeps such a moment
for five minutes by default, so a longer dump, and any server without snapshots, is read collection by collection, and
the manifest says so.
"""

from __future__ import annotations

import gzip
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import pymongo
import pymongo.errors
from pydantic import ValidationError
from pymongo.client_session import ClientSession

from activities.archive_format import (
    MANIFEST,
    POINT_IN_TIME,
    RESTORING,
    CollectionEntry,
    Content,
    Damaged,
    Kind,
    Manifest,
    documents,
    split,
    to_json,
)
from activities.archive_store import Folder, Writer
from activities.errors import lasting
from activities.patience import patiently

Client = pymongo.MongoClient[dict[str, Any]]
Beat = Callable[[str], None]
"""Told at every batch what is being done. It may raise to stop the work."""

_NO_SNAPSHOT = frozenset({20, 72, 123, 239, 246})
"""IllegalOperation, InvalidOptions, NotAReplicaSet, SnapshotTooOld, SnapshotUnavailable."""
_PIECE = 1 << 20
_BATCH = 2000
"""Documents a batch. A server ends a batch at 16 MB by itself; small ones keep memory low where documents are small."""
_LEVEL = 4
"""Of gzip: twice as fast as the usual 6, a few percent larger."""


class _Unsnapshotted(Exception):
    """There is no snapshot to read from (any more). The message says why."""


def dump(client: Client, folder: Folder, base: Manifest, wanted: tuple[str, ...] | None, beat: Beat) -> Manifest:
    """Write an archive of ``base.database`` into ``folder``.

    A finished archive is left as it is. An unfinished one that was read without a snapshot goes on with the collection
    that it stopped in; one that was read in a snapshot begins anew, because the snapshot ended with its reader.

    Args:
        base: id, stage, database and time; the rest is filled in.
        wanted: only these collections.

    Raises:
        Unsupported: the server is a router of a sharded cluster, or the database is not there.
    """
    finished = folder.get(MANIFEST)
    if finished is not None:
        return Manifest.read(finished)
    hello = client.admin.command("hello")
    if hello.get("msg") == "isdbgrid":
        raise lasting(
            "the cluster is sharded: an archive would not keep how it is. Use provider 'atlas'", type="Unsupported"
        )
    build = client.admin.command("buildInfo")
    why_not = _why_no_snapshot(hello, build)
    if why_not is None and not _parts(folder):
        try:
            entries = _in_snapshot(client, base, folder, wanted, beat)
            return _finish(folder, base, build, POINT_IN_TIME, entries, wanted)
        except _Unsnapshotted as error:
            why_not = str(error)
    entries = _dump_all(client, base, folder, wanted, beat, session=None, parts=_parts(folder))
    reason = why_not or "it was continued after an interruption"
    return _finish(folder, base, build, f"not point in time: {reason}", entries, wanted)


def check(folder: Folder, beat: Beat) -> tuple[Manifest | None, list[str]]:
    """Read an archive back. Returns its manifest, if that can be read, and what is wrong with it, one line each."""
    text = folder.get(MANIFEST)
    if text is None:
        return None, [f"there is no {MANIFEST}: the archive was never finished, or is not there"]
    try:
        manifest = Manifest.read(text)
    except Damaged as error:
        return None, [str(error)]
    problems = []
    for entry in manifest.collections:
        if entry.file is None:
            continue
        try:
            for _ in stored_documents(folder, entry):
                beat(f"reading {entry.name} back")
        except Damaged as error:
            problems.append(f"{entry.name}: {error}")
    return manifest, problems


def stored_documents(folder: Folder, entry: CollectionEntry) -> Iterator[list[bytes]]:
    """The documents of one collection, in lists of about a megabyte.

    Raises:
        Damaged: at the latest after the last list: the file is not what was written.
    """
    if entry.file is None:
        return
    content, batch, size = Content(), list[bytes](), 0
    try:
        with folder.reading(entry.file) as stream:
            hashing = _Hashing(stream)
            with gzip.GzipFile(fileobj=cast(BinaryIO, hashing), mode="rb") as unzipped:
                for document in documents(cast(BinaryIO, unzipped)):
                    content.add(document)
                    batch.append(document)
                    size += len(document)
                    if size >= _PIECE:
                        yield batch
                        batch, size = [], 0
            while hashing.read(_PIECE):
                pass
    except FileNotFoundError:
        raise Damaged(f"its file {entry.file} is missing") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(f"its file {entry.file} is cut off or altered ({type(error).__name__})") from None
    if hashing.length != entry.stored_bytes or hashing.digest() != entry.sha256:
        raise Damaged(f"its file {entry.file} was altered: the checksum does not fit")
    if (content.documents, content.digest()) != (entry.documents, entry.content):
        raise Damaged(f"holds {content.documents} documents, the manifest says {entry.documents}, or other ones")
    if batch:
        yield batch


def live_content(client: Client, database: str, name: str, beat: Beat, what: str) -> Content:
    """Count and checksum of a collection as it is now."""
    content = Content()
    for batch in _batches(client, database, name):
        for document in split(batch):
            content.add(document)
        beat(f"{what} {name}: {content.documents:,} documents")
    return content


def live_count(client: Client, database: str, name: str, beat: Beat) -> int:
    """How many documents a collection has now, by counting them: a scan as long as the collection is large."""
    collection, phase = client[database][name], f"counting {name}"
    # Cancelled, it is left alone: it only reads.
    return patiently(lambda: collection.count_documents({}), phase, stop=lambda: beat(phase))


def described(client: Client, database: str, *, session: ClientSession | None = None) -> list[CollectionEntry]:
    """The collections and views of a database with their options and indexes, without documents, by name."""
    entries = []
    for found in client[database].list_collections(session=session):
        name, kind = found["name"], found.get("type", "collection")
        if name.startswith(("system.", RESTORING)):
            continue
        indexes: tuple[dict[str, Any], ...] = ()
        if kind != "view":
            listed = client[database][name].list_indexes(session=session)
            indexes = tuple(
                to_json(index) for index in listed if index["name"] != "_id_" and not index.get("clustered")
            )
        entries.append(
            CollectionEntry(
                name=name, kind=cast(Kind, kind), options=to_json(found.get("options", {})), indexes=indexes
            )
        )
    return sorted(entries, key=lambda entry: entry.name)


def server_name(build: dict[str, Any]) -> str:
    if "secantusVersion" in build:
        return f"embedded SecantusDB {build['secantusVersion']}, not MongoDB"
    return f"MongoDB {build.get('version', 'of unknown version')}"


def _in_snapshot(
    client: Client, base: Manifest, folder: Folder, wanted: tuple[str, ...] | None, beat: Beat
) -> list[CollectionEntry]:
    try:
        with client.start_session(snapshot=True) as session:
            return _dump_all(client, base, folder, wanted, beat, session=session, parts={})
    except pymongo.errors.OperationFailure as error:
        if error.code not in _NO_SNAPSHOT:
            raise
        raise _Unsnapshotted(f"the server could not keep the moment (error {error.code})") from None
    except pymongo.errors.ConfigurationError:
        raise _Unsnapshotted("the server has no snapshot reads") from None


def _why_no_snapshot(hello: dict[str, Any], build: dict[str, Any]) -> str | None:
    if "secantusVersion" in build:
        return "the embedded server answers snapshot reads, but not from one moment"
    if "setName" not in hello:
        return "the server is no replica set and has no snapshot reads"
    return None


def _dump_all(
    client: Client,
    base: Manifest,
    folder: Folder,
    wanted: tuple[str, ...] | None,
    beat: Beat,
    *,
    session: ClientSession | None,
    parts: dict[str, CollectionEntry],
) -> list[CollectionEntry]:
    database = base.database
    # What there is, is listed without the session: listCollections cannot read from a snapshot.
    entries = described(client, database)
    if wanted is not None:
        absent = sorted(set(wanted) - {entry.name for entry in entries})
        if absent:
            raise lasting(
                f"there is no collection {', '.join(absent)} in {database}. Correct 'collections'", type="BadInput"
            )
        entries = [entry for entry in entries if entry.name in wanted]
    if not entries and not base.safety:
        raise lasting(
            f"there is nothing in database {database!r}. Correct the stage's database.name", type="NothingThere"
        )
    done = []
    for number, entry in enumerate(entries, 1):
        part = parts.get(entry.name)
        if part is None and entry.kind != "view":
            part = _dump_one(client, database, folder, entry, f"{number:04d}", beat, session)
            if session is None:
                folder.put(f"{number:04d}.part.json", part.model_dump_json().encode())
        done.append(part or entry)
    return done


def _dump_one(
    client: Client,
    database: str,
    folder: Folder,
    entry: CollectionEntry,
    prefix: str,
    beat: Beat,
    session: ClientSession | None,
) -> CollectionEntry:
    # The name is of this try alone, so that an earlier one, still running somewhere, cannot write into it.
    name = f"{prefix}-{time.time_ns():x}.bson.gz"
    content = Content()
    with folder.writing(name) as stored:
        hashing = _HashingWriter(stored)
        with gzip.GzipFile(
            filename="", fileobj=cast(BinaryIO, hashing), mode="wb", compresslevel=_LEVEL, mtime=0
        ) as zipped:
            for batch in _batches(client, database, entry.name, session):
                zipped.write(batch)
                for document in split(batch):
                    content.add(document)
                beat(f"dumping {entry.name}: {content.documents:,} documents")
    return entry.model_copy(
        update={
            "file": name,
            "documents": content.documents,
            "bytes": content.bytes,
            "stored_bytes": hashing.length,
            "sha256": hashing.digest(),
            "content": content.digest(),
        }
    )


def _finish(
    folder: Folder,
    base: Manifest,
    build: dict[str, Any],
    consistency: str,
    entries: list[CollectionEntry],
    wanted: tuple[str, ...] | None,
) -> Manifest:
    manifest = base.model_copy(
        update={
            "server": server_name(build),
            "finished_at": datetime.now(UTC),
            "consistency": consistency,
            "whole": wanted is None,
            "collections": tuple(entries),
        }
    ).sealed()
    folder.put(MANIFEST, manifest.model_dump_json(indent=1).encode())
    kept = {MANIFEST, *(entry.file for entry in entries)}
    for name in folder.names():
        if name not in kept:
            folder.delete(name)
    return manifest


def _parts(folder: Folder) -> dict[str, CollectionEntry]:
    """Collections that an earlier try has finished, by name."""
    found = {}
    for name in folder.names():
        if name.endswith(".part.json") and (text := folder.get(name)):
            try:
                entry = CollectionEntry.model_validate_json(text)
            except ValidationError:
                continue
            found[entry.name] = entry
    return found


def _batches(client: Client, database: str, name: str, session: ClientSession | None = None) -> Iterator[bytes]:
    """Raw batches of all documents of a collection."""
    return cast("Iterator[bytes]", client[database][name].find_raw_batches(session=session, batch_size=_BATCH))


class _Hashing:
    """A stream that is read, with its length and SHA-256 so far."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hash, self.length = stream, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        self.length += len(data)
        return data

    def digest(self) -> str:
        return self._hash.hexdigest()


class _HashingWriter:
    """A stream that is written, with its length and SHA-256 so far."""

    def __init__(self, stream: Writer) -> None:
        self._stream, self._hash, self.length = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.length += len(data)
        return self._stream.write(data)

    def flush(self) -> None:
        """Gzip asks for it; the store decides when it writes."""

    def digest(self) -> str:
        return self._hash.hexdigest()
