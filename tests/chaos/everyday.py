"""Scenarios of the runbooks that look, rehearse, or change one small thing."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from activities.secret_refs import fingerprint
from sandbox.api.stack import limits_parameter
from tests.chaos.ground import Ground
from tests.chaos.scenario import Scenario, at, live

SOON = {"window": "PT10S", "stable_for": "PT2S", "look_every": "PT1S", "patience": "PT20S", "profile_for": "PT0S"}
"""Of the symptoms: nothing is wrong, which has to come out however often the worker dies."""

LOAD = {"requests": 40, "concurrency": 2}
WINDOW = timedelta(seconds=10)
"""How far back a change of capacity looks for what it is to better."""
UNDER_LOAD = frozenset({"load-test", "improvement"})
"""What a change of capacity is judged by."""


def _nothing(_ground: Ground) -> dict[str, Any]:
    """The run only looks."""
    return {}


def _released(ground: Ground) -> dict[str, Any]:
    for release in ("better", "good"):
        ground.house.deploy("staging", release)
    return {"stage": "staging", "release": "better", "reason": "release of the week"}


def _well(ground: Ground) -> dict[str, Any]:
    ground.house.deploy("production", "good")
    return {"reason": "is it slow?", **SOON}


def _under_load(_ground: Ground) -> dict[str, Any]:
    return {"stage": "staging", "reason": "spring", **LOAD}


def _other_memory(ground: Ground) -> dict[str, Any]:
    size = 1024 if _memory(ground) != 1024 else 768
    ground.before = {"wanted": str(size)}
    return {"stage": "staging", "memory_mb": size, "load": LOAD, "window": WINDOW, "reason": "slow"}


def _memory(ground: Ground) -> int:
    site = at(ground, "staging")
    found = site.aws("lambda").get_function_configuration(FunctionName=site.stack, Qualifier="live")
    return int(found["MemorySize"])


def _has_it(ground: Ground) -> dict[str, Any]:
    return {"as wanted": str(_memory(ground)) == ground.before["wanted"]}


def _unlimited(ground: Ground) -> dict[str, Any]:
    at(ground, "production").aws("ssm").put_parameter(
        Name=limits_parameter("production"), Value="{}", Type="String", Overwrite=True
    )
    client = fingerprint(ground.house.key("production", "primary"))
    return {"client": client, "per_minute": 5, "window": "PT1M", "watch": "PT5S", "reason": "it hammers"}


def _limits(ground: Ground) -> dict[str, Any]:
    found = at(ground, "production").aws("ssm").get_parameter(Name=limits_parameter("production"))
    limits: dict[str, Any] = json.loads(found["Parameter"]["Value"])
    return {"limits": {client: limit["per_minute"] for client, limit in limits.items()}}


def _ready(ground: Ground) -> dict[str, Any]:
    for release in ("better", "good"):  # then there is something to go back to
        ground.house.deploy("production", release)
    return {"only": ["QuickRollback", "DatabaseBackup"], "reason": "monthly rehearsal"}


def _provisioned(ground: Ground) -> dict[str, Any]:
    site = at(ground, "staging")
    if _kept_ready(ground):
        site.aws("lambda").delete_provisioned_concurrency_config(FunctionName=site.stack, Qualifier="live")
    # Warm for longer than the run looks back: a cold start that it sees is gone when a killed worker measures again.
    warm = time.monotonic() + WINDOW.total_seconds()
    while time.monotonic() < warm:
        ground.undisturbed("LoadTest", **_under_load(ground))
    ground.before = {"wanted": "1"}
    return {"stage": "staging", "executions": 1, "load": LOAD, "window": WINDOW, "reason": "cold starts"}


def _kept_ready(ground: Ground) -> int:
    site = at(ground, "staging")
    found = site.aws("lambda").list_provisioned_concurrency_configs(FunctionName=site.stack)
    return sum(int(each["RequestedProvisionedConcurrentExecutions"]) for each in found["ProvisionedConcurrencyConfigs"])


def _as_many(ground: Ground) -> dict[str, Any]:
    return {"as wanted": str(_kept_ready(ground)) == ground.before["wanted"]}


def _temporary(ground: Ground) -> dict[str, Any]:
    """More memory, which now ends."""
    before, more = _memory(ground), _other_memory(ground)
    ground.undisturbed("VerticalScaling", **more)
    ground.before = {"wanted": str(before)}
    ends = {"former": {"memory_mb": before}, "applied": {"memory_mb": more["memory_mb"]}, "of": "VerticalScaling-1"}
    return {"stage": "staging", "reason": "it was temporary", "ends_at": f"{datetime.now(UTC):%FT%TZ}", **ends}


EVERYDAY = (
    Scenario("deploy", "Deploy", _released, lambda ground: live(ground, "staging")),
    Scenario("slow", "PerformanceDegradation", _well, _nothing, traffic=4),
    Scenario("errors", "HighErrorRate", _well, _nothing, traffic=4),
    Scenario("heavy", "HighMemoryUsage", _well, _nothing, traffic=4),
    Scenario("diagnosis", "Diagnosis", lambda _ground: {"reason": "is it slow?"}, _nothing, traffic=4),
    Scenario("rehearsal", "Rehearsal", _ready, _nothing),
    Scenario("load", "LoadTest", _under_load, _nothing, measures=frozenset({"passed"})),
    Scenario("memory", "VerticalScaling", _other_memory, _has_it, measures=UNDER_LOAD),
    Scenario("provisioned", "ProvisionedConcurrency", _provisioned, _as_many, measures=UNDER_LOAD),
    Scenario("expiry", "ScalingExpiry", _temporary, _has_it),
    Scenario("limit", "ClientRateLimit", _unlimited, _limits, traffic=8),
)
