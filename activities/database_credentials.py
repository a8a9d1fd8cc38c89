"""The API's database user: a new one with the old one's roles, the switch, who still logs in as the old, the removal.

What is staged in Secrets Manager is a whole connection string, as the API reads it: its password is made within it.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Any, Literal

import httpx
import pymongo
import pymongo.errors
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.api_secrets import ApiSecrets
from activities.clients import OWN_NAME
from activities.connection_string import password_of, user_of, with_login
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
from activities.database_users import Grants, UserStore, store_of
from activities.deployment_models import DeployAgain
from activities.deployments import Deployments
from activities.errors import classified, lasting, passing
from activities.progress import pause
from activities.redaction import never_print
from activities.rotation_models import Promoted
from activities.secret_refs import SecretResolver
from activities.secret_values import new_password
from activities.stage import RotatedSecret, SecretRef, Stage
from activities.staged_secrets import StagedSecrets, version_of

_RETRY = 1.0
_WRONG_LOGIN, _NO_ROLE = 18, 13
_OURS = re.compile(r"-[0-9a-f]{8}$")
"""What a rotation puts behind the name; the next one puts its own there instead."""

Outcome = Literal["let in", "refused", "lacks a role", "no answer"]


class DatabaseCredentials:
    def __init__(
        self,
        staged: StagedSecrets,
        secrets: ApiSecrets,
        resolver: SecretResolver,
        http: httpx.Client,
        deployments: Deployments,
    ) -> None:
        self._staged, self._secrets, self._resolver, self._http = staged, secrets, resolver, http
        self._deployments = deployments

    @activity.defn(name="credentials.look")
    @classified("look at the API's database user")
    def look(self, stage: Stage) -> UserSeen:
        secret, store = _secret(stage), self._store(stage)
        login = user_of(self._read(stage))
        grants = self._grants(store, login.name, login.source)
        holders = self._holders(stage, login.name)
        return UserSeen(
            summary=f"the API logs in as {login.name}, with {', '.join(grants.lines)}"
            + (f"; so do {', '.join(holders)}" if holders else ""),
            user=login.name,
            source=login.source,
            roles=grants.lines,
            also_in=holders,
            labels=self._staged.labels(secret.store),
        )

    @activity.defn(name="credentials.create")
    @classified("make a new database user")
    def create(self, order: CredentialOrder) -> UserMade:
        """Store a new login, then make its user; repeated, it is the same login and the same user.

        Raises:
            RolesDiffer: the new user may not do what the old one may.
        """
        stage, secret, store = order.stage, _secret(order.stage), self._store(order.stage)
        former = version_of(order.rotation, "former")
        known = self._staged.value(secret.store, former)
        present = known or self._read(stage)
        if known is None:
            self._staged.stage(secret.store, former, lambda: present, parts=lambda _uri: [])
        self._staged.promote(secret.store, former)
        old = user_of(present)
        grants = self._grants(store, old.name, old.source)
        name, version = _name(order, old.name), version_of(order.rotation, "new")

        def make() -> str:
            return with_login(present, name, new_password())

        # Stored before there is such a user: a user whose password nobody knows would have to be cleared away.
        uri = self._staged.stage(secret.store, version, make, parts=lambda uri: [password_of(uri)])
        never_print(password_of(uri))
        store.ensure(name, old.source, password_of(uri), grants)
        made = store.grants(name, old.source)
        if made is None:
            raise passing(f"the new user {name} is not to be seen yet", type="NotVisibleYet")
        if made.lines != grants.lines:
            raise lasting(
                f"the new user {name} has {', '.join(made.lines) or 'no role'} where {old.name} has "
                f"{', '.join(grants.lines)}. Let who makes users grant these, then start again",
                type="RolesDiffer",
            )
        return UserMade(
            summary=f"made {name} with the roles of {old.name}: {', '.join(made.lines)}",
            user=name,
            roles=made.lines,
            version=version,
        )

    @activity.defn(name="credentials.login")
    @classified("log in at the database")
    def login(self, order: TestLogin) -> LoginTested:
        """A login of its own and one read, until it is as it should be. Nothing of the API is involved."""
        secret = _secret(order.stage)
        uri = self._staged.need(secret.store, version_of(order.rotation, "former" if order.as_old else "new"))
        never_print(password_of(uri))
        user = user_of(uri).name
        give_up = time.monotonic() + order.patience.total_seconds()
        while True:
            activity.heartbeat({"phase": "logging in"})
            outcome = _tried(uri, order.stage.database.name)
            ok = outcome == ("refused" if order.refused else "let in")
            if ok or time.monotonic() > give_up:
                return LoginTested(summary=f"login as {user}: {outcome}", ok=ok, user=user, outcome=outcome)
            pause(_RETRY, "logging in", outcome=outcome)

    @activity.defn(name="credentials.switch")
    @classified("set the connection string")
    def switch(self, order: SwitchUser) -> UserSwitched:
        """Let the API log in as the new user from its next deployment on, wherever its string leads meanwhile."""
        uri = self._staged.need(_secret(order.stage).store, version_of(order.rotation, "new"))
        return self._switched(order.stage, uri, (order.old, user_of(uri).name))

    @activity.defn(name="credentials.promote")
    @classified("make the new login the current one")
    def promote(self, order: CredentialOrder) -> Promoted:
        version = version_of(order.rotation, "new")
        self._staged.promote(_secret(order.stage).store, version)
        self._resolver.forget(order.stage.database.uri)
        return Promoted(summary=f"version {version[:8]} is AWSCURRENT", version=version)

    @activity.defn(name="credentials.logins")
    @classified("look who logs in as the old user")
    def logins(self, asked: LoginQuery) -> LoginsSeen:
        new = _name(asked, asked.old)
        seen = self._store(asked.stage).access((asked.old, new), asked.since)
        holders = self._holders(asked.stage, asked.old)
        last, count = seen.last.get(asked.old), seen.count.get(asked.old, 0)
        told = f"last seen {last:%Y-%m-%d %H:%M:%S} UTC ({count} times)" if last else "not seen"
        return LoginsSeen(
            summary=f"{asked.old}: {told if seen.known or last else 'not known'}, {seen.why}"
            + (f"; still named by {', '.join(holders)}" if holders else ""),
            known=seen.known,
            old_last=last,
            old_count=count,
            holders=holders,
        )

    @activity.defn(name="credentials.remove")
    @classified("remove the old database user")
    def remove(self, order: SwitchUser) -> UserRemoved:
        source = user_of(self._staged.need(_secret(order.stage).store, version_of(order.rotation, "new"))).source
        existed = self._store(order.stage).drop(order.old, source)
        return UserRemoved(summary=f"{order.old} is removed" + ("" if existed else " (already)"), existed=existed)

    @activity.defn(name="credentials.put_back", no_thread_cancel_exception=True)
    @classified("put the former database user back")
    def put_back(self, order: PutUserBack) -> UserSwitched:
        """The connection string, the deployment and the labels as they were; then the new user goes."""
        stage, secret = order.stage, _secret(order.stage)
        former = self._staged.value(secret.store, version_of(order.rotation, "former"))
        made = self._staged.value(secret.store, version_of(order.rotation, "new"))
        done = UserSwitched(summary=f"the API logs in as {order.old}", user=order.old, changed=False)
        if former is not None and made is not None:
            fresh = user_of(made)
            done = self._switched(stage, former, (order.old, fresh.name))
            # Also when it was set already: an earlier attempt may have died before it deployed.
            self._deployments.again(DeployAgain(stage=stage, deployment_id=f"{order.rotation}/put-back"))
            self._store(stage).drop(fresh.name, fresh.source)
        self._staged.restore(order.labels)
        self._resolver.forget(stage.database.uri)
        return done

    @activity.defn(name="credentials.restore", no_thread_cancel_exception=True)
    @classified("make the old database user again")
    def restore(self, order: SwitchUser) -> UserSwitched:
        """The old user with its password and roles: the state of the overlap. The API goes on as the new one."""
        secret, store = _secret(order.stage), self._store(order.stage)
        former = self._staged.need(secret.store, version_of(order.rotation, "former"))
        old = user_of(former)
        grants = self._grants(store, _name(order, old.name), old.source)
        store.ensure(old.name, old.source, password_of(former), grants)
        return UserSwitched(summary=f"{old.name} can log in again", user=_name(order, old.name), changed=True)

    # --- parts --------------------------------------------------------------------------------------------------

    def _store(self, stage: Stage) -> UserStore:
        if stage.rotation.users_uri is not None and stage.rotation.users == "mongodb":
            admin = user_of(self._resolver.resolve(stage.rotation.users_uri))
            if admin.name == user_of(self._read(stage)).name:
                raise lasting(
                    "rotation.users_uri logs in as the very user that is to be rotated. Name another one who may make "
                    "users",
                    type="NotConfigured",
                )
        return store_of(stage, self._resolver, self._http)

    def _read(self, stage: Stage) -> str:
        uri = self._secrets.read(stage, _secret(stage))
        never_print(uri)
        never_print(password_of(uri))
        return uri

    def _grants(self, store: UserStore, name: str, source: str) -> Grants:
        grants = store.grants(name, source)
        if grants is None:
            raise lasting(
                f"the database knows no user {name} in {source}. Is users = 'mongodb' or 'atlas' right for it?",
                type="NoSuchUser",
            )
        return grants

    def _switched(self, stage: Stage, uri: str, may_be: tuple[str, ...]) -> UserSwitched:
        """Set the login of ``uri`` in what the API reads. Its address may have been changed meanwhile, and stays."""
        present, wanted = self._read(stage), user_of(uri).name
        if (found := user_of(present).name) not in may_be:
            raise lasting(
                f"the API's connection string now logs in as {found}: somebody else has changed it. Abort this "
                "rotation and start another",
                type="ChangedMeanwhile",
            )
        elsewhere = with_login(present, "", "") != with_login(uri, "", "")
        value = with_login(present, wanted, password_of(uri)) if elsewhere else uri
        changed = self._secrets.write(stage, _secret(stage), value)
        self._resolver.forget(stage.database.uri)
        return UserSwitched(
            summary=f"the API logs in as {wanted} from the next deployment on" + ("" if changed else " (set already)"),
            user=wanted,
            changed=changed,
        )

    def _holders(self, stage: Stage, user: str) -> tuple[str, ...]:
        """Other references of the stage that log in as this user: they would be locked out."""
        refs: dict[str, SecretRef | None] = {
            "database.operator_uri": stage.database.operator_uri,
            "backup.uri": stage.backup.uri,
        }
        found = []
        for place, ref in refs.items():
            if ref is None or ref == stage.database.uri:
                continue
            self._resolver.forget(ref)
            with contextlib.suppress(ApplicationError):  # one that cannot be read, or has no password, holds no user
                if user_of(self._resolver.resolve(ref)).name == user:
                    found.append(place)
        return tuple(found)


def _tried(uri: str, database: str) -> Outcome:
    options: Any = {"appname": OWN_NAME, "serverSelectionTimeoutMS": 5000, "connectTimeoutMS": 3000}
    try:
        with pymongo.MongoClient[dict[str, Any]](uri, **options) as client:
            names = client[database].list_collection_names(authorizedCollections=True, nameOnly=True)
            if names:
                client[database][names[0]].find_one({}, projection=["_id"])
    except pymongo.errors.OperationFailure as error:
        if error.code == _WRONG_LOGIN:
            return "refused"
        if error.code == _NO_ROLE:
            return "lacks a role"
        raise
    except pymongo.errors.ConnectionFailure:
        return "no answer"
    return "let in"


def _name(order: CredentialOrder, old: str) -> str:
    return f"{_OURS.sub('', old)}-{version_of(order.rotation, 'user')[:8]}"


def _secret(stage: Stage) -> RotatedSecret:
    secret = stage.rotation.database
    if secret is None:
        raise lasting(
            f"stage {stage.name} names no rotation.database. Add name and store to the settings", type="NotConfigured"
        )
    return secret
