"""What a remedy's own runbook is started with, made of what was measured. Pure functions."""

from __future__ import annotations

import math

from workflows.capacity import largest_pool
from workflows.client_rate_limit_model import SHORTEST_WATCH, USUAL_WATCH, ClientRateLimitInput
from workflows.database_migration_model import AddIndex, DatabaseMigrationInput
from workflows.model import RunbookInput
from workflows.rollback_model import QuickRollbackInput
from workflows.scaling_model import ConnectionPoolScalingInput, ProvisionedConcurrencyInput, VerticalScalingInput
from workflows.symptom_errors import crowd
from workflows.symptom_model import SymptomInput
from workflows.symptom_readings import Readings
from workflows.symptom_remedies import Remedy, lacking

MOST_MEMORY_MB = 10_240
EXECUTIONS = 5
"""The document's provisioned concurrency."""

POOL = 100
"""The document's larger pool, where the cluster has room for it."""


def child_input(remedy: Remedy, seen: Readings, inp: SymptomInput, reason: str) -> RunbookInput | None:
    """The input of the remedy's runbook; None where what was measured is not enough to make one, or makes none."""
    try:
        return _made(remedy, seen, inp, reason)
    except ValueError:  # a query that may not be run again; requests without a key: nobody that could be limited
        return None


def _made(remedy: Remedy, seen: Readings, inp: SymptomInput, reason: str) -> RunbookInput | None:
    common = {
        "stage": inp.stage,
        "reason": reason[:500],
        "requested_by": inp.requested_by,
        "incident": inp.incident,
        "severity": inp.severity,
    }
    match remedy:
        case Remedy.ROLL_BACK:
            return QuickRollbackInput.model_validate(common)
        case Remedy.ADD_INDEX:
            change = _index(seen)
            return DatabaseMigrationInput.model_validate({**common, "change": change}) if change else None
        case Remedy.PROVISIONED_CONCURRENCY:
            before = (seen.settings.provisioned or 0) if seen.settings else 0
            executions = before + EXECUTIONS
            return ProvisionedConcurrencyInput.model_validate(
                {**common, "executions": executions, "window": inp.window}
            )
        case Remedy.MORE_MEMORY:
            size = seen.settings.memory_mb if seen.settings else (seen.reports.memory_size_mb if seen.reports else None)
            if not size or size >= MOST_MEMORY_MB:
                return None
            wanted = min(2 * size, MOST_MEMORY_MB)
            return VerticalScalingInput.model_validate({**common, "memory_mb": wanted, "window": inp.window})
        case Remedy.CONNECTION_POOL:
            size = pool_size(seen)
            if size is None:
                return None
            return ConnectionPoolScalingInput.model_validate({**common, "max_pool_size": size, "window": inp.window})
        case Remedy.LIMIT_CLIENT:
            who = crowd(seen.requests, seen.earlier)
            if who.client is None or who.requests is None:
                return None
            minutes = seen.window.total_seconds() / 60
            limit = _fair_share(seen, who.client, minutes)
            watch = max(SHORTEST_WATCH, min(USUAL_WATCH, inp.stable_for))
            given = {**common, "client": who.client, "per_minute": limit, "window": inp.window, "watch": watch}
            return ClientRateLimitInput.model_validate(given)
        case _:
            return None


def _index(seen: Readings) -> AddIndex | None:
    query = lacking(seen)
    if query is None:
        return None
    return AddIndex(
        kind="add_index",
        collection=query.collection,
        keys=dict(query.missing),
        query=dict(query.filter),
        sort=dict(query.sort),
    )


def pool_size(seen: Readings) -> int | None:
    """The pool with which all environments that there can be fit the cluster, at most the document's 100.

    On Lambda each environment has a pool of its own, so a larger pool makes exhaustion worse. None where that is not
    known, or would change nothing: ConnectionPoolScaling would refuse it.
    """
    found, function = seen.connections, seen.settings
    if found is None or found.current is None or found.available is None or function is None:
        return None
    most = function.reserved if function.reserved is not None else function.account_limit
    if not most:
        return None
    wanted = min(POOL, largest_pool(found.current + found.available, most))
    return None if wanted == function.max_pool_size else wanted


def _fair_share(seen: Readings, client: str, minutes: float) -> int:
    """Requests a minute: what the client sent before, or twice what the median other sends; at least one a second."""
    earlier = {one.client: one.requests for one in seen.earlier.clients} if seen.earlier else {}
    others = seen.requests.other_median if seen.requests else None
    usual = max(earlier.get(client, 0), 2 * (others or 0)) / minutes if minutes else 0
    return max(60, math.ceil(usual))
