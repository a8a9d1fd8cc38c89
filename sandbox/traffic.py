"""Drives traffic at a stage of the State Tracking API, as its clients would: ``python -m sandbox.traffic``.

An open model: requests begin at their rate whether or not earlier ones were answered, so that a slow API meets the same
demand as a quick one. Only addresses on loopback are taken: this is no tool to point at production.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx

from sandbox.api.data import PROJECTS

MAX_RATE = 200.0
MAX_SECONDS = 24 * 3600.0
MAX_IN_FLIGHT = 100
"""A request that would be one more is counted as dropped: a stuck API must not pile up connections."""

NO_ANSWER = "none"
"""Status of a request that was not answered at all."""

_TIMEOUT = 40.0  # longer than the function's own 30 s and the gateway's 29 s, so that their answer is seen
_KEPT = 20_000
_KNOWN_IDS = 200
_MIX = {"GET /sessions": 50, "GET /sessions/{id}": 25, "POST /sessions": 15, "GET /health": 5, "GET /health/ready": 5}


class NotLoopbackError(ValueError):
    """The target is not on this machine."""


@dataclass(frozen=True)
class Stats:
    """Requests that ended within a span of time."""

    seconds: float
    sent: int
    dropped: int
    statuses: dict[str, int]
    routes: dict[str, dict[str, int]]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @property
    def error_rate(self) -> float | None:
        """Share of 5xx and unanswered requests; ``None`` when nothing was sent."""
        failed = sum(n for status, n in self.statuses.items() if status == NO_ANSWER or status.startswith("5"))
        return failed / self.sent if self.sent else None

    def line(self) -> str:
        counts = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items())) or "-"
        if self.p50_ms is None:
            return f"{self.sent:5d} answered  {counts}"
        times = f"p50 {self.p50_ms:.0f} ms  p95 {self.p95_ms:.0f} ms  p99 {self.p99_ms:.0f} ms"
        dropped = f"  dropped {self.dropped}" if self.dropped else ""
        return f"{self.sent:5d} answered  {counts}  {times}{dropped}"


@dataclass(frozen=True)
class _Ended:
    at: float
    route: str
    status: str
    ms: float


@dataclass
class _Log:
    ended: deque[_Ended] = field(default_factory=lambda: deque(maxlen=_KEPT))
    dropped: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))


class Traffic:
    """Traffic in a thread of its own, until :meth:`stop` or the end of its time.

    Args:
        url: base URL of the stage.
        rate: requests a second.
        api_key: value for ``X-Api-Key``; without one only ``/health`` is answered 200.
        seconds: how long at most.
        seed: makes the order of the routes repeatable.

    Raises:
        NotLoopbackError: ``url`` is not on this machine.
        ValueError: rate or seconds are out of bounds.
    """

    def __init__(
        self,
        url: str,
        rate: float,
        api_key: str | None = None,
        *,
        seconds: float = MAX_SECONDS,
        seed: int | None = None,
        name: str | None = None,
    ) -> None:
        if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            raise NotLoopbackError(f"traffic goes to this machine only, not to {urlsplit(url).hostname}")
        if not 0 < rate <= MAX_RATE:
            raise ValueError(f"the rate must be above 0 and at most {MAX_RATE:.0f} requests a second")
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError(f"the time must be above 0 and at most {MAX_SECONDS:.0f} seconds")
        self._url = url.rstrip("/")
        self._rate = rate
        self._seconds = seconds
        self._headers = {"X-Api-Key": api_key} if api_key else {}
        if name:
            self._headers["X-Client-Name"] = name
        self._random = random.Random(seed)
        self._ids: deque[str] = deque(maxlen=_KNOWN_IDS)
        self._log = _Log()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def start(self) -> Traffic:
        """Begin. A traffic is started once."""
        if self._thread:
            raise RuntimeError("this traffic was started before")
        self._began = time.monotonic()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._drive()), name="traffic", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> Stats:
        """Send no more, wait for what is under way, and return the statistics of it all."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        return self.stats()

    @property
    def running(self) -> bool:
        return bool(self._thread and self._thread.is_alive())

    def stats(self, last_seconds: float | None = None) -> Stats:
        """What ended within the last seconds, or since the start (of the last 20,000 requests)."""
        now = time.monotonic()
        since = self._began if last_seconds is None else max(self._began, now - last_seconds)
        with self._lock:
            ended = [entry for entry in self._log.ended if entry.at >= since]
            dropped = sum(at >= since for at in self._log.dropped)
        routes: dict[str, Counter[str]] = {}
        for entry in ended:
            routes.setdefault(entry.route, Counter())[entry.status] += 1
        times = sorted(entry.ms for entry in ended)
        return Stats(
            seconds=now - since,
            sent=len(ended),
            dropped=dropped,
            statuses=dict(Counter(entry.status for entry in ended)),
            routes={route: dict(counts) for route, counts in routes.items()},
            p50_ms=_percentile(times, 50),
            p95_ms=_percentile(times, 95),
            p99_ms=_percentile(times, 99),
            max_ms=times[-1] if times else None,
        )

    async def _drive(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        limits = httpx.Limits(max_connections=MAX_IN_FLIGHT)
        async with httpx.AsyncClient(timeout=_TIMEOUT, headers=self._headers, limits=limits) as client:
            for number in range(math.ceil(self._rate * self._seconds)):
                due = self._began + number / self._rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if self._stop.is_set():
                    break
                if len(under_way) >= MAX_IN_FLIGHT:
                    with self._lock:
                        self._log.dropped.append(time.monotonic())
                    continue
                task = asyncio.create_task(self._request(client))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            await asyncio.gather(*under_way)

    async def _request(self, client: httpx.AsyncClient) -> None:
        route = self._random.choices(list(_MIX), weights=list(_MIX.values()))[0]
        if route == "GET /sessions/{id}" and not self._ids:
            route = "GET /sessions"
        began = time.monotonic()
        try:
            answer = await self._send(client, route)
            status = str(answer.status_code)
            self._learn(route, answer)
        except httpx.HTTPError:
            status = NO_ANSWER
        ended = time.monotonic()
        with self._lock:
            self._log.ended.append(_Ended(ended, route, status, (ended - began) * 1000))

    async def _send(self, client: httpx.AsyncClient, route: str) -> httpx.Response:
        project = self._random.choice(PROJECTS)
        match route:
            case "GET /sessions":
                query = {"project_id": project, "status": "active", "limit": "20"}
                return await client.get(f"{self._url}/sessions", params=query)
            case "GET /sessions/{id}":
                return await client.get(f"{self._url}/sessions/{self._random.choice(self._ids)}")
            case "POST /sessions":
                body = {"project_id": project, "status": "active", "owner": "traffic"}
                return await client.post(f"{self._url}/sessions", json=body)
            case _:
                return await client.get(f"{self._url}{route.removeprefix('GET ')}")

    def _learn(self, route: str, answer: httpx.Response) -> None:
        """Remember ids, for requests by id."""
        if answer.status_code == 201:
            self._ids.append(answer.json()["id"])
        elif route == "GET /sessions" and answer.status_code == 200:
            self._ids.extend(session["id"] for session in answer.json()[:5])


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The smallest value that ``percent`` of all are not above."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1] if ordered else None


def main(argv: Sequence[str] | None = None) -> int:
    """Drive traffic and print one line a second; Ctrl+C ends it early."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.traffic", description="Traffic at a stage, on loopback only"
    )
    parser.add_argument("--url", required=True, help="base URL of the stage")
    parser.add_argument("--rate", type=float, default=10, help="requests a second (default 10)")
    parser.add_argument("--seconds", type=float, default=60, help="for how long (default 60)")
    parser.add_argument("--api-key-env", default="API_KEY", help="environment variable with the key (default API_KEY)")
    options = parser.parse_args(argv)
    try:
        traffic = Traffic(
            options.url, options.rate, os.environ.get(options.api_key_env), seconds=options.seconds
        ).start()
    except ValueError as error:
        parser.error(str(error))
    try:
        while traffic.running:
            time.sleep(1)
            print(traffic.stats(last_seconds=1).line(), flush=True)
    except KeyboardInterrupt:
        pass
    total = traffic.stop()
    print(f"total {total.line()}")
    return 0 if total.sent else 1


if __name__ == "__main__":
    raise SystemExit(main())
