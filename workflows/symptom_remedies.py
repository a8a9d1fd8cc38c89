"""Which remedy can help with what was measured, and why another cannot. Pure functions of the readings.

Every rule answers yes, no or 'not known', with the figures: a remedy whose measurement is missing is never offered as
if it fitted, and never refused as if it did not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from activities.symptom_models import SlowQuery
from workflows.symptom_errors import Picture, crowd, described_routes, picture
from workflows.symptom_readings import Apart, Readings, take_apart

GATEWAY_S = 29
"""A REST integration ends after this long, whatever the function's own time-out."""


class Remedy(StrEnum):
    """What can be done, as the document lists it."""

    ADD_INDEX = "add_index"
    PROVISIONED_CONCURRENCY = "provisioned_concurrency"
    MORE_MEMORY = "more_memory"
    CONNECTION_POOL = "connection_pool"
    LIMIT_CLIENT = "limit_client"
    ROLL_BACK = "roll_back"
    DATABASE_TIER = "database_tier"
    THROTTLE_LIMIT = "throttle_limit"
    TIMEOUT = "timeout"
    ASYNC_JOBS = "async_jobs"
    NETWORK = "network"
    CONTACT_CLIENTS = "contact_clients"
    FIX_CODE = "fix_code"


RUNBOOK_OF: dict[Remedy, str] = {
    Remedy.ADD_INDEX: "DatabaseMigration",
    Remedy.PROVISIONED_CONCURRENCY: "ProvisionedConcurrency",
    Remedy.MORE_MEMORY: "VerticalScaling",
    Remedy.CONNECTION_POOL: "ConnectionPoolScaling",
    Remedy.LIMIT_CLIENT: "ClientRateLimit",
    Remedy.ROLL_BACK: "QuickRollback",
}
"""The runbook that does it. What is not here, people do: the run says what, and waits until they have."""

BY_PEOPLE: dict[Remedy, str] = {
    Remedy.DATABASE_TIER: "scale the database cluster up to the next tier (Atlas console, or the cluster's API)",
    Remedy.THROTTLE_LIMIT: "raise the function's concurrency limit (reserved concurrency in sst.config.ts, or the "
    "account's quota), and deploy",
    Remedy.TIMEOUT: f"raise the function's time-out towards {GATEWAY_S} s in sst.config.ts, and deploy",
    Remedy.ASYNC_JOBS: "take the long operation out of the request (a queue and a job), and deploy",
    Remedy.NETWORK: "check firewall rules, the IP access list and the way from the Lambda's VPC to the database",
    Remedy.CONTACT_CLIENTS: "contact the clients concerned and have them correct what they call, and how often",
    Remedy.FIX_CODE: "merge a fix of the code, and deploy it",
}


@dataclass(frozen=True)
class Rules:
    """The document's thresholds."""

    memory_share: float = 400 / 512
    memory_first: bool = False
    """Whether memory itself is the trouble, and not only what may lie behind it."""
    cold_share: float = 0.05
    """More of the invocations than this starting cold is 'many'."""
    cold_cost: float = 0.1
    """And it matters when it makes this share of an average answer."""
    ping_ms: float = 50.0
    """A database in the same region answers a ping in a few milliseconds."""
    connections_share: float = 0.9
    error_share: float = 0.01
    database_share: float = 0.2
    """Queries matter when they make this share of an average answer."""
    slow_ms: float = 500.0
    normal_ms: float = 500.0
    """Answers are this quick or quicker when all is well."""
    code_share: float = 0.6
    """From this share of an average answer on, the time is the code's own."""


@dataclass(frozen=True)
class Offer:
    """One remedy, judged."""

    remedy: Remedy
    fits: bool | None
    """None: what would decide it could not be measured."""
    why: str
    strength: float = 0.0
    """How much of the trouble it is expected to take away, 0 to 1: what ranks the offers."""


