"""Users of a database, where they are kept: MongoDB itself, or Atlas, which rolls back users made by command.

A port with two adapters, chosen by the stage's settings. Passwords pass through and are kept nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import httpx
import pymongo
import pymongo.errors

from activities.atlas import MOST_LOGINS, Atlas, Conflict
from activities.clients import OWN_NAME
from activities.connection_string import user_of
from activities.errors import lasting
from activities.secret_refs import SecretResolver
from activities.stage import Stage

_EXISTS = 51003
_NOT_FOUND = 11
_HISTORY = timedelta(days=7)
"""How far back the access history of Atlas goes."""

_LOGGED_IN = ("Authentication succeeded", "Successfully authenticated")
"""How MongoDB's own log says it, up to version 5 and since."""


@dataclass(frozen=True)
class Grants:
    """What a user may do, in the words of the store, and as lines that can be compared and shown."""

    raw: dict[str, Any]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Access:
    """When each user was last seen; ``known`` is False where the store does not tell who logs in."""

    known: bool
    why: str
    last: dict[str, datetime]
    count: dict[str, int]


class UserStore(Protocol):
    def grants(self, name: str, source: str) -> Grants | None:
        """What a user may do; None when there is no such user."""

    def ensure(self, name: str, source: str, password: str, grants: Grants) -> None:
        """There is such a user, with that password and just these grants, whether or not there was one before."""

    def drop(self, name: str, source: str) -> bool:
        """There is no such user; False when there was none."""

    def access(self, names: Iterable[str], since: datetime) -> Access:
        """When each of these was last seen since then."""


def store_of(stage: Stage, resolver: SecretResolver, http: httpx.Client) -> UserStore:
    if stage.rotation.users == "atlas":
        facts = stage.backup.atlas
        if facts is None:
            raise lasting(
                f"stage {stage.name} has users = 'atlas' and no backup.atlas. Add project, cluster and login there",
                type="NotConfigured",
            )
        return AtlasUsers(Atlas(facts, http, resolver))
    if stage.rotation.users_uri is None:
        raise lasting(
            f"stage {stage.name} names no rotation.users_uri, the login of who may make and drop users. Add it",
            type="NotConfigured",
        )
    return MongoUsers(resolver.resolve(stage.rotation.users_uri))


