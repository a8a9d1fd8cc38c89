"""Backups by either provider, through the activities that the runbooks call."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest
from pymongo.collection import Collection
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities.backup_models import (
    BackupOf,
    Compare,
    CreateBackup,
    DropRestored,
    FindBackup,
    PutBack,
    RestoreBackup,
)
from activities.backups import Backups
from activities.clients import Aws
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import Stage
from tests.running_hub import ATLAS_SECRET, RunningHub

pytest_plugins = ["tests.hub_fixture"]

Mongo = pymongo.MongoClient[dict[str, Any]]


def now() -> datetime:
    return datetime.now(UTC)


class Place:
    """A stage with both providers, and a second database server as the scratch cluster."""

    def __init__(self, uri: str, home: Path, settings: Settings, aws: Aws, hub: RunningHub | None) -> None:
        self.name = f"t{secrets.token_hex(4)}"
        self.mongo: Mongo = pymongo.MongoClient(uri)
        self.uri = home / "uri"
        self.uri.write_text(uri.replace("/?", f"/{self.name}?"))
        (home / "scratch-uri").write_text(uri.replace("/?", f"/{self.name}_cluster?"))
        (home / "id").write_text("mdb_sa_id")
        (home / "secret").write_text(ATLAS_SECRET)
        atlas = {
            "group": "g1",
            "cluster": f"c-{self.name}",
            "url": f"{hub.url}/atlas" if hub else "http://127.0.0.1:1",
            "id": f"file:{home / 'id'}",
            "secret": f"file:{home / 'secret'}",
            "scratch_cluster": "scratch",
            "scratch_uri": f"file:{home / 'scratch-uri'}",
        }
        self.stage = Stage.model_validate(
            {
                "name": self.name,
                "function": "f",
                "url": "http://127.0.0.1:1",
                "api_key": "env:NONE",
                "log_group": "g",
                "gateway": {"name": "a", "stage": "s"},
                "database": {"uri": f"file:{self.uri}", "name": self.name},
                "backup": {"atlas": atlas},
            }
        )
        resolver = SecretResolver(aws.ssm, aws.secretsmanager)
        self.backups = Backups(settings, aws.s3, httpx.Client(timeout=5), resolver, poll=0.02)
        self.environment = ActivityEnvironment()

    def run(self, method: Callable[[Any], Any], argument: Any) -> Any:
        return self.environment.run(method, argument)

    def create(self, key: str = "k", **more: Any) -> Any:
        return self.run(self.backups.create, CreateBackup(stage=self.stage, key=key, at=now(), **more))

    def restore(self, reference: str | None, into: str, **more: Any) -> Any:
        order = {"stage": self.stage, "key": "r", "at": now(), "reference": reference, "into": into, **more}
        return self.run(self.backups.restore, RestoreBackup.model_validate(order))

    def latest(self, **more: Any) -> Any:
        return self.run(self.backups.latest, FindBackup(stage=self.stage, at=now(), **more))


@pytest.fixture
def place(wire_database: str, tmp_path: Path, settings: Settings, aws: Aws, request: Any) -> Iterator[Place]:
    hub = request.getfixturevalue("hub") if "hub" in request.fixturenames else None
    made = Place(wire_database, tmp_path, settings, aws, hub)
    made.mongo[made.name]["sessions"].insert_many([{"_id": n} for n in range(100)])
    made.mongo[made.name]["sessions"].create_index("owner")
    yield made
    for name in made.mongo.list_database_names():
        if name.startswith(made.name):
            made.mongo.drop_database(name)
    made.mongo.close()


# --- archive, in the records bucket by default ------------------------------------------------------------------------


def test_an_archive_in_the_records_bucket(place: Place, aws: Aws) -> None:
    assert place.latest().backup is None
    made = place.create()
    assert made.reference.startswith(f"s3://test-records/team/backups/{place.name}/")
    found = place.latest()
    assert found.backup.reference == made.reference
    assert 0 <= found.age_seconds < 60
    verified = place.run(place.backups.verify, BackupOf(stage=place.stage, reference=made.reference))
    assert (verified.ok, verified.documents) == (True, 100)
    into = f"{place.name}_scratch"
    assert place.restore(made.reference, into).documents == 100
    compared = place.run(place.backups.compare, Compare(stage=place.stage, reference=made.reference, into=into))
    assert (compared.identical, compared.documents, compared.indexes) == (True, 100, 1)
    drop = DropRestored(stage=place.stage, into=into)
    assert place.run(place.backups.drop_scratch, drop).dropped
    assert not place.run(place.backups.drop_scratch, drop).dropped, "safe to repeat"
    key = next(k for k in keys(aws, made.reference) if k.endswith(".bson.gz"))
    aws.s3.put_object(Bucket="test-records", Key=key, Body=b"\x1f\x8b garbage")
    damaged = place.run(place.backups.verify, BackupOf(stage=place.stage, reference=made.reference))
    assert not damaged.ok
    assert "sessions" in damaged.problems[0]


def keys(aws: Aws, reference: str) -> list[str]:
    prefix = reference.removeprefix("s3://test-records/")
    return [item["Key"] for item in aws.s3.list_objects_v2(Bucket="test-records", Prefix=prefix)["Contents"]]


def test_what_counts_as_the_newest(place: Place) -> None:
    whole = place.create("whole")
    place.create("part", collections=("sessions",))
    place.create("safety", safety=True)
    assert place.latest().backup.reference == whole.reference
    named = place.latest(reference=whole.reference)
    assert named.backup == whole.model_copy(update={"seconds": None})


def test_only_an_unfinished_backup_is_discarded(place: Place) -> None:
    made = place.create()
    order = CreateBackup(stage=place.stage, key="k", at=now())
    assert not place.run(place.backups.discard, order).dropped
    assert place.latest().backup.reference == made.reference


@pytest.mark.parametrize("into", ["admin", "other", "{}x", "{}"])
def test_where_a_restore_may_not_go(place: Place, into: str) -> None:
    made = place.create()
    with pytest.raises(ApplicationError) as refused:
        place.restore(made.reference, into.format(place.name))
    assert refused.value.type == "BadTarget"
    with pytest.raises(ApplicationError) as kept:
        place.run(place.backups.drop_scratch, DropRestored(stage=place.stage, into=into.format(place.name), key="r"))
    assert kept.value.type == "BadTarget"
    assert place.mongo[place.name]["sessions"].count_documents({}) == 100


def test_a_copy_that_went_live_is_neither_dropped_nor_forgotten(place: Place) -> None:
    """After a restore that repointed the API, the settings may still name the old database."""
    made = place.create()
    into = f"{place.name}_restored"
    place.restore(made.reference, into)
    place.uri.write_text(place.uri.read_text().replace(f"/{place.name}?", f"/{into}?"))
    with pytest.raises(ApplicationError, match="is what the API works on"):
        place.run(place.backups.drop_scratch, DropRestored(stage=place.stage, into=into, key="r"))
    with pytest.raises(ApplicationError, match=r"Correct stages\..*\.database\.name"):
        place.create("another")


def test_put_back_restores_only_what_was_replaced(place: Place) -> None:
    made = place.create()
    place.mongo[place.name]["sessions"].delete_many({"_id": {"$gte": 50}})
    safety = place.create("safety", safety=True)
    order = RestoreBackup(stage=place.stage, key="f", at=now(), reference=made.reference, into=place.name, replace=True)
    back = PutBack(failed=order, safety=safety.reference, key="undo")
    place.mongo[place.name]["sessions"].insert_one({"_id": "since"})
    assert "nothing" in place.run(place.backups.put_back, back).summary
    assert place.mongo[place.name]["sessions"].count_documents({}) == 51, "nothing was replaced, so nothing is lost"
    place.run(place.backups.restore, order)
    assert place.mongo[place.name]["sessions"].count_documents({}) == 100
    place.run(place.backups.put_back, back)
    assert place.mongo[place.name]["sessions"].count_documents({}) == 50


def test_references_that_are_none(place: Place) -> None:
    for reference, kind in (("tape://1", "BadReference"), ("s3://test-records/nothing/here", "NoBackup")):
        with pytest.raises(ApplicationError) as refused:
            place.latest(reference=reference)
        assert refused.value.type == kind


# --- Atlas ----------------------------------------------------------------------------------------------------------


def test_a_snapshot_from_beginning_to_end(place: Place, hub: RunningHub) -> None:
    made = place.create(provider="atlas")
    assert made.reference.startswith(f"atlas://g1/c-{place.name}/")
    assert made.consistency == "point in time"
    assert place.create(provider="atlas").reference == made.reference, "the same order makes no second one"
    found = place.latest(provider="atlas")
    assert found.backup.reference == made.reference
    assert found.restore_from is not None
    assert timedelta(days=1.9) < now() - found.restore_from < timedelta(days=2.1)
    assert place.run(place.backups.verify, BackupOf(stage=place.stage, reference=made.reference)).ok
    restored = place.restore(made.reference, "scratch")
    assert restored.into == "scratch"
    # The scratch "cluster" is the same server here, so what Atlas would have restored is there.
    asked = Compare(stage=place.stage, reference=made.reference, into="scratch")
    compared = place.run(place.backups.compare, asked)
    assert (compared.identical, compared.documents, compared.indexes) == (True, 100, 1)
    place.mongo[place.name]["sessions"].delete_many({"_id": {"$lt": 10}})
    place.mongo[place.name]["sessions"].drop_index("owner_1")
    compared = place.run(place.backups.compare, asked)
    assert not compared.identical
    assert sorted(compared.differences) == [
        "sessions: 90 documents, the backup has 100",
        "sessions: index owner_1 is missing",
    ]
    assert len([e for e in hub.received("atlas") if e["action"] == "restore"]) == 1


def test_a_count_that_takes_long_is_no_dead_worker(
    place: Place, hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mongo[place.name].create_collection("weather", timeseries={"timeField": "at"})
    place.mongo[place.name]["weather"].insert_one({"at": now()})
    beats: list[str] = []
    place.environment.on_heartbeat = lambda *details: beats.append(details[0]["phase"])
    count, counted = Collection.count_documents, set[str]()

    def slow(collection: Collection[Any], query: Any) -> int:
        """It ends after two heartbeats."""
        phase, deadline = f"counting {collection.name}", time.monotonic() + 30
        before = beats.count(phase)
        while beats.count(phase) < before + 2:
            assert time.monotonic() < deadline, f"no heartbeat while {phase}"
            time.sleep(0.02)
        counted.add(collection.name)
        return count(collection, query)

    monkeypatch.setattr(Collection, "count_documents", slow)
    made = place.create(provider="atlas")
    assert counted == {"weather"}, "of a plain collection the metadata is enough"
    asked = Compare(stage=place.stage, reference=made.reference, into="scratch")
    compared = place.run(place.backups.compare, asked)
    assert (compared.identical, compared.documents) == (True, 101)
    assert counted == {"weather", "sessions"}


def test_a_count_is_left_alone_when_the_run_is_cancelled(
    place: Place, hub: RunningHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = place.create(provider="atlas")
    left = threading.Event()

    def endless(*_: Any) -> int:
        place.environment.cancel()
        left.wait(60)
        return 100

    monkeypatch.setattr(Collection, "count_documents", endless)
    with pytest.raises(CancelledError, match="counting sessions"):
        place.run(place.backups.compare, Compare(stage=place.stage, reference=made.reference, into="scratch"))
    assert not left.is_set()
    left.set()


def test_a_snapshot_that_is_under_way_is_joined(place: Place, hub: RunningHub) -> None:
    other = threading.Thread(target=place.create, args=("other",), kwargs={"provider": "atlas"})
    other.start()
    deadline = time.monotonic() + 5
    while not hub.received("atlas"):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    made = place.create("mine", provider="atlas")
    other.join()
    assert made.summary.startswith("joined a snapshot that was under way")
    assert len([e for e in hub.received("atlas") if e["action"] == "snapshot"]) == 1


def test_a_snapshot_that_fails_is_said_and_not_taken_for_a_backup(place: Place, hub: RunningHub) -> None:
    hub.client.post("/_control/atlas/fail-next/snapshot").raise_for_status()
    with pytest.raises(ApplicationError) as failed:
        place.create(provider="atlas")
    assert failed.value.type == "SnapshotFailed"
    assert place.latest(provider="atlas").backup is None
    assert place.create(provider="atlas").reference, "the same order again makes a new one"


def test_a_restore_that_fails_and_one_that_is_called_off(place: Place, hub: RunningHub) -> None:
    made = place.create(provider="atlas")
    hub.client.post("/_control/atlas/fail-next/restore").raise_for_status()
    with pytest.raises(ApplicationError, match="restore again") as failed:
        place.restore(made.reference, "scratch")
    assert failed.value.type == "RestoreFailed"
    environment = ActivityEnvironment()
    environment.on_heartbeat = lambda *_: environment.cancel()
    order = RestoreBackup(stage=place.stage, key="r", at=now(), reference=made.reference, into="scratch")
    with pytest.raises((CancelledError, asyncio.CancelledError)):
        environment.run(place.backups.restore, order)
    assert [e["action"] for e in hub.received("atlas")][-1] == "restore-cancelled"


def test_the_real_cluster_is_only_restored_into_when_asked(place: Place, hub: RunningHub) -> None:
    made = place.create(provider="atlas")
    cluster = f"c-{place.name}"
    for into, replace in ((cluster, False), ("scratch", True), ("elsewhere", False)):
        with pytest.raises(ApplicationError) as refused:
            place.restore(made.reference, into, replace=replace)
        assert refused.value.type == "BadTarget"
    order = RestoreBackup(stage=place.stage, key="f", at=now(), reference=made.reference, into=cluster, replace=True)
    back = PutBack(failed=order, safety=made.reference, key="undo")
    assert "nothing" in place.run(place.backups.put_back, back).summary
    assert place.run(place.backups.restore, order).into == cluster
    moment = now() - timedelta(hours=1)
    place.restore(None, cluster, point_in_time=moment, replace=True)
    kinds = [e["body"]["deliveryType"] for e in hub.received("atlas") if e["action"] == "restore"]
    assert kinds == ["automated", "pointInTime"]


def test_a_scratch_cluster_that_went_live_is_left_alone(place: Place, hub: RunningHub, tmp_path: Path) -> None:
    made = place.create(provider="atlas")
    place.uri.write_text((tmp_path / "scratch-uri").read_text())
    with pytest.raises(ApplicationError, match="no scratch any more"):
        place.restore(made.reference, "scratch")
    with pytest.raises(ApplicationError, match="no scratch any more"):
        place.run(place.backups.drop_scratch, DropRestored(stage=place.stage, into="scratch"))


def test_without_settings_for_atlas(place: Place) -> None:
    bare = place.stage.model_copy(update={"backup": place.stage.backup.model_copy(update={"atlas": None})})
    with pytest.raises(ApplicationError, match=r"no \[backup\.atlas\]"):
        place.run(place.backups.create, CreateBackup(stage=bare, key="k", at=now(), provider="atlas"))
