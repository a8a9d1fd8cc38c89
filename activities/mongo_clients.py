"""Clients of the stages' databases, kept between activities: a client is a pool, and safe to share between threads."""

from __future__ import annotations

import threading
from typing import Any

import pymongo
from pymongo.database import Database as MongoDatabase
from pymongo.write_concern import WriteConcern

from activities.secret_refs import SecretResolver
from activities.stage import Stage

Client = pymongo.MongoClient[dict[str, Any]]
Db = MongoDatabase[dict[str, Any]]

SURE = WriteConcern("majority")
"""What is acknowledged survives a failover; otherwise a cursor could be ahead of the data."""


class MongoClients:
    """One client a connection string. A rotated secret leads to a new client at the next use."""

    def __init__(self, resolver: SecretResolver) -> None:
        self._resolver = resolver
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, Client]] = {}

    def client(self, stage: Stage) -> Client:
        uri = self._resolver.resolve(stage.database.uri)
        with self._lock:
            known, client = self._kept.get(stage.database.uri, ("", None))
            if client is None or known != uri:
                client = pymongo.MongoClient(
                    uri,
                    appname="operational-runbooks",
                    connectTimeoutMS=3000,
                    serverSelectionTimeoutMS=10_000,
                    socketTimeoutMS=600_000,  # the net under a server that neither answers nor hangs up
                    maxPoolSize=32,
                    tz_aware=True,
                    datetime_conversion="DATETIME_AUTO",  # dates beyond the year 9999 are rewritten as they are
                )
                self._kept[stage.database.uri] = (uri, client)
            return client

    def database(self, stage: Stage) -> Db:
        """The stage's database; writes are acknowledged by a majority."""
        return self.client(stage).get_database(stage.database.name, write_concern=SURE)
