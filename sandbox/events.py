"""A large collection of the stage's database, for what takes more documents than the API has: ``events``."""

from __future__ import annotations

import random
import threading
from types import TracebackType
from typing import Any

import pymongo
from bson import ObjectId

COLLECTION = "events"
WITHOUT = {"environment": {"$exists": False}}
"""What an event looks like that nobody has migrated."""

_BATCH = 5000
_WRITES = 20.0
"""Writes a second of :class:`Writer`."""


class Events:
    """The collection, as its operator sees it."""

    def __init__(self, uri: str) -> None:
        self._client = pymongo.MongoClient[dict[str, Any]](uri)
        self._events = self._client.get_default_database()[COLLECTION]

    def fill(self, count: int) -> None:
        """Replace what is there with so many events that have no ``environment``."""
        self._events.drop()
        for start in range(0, count, _BATCH):
            numbers = range(start, min(count, start + _BATCH))
            self._events.insert_many(
                [{"_id": ObjectId(), "owner": f"user-{n % 500:03}", "kind": "session.saved", "n": n} for n in numbers]
            )

    def count(self, **fields: Any) -> int:
        """Events with these values; a value of None means that the field is absent."""
        query = {name: {"$exists": False} if value is None else value for name, value in fields.items()}
        return self._events.count_documents(query)

    def writer(self, value: str) -> Writer:
        """An application that sets ``environment`` of events that have none, while the block lasts."""
        return Writer(self._events, value)

    def close(self) -> None:
        self._client.close()


class Writer:
    """Writes in a thread of its own, never over a value that is there."""

    def __init__(self, events: pymongo.collection.Collection[dict[str, Any]], value: str) -> None:
        self._events, self._value = events, value
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        ids = [found["_id"] for found in self._events.find({}, {"_id": 1})]
        random.Random(1).shuffle(ids)
        while ids and not self._over.wait(1 / _WRITES):
            # By _id alone, which is quick on the embedded server too; whoever was there first stays.
            unset = {"$set": {"environment": {"$ifNull": ["$environment", self._value]}}}
            self._events.update_one({"_id": ids.pop()}, [unset])