@dataclass(frozen=True)
class Case:
    """The readings with what follows from them, worked out once."""

    seen: Readings
    apart: Apart
    errors: Picture
    rules: Rules


def case(seen: Readings, rules: Rules) -> Case:
    return Case(seen, take_apart(seen), picture(seen, rules.error_share), rules)


def judged(remedies: Iterable[Remedy], seen: Readings, rules: Rules) -> list[Offer]:
    """Every remedy with its verdict: what fits first, strongest first; then what is not known; then what cannot help.

    Of equals the order in which they are named holds.
    """
    of = case(seen, rules)
    offers = [_RULES[remedy](of) for remedy in remedies]
    rank = {True: 0, None: 1, False: 2}
    return sorted(offers, key=lambda offer: (rank[offer.fits], -offer.strength))


def _yes(remedy: Remedy, why: str, strength: float) -> Offer:
    return Offer(remedy, True, why, max(0.0, min(strength, 1.0)))


def _no(remedy: Remedy, why: str) -> Offer:
    return Offer(remedy, False, why)


def _open(remedy: Remedy, why: str) -> Offer:
    return Offer(remedy, None, why)


# --- the database ---------------------------------------------------------------------------------------------------


def lacking(seen: Readings) -> SlowQuery | None:
    """The query with the most time together that lacks an index which a migration can add."""
    queries = seen.slow.queries if seen.slow else ()
    return next((one for one in queries if one.missing and one.filter), None)


def _add_index(of: Case) -> Offer:
    slow = of.seen.slow
    if slow is None or slow.count is None:
        return _open(Remedy.ADD_INDEX, "slow queries are not known: neither the profiler nor Atlas can be read")
    if not slow.count:
        return _no(Remedy.ADD_INDEX, f"no slow query in {slow.seconds or 0:.0f} s: {slow.summary}")
    query = lacking(of.seen)
    if query is None:
        first = slow.queries[0] if slow.queries else None
        note = (first.note if first else None) or "they use an index already"
        return _no(Remedy.ADD_INDEX, f"{slow.count} slow queries, but no index is missing: {note}")
    keys = ", ".join(f"{name}: {way}" for name, way in query.missing)
    read = f", reads {query.examined} documents for {query.returned or 0}" if query.examined is not None else ""
    share = of.apart.share(of.apart.database_ms)
    cost = f"{query.average_ms:.0f} ms each" + (f", {share:.0%} of an average answer" if share is not None else "")
    long = query.average_ms >= of.rules.slow_ms
    if (share is None and not long) or (share is not None and share < of.rules.database_share and not _failing(of)):
        return _no(Remedy.ADD_INDEX, f"{query.collection} lacks {{{keys}}}, but that is not what costs time: {cost}")
    why = f"{query.count} x {query.collection} {query.form} ({cost}): {query.plan}{read}; {{{keys}}} is missing"
    return _yes(Remedy.ADD_INDEX, why, share if share is not None else 0.8)


def _failing(of: Case) -> bool:
    """Whether requests fail, which slow queries can bring about without a share in the answers that are measured."""
    return of.errors.primary == "5xx"


def _connection_pool(of: Case) -> Offer:
    found = of.seen.connections
    waiting = _errors_like(of, "pool", "waitqueue", "connection")
    if found is None:
        return _open(Remedy.CONNECTION_POOL, "the database did not answer: its connections are not known")
    if found.current is None or found.available is None:
        if waiting:
            return _open(Remedy.CONNECTION_POOL, f"{waiting} errors about connections; how many are left is not known")
        return _no(Remedy.CONNECTION_POOL, "no error tells of connections; how many are left the server does not say")
    limit = found.current + found.available
    used = found.current / limit if limit else 1.0
    if used >= of.rules.connections_share:
        return _yes(Remedy.CONNECTION_POOL, f"{found.current} of {limit} connections are in use", 0.9)
    if waiting:
        why = f"{waiting} errors about connections, while the cluster has {found.available} of {limit} left"
        return _yes(Remedy.CONNECTION_POOL, why, 0.6)
    return _no(Remedy.CONNECTION_POOL, f"only {found.current} of {limit} connections are in use")


