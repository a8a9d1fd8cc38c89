"""Readings of symptoms, made up: one that is well, and a scenario a symptom with what helps and what does not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from activities.database import Connections
from activities.function_capacity import FunctionState
from activities.symptom_models import (
    ClientCount,
    ErrorKind,
    ErrorKinds,
    ErrorMinutes,
    LatencyParts,
    Reports,
    Requests,
    RouteCount,
    SlowQueries,
    SlowQuery,
)
from workflows.symptom_readings import Readings, Suspect
from workflows.symptom_remedies import Remedy

HALF_HOUR = timedelta(minutes=30)
NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


def latency(total: float = 2600, integration: float = 2580, duration: float = 2500, **more: Any) -> LatencyParts:
    given: dict[str, Any] = {
        "summary": "",
        "requests": 1800,
        "invocations": 1800,
        "throttles": 0,
        "latency_ms": total,
        "integration_ms": integration,
        "duration_ms": duration,
    }
    return LatencyParts(**given | more)


def reports(**more: Any) -> Reports:
    given: dict[str, Any] = {
        "summary": "",
        "invocations": 1000,
        "cold_starts": 5,
        "init_average_ms": 1500.0,
        "memory_size_mb": 512,
        "memory_used_mb": 120.0,
        "environments": 4,
        "growing": 0,
        "timeouts": 0,
    }
    return Reports(**given | more)


QUERY = SlowQuery(
    collection="sessions",
    form="find {owner: =}",
    count=60,
    average_ms=900,
    longest_ms=2000,
    total_ms=54_000,
    plan="COLLSCAN",
    examined=50_000,
    returned=1,
    missing=(("owner", 1),),
    filter={"owner": "none"},
)


def slow(*queries: SlowQuery, total_ms: float | None = None) -> SlowQueries:
    count = sum(one.count for one in queries)
    total = sum(one.total_ms for one in queries) if total_ms is None else total_ms
    return SlowQueries(summary="", source="profiler", count=count, total_ms=total, seconds=60, queries=tuple(queries))


def function(**more: Any) -> FunctionState:
    given: dict[str, Any] = {"summary": "", "version": "2", "memory_mb": 512, "timeout_s": 30, "account_limit": 1000}
    return FunctionState(**given | more)


def database(current: int = 10, available: int | None = 490, ping: float = 2.0) -> Connections:
    return Connections(summary="", current=current, available=available, ping_ms=ping, server="MongoDB 8")


def requests(statuses: dict[int, int], clients: dict[str, int] | None = None, **routes: int) -> Requests:
    """Routes as ``s404_a=5``: five answers of 404 on GET /a."""
    total = sum(statuses.values())
    by_client = sorted((clients or {"k1": total}).items(), key=lambda pair: -pair[1])
    others = sorted(n for _, n in by_client[1:])
    return Requests(
        summary="",
        total=total,
        statuses={str(status): n for status, n in statuses.items()},
        routes=tuple(
            RouteCount(status=int(name[1:4]), route=f"GET /{name[5:]}", requests=n) for name, n in routes.items()
        ),
        clients=tuple(ClientCount(client=name, requests=n) for name, n in by_client),
        client_count=len(by_client),
        other_median=float(others[len(others) // 2]) if others else None,
    )


def suspect(**more: Any) -> Suspect:
    given: dict[str, Any] = {
        "current": "new (version 2)",
        "target": "old (version 1)",
        "deployed_at": NOW,
        "recent": True,
        "worse_since": True,
        "before": "120 ms",
    }
    return Suspect(**given | more)


def errors(rate: float) -> ErrorMinutes:
    return ErrorMinutes(summary="", requests=1000, failed=round(1000 * rate), refused=0, rate=rate)


WELL = Readings(
    window=HALF_HOUR,
    latency=latency(120, 110, 100),
    errors=errors(0),
    reports=reports(),
    slow=slow(),
    connections=database(),
    settings=function(),
    requests=requests({200: 1800}, {"k1": 600, "k2": 600, "k3": 600}, s200_sessions=1800),
    earlier=requests({200: 1700}, {"k1": 600, "k2": 550, "k3": 550}, s200_sessions=1700),
    kinds=ErrorKinds(summary="", total=0),
    suspect=suspect(recent=False, worse_since=None),
)


def but(**changed: Any) -> Readings:
    return Readings(**{name: getattr(WELL, name) for name in WELL.__dataclass_fields__} | changed)


COLD = reports(cold_starts=400, init_average_ms=4000.0)
HEAVY = reports(memory_used_mb=480.0)
HAMMERED = requests(
    {200: 500, 429: 1500}, {"ab12cd34": 1800, "k1": 100, "k2": 100}, s200_sessions=500, s429_sessions=1500
)
GONE = requests({200: 900, 404: 100}, None, s200_sessions=900, **{"s404_sessions/{id}": 100})
BEFORE_GONE = requests({200: 1000}, None, s200_sessions=900, **{"s200_sessions/{id}": 100})
WRONG_CALL = requests({200: 900, 404: 100}, None, s200_sessions=900, s404_session=100)
POOL = ErrorKinds(summary="", total=9, kinds=(ErrorKind(kind="WaitQueueTimeoutError", text="timed out", count=9),))

SCENARIOS: dict[str, tuple[Readings, set[Remedy], set[Remedy]]] = {
    "missing index": (
        but(latency=latency(), slow=slow(QUERY)),
        {Remedy.ADD_INDEX},
        {Remedy.PROVISIONED_CONCURRENCY, Remedy.CONNECTION_POOL, Remedy.LIMIT_CLIENT, Remedy.ROLL_BACK},
    ),
    "cold starts": (
        but(latency=latency(2600, 2590, 300), reports=COLD),
        {Remedy.PROVISIONED_CONCURRENCY},
        {Remedy.ADD_INDEX, Remedy.MORE_MEMORY, Remedy.CONNECTION_POOL, Remedy.THROTTLE_LIMIT},
    ),
    "small memory": (
        but(reports=HEAVY),
        {Remedy.MORE_MEMORY},
        {Remedy.PROVISIONED_CONCURRENCY, Remedy.ADD_INDEX, Remedy.DATABASE_TIER},
    ),
    "exhausted connections": (
        but(connections=database(480, 20), kinds=POOL),
        {Remedy.CONNECTION_POOL, Remedy.DATABASE_TIER},
        {Remedy.ADD_INDEX, Remedy.PROVISIONED_CONCURRENCY},
    ),
    "bad release": (
        but(errors=errors(0.3), requests=requests({200: 700, 500: 300}), suspect=suspect()),
        {Remedy.ROLL_BACK, Remedy.FIX_CODE},
        {Remedy.ADD_INDEX, Remedy.MORE_MEMORY, Remedy.LIMIT_CLIENT, Remedy.TIMEOUT},
    ),
    "not the deploy": (
        but(errors=errors(0.3), requests=requests({200: 700, 500: 300}), suspect=suspect(worse_since=False)),
        {Remedy.FIX_CODE},
        {Remedy.ROLL_BACK},
    ),
    "one hammering client": (
        but(requests=HAMMERED),
        {Remedy.LIMIT_CLIENT, Remedy.CONTACT_CLIENTS},
        {Remedy.THROTTLE_LIMIT, Remedy.ROLL_BACK, Remedy.DATABASE_TIER},
    ),
    "general spike at Lambda's limit": (
        but(
            latency=latency(120, 110, 100, throttles=700),
            requests=requests({200: 4000, 429: 1000}, {f"k{n}": 1000 for n in range(5)}),
            earlier=requests({200: 1000}, {f"k{n}": 200 for n in range(5)}),
        ),
        {Remedy.THROTTLE_LIMIT, Remedy.DATABASE_TIER},
        {Remedy.LIMIT_CLIENT, Remedy.ROLL_BACK},
    ),
    "a route that is gone": (
        but(requests=GONE, earlier=BEFORE_GONE, suspect=suspect(worse_since=None)),
        {Remedy.ROLL_BACK},
        {Remedy.CONTACT_CLIENTS, Remedy.ADD_INDEX, Remedy.MORE_MEMORY},
    ),
    "clients call a wrong route": (
        but(requests=WRONG_CALL),
        {Remedy.CONTACT_CLIENTS},
        {Remedy.ROLL_BACK, Remedy.FIX_CODE},
    ),
    "the function's own time-out": (
        but(reports=reports(timeouts=20), settings=function(timeout_s=10)),
        {Remedy.TIMEOUT, Remedy.ASYNC_JOBS},
        {Remedy.PROVISIONED_CONCURRENCY},
    ),
    "the gateway's time-out": (
        but(reports=reports(timeouts=20), gateway=requests({504: 20, 200: 80}, None, s504_export=20)),
        {Remedy.ASYNC_JOBS},
        {Remedy.TIMEOUT},
    ),
    "a far database": (but(connections=database(ping=180)), {Remedy.NETWORK}, {Remedy.ADD_INDEX, Remedy.MORE_MEMORY}),
    "slow although indexed": (
        but(latency=latency(), slow=slow(QUERY.model_copy(update={"plan": "IXSCAN", "missing": ()}))),
        {Remedy.DATABASE_TIER},
        {Remedy.ADD_INDEX},
    ),
    "an index is missing, but it is not what is slow": (
        but(latency=latency(), slow=slow(QUERY, total_ms=600)),
        set(),
        {Remedy.ADD_INDEX},
    ),
    "all is well": (WELL, set(), set(Remedy)),
}
"""Readings, the remedies that fit them, and plausible ones that do not."""
