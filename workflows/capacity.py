"""What a change of capacity costs, whether it fits, and whether it is needed: arithmetic that people can check.

Pure functions of what was measured. What could not be measured is said, never taken for zero.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import NamedTuple

from activities.database import Connections
from activities.function_capacity import FunctionState
from activities.symptom_models import Reports
from workflows import prices

HEADROOM = 0.8
"""Nothing is planned to run fuller than this: the rest is for a deployment, which has two generations at once."""

MEMORY_RESERVE = 1.25
"""Memory that is given has to be so many times what was used: Lambda ends an environment that needs more."""


class Assessed(NamedTuple):
    """A change before it is made, in words with figures."""

    need: str
    capacity: str
    cost: str
    refused: str | None = None
    """Why it would make things worse, with the arithmetic."""
    headroom: bool = False
    """Whether it is known to run no fuller than planned, see ``HEADROOM``."""
    priced: bool = True
    """Whether ``cost`` is a sum."""


def monthly(invocations: int | None, window: timedelta) -> float | None:
    """Invocations a month, as many as in the window."""
    if invocations is None:
        return None
    return invocations / window.total_seconds() * 3600 * prices.HOURS_A_MONTH


def money(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars < 100 else f"${dollars:,.0f}"


def _dated(text: str) -> str:
    return f"{text} (list prices of {prices.AS_OF}, {prices.REGION})"


def _of(state: FunctionState) -> prices.LambdaPrices:
    return prices.LAMBDA.get(state.architecture, prices.LAMBDA["x86_64"])


# --- memory -------------------------------------------------------------------------------------------------------


def memory(
    wanted_mb: int, found: FunctionState, seen: Reports | None, window: timedelta, ratio: float | None = None
) -> Assessed:
    """Another memory size. ``ratio`` is how much longer or shorter calls take with it, as staging has shown."""
    used = seen.memory_used_mb if seen else None
    need = _memory_need(found, seen)
    capacity = (
        f"{used:.0f} MB used of {found.memory_mb} MB ({used / found.memory_mb:.0%}); "
        f"of {wanted_mb} MB it would be {used / wanted_mb:.0%}"
        if used
        else "memory used is not known: no REPORT line"
    )
    refused = None
    if wanted_mb == found.memory_mb:
        refused = f"it has {wanted_mb} MB already"
    elif used and wanted_mb < used * MEMORY_RESERVE:
        refused = (
            f"{used:.0f} MB are in use; x {MEMORY_RESERVE} = {used * MEMORY_RESERVE:.0f} MB are the least, and "
            f"{wanted_mb} MB are fewer: Lambda would end environments that need more"
        )
    headroom = used is not None and 0 < used <= wanted_mb * HEADROOM
    cost, priced = _memory_cost(wanted_mb, found, seen, window, ratio)
    return Assessed(need, capacity, cost, refused, headroom, priced)


def _memory_need(found: FunctionState, seen: Reports | None) -> str:
    if seen is None or seen.invocations is None:
        return "not known: no REPORT line in the window"
    parts = [f"average {seen.average_ms:.0f} ms over {seen.invocations} calls" if seen.average_ms else "no duration"]
    if seen.memory_used_mb:
        share = seen.memory_used_mb / found.memory_mb
        parts.append(f"{share:.0%} of memory used" + (", which is short" if share > HEADROOM else ""))
    parts.append("more memory brings more CPU, which helps only where the code computes: staging's test shows it")
    return "; ".join(parts)


def _memory_cost(
    wanted_mb: int, found: FunctionState, seen: Reports | None, window: timedelta, ratio: float | None
) -> tuple[str, bool]:
    """In words, and whether it is a sum."""
    calls = monthly(seen.invocations if seen else None, window)
    if calls is None or seen is None or seen.average_ms is None:
        factor = wanted_mb / found.memory_mb
        return f"x {factor:g} for the same durations; the traffic is not known, so no sum", False
    before = calls * seen.average_ms / 1000 * found.memory_mb / 1024 * _of(found).duration
    after = before * wanted_mb / found.memory_mb
    text = f"{money(before)} → {money(after)} a month for the same durations"
    if ratio is not None:
        text += f", {money(after * ratio)} with staging's (x {ratio:.2f})"
    return _dated(text), True


# --- provisioned concurrency --------------------------------------------------------------------------------------


def provisioned(executions: int, found: FunctionState, seen: Reports | None) -> Assessed:
    """So many environments kept ready."""
    now = found.provisioned or 0
    need = _cold_need(seen)
    gigabytes = found.memory_mb / 1024
    hours = prices.HOURS_A_MONTH * 3600
    before, after = (n * gigabytes * hours * _of(found).provisioned for n in (now, executions))
    cost = _dated(
        f"{money(before)} → {money(after)} for keeping {executions} x {found.memory_mb} MB ready, used or not"
    )
    limit = found.reserved if found.reserved is not None else found.reservable
    refused = None
    if executions == now:
        refused = f"{executions or 'none'} are provisioned already"
    elif found.reserved is not None and executions > found.reserved:
        refused = (
            f"the function may take {found.reserved} calls at once (reserved concurrency), so AWS refuses to keep "
            f"{executions} ready"
        )
    elif limit is not None and executions > (found.provisioned or 0) + limit:
        refused = (
            f"{executions} are more than the {limit} that the account has left: 100 have to stay for the other "
            "functions"
        )
    room = (
        "not known" if limit is None else f"{limit} {'reserved' if found.reserved is not None else 'left to reserve'}"
    )
    environments = seen.environments if seen else None
    capacity = f"{executions} of {room}" + (f"; {environments} environments served the window" if environments else "")
    most = limit if found.reserved is not None or limit is None else now + limit
    headroom = most is not None and executions <= most * HEADROOM
    return Assessed(need, capacity, cost, refused, headroom)


def _cold_need(seen: Reports | None) -> str:
    if seen is None or seen.invocations is None or seen.cold_starts is None:
        return "not known: no REPORT line in the window"
    share = seen.cold_starts / seen.invocations if seen.invocations else 0
    text = f"{seen.cold_starts} of {seen.invocations} calls ({share:.1%}) waited for a start"
    if seen.init_average_ms:
        text += f", {seen.init_average_ms:.0f} ms on average"
    return text if seen.cold_starts else f"{text}: it cannot help with what was measured"


# --- the connection pool ------------------------------------------------------------------------------------------


def pool(
    wanted: int, now: int, found: FunctionState, seen: Reports | None, database: Connections | None, tier: str | None
) -> Assessed:
    """Another pool size of every environment: pool x environments against what the cluster takes.

    The worst case is every environment that the function may have, with its whole pool. A larger pool that does not
    fit then is refused; a smaller one never is.
    """
    most = found.reserved if found.reserved is not None else found.account_limit
    limit, source = _limit(database, tier)
    current = database.current if database else None
    need = f"{current} connections in use" if current is not None else "connections in use are not known"
    environments = seen.environments if seen else None
    if environments:
        need += f" by {environments} environments seen in the window"
    if wanted == now:
        return Assessed(need, "as it is", _NO_COST, f"maxPoolSize is {wanted} already")
    if limit is None or most is None:
        unknown = "what the cluster takes" if limit is None else "how many environments there can be"
        why = f"{unknown} is not known, and a larger pool where that is exceeded makes exhaustion worse"
        return Assessed(need, f"{unknown} is not known", _NO_COST, why if wanted > now else None)
    room = math.floor(limit * HEADROOM)
    arithmetic = (
        f"{wanted} x {most} environments = {wanted * most}; {source} takes {limit}, {HEADROOM:.0%} of it are {room}; "
        f"now {now} x {most} = {now * most}"
    )
    refused: str | None = None
    if wanted > now and wanted * most > room:
        fits = tier_for(wanted * most)
        bound, fitting = max(1, room // wanted), largest_pool(limit, most)
        refused = (
            f"{arithmetic}. Each environment of a Lambda has a pool of its own and serves one call at a time, so a "
            f"larger pool exhausts the cluster sooner. What fits: at most {fitting} a pool, or a reserved "
            f"concurrency of {bound}" + (f", or a cluster of {fits}" if fits else "")
        )
    return Assessed(need, arithmetic, _NO_COST, refused, headroom=wanted * most <= room)


def largest_pool(limit: int, environments: int) -> int:
    """The largest pool with which all of the environments fit a cluster that takes ``limit`` connections."""
    return max(1, math.floor(limit * HEADROOM) // environments)


_NO_COST = "none for the pool itself"


def _limit(database: Connections | None, tier: str | None) -> tuple[int | None, str]:
    """Connections that the cluster takes: what the server itself says first, then the table of its tier."""
    if database and database.current is not None and database.available is not None:
        return database.current + database.available, "the server"
    if tier in prices.ATLAS_CONNECTIONS:
        return prices.ATLAS_CONNECTIONS[tier], f"tier {tier}"
    return None, ""


def tier_for(connections: int) -> str | None:
    """The smallest Atlas tier that has room for so many, with its price."""
    for tier, takes in prices.ATLAS_CONNECTIONS.items():
        if connections <= takes * HEADROOM:
            return f"{tier} ({money(prices.ATLAS_HOURLY[tier] * prices.HOURS_A_MONTH)} a month)"
    return None


# --- alarms -------------------------------------------------------------------------------------------------------


def threshold(old: float, before: float | None, after: float | None) -> float | None:
    """The threshold of an alarm on durations for the new baseline; None where it stays.

    It follows a service that has become quicker, and keeps its distance to the usual. It is never raised: that a
    service is slower is what the alarm is for.
    """
    if not before or not after or after >= before * 0.9:
        return None
    fitted = math.ceil(max(old * after / before, after * 1.5))
    return float(fitted) if fitted < old * 0.95 else None
