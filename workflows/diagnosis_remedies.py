"""The causes ranked, the runbooks that can cure them with their input filled in, and those that cannot help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workflows.capacity import HEADROOM
from workflows.diagnosis_causes import (
    CANDIDATES,
    FEW_LEFT,
    ROOMY,
    SLOW_START_MS,
    Scale,
    count,
    down,
    just_deployed,
    lines,
)
from workflows.diagnosis_model import Branch, Cause, Readings, RefusedRemedy, Remedy

_MOST_MEMORY = 10_240
_FAR_LESS = 0.6
_STRONG = 0.5


@dataclass(frozen=True)
class Context:
    """For whom the diagnosis is made: goes into the input of the runbooks that it names."""

    stage: str
    reason: str
    incident: str | None = None
    severity: str | None = None
    requested_by: str | None = None


def rank(branch: Branch, seen: Readings, context: Context) -> tuple[Cause, ...]:
    """The candidates of the branch, most likely first; of equals, in the document's order."""
    weighed: list[Cause] = []
    for known in CANDIDATES[branch]:
        scale = Scale()
        known.weigh(seen, scale)
        weighed.append(
            Cause(
                id=known.id,
                text=known.text,
                score=scale.score,
                supports=tuple(scale.supports),
                against=tuple(scale.against),
                remedy=remedy(known.runbook, known.text, context, seen) if known.runbook else None,
                by_hand=known.by_hand,
            )
        )
    return tuple(sorted(weighed, key=lambda cause: -cause.score))


# --- the runbooks ---------------------------------------------------------------------------------------------------


def remedy(runbook: str, why: str, context: Context, seen: Readings) -> Remedy | None:
    """The runbook with its input filled in; None where what was measured does not say enough for that."""
    own = _FILLED[runbook](seen) if runbook in _FILLED else {}
    if own is None:
        return None
    given: dict[str, Any] = {
        "stage": context.stage,
        "reason": f"{context.reason} (diagnosis: {why})"[:500],
        "requested_by": context.requested_by,
        "incident": context.incident,
        "severity": context.severity,
    }
    filled = {name: value for name, value in given.items() if value is not None}
    return Remedy(runbook=runbook, input=filled | own, why=why)


_WINDOW = {"window": "PT5M"}
"""During an incident nobody compares half hours."""


def _more_memory(seen: Readings) -> dict[str, Any]:
    """The double: memory brings CPU, and what has filled it once will fill little more."""
    return {**_WINDOW, "memory_mb": min(_MOST_MEMORY, 2 * seen.memory_mb)} if seen.memory_mb else _WINDOW


def _smaller_pool(seen: Readings) -> dict[str, Any] | None:
    """The pool that fits: each environment has one of its own, and all of them have to share the cluster."""
    if seen.connections is None or seen.connections_left is None or not seen.concurrent:
        return None
    room = (seen.connections + seen.connections_left) * HEADROOM
    return {**_WINDOW, "max_pool_size": min(1000, max(1, math.floor(room / seen.concurrent)))}


def _kept_ready(seen: Readings) -> dict[str, Any]:
    """As many as were busy at once, and at least the document's five; never more than may run."""
    wanted = max(5, seen.concurrent or 0)
    return {**_WINDOW, "executions": min(1000, wanted if seen.reserved is None else min(wanted, seen.reserved))}


_FILLED: dict[str, Callable[[Readings], dict[str, Any] | None]] = {
    "VerticalScaling": _more_memory,
    "ConnectionPoolScaling": _smaller_pool,
    "ProvisionedConcurrency": _kept_ready,
}


