"""Whether the service itself answers, as a client sees it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import httpx

from activities.api import Api, HealthCheck
from activities.secret_refs import SecretResolver
from activities.stage import Stage
from starters.doctor_lines import Check, Seen, by_activity, wrong

_ONCE = {"consecutive": 1, "interval": timedelta(0), "patience": timedelta(seconds=1)}


class ApiChecks:
    def __init__(self, stage: Stage, resolver: SecretResolver, http: httpx.Client) -> None:
        self._stage, self._api = stage, Api(http, resolver)

    def all(self) -> Sequence[Check]:
        name = self._stage.name
        return (
            Check("service", self._health, f"correct 'url' in [stages.{name}], or mend the service", ("secrets",)),
            Check("api key", self._key, f"store a key that the API takes under {self._stage.api_key}", ("service",)),
        )

    def _health(self) -> Seen:
        check = HealthCheck.model_validate({"stage": self._stage, **_ONCE})
        found = by_activity(self._api.health, check)
        if found.ok:
            return Seen(found.summary)
        if found.last_status in (401, 403):
            return wrong(
                f"/health answers HTTP {found.last_status}",
                f"store a key that the API takes under {self._stage.api_key}",
            )
        return wrong(
            f"{self._stage.url}/health: {found.last_problem}",
            f"correct 'url' in [stages.{self._stage.name}]; where it is right, the service is down: "
            f"runbooks start QuickRollback --set stage={self._stage.name} --set reason='/health does not answer'",
        )

    def _key(self) -> Seen:
        found = by_activity(self._api.sample_calls, self._stage)
        if found.ok:
            return Seen(found.summary)
        if found.status in (401, 403):
            return wrong(found.summary, f"store a key that the API takes under {self._stage.api_key}")
        return wrong(found.summary, "see the function's log, and 'database' below")
