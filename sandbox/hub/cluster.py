"""The database behind the Atlas emulation, where there is one: users made there can really log in."""

from __future__ import annotations

from typing import Any

import pymongo
import pymongo.errors

from sandbox.hub.journal import Json

_EXISTS, _NOT_FOUND = 51003, 11


class ClusterError(Exception):
    """The database does not take it; one line, without a password."""


class Cluster:
    """Users of a MongoDB server, in the words of the Administration API.

    Args:
        uri: of somebody who may make users.
    """

    def __init__(self, uri: str) -> None:
        self._client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            uri, connect=False, serverSelectionTimeoutMS=5000
        )

    def put(self, database: str, name: str, password: str | None, roles: list[Json]) -> None:
        """There is such a user, with just these roles; a password of None stays as it is."""
        given: dict[str, Any] = {
            "roles": [{"role": role.get("roleName"), "db": role.get("databaseName")} for role in roles]
        }
        if password:
            given["pwd"] = password
        try:
            try:
                self._client[database].command("createUser", name, **given)
            except pymongo.errors.OperationFailure as error:
                if error.code != _EXISTS:
                    raise
                self._client[database].command("updateUser", name, **given)
        except pymongo.errors.PyMongoError as error:
            raise ClusterError(f"the cluster did not take user {name}: {type(error).__name__}") from None

    def roles(self, database: str, name: str) -> list[Json] | None:
        """None when there is no such user."""
        try:
            found = self._client[database].command("usersInfo", {"user": name, "db": database})["users"]
        except pymongo.errors.PyMongoError as error:
            raise ClusterError(f"the cluster did not tell of user {name}: {type(error).__name__}") from None
        if not found:
            return None
        return [{"roleName": role["role"], "databaseName": role["db"]} for role in found[0]["roles"]]

    def drop(self, database: str, name: str) -> None:
        try:
            self._client[database].command("dropUser", name)
        except pymongo.errors.OperationFailure as error:
            if error.code != _NOT_FOUND:
                raise ClusterError(f"the cluster did not drop user {name}: error {error.code}") from None
        except pymongo.errors.PyMongoError as error:
            raise ClusterError(f"the cluster did not drop user {name}: {type(error).__name__}") from None