def options(
    causes: tuple[Cause, ...],
    branch: Branch,
    seen: Readings,
    context: Context,
    refused: tuple[RefusedRemedy, ...],
) -> tuple[Remedy, ...]:
    """Every remedy for which enough speaks and which can work, best first; a restart is the last resort.

    Where the likeliest cause is one that only people cure, nothing is started against what is far less likely.
    """
    never = {remedy.runbook for remedy in refused}
    found: dict[str, Remedy] = {}
    likeliest = causes[0] if causes else None
    for cause in causes:
        likely = likeliest is not None and cause.score > 0 and cause.score >= _FAR_LESS * likeliest.score
        if cause.remedy is not None and likely and cause.remedy.runbook not in never:
            found.setdefault(cause.remedy.runbook, cause.remedy)
    if likeliest is not None and likeliest.remedy is None and likeliest.score >= _STRONG:
        return tuple(found.values())
    last = remedy("ServiceRestart", "last resort", context, seen)
    if last is not None and branch is Branch.NOT_RESPONDING and "ServiceRestart" not in never:
        found.setdefault("ServiceRestart", last)
    return tuple(found.values())


def refusals(branch: Branch, seen: Readings) -> tuple[RefusedRemedy, ...]:
    """The plausible runbooks that cannot help with what was measured, each with the reason."""
    if branch in (Branch.HEALTHY, Branch.UNKNOWN):
        return ()
    reasons = {name: why for name, refuse in _REFUSALS.items() if (why := refuse(branch, seen)) is not None}
    return tuple(RefusedRemedy(runbook=name, why=why) for name, why in reasons.items())


def _no_rollback(branch: Branch, seen: Readings) -> str | None:
    if down(seen):
        return "the database does not answer this worker either: no release changes that"
    if seen.reserved == 0:
        return "the function is not allowed to run: no release changes that"
    if branch is Branch.THROTTLING:
        return "calls are refused before any code runs: another release is refused just the same"
    return None


def _no_restart(branch: Branch, seen: Readings) -> str | None:
    if seen.reserved == 0:
        return "its concurrency is 0, and a restart puts back what it finds"
    if down(seen):
        return "the database does not answer this worker either: new environments will not reach it"
    if lines(seen, "startup"):
        return "the code fails as it starts: a restart starts the same code"
    if branch is Branch.ERRORS and count(seen, "code") > 0 and just_deployed(seen):
        return "exceptions of a release that was just deployed come back with the same code"
    if branch is Branch.LATENCY and just_deployed(seen):
        return "the release that was just deployed is as slow after a restart, and cold"
    if branch is Branch.THROTTLING:
        return "a restart does not let more calls run at once"
    return None


def _no_memory(_branch: Branch, seen: Readings) -> str | None:
    used, limit = seen.memory_used_mb, seen.memory_mb
    if used is not None and limit and used < ROOMY * limit:
        return f"{used:.0f} of {limit} MB are used at most: memory is not what is short"
    if limit == _MOST_MEMORY:
        return f"it has {limit} MB, and there is no more"
    return None


def _no_provisioning(branch: Branch, seen: Readings) -> str | None:
    if branch is Branch.THROTTLING and seen.reserved is not None:
        return f"it may run {seen.reserved} times at once, and what is kept ready counts within that"
    if seen.reserved == 0:
        return "its concurrency is 0: nothing can be kept ready"
    if seen.throttles is None or seen.cold_starts is None:
        return None
    slow = (seen.init_ms or 0) >= SLOW_START_MS and seen.cold_starts > 0
    if not seen.throttles and not slow:
        return "no call was refused and no start was slow: provisioned environments would stand idle"
    return None


def _no_pool(_branch: Branch, seen: Readings) -> str | None:
    left = seen.connections_left
    if left is not None and left > FEW_LEFT:
        return f"{left} connections are left: the pool is not what is short"
    return None


_REFUSALS: dict[str, Callable[[Branch, Readings], str | None]] = {
    "QuickRollback": _no_rollback,
    "ServiceRestart": _no_restart,
    "VerticalScaling": _no_memory,
    "HighMemoryUsage": _no_memory,
    "ProvisionedConcurrency": _no_provisioning,
    "ConnectionPoolScaling": _no_pool,
}
