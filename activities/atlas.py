"""The Atlas Administration API v2: snapshots, restore jobs, database users, who logged in.

Paths, states and the versioned ``Accept`` header are those of the published API. Two ways to log in: a service account
(OAuth client credentials; the token is kept until shortly before it expires) and an API key pair over HTTP digest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BeforeValidator, Field, ValidationError
from temporalio.exceptions import ApplicationError

from activities.errors import from_http, lasting, passing
from activities.secret_refs import SecretResolver
from activities.stage import AtlasFacts, Facts

ACCEPT = "application/vnd.atlas.2023-01-01+json"
_PAGE = 100
_EARLY = 60.0
"""Seconds before its end that a token is replaced."""

MOST_LOGINS = 20_000
"""The access history tells no more than this in one answer, and has no pages."""

M = TypeVar("M", bound=Facts)

SnapshotStatus = Literal["queued", "inProgress", "completed", "failed"]


class Snapshot(Facts):
    id: str
    status: SnapshotStatus
    created_at: datetime = Field(validation_alias="createdAt")
    expires_at: datetime | None = Field(None, validation_alias="expiresAt")
    description: str = ""
    storage_bytes: int | None = Field(None, validation_alias="storageSizeBytes")


class RestoreJob(Facts):
    """One restore. It has ended when it is finished, failed, cancelled or expired."""

    id: str
    delivery: Literal["automated", "pointInTime", "download"] = Field(validation_alias="deliveryType")
    snapshot_id: str | None = Field(None, validation_alias="snapshotId")
    target_cluster: str | None = Field(None, validation_alias="targetClusterName")
    moment: int | None = Field(None, validation_alias="pointInTimeUTCSeconds")
    finished_at: datetime | None = Field(None, validation_alias="finishedAt")
    failed: bool = False
    cancelled: bool = False
    expired: bool = False

    @property
    def ended(self) -> bool:
        return self.finished_at is not None or self.failed or self.cancelled or self.expired


class Cluster(Facts):
    name: str
    state: str = Field(validation_alias="stateName")
    version: str | None = Field(None, validation_alias="mongoDBVersion")
    backups: bool = Field(False, validation_alias="backupEnabled", description="Whether it takes snapshots at all")
    point_in_time: bool = Field(
        False, validation_alias="pitEnabled", description="Whether it keeps the changes between"
    )
    tier: str | None = Field(None, description="Instance size, such as M10")


def _moment(told: Any) -> Any:
    """The access history writes times as Java does, ``Fri Feb 27 12:46:11 GMT 2026``, unlike the rest of the API."""
    for zone in ("GMT", "UTC"):
        with suppress(ValueError, TypeError):
            return datetime.strptime(told, f"%a %b %d %H:%M:%S {zone} %Y").replace(tzinfo=UTC)
    return told


class Login(Facts):
    """One authentication against the cluster."""

    username: str = ""
    at: Annotated[datetime, BeforeValidator(_moment)] = Field(validation_alias="timestamp")
    succeeded: bool = Field(False, validation_alias="authResult")
    address: str | None = Field(None, validation_alias="ipAddress")


class Conflict(ApplicationError):
    """HTTP 409: what was asked for is under way, or there already."""

    def __init__(self, message: str) -> None:
        super().__init__(message, type="AtlasConflict", non_retryable=True)


class Atlas:
    """One project and cluster. Safe to share between threads; tokens are kept for its life."""

    def __init__(self, facts: AtlasFacts, http: httpx.Client, resolver: SecretResolver) -> None:
        self._facts, self._http, self._resolver = facts, http, resolver
        self._base = f"{facts.url}/api/atlas/v2/groups/{facts.group}"
        self._cluster = f"/clusters/{facts.cluster}"
        self._lock = threading.Lock()
        self._token: tuple[str, float] | None = None

    # --- snapshots and restores ---------------------------------------------------------------------------------

    def take_snapshot(self, description: str) -> Snapshot:
        """Ask for a snapshot; it is queued.

        Raises:
            Conflict: one that was asked for before is not finished. Atlas takes one on demand at a time.
        """
        body = {"description": description, "retentionInDays": self._facts.retention_days}
        return _read(Snapshot, self._call("POST", f"{self._cluster}/backup/snapshots", "take a snapshot", body))

    def snapshot(self, snapshot_id: str) -> Snapshot:
        path = f"{self._cluster}/backup/snapshots/{quote(snapshot_id, safe='')}"
        return _read(Snapshot, self._call("GET", path, f"read snapshot {snapshot_id}"))

    def snapshots(self) -> list[Snapshot]:
        """Newest first."""
        rows = self._pages(f"{self._cluster}/backup/snapshots", "list the snapshots")
        return sorted((_read(Snapshot, row) for row in rows), key=lambda row: row.created_at, reverse=True)

    def restore_window(self) -> timedelta | None:
        """How far back a point-in-time restore can go; None where continuous backup is off."""
        if not self.cluster().point_in_time:
            return None
        found = self._call("GET", f"{self._cluster}/backup/schedule", "read the backup schedule")
        days = found.get("restoreWindowDays")
        return timedelta(days=days) if isinstance(days, int | float) and days > 0 else None

    def restore(self, target: str, *, snapshot_id: str | None = None, moment: datetime | None = None) -> RestoreJob:
        """Restore a snapshot, or a moment, into a cluster of the same project. All data of the target is deleted."""
        body: dict[str, Any] = {"targetClusterName": target, "targetGroupId": self._facts.group}
        if snapshot_id is not None:
            body |= {"deliveryType": "automated", "snapshotId": snapshot_id}
        elif moment is not None:
            body |= {"deliveryType": "pointInTime", "pointInTimeUTCSeconds": int(moment.timestamp())}
        return _read(RestoreJob, self._call("POST", f"{self._cluster}/backup/restoreJobs", "restore a backup", body))

    def restore_job(self, job_id: str) -> RestoreJob:
        path = f"{self._cluster}/backup/restoreJobs/{quote(job_id, safe='')}"
        return _read(RestoreJob, self._call("GET", path, f"read restore job {job_id}"))

    def restore_jobs(self) -> list[RestoreJob]:
        """Newest first."""
        rows = self._pages(f"{self._cluster}/backup/restoreJobs", "list the restore jobs")
        return [_read(RestoreJob, row) for row in rows]

    def cancel_restore(self, job_id: str) -> None:
        path = f"{self._cluster}/backup/restoreJobs/{quote(job_id, safe='')}"
        self._call("DELETE", path, f"cancel restore job {job_id}")

    def cluster(self, name: str | None = None) -> Cluster:
        """The cluster as it is now; the stage's own when no name is given."""
        name = name or self._facts.cluster
        found = self._call("GET", f"/clusters/{quote(name, safe='')}", f"read cluster {name}")
        return _read(Cluster, found | {"tier": _tier(found)})

    # --- database users -----------------------------------------------------------------------------------------

    def create_user(
        self,
        name: str,
        password: str,
        roles: list[dict[str, str]],
        database: str = "admin",
        *,
        scopes: list[dict[str, str]] | None = None,
    ) -> None:
        """Create a database user. The password goes into the request and nowhere else.

        Raises:
            Conflict: there is a user of that name.
        """
        body = {"databaseName": database, "username": name, "password": password, "roles": roles}
        self._call("POST", "/databaseUsers", f"create database user {name}", body | _scoped(scopes))

    def update_user(
        self,
        name: str,
        password: str,
        roles: list[dict[str, str]],
        database: str = "admin",
        *,
        scopes: list[dict[str, str]] | None = None,
    ) -> None:
        """Give a database user this password and these roles."""
        body: dict[str, Any] = {"password": password, "roles": roles}
        self._call("PATCH", _user(database, name), f"update database user {name}", body | _scoped(scopes))

    def user(self, name: str, database: str = "admin") -> dict[str, Any] | None:
        """A database user with its roles and scopes; None when there is none of that name."""
        try:
            return self._call("GET", _user(database, name), f"read database user {name}")
        except ApplicationError as error:
            if error.type == "Http404":
                return None
            raise

    def user_roles(self, name: str, database: str = "admin") -> list[dict[str, str]] | None:
        """Roles of a database user; None when there is none of that name."""
        found = self.user(name, database)
        if found is None:
            return None
        return [{key: str(value) for key, value in role.items()} for role in found.get("roles", [])]

    def delete_user(self, name: str, database: str = "admin") -> bool:
        """Delete a database user; false when there was none of that name."""
        try:
            self._call("DELETE", _user(database, name), f"delete database user {name}")
        except ApplicationError as error:
            if error.type == "Http404":
                return False
            raise
        return True

    def logins(self, since: datetime, until: datetime) -> list[Login]:
        """Authentications against the cluster in that time. Atlas keeps seven days of them.

        As many as ``MOST_LOGINS`` are not all: there may have been others.
        """
        query = {
            "start": str(int(since.timestamp() * 1000)),
            "end": str(int(until.timestamp() * 1000)),
            "nLogs": str(MOST_LOGINS),
        }
        path = f"/dbAccessHistory/clusters/{self._facts.cluster}"
        found = self._call("GET", path, "read who logged in", query=query)
        return [_read(Login, row) for row in found.get("accessLogs", [])]

    # --- what was slow ------------------------------------------------------------------------------------------

    def slow_query_lines(self, since: datetime, until: datetime) -> list[str]:
        """Lines of the logs of the cluster's nodes about slow queries in that time, as Atlas keeps them for a day.

        Nodes of other clusters of the project are left out: a node's alias begins with the name of its cluster.
        """
        query = {
            "since": str(int(since.timestamp() * 1000)),
            "duration": str(max(1, int((until - since).total_seconds() * 1000))),
            "nLogs": "2000",
        }
        lines: list[str] = []
        for process in self._pages("/processes", "list the nodes"):
            alias = str(process.get("userAlias") or process.get("hostname") or "")
            if not alias.startswith(f"{self._facts.cluster.lower()}-"):
                continue
            path = f"/processes/{quote(str(process['id']), safe=':')}/performanceAdvisor/slowQueryLogs"
            found = self._call("GET", path, "read the slow queries", query=query)
            lines += [str(row["line"]) for row in found.get("slowQueries", []) if row.get("line")]
        return lines

    # --- HTTP ---------------------------------------------------------------------------------------------------

    def _pages(self, path: str, doing: str) -> Iterator[dict[str, Any]]:
        page = seen = 0
        while True:
            page += 1
            found = self._call("GET", path, doing, query={"pageNum": str(page), "itemsPerPage": str(_PAGE)})
            rows = found.get("results", [])
            yield from rows
            seen += len(rows)
            if len(rows) < _PAGE or seen >= found.get("totalCount", seen):
                return

    def _call(
        self, method: str, path: str, doing: str, body: Any = None, query: dict[str, str] | None = None
    ) -> dict[str, Any]:
        doing = f"{doing} (Atlas project {self._facts.group})"
        answer = self._send(method, path, doing, body, query)
        if answer.status_code == 401 and self._token is not None:
            # The token was revoked, or the clock is wrong: one new one, then it is the credential that is refused.
            self._token = None
            answer = self._send(method, path, doing, body, query)
        if answer.is_success:
            return _object(answer, doing) if answer.content else {}
        raise _refused(answer, doing)

    def _send(self, method: str, path: str, doing: str, body: Any, query: dict[str, str] | None) -> httpx.Response:
        headers = {"Accept": ACCEPT} | ({"Content-Type": ACCEPT} if body is not None else {})
        auth: httpx.Auth | None = None
        if self._facts.auth == "digest":
            auth = httpx.DigestAuth(self._resolver.resolve(self._facts.id), self._resolver.resolve(self._facts.secret))
        else:
            headers["Authorization"] = f"Bearer {self._bearer(doing)}"
        try:
            return self._http.request(method, self._base + path, json=body, params=query, headers=headers, auth=auth)
        except httpx.HTTPError as error:
            raise from_http(error, doing) from None

    def _bearer(self, doing: str) -> str:
        with self._lock:
            if self._token is not None and time.monotonic() < self._token[1]:
                return self._token[0]
            client = httpx.BasicAuth(self._resolver.resolve(self._facts.id), self._resolver.resolve(self._facts.secret))
            try:
                answer = self._http.post(
                    f"{self._facts.url}/api/oauth/token", data={"grant_type": "client_credentials"}, auth=client
                )
            except httpx.HTTPError as error:
                raise from_http(error, doing) from None
            if not answer.is_success:
                raise _refused(answer, f"log in to Atlas to {doing}")
            found = _object(answer, doing)
            if not isinstance(found.get("access_token"), str):
                raise passing(f"could not {doing}: Atlas gave no token", type="AtlasUnexpected")
            life = float(found.get("expires_in", 0))
            self._token = (found["access_token"], time.monotonic() + max(life - _EARLY, life / 2))
            return self._token[0]