def _database_tier(of: Case) -> Offer:
    found, slow = of.seen.connections, of.seen.slow
    if found is None:
        return _open(Remedy.DATABASE_TIER, "the database did not answer")
    if found.current is not None and found.available is not None:
        limit = found.current + found.available
        if limit and found.current / limit >= of.rules.connections_share:
            return _yes(Remedy.DATABASE_TIER, f"{found.current} of {limit} connections of this tier are in use", 0.5)
    indexed = [one for one in (slow.queries if slow else ()) if one.plan not in (None, "COLLSCAN") and not one.missing]
    share = of.apart.share(of.apart.database_ms)
    if indexed and share is not None and share >= of.rules.database_share:
        why = f"queries are slow although they use an index ({indexed[0].collection} {indexed[0].form}), {share:.0%}"
        return _yes(Remedy.DATABASE_TIER, f"{why} of an average answer", 0.4)
    spike = crowd(of.seen.requests, of.seen.earlier)
    if of.errors.limited and spike.kind == "general spike":
        return _yes(Remedy.DATABASE_TIER, f"{spike.why}: more database may be needed for it", 0.3)
    return _no(Remedy.DATABASE_TIER, "neither connections nor indexed queries are at a limit")


def _network(of: Case) -> Offer:
    found = of.seen.connections
    if found is None:
        return _yes(Remedy.NETWORK, "the database did not answer at all from here", 0.7)
    if found.ping_ms > of.rules.ping_ms:
        return _yes(Remedy.NETWORK, f"a ping of the database takes {found.ping_ms:.0f} ms", 0.5)
    return _no(Remedy.NETWORK, f"a ping of the database takes {found.ping_ms:.1f} ms")


# --- the function ---------------------------------------------------------------------------------------------------


def _provisioned(of: Case) -> Offer:
    reports, apart = of.seen.reports, of.apart
    if reports is None or not reports.invocations or reports.cold_starts is None:
        return _open(Remedy.PROVISIONED_CONCURRENCY, "no REPORT line could be read: cold starts are not known")
    cold = reports.cold_starts / reports.invocations
    cost = apart.share(apart.init_ms)
    init = f", {reports.init_average_ms:.0f} ms each" if reports.init_average_ms is not None else ""
    of_answer = f" ({cost:.0%} of an average answer)" if cost is not None else ""
    figures = f"{reports.cold_starts} of {reports.invocations} invocations started cold ({cold:.1%}){init}{of_answer}"
    if cold > of.rules.cold_share and (cost is None or cost >= of.rules.cold_cost):
        settings = of.seen.settings
        if settings is not None and settings.provisioned:
            why = f"{figures}, with {settings.provisioned} provisioned: more are needed"
            return _yes(Remedy.PROVISIONED_CONCURRENCY, why, cost if cost is not None else 0.5)
        return _yes(Remedy.PROVISIONED_CONCURRENCY, figures, cost if cost is not None else 0.5)
    return _no(Remedy.PROVISIONED_CONCURRENCY, f"only {figures}")


def memory_share(seen: Readings) -> float | None:
    """The most that was used, of what there is."""
    reports = seen.reports
    if reports is None or reports.memory_used_mb is None or not reports.memory_size_mb:
        return None
    return reports.memory_used_mb / reports.memory_size_mb


