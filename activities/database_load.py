"""How busy a stage is: its database, and what its API's clients see. What a source does not say stays unknown."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pymongo
import pymongo.errors
from temporalio.exceptions import ApplicationError

from activities.batch_models import Load
from activities.metrics import Metrics, Window
from activities.mongo_clients import Client, MongoClients
from activities.stage import Stage

DATABASE_EVERY = 1.0
"""Seconds that a reading of the database is shared between the partitions of a worker."""

PATIENCE = 10.0
"""Seconds that a reading of the database may take."""

SLOW = 500.0
"""Milliseconds of pings that tell enough: the median of three is for quick ones."""

API_EVERY = 15.0
"""Seconds that a reading of CloudWatch is shared: its points are minutes."""

API_WINDOW = timedelta(minutes=3)
API_DELAY = timedelta(minutes=1)
"""The last minute is left out: CloudWatch has not all of it yet."""

ENOUGH_CALLS = 20
"""Fewer calls of the API than this say nothing about its share of errors or its 95th percentile."""

Reading = dict[str, Any]


class LoadReader:
    """Reads load for many batches at once. Safe to share between threads."""

    def __init__(self, clients: MongoClients, metrics: Metrics | None) -> None:
        self._clients, self._metrics = clients, metrics
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._guard = threading.Lock()
        self._kept: dict[tuple[str, str], tuple[float, Reading]] = {}

    def read(self, stage: Stage) -> Load:
        """Load now, at most a second (database) or a quarter of a minute (API) old. Never raises for a source."""
        database = self._shared("database", stage, DATABASE_EVERY, self._database)
        api = self._shared("api", stage, API_EVERY, self._api)
        unknown = {**database.pop("unknown"), **api.pop("unknown")}
        figures = {**database, **api}
        shown = ", ".join(f"{name} {value:g}" for name, value in figures.items() if value is not None)
        missing = f"; not known: {', '.join(unknown)}" if unknown else ""
        return Load(summary=(shown or "nothing is known") + missing, unknown=unknown, **figures)

    def _shared(self, what: str, stage: Stage, keep: float, read: Callable[[Stage], Reading]) -> Reading:
        key = (what, stage.name)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            at, reading = self._kept.get(key, (-1e9, {}))
            if time.monotonic() - at > keep:
                reading = read(stage)
                self._kept[key] = (time.monotonic(), reading)
            return {**reading, "unknown": dict(reading["unknown"])}

    # --- the database -------------------------------------------------------------------------------------------

    def _database(self, stage: Stage) -> Reading:
        found: Reading = {"ping_ms": None, "connections": None, "queue": None, "lag_s": None, "unknown": {}}
        try:
            with pymongo.timeout(PATIENCE):
                client = self._clients.client(stage)
                found["ping_ms"] = _ping(client)
                self._server_status(client, found)
                self._lag(client, found)
        except pymongo.errors.PyMongoError as error:
            if found["ping_ms"] is None:
                # So long without an answer is a reading, and a bad one.
                found["ping_ms"] = PATIENCE * 1000 if error.timeout else None
            found["unknown"]["database"] = type(error).__name__
        return found

    @staticmethod
    def _server_status(client: Client, found: Reading) -> None:
        try:
            status = client.admin.command("serverStatus")
        except pymongo.errors.OperationFailure as error:
            found["unknown"] |= dict.fromkeys(("connections", "queue"), f"MongoDB error {error.code} (clusterMonitor?)")
            return
        found["connections"] = _count(status.get("connections", {}).get("current"))
        found["queue"] = _count(status.get("globalLock", {}).get("currentQueue", {}).get("total"))
        found["unknown"] |= {
            name: "the server does not say" for name in ("connections", "queue") if found[name] is None
        }

    @staticmethod
    def _lag(client: Client, found: Reading) -> None:
        """How far the slowest healthy secondary is behind its primary; a server without secondaries has no lag."""
        try:
            members = client.admin.command("replSetGetStatus").get("members", [])
        except pymongo.errors.OperationFailure as error:
            found["unknown"]["lag_s"] = f"MongoDB error {error.code} (no replica set, or clusterMonitor?)"
            return
        times: dict[str, list[datetime]] = {}
        for member in members:
            if isinstance(member.get("optimeDate"), datetime) and member.get("health") == 1:
                times.setdefault(str(member.get("stateStr")), []).append(member["optimeDate"])
        if times.get("PRIMARY") and times.get("SECONDARY"):
            behind = max(times["PRIMARY"]) - min(times["SECONDARY"])
            found["lag_s"] = round(max(0.0, behind.total_seconds()), 1)
        else:
            found["unknown"]["lag_s"] = "there is no secondary"

    # --- the API ------------------------------------------------------------------------------------------------

    def _api(self, stage: Stage) -> Reading:
        found: Reading = {"api_p95_ms": None, "api_error_rate": None, "unknown": {}}
        if self._metrics is None:
            return found
        end = datetime.now(UTC) - API_DELAY
        window = Window(stage=stage, start=end - API_WINDOW, end=end)
        try:
            errors = self._metrics.error_rate(window)
            latency = self._metrics.latency(window)
        except ApplicationError as error:
            found["unknown"]["api"] = error.message[:200]
            return found
        if max(errors.invocations or 0, errors.gateway_requests or 0) >= ENOUGH_CALLS:
            found["api_error_rate"] = errors.rate
        if (latency.samples or 0) >= ENOUGH_CALLS:
            found["api_p95_ms"] = latency.p95_ms
        found["unknown"] = {
            name: "too few calls were measured" for name in ("api_p95_ms", "api_error_rate") if found[name] is None
        }
        return found


def _ping(client: Client) -> float:
    pings: list[float] = []
    while len(pings) < 3 and sum(pings) < SLOW:
        began = time.perf_counter()
        client.admin.command("ping")
        pings.append((time.perf_counter() - began) * 1000)
    return round(statistics.median(pings), 1)


def _count(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value >= 0 else None