def _scoped(scopes: list[dict[str, str]] | None) -> dict[str, Any]:
    return {"scopes": scopes} if scopes else {}


def _refused(answer: httpx.Response, doing: str) -> ApplicationError:
    """Atlas says what is wrong in ``errorCode`` and ``detail``; both are for people and hold nothing secret."""
    code, detail = "", ""
    try:
        told = answer.json()
        code, detail = str(told.get("errorCode", "")), str(told.get("detail", ""))[:300]
    except (ValueError, AttributeError):
        pass
    status = answer.status_code
    said = f"HTTP {status}" + (f" {code}: {detail}" if code else "")
    if status == 409:
        return Conflict(f"could not {doing}: {said}")
    if status in (401, 403):
        return lasting(
            f"could not {doing}: {said}. Check the service account or API key, its roles and its IP access list",
            type=f"Http{status}",
        )
    if status == 404:
        return lasting(f"could not {doing}: {said}. Check project and cluster in the settings", type="Http404")
    if status >= 500 or status in (408, 425, 429):
        after = answer.headers.get("retry-after", "")
        return passing(
            f"could not {doing}: {said}",
            type=f"Http{status}",
            retry_after=float(after) if after.isdigit() else None,
        )
    return lasting(f"could not {doing}: {said}", type=f"Http{status}")


def _object(answer: httpx.Response, doing: str) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        # A proxy on the way, say, that wants somebody to sign in.
        raise passing(f"could not {doing}: the answer is not Atlas's (no JSON object)", type="AtlasUnexpected")
    return found


def _read(model: type[M], found: dict[str, Any]) -> M:
    try:
        return model.model_validate(found)
    except ValidationError as error:
        fields = ", ".join(str(problem["loc"][0]) for problem in error.errors() if problem["loc"])
        raise lasting(f"Atlas's answer cannot be understood: {fields}", type="AtlasUnexpected") from None


def _tier(found: dict[str, Any]) -> str | None:
    for spec in found.get("replicationSpecs", []):
        for region in spec.get("regionConfigs", []):
            size = region.get("electableSpecs", {}).get("instanceSize")
            if isinstance(size, str):
                return size
    return None


def _user(database: str, name: str) -> str:
    return f"/databaseUsers/{quote(database, safe='')}/{quote(name, safe='')}"
