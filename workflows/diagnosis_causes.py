"""Likely causes weighed by the evidence, and the runbook that would cure each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from workflows.details import length
from workflows.diagnosis_model import Branch, Readings

JUST_DEPLOYED = timedelta(hours=1)
"""A deployment so short before is the first suspect."""

_FULL = 0.9
ROOMY = 0.7
FEW_LEFT = 5
_SLOW_PING_MS = 100.0
SLOW_START_MS = 1000.0
_MANY_STARTS = 0.2
_MANY_4XX = 0.2
_NOISE = 0.1
_FEW_LINES = 3


@dataclass
class Scale:
    """The evidence on both sides of one cause. What is not known (None) is put on neither."""

    supports: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)
    pro: float = 0.0
    con: float = 0.0

    def weigh(self, weight: float, holds: bool | None, text: str, otherwise: str | None = None) -> None:
        if holds is True:
            self.pro += weight
            self.supports.append(text)
        elif holds is False and otherwise is not None:
            self.con += weight
            self.against.append(otherwise)

    def speaks_against(self, weight: float, holds: bool | None, text: str) -> None:
        if holds is True:
            self.con += weight
            self.against.append(text)

    @property
    def score(self) -> float:
        return round(self.pro / (self.pro + self.con + 1.0), 2)


# --- what is known --------------------------------------------------------------------------------------------------


def lines(seen: Readings, kind: str) -> bool | None:
    """Whether the log speaks of it; not known when the log is not, or is silent altogether.

    A line or two among very many failures is what every log has.
    """
    if seen.log_lines is None or seen.log_lines.total == 0:
        return None
    failed = max(seen.errors or 0, seen.gateway_5xx or 0)
    fewest = max(1, _NOISE * seen.log_lines.total, min(_FEW_LINES, failed * _NOISE))
    return bool(getattr(seen.log_lines, kind) >= fewest)


def count(seen: Readings, kind: str) -> int:
    return int(getattr(seen.log_lines, kind)) if seen.log_lines else 0


def just_deployed(seen: Readings) -> bool | None:
    if seen.deployments:
        return seen.taken_at - seen.deployments[0].deployed_at <= JUST_DEPLOYED
    return None if "deployments" in seen.failed_sources else False


def _full(used: float | None, limit: float | None, share: float = _FULL) -> bool | None:
    return None if used is None or not limit else used >= share * limit


def _not_ready(seen: Readings) -> bool | None:
    """Whether the API answers and only its database is out of its reach. One that is dead is not ready either."""
    if seen.ready_ok is None or not seen.health_ok:
        return None
    return not seen.ready_ok and bool(seen.database_ok)


# --- the causes -----------------------------------------------------------------------------------------------------


def _deployment(seen: Readings, scale: Scale) -> None:
    newest = seen.deployments[0] if seen.deployments else None
    when = f"{newest.facts().name} was deployed {length(seen.taken_at - newest.deployed_at)} before" if newest else ""
    scale.weigh(4, just_deployed(seen), when, "nothing was deployed within the last hour")
    scale.weigh(3, lines(seen, "startup"), f"{count(seen, 'startup')} log lines say that the code does not start")
    scale.weigh(2, lines(seen, "code"), f"{count(seen, 'code')} log lines are exceptions of the application")
    scale.speaks_against(4, down(seen), "the database does not answer anybody, whatever release runs")
    scale.speaks_against(3, seen.reserved == 0, "the function is not allowed to run at all")
    scale.speaks_against(3, lines(seen, "credential"), "the log speaks of refused logins")
    scale.speaks_against(4, _refused_only(seen), "what is let through runs well: calls are refused before any code")


def _pool(seen: Readings, scale: Scale) -> None:
    left = seen.connections_left
    scale.weigh(
        5, None if left is None else left <= FEW_LEFT, f"{left} connections are left", f"{left} connections are left"
    )
    scale.weigh(2, _not_ready(seen), "the API does not reach the database, while it answers this worker")
    scale.weigh(1, lines(seen, "database"), f"{count(seen, 'database')} log lines speak of the database")
    scale.speaks_against(2, down(seen), "the database does not answer at all")


def _database_down(seen: Readings, scale: Scale) -> None:
    why = seen.database_problem or "no answer"
    scale.weigh(5, down(seen), f"the database does not answer this worker: {why}", "the database answers this worker")
    scale.weigh(1, lines(seen, "database"), f"{count(seen, 'database')} log lines speak of the database")


def _database_errors(seen: Readings, scale: Scale) -> None:
    scale.weigh(3, lines(seen, "database"), f"{count(seen, 'database')} log lines speak of the database", "none does")
    scale.weigh(3, down(seen), "the database does not answer this worker", "the database answers this worker")
    scale.weigh(2, _slow_ping(seen), f"a ping takes {seen.database_ping_ms or 0:.0f} ms")


def _credential(seen: Readings, scale: Scale) -> None:
    none = "no log line speaks of a refused login"
    scale.weigh(5, lines(seen, "credential"), f"{count(seen, 'credential')} log lines speak of refused logins", none)
    scale.weigh(1, _not_ready(seen), "the API does not reach the database, while it answers this worker")


def _time_out(seen: Readings, scale: Scale) -> None:
    longest, limit = seen.duration_max_ms, seen.timeout_ms
    shown = f"the longest invocation took {longest or 0:.0f} ms of {limit or 0:.0f} ms allowed"
    scale.weigh(4, _full(longest, limit, 0.95), shown, shown)
    scale.weigh(3, lines(seen, "timeout"), f"{count(seen, 'timeout')} log lines speak of time-outs")


def _memory(seen: Readings, scale: Scale) -> None:
    used, limit = seen.memory_used_mb, seen.memory_mb
    shown = f"{used or 0:.0f} of {limit or 0} MB are used at most"
    scale.weigh(3, _full(used, limit), shown)
    scale.speaks_against(3, None if used is None or not limit else used < ROOMY * limit, shown)
    scale.weigh(4, lines(seen, "memory"), f"{count(seen, 'memory')} log lines speak of memory")


def _validation(seen: Readings, scale: Scale) -> None:
    share = (seen.gateway_4xx or 0) / seen.requests if seen.requests else None
    many = None if share is None else share >= _MANY_4XX
    scale.weigh(3, many, f"{share or 0:.0%} of the requests are answered 4xx", f"only {share or 0:.0%} are 4xx")
    scale.weigh(2, lines(seen, "validation"), f"{count(seen, 'validation')} log lines speak of validation")


def _stopped(seen: Readings, scale: Scale) -> None:
    scale.weigh(8, seen.reserved == 0, "its reserved concurrency is 0: somebody has stopped its traffic")


def _limit(seen: Readings, scale: Scale) -> None:
    refused = None if seen.throttles is None else seen.throttles > 0
    scale.weigh(3, refused, f"{seen.throttles} calls were refused", "no call was refused")
    full = None if seen.reserved is None else (seen.concurrent or 0) >= seen.reserved or bool(seen.throttles)
    scale.weigh(3, full, f"it may run {seen.reserved} times at once")


def _queries(seen: Readings, scale: Scale) -> None:
    own = None if not seen.latency_ms or seen.duration_ms is None else seen.duration_ms >= ROOMY * seen.latency_ms
    scale.weigh(2, own, "the time is spent inside the function", "the time is not spent inside the function")
    scale.weigh(3, _slow_ping(seen), f"a ping of the database takes {seen.database_ping_ms or 0:.0f} ms")
    scale.weigh(1, lines(seen, "database"), f"{count(seen, 'database')} log lines speak of the database")


def _network(seen: Readings, scale: Scale) -> None:
    if seen.gateway_ms is None or seen.duration_ms is None:
        return
    outside = max(0.0, seen.gateway_ms - seen.duration_ms)
    shown = f"{outside:.0f} of {seen.gateway_ms:.0f} ms pass outside of the function"
    scale.weigh(3, outside > 0.5 * seen.gateway_ms, shown, shown)
    scale.speaks_against(2, _slow_starts(seen), "slow starts, which are not in the function's duration, explain it")


def _slow_starts(seen: Readings) -> bool | None:
    if seen.cold_starts is None or not seen.reports:
        return None
    return seen.cold_starts >= _MANY_STARTS * seen.reports and (seen.init_ms or 0) >= SLOW_START_MS


def _cold(seen: Readings, scale: Scale) -> None:
    shown = f"{seen.cold_starts} of {seen.reports} invocations began cold, the slowest took {seen.init_ms or 0:.0f} ms"
    scale.weigh(3, _slow_starts(seen), shown, shown)


def down(seen: Readings) -> bool | None:
    return None if seen.database_ok is None else not seen.database_ok


def _slow_ping(seen: Readings) -> bool | None:
    return None if seen.database_ping_ms is None else seen.database_ping_ms >= _SLOW_PING_MS


def _refused_only(seen: Readings) -> bool | None:
    if seen.throttles is None:
        return None
    return seen.throttles > 0 and not seen.errors


@dataclass(frozen=True)
class Known:
    """A cause that the tree knows: how it is weighed, and the runbook against it."""

    id: str
    text: str
    weigh: Callable[[Readings, Scale], None]
    runbook: str | None = None
    by_hand: str | None = None
    """What a person does where no runbook cures it."""


DEPLOYMENT = Known("deployment", "the newest deployment", _deployment, "QuickRollback")
POOL = Known("pool", "the database connection pool is exhausted", _pool, "ConnectionPoolScaling")
DOWN = Known(
    "database-down",
    "the database is down",
    _database_down,
    by_hand="see to the database: its cluster's page, its network; DatabaseRestore only when data is lost",
)
DATABASE = Known(
    "database-errors",
    "database errors (check availability)",
    _database_errors,
    by_hand="see what the database refuses, in the log's error lines and on the cluster's page",
)
CREDENTIAL = Known(
    "credential",
    "a secret or credential is refused",
    _credential,
    by_hand="compare the deployed secret with what the other side takes; put the former value back, and "
    "deploy; where it was changed on purpose, ServiceRestart has every environment read it anew",
)
TIME_OUT = Known("time-out", "the function runs into its time-out", _time_out, "ServiceRestart")
MEMORY = Known("memory", "the function's memory is insufficient", _memory, "VerticalScaling")
VALIDATION = Known("validation", "validation errors (check the request format)", _validation, "HighErrorRate")
STOPPED = Known(
    "stopped",
    "the function's traffic was stopped by hand",
    _stopped,
    by_hand="give its concurrency back: aws lambda delete-function-concurrency, or put-function-concurrency with what "
    "it was",
)
LIMIT = Known(
    "concurrency",
    "more calls at once than the function may run",
    _limit,
    "ProvisionedConcurrency",
    by_hand="raise its reserved concurrency (aws lambda put-function-concurrency) or the account's quota; where one "
    "client stands out, ClientRateLimit",
)
QUERIES = Known("queries", "database queries are slow", _queries, "PerformanceDegradation")
NETWORK = Known(
    "network",
    "the network or what lies around the function",
    _network,
    by_hand="check the gateway, the VPC and its routes, and what else stands between client and function",
)
COLD = Known("cold-starts", "cold starts", _cold, "ProvisionedConcurrency")

CANDIDATES: dict[Branch, tuple[Known, ...]] = {
    Branch.NOT_RESPONDING: (POOL, TIME_OUT, CREDENTIAL, DEPLOYMENT, DOWN, MEMORY, STOPPED),
    Branch.ERRORS: (VALIDATION, DATABASE, TIME_OUT, DEPLOYMENT, CREDENTIAL, MEMORY, POOL, DOWN),
    Branch.LATENCY: (QUERIES, NETWORK, MEMORY, COLD, DEPLOYMENT),
    Branch.THROTTLING: (LIMIT, STOPPED),
    Branch.HEALTHY: (),
    Branch.UNKNOWN: (),
}
"""The document's likely causes of each branch first, then what else is seen in practice."""
