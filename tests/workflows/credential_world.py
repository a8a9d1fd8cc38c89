"""A scripted database and API, for DatabaseCredentialRotation."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError

from activities.api import Health, HealthCheck
from activities.credential_models import (
    CredentialOrder,
    LoginQuery,
    LoginsSeen,
    LoginTested,
    PutUserBack,
    SwitchUser,
    TestLogin,
    UserMade,
    UserRemoved,
    UserSeen,
    UserSwitched,
)
from activities.deployment_models import DeployAgain, Deployed
from activities.rotation_models import Promoted
from activities.stage import Stage
from activities.staged_secrets import Labels
from tests.workflows.rotation_world import World
from workflows.database_credential_rotation import DatabaseCredentialRotation
from workflows.model import RunbookResult

OLD, NEW = "api", "api-1234abcd"


@workflow.defn(name="ShortCredentialHistories")
class ShortHistories(DatabaseCredentialRotation):
    """A rotation that thinks its history long very soon."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    @property
    def history_is_long(self) -> bool:
        return workflow.info().get_current_history_length() > 100


class CredentialWorld(World):
    """Args:
    lingers: how long after the deployment somebody still logs in as the old user.
    tells: whether the database tells who logs in.
    """

    def __init__(
        self, *, lingers: timedelta = timedelta(0), tells: bool = True, production: bool = False, **policies: Any
    ) -> None:
        super().__init__({}, production=production, **policies)
        self.lingers, self.tells = lingers, tells
        self.users = {OLD}
        self.set_user = self.served = OLD
        self.switched: datetime | None = None
        self.removed: datetime | None = None
        self.holders: tuple[str, ...] = ()
        self.new_works = True
        self.ready = True
        self.needs_old = False
        self.looked: list[datetime] = []

    @activity.defn(name="api.health")
    async def health(self, _check: HealthCheck) -> Health:
        ok = self.ready and self.served in self.users and (OLD in self.users or not self.needs_old)
        return Health(summary="ready" if ok else "not ready: HTTP 503", ok=ok, consecutive=1, checks=1)

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
        if self.set_user == NEW and self.served == OLD:
            self.switched = activity.info().started_time
        self.served = self.set_user

    @activity.defn(name="credentials.look")
    async def credentials_look(self, stage: Stage) -> UserSeen:
        if stage.name not in self.seen:
            self.seen.add(stage.name)
            self.users, self.set_user, self.served, self.switched = {OLD}, OLD, OLD, None
        labels = Labels(name="s", exists=True)
        return UserSeen(
            summary="api", user=OLD, source="admin", roles=("readWrite@d",), also_in=self.holders, labels=labels
        )

    @activity.defn(name="credentials.create")
    async def credentials_create(self, _order: CredentialOrder) -> UserMade:
        self.users.add(NEW)
        self.did("credentials.create")
        return UserMade(summary="made", user=NEW, roles=("readWrite@d",), version="v")

    @activity.defn(name="credentials.login")
    async def credentials_login(self, order: TestLogin) -> LoginTested:
        user = OLD if order.as_old else NEW
        works = user in self.users and (user == OLD or self.new_works)
        self.did("credentials.login")
        return LoginTested(
            summary=f"login as {user}: {works}",
            ok=works != order.refused,
            user=user,
            outcome="let in" if works else "refused",
        )

    @activity.defn(name="credentials.switch")
    async def credentials_switch(self, order: SwitchUser) -> UserSwitched:
        self.set_user = NEW
        self.did("credentials.switch")
        return UserSwitched(summary="set", user=NEW, changed=True)

    @activity.defn(name="credentials.promote")
    async def credentials_promote(self, _order: CredentialOrder) -> Promoted:
        return Promoted(summary="current", version="v")

    @activity.defn(name="credentials.logins")
    async def credentials_logins(self, asked: LoginQuery) -> LoginsSeen:
        now = activity.info().started_time
        self.looked.append(now)
        last = min(now, self.switched + self.lingers) if self.switched and self.lingers else None
        if last is not None and last < asked.since:
            last = None
        told = f"last seen {last}" if last else "not seen" if self.tells else "not known"
        return LoginsSeen(summary=told, known=self.tells, old_last=last if self.tells else None, holders=self.holders)

    @activity.defn(name="credentials.remove")
    async def credentials_remove(self, order: SwitchUser) -> UserRemoved:
        self.users.discard(order.old)
        self.removed = activity.info().started_time
        self.did("credentials.remove")
        return UserRemoved(summary="removed", existed=True)

    @activity.defn(name="credentials.put_back")
    async def credentials_put_back(self, _order: PutUserBack) -> UserSwitched:
        self.set_user = OLD
        self._serve()
        self.users.discard(NEW)
        self.did("credentials.put_back")
        return UserSwitched(summary="as before", user=OLD, changed=True)

    @activity.defn(name="credentials.restore")
    async def credentials_restore(self, order: SwitchUser) -> UserSwitched:
        self.users.add(order.old)
        return UserSwitched(summary="again", user=NEW, changed=True)
