"""A load generator: many real requests at one stage, counted and timed as its clients would see them.

An open model begins requests at their times whether or not earlier ones were answered, and counts each from the moment
it was due, so that a service that stalls does not also slow the test that should show it. A closed model (what ``ab``
does) has no times of its own; there the requests that a waiting client left out are added.

It goes to this machine, or to hosts that the settings name, and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import httpx
from temporalio import activity

from activities.errors import lasting, passing
from activities.load_figures import percentile, percentile_bounds, slice_seconds, with_omitted
from activities.load_models import LoadOrder, LoadPlan, LoadReport, Second
from activities.secret_refs import SecretResolver
from activities.stage import Stage

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_ANSWER = "none"
_TIMEOUT = 35.0
"""Longer than a gateway's own 29 or 30 seconds, so that its answer is seen."""
_BEAT = 1.0


@dataclass(frozen=True)
class _Ended:
    at: float
    status: str
    from_due: float
    from_sent: float


@dataclass
class _Test:
    """What one test has seen so far. Times are monotonic seconds."""

    plan: LoadPlan
    began: float
    asked: int = 0
    dropped: list[float] = field(default_factory=list)
    late: float = 0.0
    ended: list[_Ended] = field(default_factory=list)

    def over(self) -> bool:
        return time.monotonic() - self.began >= self.plan.at_most.total_seconds()


class Load:
    def __init__(self, resolver: SecretResolver) -> None:
        self._resolver = resolver

    @activity.defn(name="load.run")
    async def run(self, order: LoadOrder) -> LoadReport:
        """Ask what the plan says, and report it. A worker that dies loses the figures: the next attempt asks anew.

        Raises:
            TargetRefused: the stage is neither on this machine nor a configured target, or is production and nobody
                allowed that.
            NoAnswerAtAll: not one request was answered; retryable, because nothing was measured.
        """
        stage, plan = order.stage, order.plan
        require_target(order)
        interrupted = _asked_before()
        key = await asyncio.to_thread(self._resolver.resolve, stage.api_key)
        test = _Test(plan, time.monotonic())
        began_at = datetime.now(UTC)
        async with _client(stage, plan, key) as client, _beating(test):
            await (_open(client, test) if plan.arrivals == "open" else _closed(client, test))
        found = report(test, began_at, interrupted)
        if found.answered == 0:
            raise passing(f"not one of {test.asked} requests at {stage.name} was answered", type="NoAnswerAtAll")
        return found


def _client(stage: Stage, plan: LoadPlan, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=stage.url,
        headers={"X-Api-Key": key},
        timeout=httpx.Timeout(_TIMEOUT, connect=5.0),
        limits=httpx.Limits(max_connections=plan.concurrency, max_keepalive_connections=plan.concurrency),
        follow_redirects=False,
        trust_env=urlsplit(stage.url).hostname not in LOOPBACK,
    )


def require_target(order: LoadOrder) -> None:
    """Refuse what may not be loaded.

    Raises:
        TargetRefused: with what to change.
    """
    stage, host = order.stage, urlsplit(order.stage.url).hostname or ""
    if stage.production and not order.production_allowed:
        raise lasting(
            f"{stage.name} is production: load it through the runbook LoadTest, which asks first", type="TargetRefused"
        )
    if host not in LOOPBACK and host not in stage.load_hosts:
        raise lasting(
            f"{host} is no target for load: it is not this machine, and stage {stage.name} does not name it. "
            f"Add it to the stage's load_hosts",
            type="TargetRefused",
        )


def _asked_before() -> int:
    details = activity.info().heartbeat_details
    last = details[0] if details and isinstance(details[0], dict) else {}
    return int(last.get("asked", 0)) + int(last.get("interrupted", 0))


@asynccontextmanager
async def _beating(test: _Test) -> AsyncIterator[None]:
    """Heartbeats with how far the test is, for as long as it lasts. A cancelled test stops by itself."""
    interrupted = _asked_before()

    async def beat() -> None:
        while True:
            ended = len(test.ended)
            activity.heartbeat({"phase": "load", "asked": test.asked, "ended": ended, "interrupted": interrupted})
            await asyncio.sleep(_BEAT)

    beats = asyncio.create_task(beat())
    try:
        yield
    finally:
        beats.cancel()


async def _closed(client: httpx.AsyncClient, test: _Test) -> None:
    """So many clients, each with one request at a time."""

    async def one_client() -> None:
        while test.asked < test.plan.requests and not test.over():
            test.asked += 1
            await _ask(client, test, time.monotonic())

    await _all([one_client() for _ in range(min(test.plan.concurrency, test.plan.requests))])


