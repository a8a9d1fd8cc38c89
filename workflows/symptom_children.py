"""What a remedy's own runbook is started with, made of what was measured. Pure functions."""

from __future__ import annotations

import math

from workflows.client_rate_limit_model import ClientRateLimitInput
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

HEADROOM = 0.8
"""Of the cluster's connections: the rest is for a deployment, which has two generations of environments at once."""


def child_input(remedy: Remedy, seen: Readings, inp: SymptomInput, reason: str) -> RunbookInput | None:
    """The input of the remedy's runbook; None where what was measured is not enough to make one."""
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
            return ConnectionPoolScalingInput.model_validate(
                {**common, "max_pool_size": pool_size(seen), "window": inp.window}
            )
        case Remedy.LIMIT_CLIENT:
            who = crowd(seen.requests, seen.earlier)
            if who.client is None or who.requests is None:
                return None
            minutes = seen.window.total_seconds() / 60
            limit = _fair_share(seen, who.client, minutes)
            given = {**common, "client": who.client, "per_minute": limit, "window": inp.window}
            try:
                return ClientRateLimitInput.model_validate(given)
            except ValueError:  # requests without a key, or an address: nobody that the API could limit
                return None
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


def pool_size(seen: Readings) -> int:
    """The largest pool with which every environment's connections fit the cluster, at most the document's 100.

    On Lambda each environment has a pool of its own, so a larger pool makes exhaustion worse.
    """
    found, environments = seen.connections, (seen.reports.environments or 1) if seen.reports else 1
    if found is None or found.current is None or found.available is None:
        return POOL
    limit = found.current + found.available
    return max(1, min(POOL, math.floor(HEADROOM * limit / environments)))


def _fair_share(seen: Readings, client: str, minutes: float) -> int:
    """Requests a minute: what the client sent before, or twice what the median other sends; at least one a second."""
    earlier = {one.client: one.requests for one in seen.earlier.clients} if seen.earlier else {}
    others = seen.requests.other_median if seen.requests else None
    usual = max(earlier.get(client, 0), 2 * (others or 0)) / minutes if minutes else 0
    return max(60, math.ceil(usual))
