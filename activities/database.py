"""The stage's database, looked at from outside: is it there, and has it room for more connections."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pymongo
import pymongo.errors
from pydantic import Field
from temporalio import activity

from activities.errors import classified
from activities.evidence import Finding
from activities.mongo_clients import Client, connect
from activities.secret_refs import SecretResolver
from activities.stage import SecretRef, Stage

_PINGS = 3
_UNAUTHORIZED = 13


class Connections(Finding):
    """Connections of the server that answered."""

    current: int | None = Field(None, description="Connections in use")
    available: int | None = Field(None, description="Connections left; absent when the server does not really say")
    ping_ms: float = Field(description="Median of three pings, in milliseconds")
    server: str = Field(description="What the server says it is")


class Database:
    def __init__(self, resolver: SecretResolver) -> None:
        self._resolver = resolver

    @activity.defn(name="database.connections")
    @classified("ask the database")
    def connections(self, stage: Stage) -> Connections:
        """Ping the database and read its connection counts. It gives up within seconds.

        The counts need the ``clusterMonitor`` role; where the API's own user has it not, the stage's operator is asked.
        Without it, and where a reading cannot be, they are reported as unknown, never as a figure.
        """
        with self._connect(stage.database.uri) as client:
            admin = client.get_database("admin")
            admin.command("ping")  # the first one includes connecting
            pings = [_timed(admin) for _ in range(_PINGS)]
            counts = _connection_counts(admin) or self._operators_counts(stage)
            build = admin.command("buildInfo")
            current, available = _count(counts.get("current")), _count(counts.get("available"))
            if available == 0 and self._takes_more(stage):
                available = None
            most = stage.database.most_connections
            if available is None and current is not None and most is not None:
                available = max(0, most - current)
        ping_ms = round(statistics.median(pings) * 1000, 2)
        server = _server(build)
        used = (
            f"{current} connections" if current is not None else "connections unknown (role clusterMonitor shows them)"
        )
        left = f"{available} available" if available is not None else "how many are left is not known"
        return Connections(
            summary=f"ping {ping_ms:.1f} ms, {used}, {left} ({server})",
            current=current,
            available=available,
            ping_ms=ping_ms,
            server=server,
        )

    def _operators_counts(self, stage: Stage) -> dict[str, Any]:
        if stage.database.operator_uri is None:
            return {}
        with self._connect(stage.database.operator_uri) as client:
            return _connection_counts(client.get_database("admin"))

    def _connect(self, uri: SecretRef) -> Client:
        return connect(self._resolver, uri, socketTimeoutMS=10_000, maxPoolSize=2)

    def _takes_more(self, stage: Stage) -> bool:
        """A server that takes one more connection is not full, whatever it says."""
        try:
            with self._connect(stage.database.uri) as another:
                another.get_database("admin").command("ping")
        except pymongo.errors.PyMongoError:
            return False
        return True


def _connection_counts(admin: pymongo.database.Database[dict[str, Any]]) -> dict[str, Any]:
    try:
        return dict(admin.command("serverStatus").get("connections", {}))
    except pymongo.errors.OperationFailure as error:
        if error.code == _UNAUTHORIZED:
            return {}
        raise


def _timed(admin: pymongo.database.Database[dict[str, Any]]) -> float:
    began = time.perf_counter()
    admin.command("ping")
    return time.perf_counter() - began


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def _server(build: dict[str, Any]) -> str:
    if "secantusVersion" in build:
        return f"embedded SecantusDB {build['secantusVersion']}, not MongoDB"
    return f"MongoDB {build.get('version', 'of unknown version')}"