async def _open(client: httpx.AsyncClient, test: _Test) -> None:
    """One request at each of its times, whatever has become of the earlier ones."""
    under_way: set[asyncio.Task[None]] = set()
    try:
        for number in range(test.plan.requests):
            due = test.began + number / test.plan.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if test.over():
                break
            test.late = max(test.late, time.monotonic() - due)
            test.asked += 1
            if len(under_way) >= test.plan.concurrency:
                test.dropped.append(due)
                continue
            task = asyncio.create_task(_ask(client, test, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
    finally:
        for task in under_way:
            task.cancel()


async def _all(clients: list[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client)


async def _ask(client: httpx.AsyncClient, test: _Test, due: float) -> None:
    sent = time.monotonic()
    try:
        status = str((await client.get(test.plan.path)).status_code)
    except httpx.HTTPError:
        status = NO_ANSWER
    ended = time.monotonic()
    test.ended.append(_Ended(ended, status, ended - due, ended - sent))


def report(test: _Test, began_at: datetime, interrupted: int = 0) -> LoadReport:
    """What the test has shown."""
    plan, ended = test.plan, test.ended
    statuses = dict(sorted(Counter(one.status for one in ended).items()))
    answered = len(ended) - statuses.get(NO_ANSWER, 0)
    failed = sum(count for status, count in statuses.items() if _is_failure(status)) + len(test.dropped)
    last = max((one.at for one in ended), default=test.began)
    seconds = max(last - test.began, 0.001)
    service = sorted(one.from_sent * 1000 for one in ended)
    times = _from_due(plan, ended)
    rate = failed / test.asked if test.asked else None
    figures = {name: _ms(percentile(times, p)) for name, p in _PERCENTILES}
    low, high = percentile_bounds(times, 95, len(ended))
    cut_short = test.asked < plan.requests
    notes = [f"{len(test.dropped)} dropped"] if test.dropped else []
    notes += ["cut short by at_most"] if cut_short else []
    notes += [f"this generator was up to {test.late * 1000:.0f} ms late itself"] if test.late > _LATE else []
    counts = " ".join(f"{status}:{count}" for status, count in statuses.items())
    return LoadReport(
        summary=f"{test.asked} requests in {seconds:.1f} s ({answered / seconds:.0f}/s), {counts or 'none ended'}, "
        f"p50 {figures['p50_ms'] or 0:.0f} ms, p95 {figures['p95_ms'] or 0:.0f} ms, p99 {figures['p99_ms'] or 0:.0f} ms"
        + "".join(f"; {note}" for note in notes),
        began_at=began_at,
        ended_at=began_at + timedelta(seconds=seconds),
        sent=test.asked - len(test.dropped),
        answered=answered,
        dropped=len(test.dropped),
        statuses=statuses,
        failed=failed,
        error_rate=rate,
        throughput=round(answered / seconds, 1),
        p95_low_ms=_ms(low),
        p95_high_ms=_ms(high),
        service_p95_ms=_ms(percentile(service, 95)),
        max_ms=_ms(times[-1] if times else None),
        cut_short=cut_short,
        interrupted=interrupted,
        seconds=_course(test, began_at, seconds),
        **figures,
    )


_PERCENTILES = (("p50_ms", 50.0), ("p90_ms", 90.0), ("p95_ms", 95.0), ("p99_ms", 99.0))
_LATE = 0.1
"""Seconds that a generator may be behind its own times before its figures say more of itself than of the service."""


def _from_due(plan: LoadPlan, ended: list[_Ended]) -> list[float]:
    """Milliseconds from when each request was due, with those that a waiting client of the closed model left out."""
    times = [one.from_due * 1000 for one in ended]
    if plan.arrivals == "open" or not times:
        return sorted(times)
    return with_omitted(times, median(times))


def _is_failure(status: str) -> bool:
    return status == NO_ANSWER or status == "429" or status.startswith("5")


def _course(test: _Test, began_at: datetime, seconds: float) -> tuple[Second, ...]:
    """How it went over time, in slices."""
    length = slice_seconds(seconds)
    slices: dict[int, list[_Ended]] = {}
    for one in test.ended:
        slices.setdefault(int((one.at - test.began) / length), []).append(one)
    return tuple(
        Second(
            at=began_at + timedelta(seconds=number * length),
            answered=sum(one.status != NO_ANSWER for one in found),
            failed=sum(_is_failure(one.status) for one in found),
            p95_ms=_ms(percentile(sorted(one.from_due * 1000 for one in found), 95)),
        )
        for number, found in sorted(slices.items())
    )


def _ms(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
