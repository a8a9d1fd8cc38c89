"""A scripted API with a keyring, for SigningSecretRotation. Keys are known by their ids only."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.api import Health, HealthCheck
from activities.deployment_models import DeployAgain, Deployed
from activities.rotation_models import Promoted
from activities.signing_models import (
    AcceptOldAgain,
    KeyringSeen,
    ProbeTokens,
    PutBack,
    PutSigningBack,
    SetSlots,
    SigningKeyMade,
    SigningOrder,
    SlotsSet,
    TokensProbed,
)
from activities.stage import Stage
from activities.staged_secrets import Labels
from tests.workflows.rotation_world import World

OLD, NEW = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
Ring = tuple[str, tuple[str, ...]]
"""The key that signs, and all that are accepted."""


class SigningWorld(World):
    """Args:
    dual: whether the live release verifies with more than the key that signs.
    life: of the tokens that the API issues.
    """

    def __init__(
        self, *, dual: bool = True, life: timedelta = timedelta(hours=1), production: bool = False, **policies: Any
    ) -> None:
        super().__init__({}, production=production, **policies)
        self.dual, self.life = dual, life
        self.set: Ring = (OLD, (OLD,))
        self.served: Ring = self.set
        self.before: Ring = self.set
        self.made = 0
        self.releases = ["r1"]
        self.signed_at: datetime | None = None
        self.removed_at: datetime | None = None

    @activity.defn(name="api.health")
    async def health(self, _check: HealthCheck) -> Health:
        release = self.releases.pop(0) if len(self.releases) > 1 else self.releases[0]
        return Health(summary="ok", ok=True, consecutive=1, checks=1, release=release)

    @activity.defn(name="deployments.again")
    async def again(self, order: DeployAgain) -> Deployed:
        self.deploys += 1
        if self.failing_deploy == self.deploys:
            raise ApplicationError("sst deploy failed with exit code 1", type="DeployFailed", non_retryable=True)
        self._serve()
        self.did("deployments.again")
        now = activity.info().started_time
        return Deployed(
            summary="deployed", changed=True, version="2", code_sha256="x", started_at=now, finished_at=now, how="sst"
        )

    def _serve(self) -> None:
        now = activity.info().started_time
        if self.set[0] == NEW and self.served[0] == OLD:
            self.signed_at = now
        if OLD in self.served[1] and OLD not in self.set[1]:
            self.removed_at = now
        self.served = self.set

    @activity.defn(name="signing.look")
    async def signing_look(self, stage: Stage) -> KeyringSeen:
        if stage.name not in self.seen:
            self.seen.add(stage.name)
            self.set = self.served = self.before
        labels = Labels(name="s", exists=True)
        return KeyringSeen(summary="one", signs=self.set[0], accepted=self.set[1], slots=False, labels=labels)

    @activity.defn(name="signing.create")
    async def signing_create(self, _order: SigningOrder) -> SigningKeyMade:
        self.made = 1
        self.did("signing.create")
        return SigningKeyMade(summary="made", new=NEW, version="v")

    @activity.defn(name="signing.set")
    async def signing_set(self, order: SetSlots) -> SlotsSet:
        every = (*order.old, order.new)
        wanted: dict[str, Ring] = {
            "accepted": (order.old[0], every),
            "signs": (order.new, every),
            "alone": (order.new, (order.new,)),
        }
        self.set = wanted[order.to]
        self.did(f"signing.set {order.to}")
        return SlotsSet(summary=order.to, signs=self.set[0], accepted=self.set[1], changed=True)

    @activity.defn(name="signing.probe")
    async def signing_probe(self, order: ProbeTokens) -> TokensProbed:
        taken = self.served[1] if self.dual else self.served[:1]
        accepted = {kid: 200 if kid in taken else 401 for kid in order.accepted}
        refused = {kid: 200 if kid in taken else 401 for kid in order.refused}
        ok = set(accepted.values()) == {200} and 200 not in refused.values() and order.signs in (None, self.served[0])
        self.did("signing.probe")
        return TokensProbed(
            summary=f"{accepted} {refused}",
            ok=ok,
            accepted=accepted,
            refused=refused,
            stranger=401,
            issued_by=self.served[0],
            issued=200,
            life_seconds=self.life.total_seconds(),
        )

    @activity.defn(name="signing.promote")
    async def signing_promote(self, order: SetSlots) -> Promoted:
        return Promoted(summary="current", version="v")

    @activity.defn(name="signing.put_back")
    async def signing_put_back(self, order: PutSigningBack) -> PutBack:
        out = self.set[0] == NEW or self.served[0] == NEW
        self.set = (OLD, (*order.old, NEW)) if out else self.before
        self._serve()
        self.did("signing.put_back")
        return PutBack(summary="as before", accepted=self.set[1], signs=self.set[0], changed=True)

    @activity.defn(name="signing.accept_again")
    async def signing_accept_again(self, order: AcceptOldAgain) -> PutBack:
        self.set = (order.new, (*order.old, order.new))
        self._serve()
        return PutBack(summary="both", accepted=self.set[1], signs=self.set[0], changed=True)
