"""One range of documents, updated batch after batch. Synchronous; :mod:`activities.batches` runs it in a thread.

The ids of the documents that match are read in their order, with one cursor for the whole range. A batch is the
stretch up to the id that lies as many documents ahead as the pacer says, updated with the filter repeated: whatever a
concurrent writer has changed since is no longer found, and not overwritten.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import bson
import pymongo
import pymongo.errors
from bson.raw_bson import RawBSONDocument

from activities.batch_journal import Document, Documents, touched, update_with_journal
from activities.batch_models import IdRange, RangeOrder
from activities.batch_pacing import Pacer
from activities.batch_ranges import bounds, documents_in, id_of, selector, within
from activities.errors import passing
from activities.mongo_clients import Db
from activities.update_rules import decode, encode, touched_fields

BY_ID = {"_id": 1}
"""Hint: always along ``_id``. The planner might prefer an index of the filter and go through all of it each batch."""

JOURNAL_DOCUMENTS = 1000
"""MongoDB advises against transactions that change more documents than this."""

JOURNAL_BYTES = 4 * 1024 * 1024
"""Former values that a journalled batch may hold in memory, and in a transaction."""

IDLE_CURSOR = 300.0
"""Seconds without a read after which the cursor is opened anew; the server drops it after ten minutes."""

READ_AHEAD = 5000
"""Ids a read of the cursor."""

LEAST_PATIENCE = 10.0
"""Seconds that a batch may take at least, whatever its target, before it counts as timed out."""


def answers(collection: Documents, query: Document, fields: Any, size: int) -> Iterator[bytes]:
    """The server's answers of ``size`` documents, in the order of ``_id`` and still in BSON."""
    with collection.find_raw_batches(query, fields, sort=BY_ID, hint=BY_ID, batch_size=size) as found:
        yield from cast("Iterator[bytes]", found)  # annotated as documents


class RangeWalk:
    """Where an attempt is in its range. ``cursor`` is what the next attempt needs to go on."""

    def __init__(self, db: Db, order: RangeOrder, earlier: dict[str, Any]) -> None:
        self._order = order
        self._collection = db.get_collection(order.order.collection)
        self._journal = db.get_collection(order.order.journal) if order.order.journal else None
        self._query, self._update = decode(order.order.filter), decode(order.order.update)
        self._fields = touched_fields(order.order.update)
        self._after, self._upto = bounds(order.range)
        if earlier:
            self._after = decode(earlier["after"])
        self._pacer = Pacer(order.sizes, earlier.get("size"))
        self._patience = max(LEAST_PATIENCE, order.sizes.target_ms / 1000 * 10)
        self._ahead: deque[tuple[bytes, int]] = deque()
        self._source: Iterator[bytes] | None = None
        self._read_at = 0.0
        self.walked = int(earlier.get("walked", 0))
        self.updated = int(earlier.get("updated", 0))
        self.batches = int(earlier.get("batches", 0))
        self.busy_s = float(earlier.get("busy_s", 0))
        self.finished = bool(earlier.get("finished"))

    @property
    def cursor(self) -> dict[str, Any]:
        return {
            "after": encode(self._after),
            "size": self._pacer.size,
            "walked": self.walked,
            "updated": self.updated,
            "batches": self.batches,
            "busy_s": round(self.busy_s, 3),
            "finished": self.finished,
        }

    @property
    def size(self) -> int:
        """Documents that the next batch will have."""
        return self._pacer.size

    def left(self) -> IdRange:
        """What is still to be done of the range."""
        documents = 0 if self.finished else max(0, self._order.range.documents - self.walked)
        return self._order.range.model_copy(update={"after": encode(self._after), "documents": documents})

    def close(self) -> None:
        """Let go of the server's cursor."""
        self._source = None

    def batch(self) -> None:
        """Update the next batch; at the end of the range, set ``finished``. One that times out is tried with half.

        Raises:
            BatchTimedOut: even the smallest batch takes too long. It may pass.
        """
        began = time.monotonic()
        while True:
            documents, boundary, last = self._next_batch()
            try:
                if documents:
                    self._commit(documents, boundary)
                break
            except pymongo.errors.PyMongoError as error:
                if not error.timeout:
                    raise
                if not self._pacer.timed_out():
                    raise passing(
                        f"even {documents} documents took longer than {self._patience:.0f} s. It is tried again; look "
                        "at the database's load, or pause the run",
                        type="BatchTimedOut",
                    ) from None
        self._after = self._after if boundary is None else boundary
        self.finished = last
        self.busy_s += time.monotonic() - began

    def _commit(self, documents: int, boundary: Any) -> None:
        condition = selector(self._order.range.kind, self._after, boundary)
        began = time.monotonic()
        with pymongo.timeout(self._patience):
            updated = self._write(condition)
        self._pacer.finished(documents, time.monotonic() - began)
        for _ in range(documents):
            self._ahead.popleft()
        self.walked += documents
        self.updated += updated
        self.batches += 1

    def _write(self, condition: Any) -> int:
        if self._journal is not None:
            return update_with_journal(
                self._collection, self._journal, condition, self._query, self._update, self._fields
            )
        return self._collection.update_many(within(condition, self._query), self._update, hint=BY_ID).modified_count

    # --- what comes next ----------------------------------------------------------------------------------------

    def _next_batch(self) -> tuple[int, Any, bool]:
        """How many documents, up to which id, and whether they are the range's last."""
        size, most_bytes = self._pacer.size, float("inf")
        if self._journal is not None:
            size, most_bytes = min(size, JOURNAL_DOCUMENTS), JOURNAL_BYTES
        self._read_ahead(size + 1)
        documents, weight = 0, 0
        for _, length in self._ahead:
            if documents == size or (documents and weight + length > most_bytes):
                break
            documents, weight = documents + 1, weight + length
        last = documents == len(self._ahead)
        boundary = self._upto if last else self._id_ahead(documents - 1)
        return documents, boundary, last

    def _read_ahead(self, count: int) -> None:
        """Have that many documents ahead, or all that are left."""
        if time.monotonic() - self._read_at > IDLE_CURSOR:
            self._source = None
        while len(self._ahead) < count:
            if self._source is None:
                self._source = self._open(self._id_ahead(-1) if self._ahead else self._after)
            answer = next(self._source, None)
            if answer is None:
                break
            self._ahead.extend(self._kept(document) for document in documents_in(answer))
        self._read_at = time.monotonic()

    def _open(self, after: Any) -> Iterator[bytes]:
        """Answers with the ids in their order; with a journal, each with what would be kept of its document."""
        query = within(selector(self._order.range.kind, after, self._upto), self._query)
        fields, size = (BY_ID, READ_AHEAD) if self._journal is None else (touched(self._fields), JOURNAL_DOCUMENTS)
        return answers(self._collection, query, fields, size)

    def _kept(self, document: bytes) -> tuple[bytes, int]:
        """A document of the ``_id`` alone, and the bytes that a journal would keep."""
        if self._journal is None:
            return document, 0
        return bson.encode({"_id": RawBSONDocument(document)["_id"]}), len(document)

    def _id_ahead(self, index: int) -> Any:
        return id_of(self._ahead[index][0], self._collection.codec_options)
