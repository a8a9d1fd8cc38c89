"""The API's data: sessions to look at, and the index that its list of sessions needs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import ASCENDING, DESCENDING, MongoClient
from pymongo.collection import Collection

COLLECTION = "sessions"
LIST_INDEX = "project_id_1_status_1_created_at_-1"
PROJECTS = tuple(f"project-{number:03d}" for number in range(50))

_LIST_KEYS = [("project_id", ASCENDING), ("status", ASCENDING), ("created_at", DESCENDING)]
_STATUSES = ("completed",) * 7 + ("active",) * 2 + ("failed",)
_OWNERS = 500
_SPREAD = timedelta(days=90)
_BATCH = 5000

Document = dict[str, Any]


def seed(uri: str, sessions: int = 2000, *, fresh: bool = False) -> int:
    """Bring the collection to at least ``sessions`` documents of the last 90 days, with its index.

    The documents are the same in each run, but for their ids and the moment they are counted back from.

    Args:
        uri: connection string that names the database.
        fresh: drop the collection first.

    Returns:
        How many documents were added.
    """
    with _client(uri) as client:
        collection = _sessions(client)
        if fresh:
            collection.drop()
        first = collection.estimated_document_count()
        batch: list[Document] = []
        for document in _documents(first, sessions):
            batch.append(document)
            if len(batch) == _BATCH:
                collection.insert_many(batch, ordered=False)
                batch = []
        if batch:
            collection.insert_many(batch, ordered=False)
        collection.create_index(_LIST_KEYS, name=LIST_INDEX)
        return max(0, sessions - first)


def drop_list_index(uri: str) -> None:
    """The missing-index fault: the list of sessions reads the whole collection from now on. ``seed`` undoes it."""
    with _client(uri) as client:
        collection = _sessions(client)
        if LIST_INDEX in collection.index_information():
            collection.drop_index(LIST_INDEX)


def _client(uri: str) -> MongoClient[Document]:
    return MongoClient(uri, serverSelectionTimeoutMS=5000)


def _sessions(client: MongoClient[Document]) -> Collection[Document]:
    return client.get_default_database()[COLLECTION]


def _documents(first: int, end: int) -> Iterator[Document]:
    now = datetime.now(UTC)
    for number in range(first, end):
        chosen = random.Random(number)
        created = now - chosen.random() * _SPREAD
        yield {
            "project_id": chosen.choice(PROJECTS),
            "status": chosen.choice(_STATUSES),
            "owner": f"user-{chosen.randrange(_OWNERS):03d}",
            "created_at": created,
            "updated_at": min(now, created + timedelta(minutes=chosen.randrange(1, 240))),
        }
