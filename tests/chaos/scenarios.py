"""One run of each runbook, small enough to be killed at every step, with what has to be the same afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pymongo

from sandbox import mongodb
from sandbox.state import Vault
from tests.chaos.ground import Ground
from tests.runbooks.site import Site

Documents = pymongo.collection.Collection[dict[str, Any]]


@dataclass(frozen=True)
class Scenario:
    name: str
    runbook: str
    prepare: Callable[[Ground], dict[str, Any]]
    """Brings the stage to where the run begins; returns its input."""
    state: Callable[[Ground], dict[str, Any]]
    """What the run is for, looked up afterwards where it really is."""
    traffic: float = 0
    """Requests a second at production while it runs."""


def at(ground: Ground, stage: str) -> Site:
    return Site(ground.house, ground.client, stage)


def sessions(ground: Ground, stage: str) -> Documents:
    port = next(part.ports["mongodb"] for part in ground.house.status() if part.name == "mongodb")
    uri = mongodb.operator_uri(port, Vault.open(ground.house.layout.vault), stage)
    return pymongo.MongoClient[dict[str, Any]](uri).get_default_database()["sessions"]


# --- rollbacks ------------------------------------------------------------------------------------------------------


def _broken(ground: Ground, **inp: Any) -> dict[str, Any]:
    ground.house.deploy("production", "good")
    ground.house.deploy("production", "broken")
    return inp


def _live(ground: Ground) -> dict[str, Any]:
    site = at(ground, "production")
    alias = site.aws("lambda").get_alias(FunctionName=site.stack, Name="live")
    return {
        "live": site.health()["label"],
        "split": alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}),
    }


CANARY = {
    "ladder": [50, 100],
    "bake": "PT4S",
    "judge_every": "PT2S",
    "patience": "PT1M",
    "limits": {"min_sample": 5},
}

# --- the database ---------------------------------------------------------------------------------------------------

CALM = {"api_error_rate": None, "api_p95_ms": None}
BACKFILL = {"kind": "backfill_field", "collection": "sessions", "field": "environment", "value": "production"}


def _without_environment(ground: Ground) -> None:
    for stage in ("staging", "production"):
        found = sessions(ground, stage)
        found.update_many({}, {"$unset": {"environment": ""}})
        found.delete_many({"chaos": True})
        found.insert_many([{"owner": f"user-{n % 50:03d}", "status": "active", "chaos": True} for n in range(2000)])


def _migration(ground: Ground) -> dict[str, Any]:
    _without_environment(ground)
    return {"change": BACKFILL, "late_writers": "PT0.5S", "throttle": CALM, "abort": CALM}


def _update(ground: Ground) -> dict[str, Any]:
    _without_environment(ground)
    return {
        "collection": "sessions",
        "filter": {"environment": {"$exists": False}},
        "update": {"$set": {"environment": "production"}},
        "journal": True,
        "sweep_pause": "PT0.5S",
        "throttle": CALM,
        "abort": CALM,
    }


def _environments(ground: Ground) -> dict[str, Any]:
    return {
        "without": sessions(ground, "production").count_documents({"environment": {"$exists": False}}),
        "with": sessions(ground, "production").count_documents({"chaos": True, "environment": "production"}),
    }


def _backup(ground: Ground) -> dict[str, Any]:
    return {"stage": "staging"}


def _databases(ground: Ground) -> dict[str, Any]:
    found = sessions(ground, "staging")
    return {"scratch databases": [name for name in found.database.client.list_database_names() if "scratch" in name]}


SCENARIOS = (
    Scenario("rollback", "QuickRollback", _broken, _live, traffic=4),
    Scenario("rollback-alias", "QuickRollback", lambda ground: _broken(ground, strategy="alias"), _live, traffic=4),
    Scenario("canary", "CanaryRollback", lambda ground: _broken(ground, **CANARY), _live, traffic=8),
    Scenario("update", "BatchedUpdate", _update, _environments),
    Scenario("migration", "DatabaseMigration", _migration, _environments),
    Scenario("backup", "DatabaseBackup", _backup, _databases),
    Scenario("drill", "RestoreDrill", lambda _ground: {"stage": "staging"}, _databases),
)