def _more_memory(of: Case) -> Offer:
    share, reports = memory_share(of.seen), of.seen.reports
    if share is None or reports is None:
        return _open(Remedy.MORE_MEMORY, "no REPORT line could be read: memory is not known")
    used = f"{reports.memory_used_mb:.0f} of {reports.memory_size_mb} MB"
    died = _errors_like(of, "runtimeexited", "out of memory")
    if share > of.rules.memory_share:
        grows = f", growing in {reports.growing} environments: it gains time, no more" if reports.growing else ""
        strength = 0.9 if of.rules.memory_first else 0.5 * (_slow_code(of) or 0.5)
        return _yes(Remedy.MORE_MEMORY, f"{used} used ({share:.0%}){grows}", strength / (2 if reports.growing else 1))
    if died:
        return _yes(Remedy.MORE_MEMORY, f"{died} environments died; {used} used", 0.5)
    code = _slow_code(of)
    if code is not None and of.errors.primary != "5xx":
        why = (
            f"{used} used, so memory is not short; {code:.0%} of the time is the code's own, and more memory brings CPU"
        )
        return _yes(Remedy.MORE_MEMORY, why, 0.3)
    return _no(Remedy.MORE_MEMORY, f"only {used} are used, and the time is not the code's own")


def _throttle_limit(of: Case) -> Offer:
    throttles = of.seen.throttles
    if throttles is None:
        return _open(Remedy.THROTTLE_LIMIT, "how many calls Lambda refused is not known")
    if not throttles:
        return _no(Remedy.THROTTLE_LIMIT, "Lambda refused no call: its limit is not what is reached")
    settings = of.seen.settings
    limit = f" (reserved concurrency {settings.reserved})" if settings and settings.reserved is not None else ""
    return _yes(Remedy.THROTTLE_LIMIT, f"Lambda refused {throttles} calls{limit}", 0.8)


def _timeout(of: Case) -> Offer:
    reports, settings = of.seen.reports, of.seen.settings
    if reports is None or reports.timeouts is None or settings is None:
        return _open(Remedy.TIMEOUT, "time-outs of the function are not known")
    if not reports.timeouts:
        return _no(
            Remedy.TIMEOUT,
            f"no invocation reached the function's {settings.timeout_s} s; a REST integration ends at {GATEWAY_S} s: "
            "a longer time-out cures no 504",
        )
    if settings.timeout_s >= GATEWAY_S:
        return _no(
            Remedy.TIMEOUT,
            f"{reports.timeouts} invocations ran into {settings.timeout_s} s, the gateway gives up at {GATEWAY_S} s: "
            "a longer time-out cures no 504",
        )
    return _yes(Remedy.TIMEOUT, f"{reports.timeouts} invocations ran into the function's {settings.timeout_s} s", 0.4)


def _async_jobs(of: Case) -> Offer:
    timeouts = (of.seen.reports.timeouts or 0) if of.seen.reports else 0
    gateway = sum(one.requests for one in of.errors.slowest if one.status == 504)
    if timeouts or gateway:
        routes = described_routes(of.errors.slowest)
        return _yes(Remedy.ASYNC_JOBS, f"{max(timeouts, gateway)} requests took too long: {routes}", 0.2)
    if of.seen.reports is None and of.seen.gateway is None:
        return _open(Remedy.ASYNC_JOBS, "time-outs are not known")
    return _no(Remedy.ASYNC_JOBS, "no request timed out")


# --- code and clients -----------------------------------------------------------------------------------------------


def _roll_back(of: Case) -> Offer:
    suspect = of.seen.suspect
    if suspect is None:
        return _open(Remedy.ROLL_BACK, "recent deployments are not known")
    if suspect.target is None:
        return _no(Remedy.ROLL_BACK, "no release is known to go back to")
    if of.errors.gone:
        routes = described_routes(of.errors.gone)
        return _yes(
            Remedy.ROLL_BACK, f"routes that answered before are gone: {routes}; {suspect.current} is live", 0.95
        )
    if of.errors.refusing:
        routes = described_routes(of.errors.refusing)
        return _yes(Remedy.ROLL_BACK, f"routes refuse what they took before: {routes}; {suspect.current} is live", 0.9)
    if not suspect.recent:
        when = f"{suspect.deployed_at:%Y-%m-%d %H:%M} UTC" if suspect.deployed_at else "a time that is not known"
        return _no(Remedy.ROLL_BACK, f"{suspect.current} has been live since {when}: not a recent deployment")
    if suspect.worse_since is None:
        return _open(Remedy.ROLL_BACK, f"{suspect.current} is new; how it was before could not be measured")
    if not suspect.worse_since:
        return _no(Remedy.ROLL_BACK, f"it was as bad before {suspect.current} was deployed ({suspect.before})")
    strength = 0.95 if of.errors.primary == "5xx" else 0.6
    return _yes(Remedy.ROLL_BACK, f"it began with {suspect.current}; before: {suspect.before}", strength)


