"""One run of each runbook, small enough to be killed at every step, with what has to be the same afterwards."""

from __future__ import annotations

from typing import Any

import httpx
import pymongo

from sandbox import mongodb
from sandbox.api import tokens
from sandbox.state import Vault
from tests.chaos.everyday import EVERYDAY, UNDER_LOAD
from tests.chaos.ground import Ground
from tests.chaos.scenario import Scenario, at, live, mongodb_port

Documents = pymongo.collection.Collection[dict[str, Any]]


def sessions(ground: Ground, stage: str) -> Documents:
    uri = mongodb.operator_uri(mongodb_port(ground), Vault.open(ground.house.layout.vault), stage)
    return pymongo.MongoClient[dict[str, Any]](uri).get_default_database()["sessions"]


# --- rollbacks ------------------------------------------------------------------------------------------------------


def _broken(ground: Ground, **inp: Any) -> dict[str, Any]:
    ground.house.deploy("production", "good")
    ground.house.deploy("production", "broken")
    return inp


CONNECTED = frozenset({"database"})
"""Of those that confirm that the database's connections are stable."""

CANARY = {
    "ladder": [50, 100],
    "bake": "PT4S",
    "judge_every": "PT2S",
    "patience": "PT1M",
    "limits": {"min_sample": 5},
}


def _by_alias(ground: Ground) -> dict[str, Any]:
    return _broken(ground, strategy="alias")


def _step_by_step(ground: Ground) -> dict[str, Any]:
    return _broken(ground, **CANARY)


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


INDEX = {
    "kind": "add_index",
    "collection": "sessions",
    "keys": {"owner": 1, "created_at": -1},
    "query": {"owner": "user-001"},
}


def _unindexed(ground: Ground) -> dict[str, Any]:
    _without_environment(ground)
    for stage in ("staging", "production"):
        sessions(ground, stage).drop_indexes()
    return {"change": INDEX}


def _indexes(ground: Ground) -> dict[str, Any]:
    return {stage: sorted(sessions(ground, stage).index_information()) for stage in ("staging", "production")}


def _backup(ground: Ground) -> dict[str, Any]:
    return {"stage": "staging"}


def _backed_up(ground: Ground) -> dict[str, Any]:
    ground.undisturbed("DatabaseBackup", stage="staging")
    return {"stage": "staging", "reason": "daily"}


def _lost(ground: Ground) -> dict[str, Any]:
    # A restore that failed before left nothing to lose.
    sessions(ground, "staging").insert_many([{"owner": f"user-{n:03d}", "status": "active"} for n in range(20)])
    inp = _backed_up(ground)
    ground.before = {"documents": str(sessions(ground, "staging").count_documents({}))}
    lost = sessions(ground, "staging").delete_many({"owner": {"$lt": "user-025"}})
    assert lost.deleted_count, "nothing was there to lose"
    return inp | {"then": "replace", "reason": "somebody deleted sessions"}


def _back(ground: Ground) -> dict[str, Any]:
    found = sessions(ground, "staging").count_documents({})
    return {"all are back": str(found) == ground.before["documents"], **_databases(ground)}


def _databases(ground: Ground) -> dict[str, Any]:
    found = sessions(ground, "staging")
    return {"scratch databases": [name for name in found.database.client.list_database_names() if "scratch" in name]}


# --- rotations ------------------------------------------------------------------------------------------------------

SLOTS = ("primary", "backup", "internal")


def _secret(ground: Ground, name: str) -> str:
    return at(ground, "staging").secret(name)


def _asked(ground: Ground, path: str, headers: dict[str, str]) -> int:
    return httpx.get(ground.house.url("staging") + path, headers=headers, timeout=30).status_code


def _keys(ground: Ground) -> dict[str, Any]:
    ground.before = {slot: ground.house.key("staging", slot) for slot in SLOTS}
    quick = {"grace": "PT3S", "look_every": "PT1S", "reminders": ["PT1S"], "quiet": "PT1S"}
    return {"stage": "staging", "reason": "quarterly", **quick}


def _accepted(ground: Ground) -> dict[str, Any]:
    def answers(keys: dict[str, str]) -> list[int]:
        return [_asked(ground, "/sessions?limit=1", {"X-Api-Key": key}) for key in keys.values()]

    now = {slot: ground.house.key("staging", slot) for slot in SLOTS}
    return {
        "keys on the list": len(_secret(ground, "ApiKeys").split(",")),
        "the keys of before": answers(ground.before),
        "the keys in the store": answers(now),
    }


def _signing(ground: Ground) -> dict[str, Any]:
    ground.house.deploy("staging", "good", token_seconds=3)
    ground.before = {"ring": _secret(ground, "JwtSecret")}
    return {"stage": "staging", "reason": "twice a year", "skew": "PT1S"}


