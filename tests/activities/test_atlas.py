"""The Administration API of Atlas, against the hub's emulation: both ways to log in, states, faults, conflicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from temporalio.exceptions import ApplicationError

from activities.atlas import ACCEPT, Atlas, Conflict, RestoreJob, Snapshot
from activities.secret_refs import SecretResolver
from activities.stage import AtlasFacts
from tests.running_hub import ATLAS_SECRET, RunningHub

pytest_plugins = ["tests.hub_fixture"]

NewAtlas = Callable[..., Atlas]


@pytest.fixture
def sent() -> list[httpx.Request]:
    """Every request that went out."""
    return []


@pytest.fixture
def new_atlas(hub: RunningHub, tmp_path: Path, sent: list[httpx.Request]) -> Iterator[NewAtlas]:
    http = httpx.Client(timeout=2, event_hooks={"request": [sent.append]})

    def make(auth: str = "service_account", secret: str = ATLAS_SECRET, url: str | None = None) -> Atlas:
        (tmp_path / "id").write_text("mdb_sa_id")
        (tmp_path / "secret").write_text(secret)
        facts = AtlasFacts.model_validate(
            {
                "group": "g1",
                "cluster": "c1",
                "url": url or f"{hub.url}/atlas",
                "auth": auth,
                "id": f"file:{tmp_path / 'id'}",
                "secret": f"file:{tmp_path / 'secret'}",
                "retention_days": 3,
            }
        )
        return Atlas(facts, http, SecretResolver(None, None))  # type: ignore[arg-type]  # its secrets are in files

    yield make
    http.close()


def ended(look: Callable[[], Snapshot | RestoreJob], done: Callable[[Snapshot | RestoreJob], bool]) -> None:
    deadline = time.monotonic() + 5
    while not done(look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def completed(atlas: Atlas) -> Snapshot:
    made = atlas.take_snapshot("before")
    ended(lambda: atlas.snapshot(made.id), lambda s: isinstance(s, Snapshot) and s.status == "completed")
    return atlas.snapshot(made.id)


@pytest.mark.parametrize("auth", ["service_account", "digest"])
def test_both_ways_to_log_in(new_atlas: NewAtlas, sent: list[httpx.Request], auth: str) -> None:
    atlas = new_atlas(auth)
    assert atlas.snapshots() == []
    assert atlas.cluster().tier == "M10"
    asked = [request for request in sent if "/api/atlas/v2/" in request.url.path]
    assert {request.headers["Accept"] for request in asked} == {ACCEPT}
    assert all(request.url.path.startswith("/atlas/api/atlas/v2/groups/g1/") for request in asked)
    tokens = [request for request in sent if request.url.path.endswith("/oauth/token")]
    assert len(tokens) == (1 if auth == "service_account" else 0), "a token is kept"
    answered = [request.headers.get("Authorization", "") for request in asked][-1]
    assert answered.startswith("Bearer " if auth == "service_account" else "Digest ")


@pytest.mark.parametrize("auth", ["service_account", "digest"])
def test_a_wrong_secret_is_said_without_being_shown(new_atlas: NewAtlas, auth: str) -> None:
    with pytest.raises(ApplicationError, match="Check the service account or API key") as refused:
        new_atlas(auth, secret="wr0ng-s3cret").snapshots()
    assert refused.value.non_retryable
    assert "wr0ng" not in str(refused.value)


def test_a_token_that_was_revoked_is_replaced_once(
    new_atlas: NewAtlas, hub: RunningHub, sent: list[httpx.Request]
) -> None:
    atlas = new_atlas()
    atlas.snapshots()
    hub.fail("atlas", "http", status=401, times=1)
    assert atlas.snapshots() == []
    assert sum(request.url.path.endswith("/oauth/token") for request in sent) == 2


def test_a_snapshot_passes_through_its_states(new_atlas: NewAtlas) -> None:
    atlas = new_atlas()
    made = atlas.take_snapshot("before the migration")
    assert made.status == "queued"
    assert made.expires_at is not None
    assert made.expires_at - made.created_at == timedelta(days=3)
    seen: list[str] = [made.status]
    deadline = time.monotonic() + 5
    while seen[-1] != "completed" and time.monotonic() < deadline:
        status = atlas.snapshot(made.id).status
        seen += [status] if status != seen[-1] else []
        time.sleep(0.02)
    assert seen == ["queued", "inProgress", "completed"]
    second = atlas.take_snapshot("later")
    assert {snapshot.id for snapshot in atlas.snapshots()} == {made.id, second.id}


def test_one_snapshot_at_a_time(new_atlas: NewAtlas) -> None:
    atlas = new_atlas()
    atlas.take_snapshot("one")
    with pytest.raises(Conflict, match="already queued or in progress") as conflict:
        atlas.take_snapshot("two")
    assert conflict.value.type == "AtlasConflict"


def test_a_snapshot_and_a_restore_that_fail(new_atlas: NewAtlas, hub: RunningHub) -> None:
    atlas = new_atlas()
    hub.client.post("/_control/atlas/fail-next/snapshot").raise_for_status()
    made = atlas.take_snapshot("bad luck")
    ended(lambda: atlas.snapshot(made.id), lambda s: isinstance(s, Snapshot) and s.status == "failed")
    good = completed(atlas)
    hub.client.post("/_control/atlas/fail-next/restore").raise_for_status()
    job = atlas.restore("scratch", snapshot_id=good.id)
    ended(lambda: atlas.restore_job(job.id), lambda j: isinstance(j, RestoreJob) and j.ended)
    assert atlas.restore_job(job.id).failed


def test_restores(new_atlas: NewAtlas) -> None:
    atlas = new_atlas()
    window = atlas.restore_window()
    assert window == timedelta(days=2)
    snapshot = completed(atlas)
    job = atlas.restore("scratch", snapshot_id=snapshot.id)
    assert (job.delivery, job.snapshot_id, job.target_cluster, job.ended) == (
        "automated",
        snapshot.id,
        "scratch",
        False,
    )
    ended(lambda: atlas.restore_job(job.id), lambda j: isinstance(j, RestoreJob) and j.ended)
    found = atlas.restore_job(job.id)
    assert (found.failed, found.cancelled) == (False, False)
    moment = datetime.now(UTC) - timedelta(hours=1)
    second = atlas.restore("scratch", moment=moment)
    assert (second.delivery, second.moment) == ("pointInTime", int(moment.timestamp()))
    atlas.cancel_restore(second.id)
    assert atlas.restore_job(second.id).cancelled
    assert {job.id for job in atlas.restore_jobs()} == {found.id, second.id}


def test_database_users_and_logins(new_atlas: NewAtlas, hub: RunningHub) -> None:
    atlas = new_atlas()
    roles = [{"roleName": "readWrite", "databaseName": "state"}]
    assert atlas.user_roles("app-2") is None
    atlas.create_user("app-2", "s3cr3t-password", roles)
    assert atlas.user_roles("app-2") == roles
    with pytest.raises(Conflict) as conflict:
        atlas.create_user("app-2", "s3cr3t-password", roles)
    assert "s3cr3t" not in str(conflict.value)
    login = {"group": "g1", "cluster": "c1", "username": "app-1"}
    hub.client.post("/_control/atlas/login", json=login).raise_for_status()
    now = datetime.now(UTC)
    logins = atlas.logins(now - timedelta(minutes=5), now + timedelta(minutes=5))
    assert [(found.username, found.succeeded, found.address) for found in logins] == [("app-1", True, "127.0.0.1")]
    assert abs(logins[0].at - now) < timedelta(minutes=1)
    assert atlas.logins(now - timedelta(hours=2), now - timedelta(hours=1)) == []
    assert atlas.delete_user("app-2")
    assert not atlas.delete_user("app-2")


@pytest.mark.parametrize(
    "told", ["Fri Feb 27 12:46:11 GMT 2026", "Fri Feb 27 12:46:11 UTC 2026", "2026-02-27T12:46:11Z"]
)
def test_when_somebody_logged_in(told: str, new_atlas: NewAtlas, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, at = new_atlas(), datetime(2026, 2, 27, 12, 46, 11, tzinfo=UTC)
    answer = {"accessLogs": [{"username": "app-1", "timestamp": told, "authResult": True}]}
    monkeypatch.setattr(atlas, "_call", lambda *_, **__: answer)
    assert [(login.username, login.at) for login in atlas.logins(at, at)] == [("app-1", at)]


@pytest.mark.parametrize("row", [{"timestamp": "Fri Feb 27 12:46:11 CEST 2026"}, {"timestamp": "late"}, {}], ids=str)
def test_a_time_that_is_none_is_not_asked_for_again(
    row: dict[str, str], new_atlas: NewAtlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    atlas = new_atlas()
    monkeypatch.setattr(atlas, "_call", lambda *_, **__: {"accessLogs": [{"username": "app-1", **row}]})
    with pytest.raises(ApplicationError, match="cannot be understood: timestamp") as refused:
        atlas.logins(datetime.now(UTC), datetime.now(UTC))
    assert refused.value.non_retryable


def test_what_goes_wrong_on_the_way_is_classified(new_atlas: NewAtlas, hub: RunningHub) -> None:
    atlas = new_atlas()
    atlas.snapshots()
    hub.fail("atlas", "http", status=429, retry_after=7, times=1)
    with pytest.raises(ApplicationError) as busy:
        atlas.snapshots()
    assert (busy.value.non_retryable, busy.value.next_retry_delay) == (False, timedelta(seconds=7))
    for mode, options, kind in (
        ("http", {"status": 503}, "Http503"),
        ("garbage", {}, "AtlasUnexpected"),
        ("reset", {}, "HttpUnreachable"),
        ("slow", {"seconds": 4}, "HttpUnreachable"),
    ):
        hub.fail("atlas", mode, times=1, **options)
        with pytest.raises(ApplicationError) as passing:
            atlas.snapshots()
        assert (passing.value.type, passing.value.non_retryable) == (kind, False), mode
    with pytest.raises(ApplicationError, match="Check project and cluster") as absent:
        atlas.snapshot("nothing")
    assert absent.value.non_retryable
    with pytest.raises(ApplicationError, match="not completed") as early:
        atlas.restore("scratch", snapshot_id=atlas.take_snapshot("x").id)
    assert early.value.non_retryable
