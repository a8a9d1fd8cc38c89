"""How often the diagnosis is right: over the scenarios as they are by the book, and over evidence made at random.

Each scenario is a fault with what it leaves in health, metrics, logs, database and ledger. At random, its figures vary
as traffic and load do, other things happen beside it (an unrelated deployment, noise in the log, a slow database), and
sources fail. The seed is fixed.

What is counted: the branch of the tree, or that it is said not to be known; whether the true cause comes first; what
would be started next, and whether that could not cure it. The figures are only as good as the scenarios are like life.

- *by thresholds*: the document's tree as it stands, which names the first cause of its list.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from activities.log_kinds import LogCounts
from activities.releases import LedgerEntry
from workflows.diagnosis_causes import CANDIDATES
from workflows.diagnosis_model import Branch, Conclusion, Readings
from workflows.diagnosis_remedies import Context
from workflows.diagnosis_tree import diagnose, place, set_aside

DRAWS = 300
"""Draws of each scenario and each number of sources that fail."""

NOW = datetime(2026, 1, 20, 14, 5, tzinfo=UTC)
CONTEXT = Context("production", "alarm")
Values = dict[str, Any]

SOURCES: dict[str, tuple[str, ...]] = {
    "metrics": (
        *("invocations", "errors", "throttles", "duration_ms", "duration_max_ms", "concurrent", "timeout_ms"),
        *("memory_mb", "reserved", "requests", "gateway_5xx", "gateway_4xx", "gateway_ms", "integration_ms"),
    ),
    "lambda-log": ("log_lines", "reports", "cold_starts", "init_ms", "memory_used_mb"),
    "database": ("database_ok", "database_ping_ms", "connections", "connections_left"),
    "deployments": ("deployments", "live"),
    "confirm-ready": ("ready_ok", "ready_status"),
}
"""What is not known when a source fails."""


def deployed(minutes: float, label: str = "newest") -> LedgerEntry:
    return LedgerEntry(
        app="state-api",
        stage="production",
        release="bbbbbbb",
        label=label,
        engine="sst",
        deployed_at=NOW - timedelta(minutes=minutes),
        deployed_by="ci",
    )


def well(chance: random.Random) -> Values:
    """A service that is well, under some traffic."""
    calls = chance.randint(150, 4000)
    duration = chance.uniform(15, 120)
    gateway = duration + chance.uniform(5, 40)
    return {
        "taken_at": NOW,
        "health_ok": True,
        "health_status": 200,
        "health_ms": chance.uniform(5, 60),
        "ready_ok": True,
        "ready_status": 200,
        "invocations": calls,
        "errors": 0,
        "throttles": 0,
        "duration_ms": duration,
        "duration_max_ms": duration * chance.uniform(2, 8),
        "concurrent": chance.randint(2, 12),
        "timeout_ms": 30_000,
        "memory_mb": 512,
        "memory_used_mb": chance.uniform(90, 250),
        "requests": calls,
        "gateway_5xx": 0,
        "gateway_4xx": int(calls * chance.uniform(0, 0.05)),
        "gateway_ms": gateway,
        "integration_ms": gateway - chance.uniform(1, 4),
        "log_lines": LogCounts(validation=chance.randint(0, 3)),
        "reports": calls,
        "cold_starts": chance.randint(0, max(1, calls // 100)),
        "init_ms": chance.uniform(200, 700),
        "database_ok": True,
        "database_ping_ms": chance.uniform(1, 8),
        "connections": chance.randint(20, 300),
        "connections_left": chance.randint(600, 1200),
        "deployments": (),
        "live": "good",
    }


@dataclass(frozen=True)
class Scenario:
    """A fault. ``cures`` are the runbooks that clear it; with none, people have to."""

    name: str
    branch: Branch
    cause: str
    cures: frozenset[str]
    leaves: Callable[[random.Random, Values], Values]


def _dead(chance: random.Random, seen: Values, **more: Any) -> Values:
    """Nothing is answered any more, since a part of the window."""
    failed = int(seen["invocations"] * chance.uniform(0.5, 1))
    down = {"health_ok": False, "health_status": chance.choice([500, 502, 503]), "ready_ok": False, "ready_status": 502}
    return {**down, "errors": failed, "gateway_5xx": failed, **more}


def _dead_release(chance: random.Random, seen: Values) -> Values:
    kind = chance.choice(["startup", "code"])
    lines = LogCounts(**{kind: chance.randint(20, 600)})
    return _dead(chance, seen, log_lines=lines, deployments=(deployed(chance.uniform(1, 45)),))


def _pool(chance: random.Random, seen: Values) -> Values:
    left = chance.randint(0, 3)
    return {
        "ready_ok": False,
        "ready_status": 503,
        "gateway_5xx": int(seen["requests"] * chance.uniform(0.6, 0.95)),
        "connections": 1500 - left,
        "connections_left": left,
        "concurrent": chance.randint(20, 60),
        "log_lines": LogCounts(database=chance.randint(30, 600)),
    }


def _database_down(chance: random.Random, seen: Values) -> Values:
    return {
        "ready_ok": False,
        "ready_status": 503,
        "gateway_5xx": int(seen["requests"] * chance.uniform(0.7, 0.95)),
        "database_ok": False,
        "database_problem": "no primary",
        "database_ping_ms": None,
        "connections": None,
        "connections_left": None,
        "log_lines": LogCounts(database=chance.randint(50, 800)),
    }


def _credential(chance: random.Random, seen: Values) -> Values:
    return {
        "ready_ok": False,
        "ready_status": 503,
        "gateway_5xx": int(seen["requests"] * chance.uniform(0.7, 0.95)),
        "log_lines": LogCounts(credential=chance.randint(30, 600)),
    }


def _hangs(chance: random.Random, seen: Values) -> Values:
    lines = LogCounts(timeout=chance.randint(20, 300))
    return _dead(chance, seen, health_status=504, duration_ms=28_000, duration_max_ms=30_000, log_lines=lines,
                 gateway_ms=28_900, integration_ms=28_890)  # fmt: skip


def _out_of_memory(chance: random.Random, seen: Values) -> Values:
    used = chance.uniform(500, 512)
    return _dead(chance, seen, memory_used_mb=used, log_lines=LogCounts(memory=chance.randint(20, 300)))


def _stopped(_chance: random.Random, seen: Values) -> Values:
    calls = seen["invocations"]
    return {
        "health_ok": False,
        "health_status": 500,
        "ready_ok": False,
        "ready_status": 500,
        "reserved": 0,
        "invocations": 0,
        "errors": 0,
        "throttles": calls,
        "gateway_5xx": calls,
        "reports": 0,
        "cold_starts": 0,
        "duration_ms": None,
        "duration_max_ms": None,
        "memory_used_mb": None,
        "log_lines": LogCounts(),
    }


def _broken_release(chance: random.Random, seen: Values) -> Values:
    failed = int(seen["requests"] * chance.uniform(0.08, 0.6))
    lines = LogCounts(code=failed, validation=chance.randint(0, 5))
    return {"gateway_5xx": failed, "log_lines": lines, "deployments": (deployed(chance.uniform(1, 50)),)}


def _database_errors(chance: random.Random, seen: Values) -> Values:
    failed = int(seen["requests"] * chance.uniform(0.08, 0.4))
    return {
        "gateway_5xx": failed,
        "log_lines": LogCounts(database=failed, code=chance.randint(0, 2)),
        "database_ping_ms": chance.uniform(120, 900),
    }


def _slow_release(chance: random.Random, seen: Values) -> Values:
    slow = chance.uniform(5_500, 12_000)
    return {**_slow(slow, chance), "deployments": (deployed(chance.uniform(1, 50)),)}


def _slow(ms: float, chance: random.Random) -> Values:
    gateway = ms + chance.uniform(5, 60)
    return {"duration_ms": ms, "duration_max_ms": min(29_000, ms * 1.8), "gateway_ms": gateway,
            "integration_ms": gateway - 3, "health_ms": chance.uniform(5, 60)}  # fmt: skip


def _slow_queries(chance: random.Random, _seen: Values) -> Values:
    return {**_slow(chance.uniform(5_500, 12_000), chance), "database_ping_ms": chance.uniform(150, 2_000)}


def _slow_network(chance: random.Random, _seen: Values) -> Values:
    gateway = chance.uniform(5_500, 15_000)
    return {"gateway_ms": gateway, "integration_ms": gateway - chance.uniform(20, 4_000)}


def _slow_starts(chance: random.Random, seen: Values) -> Values:
    gateway = chance.uniform(5_200, 9_000)
    return {
        **_slow(chance.uniform(300, 1_500), chance),
        "gateway_ms": gateway,
        "integration_ms": gateway - 5,
        "init_ms": chance.uniform(6_000, 9_900),
        "cold_starts": int(seen["reports"] * chance.uniform(0.5, 0.95)),
    }


def _short_of_memory(chance: random.Random, _seen: Values) -> Values:
    lines = LogCounts(memory=chance.randint(2, 30))
    return {
        **_slow(chance.uniform(5_500, 12_000), chance),
        "memory_used_mb": chance.uniform(490, 512),
        "log_lines": lines,
    }


def _throttled(chance: random.Random, seen: Values) -> Values:
    refused, limit = int(seen["invocations"] * chance.uniform(0.1, 0.7)), chance.randint(1, 10)
    ran = seen["invocations"] - refused
    return {
        "throttles": refused,
        "invocations": ran,
        "reserved": limit,
        "concurrent": limit,
        "gateway_5xx": refused,
        "reports": ran,
        "health_ok": (answered := chance.random() < 0.5),
        "health_status": 200 if answered else 500,
        "ready_ok": answered,
        "ready_status": 200 if answered else 500,
    }


def _nothing(_chance: random.Random, _seen: Values) -> Values:
    return {}


def _is(
    name: str, branch: Branch, cause: str, leaves: Callable[[random.Random, Values], Values], *cures: str
) -> Scenario:
    return Scenario(name, branch, cause, frozenset(cures), leaves)


SCENARIOS = (
    _is("dead release", Branch.NOT_RESPONDING, "deployment", _dead_release, "QuickRollback", "CanaryRollback"),
    _is("connections exhausted", Branch.NOT_RESPONDING, "pool", _pool, "ConnectionPoolScaling", "ServiceRestart"),
    _is("database down", Branch.NOT_RESPONDING, "database-down", _database_down),
    _is("wrong credential", Branch.NOT_RESPONDING, "credential", _credential),
    _is("hangs", Branch.NOT_RESPONDING, "time-out", _hangs, "ServiceRestart"),
    _is("out of memory", Branch.NOT_RESPONDING, "memory", _out_of_memory, "VerticalScaling", "ServiceRestart"),
    _is("stopped by hand", Branch.NOT_RESPONDING, "stopped", _stopped),
    _is("broken release", Branch.ERRORS, "deployment", _broken_release, "QuickRollback", "CanaryRollback"),
    _is("database errors", Branch.ERRORS, "database-errors", _database_errors),
    _is("slow release", Branch.LATENCY, "deployment", _slow_release, "QuickRollback", "CanaryRollback"),
    _is("slow queries", Branch.LATENCY, "queries", _slow_queries, "PerformanceDegradation"),
    _is("slow network", Branch.LATENCY, "network", _slow_network),
    _is("cold starts", Branch.LATENCY, "cold-starts", _slow_starts, "ProvisionedConcurrency"),
    _is("short of memory", Branch.LATENCY, "memory", _short_of_memory, "VerticalScaling"),
    _is("too many calls", Branch.THROTTLING, "concurrency", _throttled),
    _is("well", Branch.HEALTHY, "", _nothing),
)


def by_the_book(scenario: Scenario) -> Readings:
    """The scenario alone, with everything known."""
    chance = random.Random(1)
    seen = well(chance)
    return Readings.model_validate({**seen, **scenario.leaves(chance, seen)})


def at_random(scenario: Scenario, chance: random.Random, failing: int) -> Readings:
    """The scenario with its figures as they come, other things beside it, and so many sources that fail."""
    seen = well(chance)
    seen |= scenario.leaves(chance, seen)
    if scenario.cause != "deployment" and chance.random() < 0.3:
        seen["deployments"] = (deployed(chance.uniform(5, 600), "unrelated"),)
    if chance.random() < 0.3:
        counts = seen["log_lines"].model_dump()
        most = 2 + sum(counts.values()) // 10
        noise = {kind: chance.randint(0, most) for kind in chance.sample(sorted(counts), 2)}
        seen["log_lines"] = LogCounts(**{kind: count + noise.get(kind, 0) for kind, count in counts.items()})
    if chance.random() < 0.2 and seen["database_ping_ms"] is not None:
        seen["database_ping_ms"] *= chance.uniform(1, 30)
    if chance.random() < 0.2:
        seen["cold_starts"] = int((seen["reports"] or 0) * chance.uniform(0, 0.3))
    if chance.random() < 0.3:  # it began late in the window, and the figures of the last minutes are not there yet
        late = chance.uniform(0.3, 1)
        seen |= {name: int(seen[name] * late) for name in ("errors", "gateway_5xx", "throttles")}
    failed = chance.sample(sorted(SOURCES), failing)
    for source in failed:
        seen |= dict.fromkeys(SOURCES[source])
    if "deployments" in failed:
        seen["deployments"] = ()
    return Readings.model_validate({**seen, "failed_sources": dict.fromkeys(failed, "no answer")})


@dataclass
class Tally:
    draws: int = 0
    branch: int = 0
    first: int = 0
    not_known: int = 0
    next_right: int = 0
    harmful: int = 0
    naive: int = 0

    def enter(self, scenario: Scenario, seen: Readings, found: Conclusion) -> None:
        causes = [cause.id for cause in found.causes if cause.supports]
        self.draws += 1
        self.branch += found.branch is scenario.branch
        self.first += causes[:1] == ([scenario.cause] if scenario.cause else [])
        self.not_known += found.branch is Branch.UNKNOWN
        started = found.next.runbook if found.next else None
        self.next_right += started in scenario.cures if scenario.cures else started is None
        self.harmful += started is not None and started not in scenario.cures
        self.naive += by_thresholds(seen) == scenario.cause

    def row(self) -> str:
        figures = (self.branch, self.not_known, self.first, self.next_right, self.harmful, self.naive)
        return "".join(f"{figure / self.draws:>14.1%}" for figure in figures)

    def add(self, other: Tally) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


def by_thresholds(seen: Readings) -> str:
    """What a person reads off the document: the first likely cause of the first branch that holds."""
    branch, _ = place(set_aside(seen)[0])
    return CANDIDATES[branch][0].id if CANDIDATES[branch] else ""


def drawn(scenario: Scenario, chance: random.Random, failing: int, draws: int = DRAWS) -> Tally:
    tally = Tally()
    for _ in range(draws):
        seen = at_random(scenario, chance, failing)
        tally.enter(scenario, seen, diagnose(seen, CONTEXT))
    return tally


def header(what: str) -> None:
    columns = ("branch", "not known", "cause first", "next right", "next wrong", "by thresholds")
    print(f"{what:<24}" + "".join(f"{name:>14}" for name in columns))


def main() -> None:
    """Print the tables; some ten seconds."""
    chance = random.Random(20260120)
    right = Tally()
    for scenario in SCENARIOS:
        seen = by_the_book(scenario)
        right.enter(scenario, seen, diagnose(seen, CONTEXT))
    print(f"diagnosis: {len(SCENARIOS)} scenarios by the book: {right.branch} branches, {right.first} causes, ", end="")
    print(f"{right.next_right} next steps right, {right.harmful} wrong")

    print(f"\nevidence at random, every source read ({DRAWS} draws each; next wrong: a runbook that cannot cure it)")
    header("scenario")
    for scenario in SCENARIOS:
        print(f"{scenario.name:<24}{drawn(scenario, chance, 0).row()}")

    print("\nall scenarios, by how many of the five sources fail")
    header("sources failing")
    for failing in range(3):
        whole = Tally()
        for scenario in SCENARIOS:
            whole.add(drawn(scenario, chance, failing))
        print(f"{failing:<24}{whole.row()}")

    readings = [at_random(scenario, chance, 0) for scenario in SCENARIOS for _ in range(20)]
    began = time.perf_counter()
    for seen in readings:
        diagnose(seen, CONTEXT)
    print(f"\ntime of one diagnosis: {(time.perf_counter() - began) / len(readings) * 1000:.2f} ms")


if __name__ == "__main__":
    main()