class MongoUsers:
    """``createUser`` and its kin. Who logs in: open connections with their users, and the server's own log."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.own = user_of(uri).name

    def grants(self, name: str, source: str) -> Grants | None:
        with self._admin() as client:
            found = client[source].command(
                "usersInfo", {"user": name, "db": source}, showAuthenticationRestrictions=True
            )["users"]
        if not found:
            return None
        roles = [{"role": role["role"], "db": role["db"]} for role in found[0].get("roles", [])]
        raw: dict[str, Any] = {"roles": roles}
        lines = [f"{role['role']}@{role['db']}" for role in roles]
        if restrictions := found[0].get("authenticationRestrictions"):
            raw["authenticationRestrictions"] = restrictions
            lines.append(f"only {json.dumps(restrictions, sort_keys=True, default=str)}")
        return Grants(raw, tuple(sorted(lines)))

    def ensure(self, name: str, source: str, password: str, grants: Grants) -> None:
        with self._admin() as client:
            try:
                client[source].command("createUser", name, pwd=password, **grants.raw)
            except pymongo.errors.OperationFailure as error:
                if error.code != _EXISTS:
                    raise
                client[source].command("updateUser", name, pwd=password, **grants.raw)

    def drop(self, name: str, source: str) -> bool:
        with self._admin() as client:
            try:
                client[source].command("dropUser", name)
            except pymongo.errors.OperationFailure as error:
                if error.code != _NOT_FOUND:
                    raise
                return False
        return True

    def access(self, names: Iterable[str], since: datetime) -> Access:
        now, wanted = datetime.now(UTC), set(names)
        last: dict[str, datetime] = {}
        count: dict[str, int] = {}
        with self._admin() as client:
            try:
                looked = [{"$currentOp": {"allUsers": True, "idleConnections": True}}]
                open_now = list(client.admin.aggregate(looked))
            except pymongo.errors.OperationFailure as error:
                return Access(False, f"the server does not tell whose connections are open ({error.code})", {}, {})
            try:
                log = client.admin.command("getLog", "global").get("log", [])
            except pymongo.errors.OperationFailure:
                log = []  # open connections tell enough
        named = {user for row in open_now for user in _users(row)}
        for name in wanted & {user for row in open_now if not _ours(row) for user in _users(row)}:
            last[name] = now
            count[name] = sum(name in _users(row) for row in open_now)
        for name, at in _logins(log):
            if name in wanted and at >= since:
                last[name] = max(last.get(name, at), at)
                count[name] = count.get(name, 0) + 1
        if self.own not in named:  # it should have seen at least this very connection
            return Access(False, "the server does not name the users of its connections", last, count)
        return Access(True, "open connections and the server's log", last, count)

    @contextmanager
    def _admin(self) -> Iterator[pymongo.MongoClient[dict[str, Any]]]:
        with pymongo.MongoClient[dict[str, Any]](
            self._uri, appname=OWN_NAME, connectTimeoutMS=3000, serverSelectionTimeoutMS=10_000
        ) as client:
            yield client


class AtlasUsers:
    """The Administration API, and the access history that Atlas keeps."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas

    def grants(self, name: str, source: str) -> Grants | None:
        found = self._atlas.user(name, source)
        if found is None:
            return None
        raw: dict[str, Any] = {"roles": found.get("roles", []), "scopes": found.get("scopes", [])}
        lines = [
            f"{role.get('roleName')}@{role.get('databaseName')}"
            + (f".{role['collectionName']}" if role.get("collectionName") else "")
            for role in raw["roles"]
        ]
        lines += [f"only {scope.get('type')} {scope.get('name')}" for scope in raw["scopes"]]
        return Grants(raw, tuple(sorted(lines)))

    def ensure(self, name: str, source: str, password: str, grants: Grants) -> None:
        roles, scopes = grants.raw["roles"], grants.raw["scopes"]
        try:
            self._atlas.create_user(name, password, roles, source, scopes=scopes)
        except Conflict:
            self._atlas.update_user(name, password, roles, source, scopes=scopes)

    def drop(self, name: str, source: str) -> bool:
        return self._atlas.delete_user(name, source)

    def access(self, names: Iterable[str], since: datetime) -> Access:
        now, wanted = datetime.now(UTC), set(names)
        logins = self._atlas.logins(max(since, now - _HISTORY), now)
        last: dict[str, datetime] = {}
        count: dict[str, int] = {}
        for login in logins:
            if login.succeeded and login.username in wanted:
                last[login.username] = max(last.get(login.username, login.at), login.at)
                count[login.username] = count.get(login.username, 0) + 1
        if len(logins) >= MOST_LOGINS:  # the old user's may be among those that are not told
            return Access(False, f"the access history was cut off after {len(logins):,} logins", last, count)
        if not last:  # at least the API logs in, as the new user
            return Access(False, "the access history names neither the old user nor the new one", {}, {})
        return Access(True, "the access history of Atlas", last, count)


def _users(row: dict[str, Any]) -> set[str]:
    return {str(user.get("user")) for user in row.get("effectiveUsers") or ()}


def _ours(row: dict[str, Any]) -> bool:
    """Idle connections of a worker from before the rotation are no use of the old user."""
    application = (row.get("clientMetadata") or {}).get("application") or {}
    return row.get("appName") == OWN_NAME or application.get("name") == OWN_NAME


def _logins(log: Iterable[str]) -> Iterator[tuple[str, datetime]]:
    for line in log:
        try:
            entry = json.loads(line)
            told = entry["attr"]
            if entry["msg"] in _LOGGED_IN:
                yield str(told.get("user") or told["principalName"]), datetime.fromisoformat(entry["t"]["$date"])
        except (ValueError, KeyError, TypeError):
            continue  # a line in another form, or cut off
