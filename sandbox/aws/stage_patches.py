"""UpdateStage: the patch operations that move a stage or its canary from one deployment to another.

What AWS does with a canary's paths follows its own recorded answers: a patch of ``/canarySettings/...`` on a stage
without one begins a canary of 0 % on the stage's own deployment, and copying the overrides to ``/variables`` merges.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

Stage = dict[str, Any]
Patch = dict[str, Any]


class BadPatch(ValueError):
    """The stage cannot be changed so; the message is for the caller."""


_COPIES = {("/canarySettings/deploymentId", "/deploymentId"), ("/canarySettings/stageVariableOverrides", "/variables")}


def apply(stage: Stage, patches: list[Patch], deployments: Container[str]) -> list[Patch]:
    """Apply the operations on deployments and canary to ``stage``, in order; the rest is returned.

    Raises:
        BadPatch: an operation is wrong. Work on a copy: some may have been applied.
    """
    others = []
    for patch in patches:
        operation, path, value = patch.get("op", "replace"), patch.get("path", ""), patch.get("value")
        if operation == "copy":
            _copy(stage, patch.get("from", ""), path)
        elif path.startswith("/canarySettings"):
            _patch_canary(stage, operation, path.split("/")[2:], value, deployments)
        elif path == "/deploymentId":
            if value not in deployments:
                raise BadPatch("Deployment id does not exist")
            stage["deploymentId"] = value
        else:
            others.append(patch)
    return others


def canary(settings: dict[str, Any], deployment_id: str) -> dict[str, Any]:
    """Canary settings with AWS's defaults and types.

    Raises:
        BadPatch: the percentage is none.
    """
    return {
        "deploymentId": settings.get("deploymentId", deployment_id),
        "percentTraffic": _percent(settings.get("percentTraffic", 0.0)),
        "useStageCache": str(settings.get("useStageCache", False)).lower() == "true",
        "stageVariableOverrides": dict(settings.get("stageVariableOverrides") or {}),
    }


def _copy(stage: Stage, source: str, target: str) -> None:
    if (source, target) not in _COPIES:
        raise BadPatch(f"Invalid copy operation with path: {target} and from: {source}")
    settings = stage.get("canarySettings")
    if not settings:
        raise BadPatch("Promotion not available. Canary does not exist.")
    if target == "/deploymentId":
        stage["deploymentId"] = settings["deploymentId"]
    else:
        stage["variables"] = {**(stage.get("variables") or {}), **settings["stageVariableOverrides"]}


def _patch_canary(stage: Stage, operation: str, path: list[str], value: Any, deployments: Container[str]) -> None:
    if not path:
        if operation != "remove":
            raise BadPatch("Invalid patch path /canarySettings: only remove is supported")
        stage.pop("canarySettings", None)
        return
    settings = copy.deepcopy(stage.get("canarySettings")) or canary({}, stage["deploymentId"])
    match path:
        case ["stageVariableOverrides", name]:
            if operation == "remove":
                settings["stageVariableOverrides"].pop(name, None)
            else:
                settings["stageVariableOverrides"][name] = value
        case ["deploymentId"] if operation == "replace":
            if value not in deployments:
                raise BadPatch("Deployment id does not exist")
            settings["deploymentId"] = value
        case ["percentTraffic"] if operation == "replace":
            settings["percentTraffic"] = _percent(value)
        case ["useStageCache"] if operation == "replace":
            settings["useStageCache"] = str(value).lower() == "true"
        case _:
            raise BadPatch(f"Invalid patch operation {operation} on /canarySettings/{'/'.join(path)}")
    stage["canarySettings"] = settings


def _percent(value: Any) -> float:
    try:
        percent = float(value)
    except (TypeError, ValueError):
        raise BadPatch(f"Percent traffic must be a number, not {value}") from None
    if not 0 <= percent <= 100:
        raise BadPatch("Percent traffic must be between 0.0 and 100.0")
    return percent
