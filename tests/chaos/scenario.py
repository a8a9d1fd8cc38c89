"""What a scenario is: one run of one runbook, with what has to be the same however often it was disturbed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.chaos.ground import Ground
from tests.runbooks.site import Site


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
    measures: frozenset[str] = frozenset()
    """Items of the checklist that time the API's answers, or compare how many connections the database has: where that
    dies in between, they are rightly left open.
    """
    beside: Callable[[Any], Awaitable[None]] | None = None
    """What people do beside answering gates, given the run's handle; repeated until it has worked."""


def at(ground: Ground, stage: str) -> Site:
    return Site(ground.house, ground.client, stage)


def mongodb_port(ground: Ground) -> int:
    return next(part.ports["mongodb"] for part in ground.house.status() if part.name == "mongodb")


def live(ground: Ground, stage: str = "production") -> dict[str, Any]:
    """Which release answers there, and how traffic is split."""
    site = at(ground, stage)
    alias = site.aws("lambda").get_alias(FunctionName=site.stack, Name="live")
    return {
        "live": site.health()["label"],
        "split": alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {}),
    }
