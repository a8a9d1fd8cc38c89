"""The parts of the MongoDB Atlas Administration API v2 that backups and credential rotation use.

Served under ``/atlas``, so that ``<hub>/atlas`` takes the place of ``https://cloud.mongodb.com``. Of snapshots it keeps
books only: they hold no data. Its database users are those of the sandbox's database where it is given one, and can
log in there; without one they are books, too. Who logged in it is told, by ``/_control/atlas/login``. Where the
vendor does not publish an error code, a likely one is used; callers should go by the status.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from sandbox.hub.atlas_access import Access, Refused
from sandbox.hub.cluster import Cluster, ClusterError
from sandbox.hub.exchange import Reply, Request, answer, text_of
from sandbox.hub.journal import Event, Journal, Json

_VERSIONED = re.compile(r"application/vnd\.atlas\.\d{4}-\d{2}-\d{2}\+json")
_WINDOW_DAYS = 2
_MOST_LOGINS = 20_000


class Atlas:
    """Snapshots, restore jobs, database users and database access history.

    A snapshot is ``queued`` for one ``step``, ``inProgress`` for another and then ``completed``; a restore job finishes
    after two. Either ends ``failed`` instead where :meth:`fail_next` said so. While one snapshot is not finished Atlas
    takes no other of the same cluster.
    """

    def __init__(
        self,
        journal: Journal,
        secret: str | None = None,
        step: timedelta = timedelta(seconds=1),
        cluster: Cluster | None = None,
    ) -> None:
        self._journal = journal
        self._cluster = cluster
        self._access = Access(secret)
        self._step = step
        self._lock = threading.RLock()
        self._snapshots: dict[str, Json] = {}
        self._restores: dict[str, Json] = {}
        self._users: dict[tuple[str, str, str], Json] = {}
        self._logins: list[Json] = []
        self._failing: set[str] = set()
        journal.follow(self._apply)

    def handle(self, request: Request) -> Reply:
        if request.route == ("POST", "api", "oauth", "token"):
            return self._access.token(request)
        if request.path[:3] != ("api", "atlas", "v2"):
            return Refused(404, "RESOURCE_NOT_FOUND", "Cannot find resource.").reply()
        refusal = self._access.refusal(request)
        if refusal is not None:
            return refusal
        if not _VERSIONED.match(request.headers.get("Accept", "")):
            return Refused(406, "INVALID_VERSION_DATE", "Invalid accept header or version date.").reply()
        try:
            with self._lock:
                return self._route(request)
        except Refused as refused:
            return refused.reply()
        except ClusterError as error:
            return Refused(500, "UNEXPECTED_ERROR", str(error)).reply()

    def record_login(self, group: str, cluster: str, username: str) -> None:
        """Note that ``username`` authenticated against the cluster just now, for dbAccessHistory."""
        self._journal.append("atlas", f"{group}/{cluster}", "login", {"username": username})

    def fail_next(self, kind: str) -> None:
        """Let the next ``snapshot`` or ``restore`` end as failed."""
        self._failing.add(kind)

    def _fails(self, kind: str) -> bool:
        failing = kind in self._failing
        self._failing.discard(kind)
        return failing

    def _route(self, request: Request) -> Reply:
        match (request.method, *request.path[3:]):
            case ("GET", "groups", group, "clusters", cluster):
                return answer(200, _cluster(group, cluster))
            case ("GET", "groups", group, "clusters", cluster, "backup", "schedule"):
                return answer(200, {"clusterName": cluster, "restoreWindowDays": _WINDOW_DAYS, "policies": []})
            case ("POST", "groups", group, "clusters", cluster, "backup", "snapshots"):
                return self._take_snapshot(request, group, cluster)
            case ("GET", "groups", group, "clusters", cluster, "backup", "snapshots"):
                return self._listed(self._of(self._snapshots, group, cluster), self._snapshot)
            case ("GET", "groups", group, "clusters", cluster, "backup", "snapshots", number):
                return answer(200, self._snapshot(self._one(self._snapshots, group, cluster, number)))
            case ("POST", "groups", group, "clusters", cluster, "backup", "restoreJobs"):
                return self._restore(request, group, cluster)
            case ("GET", "groups", group, "clusters", cluster, "backup", "restoreJobs"):
                return self._listed(self._of(self._restores, group, cluster), self._restore_job)
            case ("GET", "groups", group, "clusters", cluster, "backup", "restoreJobs", number):
                return answer(200, self._restore_job(self._one(self._restores, group, cluster, number)))
            case ("DELETE", "groups", group, "clusters", cluster, "backup", "restoreJobs", number):
                return self._cancel(self._one(self._restores, group, cluster, number))
            case ("POST", "groups", group, "databaseUsers"):
                return self._create_user(request, group)
            case ("GET", "groups", group, "databaseUsers"):
                return self._listed([user for key, user in self._users.items() if key[0] == group], dict)
            case ("GET", "groups", group, "databaseUsers", database, name):
                return answer(200, self._user(group, database, name))
            case ("PATCH", "groups", group, "databaseUsers", database, name):
                return self._update_user(request, group, database, name)
            case ("DELETE", "groups", group, "databaseUsers", database, name):
                self._user(group, database, name)
                if self._cluster:
                    self._cluster.drop(database, name)
                self._journal.append("atlas", group, "user-deleted", {"databaseName": database, "username": name})
                return Reply(204)
            case ("GET", "groups", group, "dbAccessHistory", "clusters", cluster):
                return self._access_history(request, group, cluster)
        raise Refused(404, "RESOURCE_NOT_FOUND", f"Cannot find resource /{'/'.join(request.path)}.")

    def _take_snapshot(self, request: Request, group: str, cluster: str) -> Reply:
        sent = _sent(request)
        days = sent.get("retentionInDays")
        if not isinstance(days, int) or isinstance(days, bool) or not 1 <= days <= 36500:
            raise Refused(400, "INVALID_ATTRIBUTE", "Invalid attribute retentionInDays specified.", "retentionInDays")
        for row in self._of(self._snapshots, group, cluster):
            if self._snapshot(row)["status"] in ("queued", "inProgress"):
                detail = "An on-demand snapshot of this cluster is already queued or in progress."
                raise Refused(409, "ON_DEMAND_SNAPSHOT_IN_PROGRESS", detail, cluster)
        kept: Json = {"id": secrets.token_hex(12), "days": days, "description": text_of(sent.get("description"))}
        kept["fails"] = self._fails("snapshot")
        self._journal.append("atlas", f"{group}/{cluster}", "snapshot", kept)
        return answer(200, self._snapshot(self._snapshots[kept["id"]]))

    def _restore(self, request: Request, group: str, cluster: str) -> Reply:
        sent = _sent(request)
        delivery = sent.get("deliveryType")
        if delivery not in ("automated", "pointInTime", "download"):
            raise Refused(400, "INVALID_ATTRIBUTE", "Invalid attribute deliveryType specified.", "deliveryType")
        if delivery in ("automated", "pointInTime"):
            _needed(sent, "targetClusterName", "targetGroupId")
        if delivery in ("automated", "download"):
            _needed(sent, "snapshotId")
            snapshot = self._snapshot(self._one(self._snapshots, group, cluster, sent["snapshotId"]))
            if snapshot["status"] != "completed":
                raise Refused(400, "SNAPSHOT_NOT_COMPLETED", "The snapshot is not completed yet.", snapshot["id"])
        elif not isinstance(sent.get("pointInTimeUTCSeconds") or sent.get("oplogTs"), int):
            raise Refused(400, "MISSING_ATTRIBUTE", "The required attribute pointInTimeUTCSeconds was not specified.")
        names = ("snapshotId", "targetClusterName", "targetGroupId", "pointInTimeUTCSeconds", "oplogTs", "oplogInc")
        kept = {"id": secrets.token_hex(12), "deliveryType": delivery} | {k: sent[k] for k in names if k in sent}
        kept["fails"] = self._fails("restore")
        self._journal.append("atlas", f"{group}/{cluster}", "restore", kept)
        return answer(200, self._restore_job(self._restores[kept["id"]]))

    def _cancel(self, job: Json) -> Reply:
        shown = self._restore_job(job)
        if shown["cancelled"] or "finishedAt" in shown:
            raise Refused(400, "CANNOT_CANCEL_RESTORE_JOB", "The restore job has already ended.", job["id"])
        self._journal.append("atlas", job["cluster"], "restore-cancelled", {"id": job["id"]})
        return answer(200, {})

    def _create_user(self, request: Request, group: str) -> Reply:
        sent = _sent(request)
        _needed(sent, "databaseName", "username")
        if not text_of(sent.get("password")):
            raise Refused(400, "MISSING_ATTRIBUTE", "The required attribute password was not specified.", "password")
        if not isinstance(sent.get("roles"), list) or not sent["roles"]:
            raise Refused(400, "MISSING_ATTRIBUTE", "The required attribute roles was not specified.", "roles")
        if "deleteAfterDate" in sent and not _within_a_week(sent["deleteAfterDate"]):
            detail = "deleteAfterDate must be a time in the future, at most one week from now."
            raise Refused(400, "INVALID_ATTRIBUTE", detail, "deleteAfterDate")
        database, name = sent["databaseName"], sent["username"]
        if self._found(group, database, name) is not None:
            raise Refused(409, "USER_ALREADY_EXISTS", "The specified user already exists.", name)
        names = ("databaseName", "username", "roles", "scopes", "deleteAfterDate", "description", "labels")
        kept = {name: sent[name] for name in names if name in sent}
        if self._cluster:
            self._cluster.put(database, name, sent["password"], sent["roles"])
        self._journal.append("atlas", group, "user-created", kept)
        return answer(201, self._user(group, sent["databaseName"], sent["username"]))

    def _update_user(self, request: Request, group: str, database: str, name: str) -> Reply:
        sent, user = _sent(request), self._user(group, database, name)
        kept = {"databaseName": database, "username": name, "roles": sent.get("roles") or user["roles"]}
        if self._cluster:
            self._cluster.put(database, name, text_of(sent.get("password")) or None, kept["roles"])
        self._journal.append("atlas", group, "user-created", kept)
        return answer(200, self._user(group, database, name))

    def _found(self, group: str, database: str, name: str) -> Json | None:
        """A user as the books have it, and one of the cluster that nobody has made here."""
        kept = self._users.get((group, database, name))
        if self._cluster is None:
            return kept
        roles = self._cluster.roles(database, name)
        if roles is None:
            return None
        plain = {"groupId": group, "databaseName": database, "username": name, "scopes": [], "labels": []}
        return plain | (kept or {}) | {"roles": roles}

    def _user(self, group: str, database: str, name: str) -> Json:
        user = self._found(group, database, name)
        if user is None:
            raise Refused(404, "USERNAME_NOT_FOUND", f"No user with username {name} exists.", name)
        return user

    def _access_history(self, request: Request, group: str, cluster: str) -> Reply:
        try:
            start, end = (int(request.query.get(name, "0")) for name in ("start", "end"))
            most = int(request.query.get("nLogs", _MOST_LOGINS))
        except ValueError:
            raise Refused(400, "INVALID_QUERY_PARAMETER", "start, end and nLogs are whole numbers.") from None
        if not 0 <= most <= _MOST_LOGINS:
            raise Refused(400, "INVALID_QUERY_PARAMETER", f"nLogs is between 0 and {_MOST_LOGINS}.")
        found = [
            login["shown"]
            for login in reversed(self._logins)
            if login["cluster"] == f"{group}/{cluster}" and login["ms"] >= start and (not end or login["ms"] <= end)
        ]
        return answer(200, {"accessLogs": found[:most]})

    @staticmethod
    def _of(table: dict[str, Json], group: str, cluster: str) -> list[Json]:
        return [row for row in reversed(table.values()) if row["cluster"] == f"{group}/{cluster}"]

    @staticmethod
    def _one(table: dict[str, Json], group: str, cluster: str, number: str) -> Json:
        row = table.get(number)
        if row is None or row["cluster"] != f"{group}/{cluster}":
            raise Refused(404, "RESOURCE_NOT_FOUND", f"Cannot find resource {number}.", number)
        return row

    @staticmethod
    def _listed(rows: list[Json], shown: Callable[[Json], Json]) -> Reply:
        return answer(200, {"results": [shown(row) for row in rows], "totalCount": len(rows)})

    def _snapshot(self, row: Json) -> Json:
        age = datetime.now(UTC) - row["at"]
        end = "failed" if row.get("fails") else "completed"
        status = "queued" if age < self._step else "inProgress" if age < 2 * self._step else end
        return {
            "id": row["id"],
            "status": status,
            "createdAt": _iso(row["at"]),
            "expiresAt": _iso(row["at"] + timedelta(days=row["days"])),
            "description": row["description"],
            "frequencyType": "ondemand",
            "snapshotType": "onDemand",
            "type": "replicaSet",
            "cloudProvider": "AWS",
            "storageSizeBytes": 0,
        }

    def _restore_job(self, row: Json) -> Json:
        shown = {name: value for name, value in row.items() if name not in ("cluster", "at", "cancelled_at", "fails")}
        done = row["at"] + 2 * self._step
        shown |= {"cancelled": row["cancelled_at"] is not None, "expired": False, "failed": False}
        if row["cancelled_at"] is None and datetime.now(UTC) >= done:
            shown["failed"] = bool(row.get("fails"))
            shown["finishedAt"] = _iso(done)
        if row.get("snapshotId"):
            shown["timestamp"] = _iso(self._snapshots[row["snapshotId"]]["at"])
        return shown

    def _apply(self, event: Event) -> None:
        if event.channel != "atlas":
            return
        body, place = event.body, {"cluster": event.name, "at": event.time}
        match event.action:
            case "snapshot":
                self._snapshots[body["id"]] = body | place
            case "restore":
                self._restores[body["id"]] = body | place | {"cancelled_at": None}
            case "restore-cancelled":
                self._restores[body["id"]]["cancelled_at"] = event.time
            case "user-created":
                shown = {"groupId": event.name, "scopes": [], "labels": []} | body
                self._users[(event.name, body["databaseName"], body["username"])] = shown
            case "user-deleted":
                self._users.pop((event.name, body["databaseName"], body["username"]), None)
            case "login":
                group, _, cluster = event.name.partition("/")
                login = {"username": body["username"], "authResult": True, "authSource": "admin", "groupId": group}
                login |= {"hostname": f"{cluster}-shard-00-00.example.net", "ipAddress": "127.0.0.1"}
                ms = int(event.time.timestamp() * 1000)
                self._logins.append(
                    {"cluster": event.name, "ms": ms, "shown": login | {"timestamp": _java(event.time)}}
                )


def _cluster(group: str, name: str) -> Json:
    """Every name is a cluster here: no cluster stands behind any."""
    region = {"electableSpecs": {"instanceSize": "M10", "nodeCount": 3}, "providerName": "AWS", "priority": 7}
    return {
        "groupId": group,
        "name": name,
        "stateName": "IDLE",
        "mongoDBVersion": "8.0.4",
        "backupEnabled": True,
        "pitEnabled": True,
        "clusterType": "REPLICASET",
        "replicationSpecs": [{"regionConfigs": [region]}],
    }


def _sent(request: Request) -> dict[str, Any]:
    sent = request.json_object()
    if sent is None:
        raise Refused(400, "MALFORMED_JSON", "Received JSON is malformed.")
    return sent


def _needed(sent: dict[str, Any], *names: str) -> None:
    for name in names:
        if not text_of(sent.get(name)):
            raise Refused(400, "MISSING_ATTRIBUTE", f"The required attribute {name} was not specified.", name)


def _within_a_week(value: object) -> bool:
    try:
        when = datetime.fromisoformat(text_of(value))
    except ValueError:
        return False
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return timedelta() < when - datetime.now(UTC) <= timedelta(weeks=1)


def _iso(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _java(when: datetime) -> str:
    """How the access history writes a time, unlike all others."""
    return when.astimezone(UTC).strftime("%a %b %d %H:%M:%S GMT %Y")
