"""Clients of the stages' databases, kept between activities: a client is a pool, and safe to share between threads."""

from __future__ import annotations

import threading
from typing import Any

import pymongo
import pymongo.errors
from pymongo.database import Database as MongoDatabase
from pymongo.write_concern import WriteConcern

from activities.errors import lasting
from activities.secret_refs import SecretResolver
from activities.stage import SecretRef, Stage

Client = pymongo.MongoClient[dict[str, Any]]
Db = MongoDatabase[dict[str, Any]]

SURE = WriteConcern("majority")
"""What is acknowledged survives a failover; otherwise a cursor could be ahead of the data."""


def connect(resolver: SecretResolver, ref: SecretRef, **options: Any) -> Client:
    """A client for the connection string that ``ref`` names; it connects when it is first used.

    Raises:
        ApplicationError: the secret is no connection string (lasting); or as :meth:`SecretResolver.resolve`.
    """
    uri = resolver.resolve(ref)
    usual: dict[str, Any] = {
        "appname": "operational-runbooks",
        "connectTimeoutMS": 3000,
        "serverSelectionTimeoutMS": 5000,
    }
    try:
        if uri.startswith(("mongodb://", "mongodb+srv://")):  # else the driver takes it for a host's name
            return pymongo.MongoClient(uri, **(usual | options))
    except (pymongo.errors.InvalidURI, ValueError):
        pass  # its text can quote the string, and with it the password
    raise lasting(
        f"what {ref} holds is no connection string of MongoDB, mongodb://... with user and password URL-encoded. "
        "Correct the secret",
        type="BadConnectionString",
    )


class MongoClients:
    """One client a connection string. A rotated secret leads to a new client at the next use.

    An answer may take as long as it does: a scan is as long as its collection is large. A server that neither answers
    nor hangs up is noticed by the driver, which asks it beside the work every ten seconds how it is.
    """

    def __init__(self, resolver: SecretResolver) -> None:
        self._resolver = resolver
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[str, Client]] = {}

    def client(self, stage: Stage) -> Client:
        uri = self._resolver.resolve(stage.database.uri)
        with self._lock:
            known, client = self._kept.get(stage.database.uri, ("", None))
            if client is None or known != uri:
                client = connect(
                    self._resolver,
                    stage.database.uri,
                    serverSelectionTimeoutMS=10_000,
                    maxPoolSize=32,
                    tz_aware=True,
                    datetime_conversion="DATETIME_AUTO",  # dates beyond the year 9999 are rewritten as they are
                )
                self._kept[stage.database.uri] = (uri, client)
            return client

    def database(self, stage: Stage) -> Db:
        """The stage's database; writes are acknowledged by a majority."""
        return self.client(stage).get_database(stage.database.name, write_concern=SURE)
