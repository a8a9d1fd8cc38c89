"""The tier of the stage's cluster in Atlas, which decides how many connections it takes."""

from __future__ import annotations

import httpx
from pydantic import Field
from temporalio import activity

from activities.atlas import Atlas
from activities.errors import classified
from activities.evidence import Finding
from activities.secret_refs import SecretResolver
from activities.stage import Stage


class Tier(Finding):
    tier: str | None = Field(None, description="Instance size, such as M10; absent where it cannot be known")


class ClusterTier:
    def __init__(self, http: httpx.Client, resolver: SecretResolver) -> None:
        self._http, self._resolver = http, resolver

    @activity.defn(name="atlas.tier")
    @classified("read the cluster's tier")
    def tier(self, stage: Stage) -> Tier:
        """Live from the Administration API. Only where the stage's backups are Atlas's is the cluster in Atlas."""
        facts = stage.backup.atlas
        if facts is None or stage.backup.provider != "atlas":
            return Tier(summary="not in Atlas, as far as the settings say: the server's own counts decide")
        found = Atlas(facts, self._http, self._resolver).cluster()
        return Tier(summary=f"cluster {found.name}: {found.tier or 'of unknown size'}", tier=found.tier)