def _limit_client(of: Case) -> Offer:
    who = crowd(of.seen.requests, of.seen.earlier)
    match who.kind:
        case "one client":
            trouble = bool(of.errors.limited) or bool(of.seen.throttles)
            return _yes(Remedy.LIMIT_CLIENT, who.why, 0.9 if trouble else 0.5)
        case "unknown":
            return _open(Remedy.LIMIT_CLIENT, who.why)
        case _:
            return _no(Remedy.LIMIT_CLIENT, f"no single client is the cause: {who.why}")


def _contact_clients(of: Case) -> Offer:
    who = crowd(of.seen.requests, of.seen.earlier)
    if of.errors.unknown:
        missing = described_routes(of.errors.unknown)
        return _yes(Remedy.CONTACT_CLIENTS, f"clients call what does not exist: {missing}", 0.5)
    if who.kind == "one client" and of.errors.limited:
        return _yes(Remedy.CONTACT_CLIENTS, f"{who.why}: have its usage corrected", 0.3)
    return _no(Remedy.CONTACT_CLIENTS, "nothing shows that clients call the API wrongly")


def _fix_code(of: Case) -> Offer:
    kinds = of.seen.kinds
    if of.errors.failed is None:
        return _open(Remedy.FIX_CODE, "errors of the code are not known")
    if of.errors.failed <= of.rules.error_share:
        code = _slow_code(of)
        if code is not None:
            return _yes(Remedy.FIX_CODE, f"{code:.0%} of the time is the code's own", 0.1)
        return _no(Remedy.FIX_CODE, f"{of.errors.failed:.2%} of requests fail")
    first = kinds.kinds[0] if kinds and kinds.kinds else None
    what = f": most often {first.kind} ({first.text})" if first else ""
    return _yes(Remedy.FIX_CODE, f"{of.errors.failed:.2%} of requests fail{what}", 0.1)


def _slow_code(of: Case) -> float | None:
    """The code's own share of an average answer, where answers are slow and it is most of it."""
    share = of.apart.share(of.apart.function_ms)
    slow = of.apart.total_ms is not None and of.apart.total_ms > of.rules.normal_ms
    return share if slow and share is not None and share >= of.rules.code_share else None


def _errors_like(of: Case, *words: str) -> int:
    """How many errors' kind or text has one of the words."""
    kinds = of.seen.kinds.kinds if of.seen.kinds else ()
    return sum(one.count for one in kinds if any(word in f"{one.kind} {one.text}".lower() for word in words))


_RULES: dict[Remedy, Callable[[Case], Offer]] = {
    Remedy.ADD_INDEX: _add_index,
    Remedy.PROVISIONED_CONCURRENCY: _provisioned,
    Remedy.MORE_MEMORY: _more_memory,
    Remedy.CONNECTION_POOL: _connection_pool,
    Remedy.LIMIT_CLIENT: _limit_client,
    Remedy.ROLL_BACK: _roll_back,
    Remedy.DATABASE_TIER: _database_tier,
    Remedy.THROTTLE_LIMIT: _throttle_limit,
    Remedy.TIMEOUT: _timeout,
    Remedy.ASYNC_JOBS: _async_jobs,
    Remedy.NETWORK: _network,
    Remedy.CONTACT_CLIENTS: _contact_clients,
    Remedy.FIX_CODE: _fix_code,
}