def _signed(ground: Ground) -> dict[str, Any]:
    def let_in(ring: tokens.Keyring) -> int:
        return _asked(ground, "/tokens/self", {"Authorization": f"Bearer {ring.issue(60)}"})

    now = tokens.Keyring.of(_secret(ground, "JwtSecret"))
    before = tokens.Keyring.of(ground.before["ring"])
    return {"keys that sign": len(now.keys), "token of before": let_in(before), "token of now": let_in(now)}


def _credentials(ground: Ground) -> dict[str, Any]:
    ground.before = {"uri": _secret(ground, "MongoDBUri")}
    return {"stage": "staging", "reason": "twice a year", "quiet": "PT1S", "patience": "PT2S", "look_every": "PT1S"}


def _users(ground: Ground) -> dict[str, Any]:
    def logs_in(uri: str) -> bool:
        try:
            with pymongo.MongoClient[Any](uri, serverSelectionTimeoutMS=20_000) as client:
                client.get_default_database()["sessions"].find_one()
        except pymongo.errors.OperationFailure:
            return False
        return True

    return {
        "old user": logs_in(ground.before["uri"]),
        "stored user": logs_in(_secret(ground, "MongoDBUri")),
        "the API": _asked(ground, "/sessions?limit=1", {"X-Api-Key": ground.house.key("staging", "internal")}),
    }


# --- capacity and the last resort -----------------------------------------------------------------------------------


def _restart(ground: Ground) -> dict[str, Any]:
    ground.house.deploy("production", "good")
    return {"drain": "PT1S", "ladder": [2, 10], "hold": "PT3S", "patience": "PT20S", "reason": "it hangs"}


def _let_in(ground: Ground) -> dict[str, Any]:
    site = at(ground, "production")
    limit = site.aws("lambda").get_function_concurrency(FunctionName=site.stack)
    return {"limit": limit.get("ReservedConcurrentExecutions"), "health": site.health()["code"]}


def _pool(ground: Ground) -> dict[str, Any]:
    site = at(ground, "staging")
    if int(_pool_size(ground)["pool"] or _SMALLEST) <= _SMALLEST:  # only smaller ones are taken without asking much
        ground.house.deploy("staging", "good")
    size = int(_pool_size(ground)["pool"] or 13) - 1
    ground.before = {"wanted": str(size)}
    load = {"requests": 40, "concurrency": 2}
    return {"stage": site.stage, "max_pool_size": size, "load": load, "window": "PT10S", "reason": "exhausted"}


_SMALLEST = 5


def _pool_size(ground: Ground) -> dict[str, Any]:
    site = at(ground, "staging")
    live = site.aws("lambda").get_function_configuration(FunctionName=site.stack, Qualifier="live")
    return {"pool": live["Environment"]["Variables"].get("MONGODB_MAX_POOL_SIZE")}


def _as_wanted(ground: Ground) -> dict[str, Any]:
    return {"as wanted": _pool_size(ground)["pool"] == ground.before["wanted"]}


# --- incidents ------------------------------------------------------------------------------------------------------


def _incident(ground: Ground) -> dict[str, Any]:
    return _broken(ground, severity="P1", reason="a quarter of the requests fail", key="errors")


async def _closed(handle: Any) -> None:
    """Acknowledged, and after the recovery nothing is left to do."""
    book = (await handle.query("situation")).get("book") or {}
    if not book.get("responder"):
        await handle.execute_update("acknowledge", {"by": "bob"})
    state = await handle.query("progress")
    if not any(entry["text"].startswith("resolved") for entry in state["timeline"]):
        raise LookupError("not resolved yet")
    await handle.execute_update("post_mortem", {"by": "bob"})


SCENARIOS = (
    Scenario("rollback", "QuickRollback", _broken, live, traffic=4, measures=CONNECTED),
    Scenario("rollback-alias", "QuickRollback", _by_alias, live, traffic=4, measures=CONNECTED),
    Scenario("canary", "CanaryRollback", _step_by_step, live, traffic=8, measures=CONNECTED),
    Scenario("update", "BatchedUpdate", _update, _environments),
    Scenario("migration", "DatabaseMigration", _migration, _environments, measures=CONNECTED),
    Scenario("index", "DatabaseMigration", _unindexed, _indexes, measures=CONNECTED),
    Scenario("backup", "DatabaseBackup", _backup, _databases),
    Scenario("backup-check", "BackupCheck", _backed_up, _databases),
    Scenario("restore", "DatabaseRestore", _lost, _back),
    Scenario("drill", "RestoreDrill", lambda _ground: {"stage": "staging"}, _databases),
    Scenario("keys", "ApiKeyRotation", _keys, _accepted),
    Scenario("signing", "SigningSecretRotation", _signing, _signed),
    Scenario("credentials", "DatabaseCredentialRotation", _credentials, _users),
    Scenario("restart", "ServiceRestart", _restart, _let_in, traffic=8),
    Scenario("pool", "ConnectionPoolScaling", _pool, _as_wanted, measures=UNDER_LOAD),
    Scenario("incident", "Incident", _incident, live, traffic=8, beside=_closed),
    *EVERYDAY,
)
