"""What a stage needs of its database: that it answers, that its users may do what the runbooks do, and a backup."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pymongo
import pymongo.errors

from activities import calls
from activities.backup_models import FindBackup
from activities.backups import Backups
from activities.clients import Aws
from activities.database import Database
from activities.errors import from_mongo
from activities.permissions import mongodb_role, with_rare
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import SecretRef, Stage
from starters.doctor_lines import Check, Seen, by_activity, warning, wrong

OLDEST = timedelta(hours=26)
"""A daily backup, with two hours for the schedule's jitter and the backup itself."""

_NOT_THERE = (59, 238, 115)
"""No such command, not implemented, not supported."""


class DatabaseChecks:
    def __init__(
        self, aws: Aws, settings: Settings, stage: Stage, resolver: SecretResolver, http: httpx.Client
    ) -> None:
        self._aws, self._settings, self._stage = aws, settings, stage
        self._resolver, self._http = resolver, http

    def all(self) -> Sequence[Check]:
        name = self._stage.name
        secret = f"store the right connection string under {self._stage.database.uri}"
        return (
            Check(
                "database",
                self._database,
                f"{secret}, and let the worker's network reach the database",
                ("secrets",),
            ),
            Check("database roles", self._roles, secret, ("database",)),
            Check(
                "backup",
                self._backup,
                f"correct [stages.{name}.backup], then: {self._make_one()}",
                ("secrets",),
            ),
        )

    def _database(self) -> Seen:
        return Seen(by_activity(Database(self._resolver).connections, self._stage).summary)

    def _roles(self) -> Seen:
        """What the stage's users may do, against every command that the tests have seen the runbooks send."""
        stage = self._stage
        families = with_rare(calls.kept(), "mongodb", stage)
        if stage.rotation.database is None or stage.rotation.users != "mongodb":
            families.pop("rotation", None)
        commands = {command for made in families.values() for command in made}
        granted: dict[str, set[str]] = {}
        references = (stage.database.uri, stage.database.operator_uri, stage.backup.uri, stage.rotation.users_uri)
        for reference in dict.fromkeys(filter(None, references)):
            privileges = self._privileges(reference)
            if privileges is None:
                return warning(
                    "this server does not tell what a user may do",
                    "compare the user's roles with deploy/mongodb by hand",
                )
            for privilege in privileges:
                where = _where(privilege.get("resource", {}))
                granted.setdefault(where, set()).update(privilege.get("actions", []))
        lacking = [
            f"{action} on {where}"
            for needed in mongodb_role("all", commands)["privileges"]
            if (where := _where(needed["resource"]).replace("${Database}", stage.database.name))
            for action in needed["actions"]
            if not any(action in granted.get(place, ()) for place in (where, "any database", "anything"))
        ]
        if lacking:
            return wrong(
                f"the stage's users lack {', '.join(lacking)}",
                "grant them the roles of the families that this worker serves: deploy/mongodb/*.json",
            )
        return Seen(f"the stage's users may do all {len(commands)} commands of the runbooks")

    def _privileges(self, reference: SecretRef) -> list[dict[str, Any]] | None:
        """None where the server does not tell. The client is closed at once: it is no pool to keep."""
        try:
            with pymongo.MongoClient[dict[str, Any]](
                self._resolver.resolve(reference), appname="operational-runbooks", serverSelectionTimeoutMS=5000
            ) as client:
                told = client.get_database("admin").command("connectionStatus", showPrivileges=True)
        except pymongo.errors.OperationFailure as error:
            if error.code in _NOT_THERE:
                return None
            raise from_mongo(error, f"log in with {reference}") from None
        except pymongo.errors.PyMongoError as error:
            raise from_mongo(error, f"log in with {reference}") from None
        found = told.get("authInfo", {}).get("authenticatedUserPrivileges")
        return list(found) if found else None

    def _backup(self) -> Seen:
        stage, now = self._stage, datetime.now(UTC)
        backups = Backups(self._settings, self._aws.s3, self._http, self._resolver)
        found = by_activity(backups.latest, FindBackup(stage=stage, at=now))
        if stage.backup.provider == "archive":
            daily, late = "runbooks schedules apply", "runbooks schedules list"
        else:
            daily = late = "the backup policy of the Atlas cluster"
        if found.backup is None:
            return wrong(found.summary, f"make one now: {self._make_one()}. For one every day: {daily}")
        if found.age_seconds is not None and found.age_seconds > OLDEST.total_seconds():
            return wrong(found.summary, f"see why the daily one is missing ({late}). Make one now: {self._make_one()}")
        return Seen(found.summary)

    def _make_one(self) -> str:
        return f"runbooks start DatabaseBackup --set stage={self._stage.name} --set reason='no recent backup'"


def _where(resource: dict[str, Any]) -> str:
    """A resource of a privilege in words that can be compared."""
    if resource.get("anyResource"):
        return "anything"
    if resource.get("cluster"):
        return "the cluster"
    if resource.get("db") == "" and resource.get("collection") == "":
        return "any database"
    return f"database {resource.get('db')}"
