"""Looking at a migration and building its index, against a server that speaks MongoDB's protocol."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pymongo
import pytest
from pymongo import monitoring
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities.clients import Aws
from activities.indexes import Indexes
from activities.migration_models import Index, IndexOrder, LookRequest, MigrationEntry, Query
from activities.migrations import Migrations, shard_key_problems, winning
from activities.records import Records
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import DatabaseFacts, GatewayFacts, Stage

Collection = pymongo.collection.Collection[dict[str, Any]]

INDEX = Index(name="owner_1_created_at_-1", keys=(("owner", 1), ("created_at", -1)))
QUERY = Query(filter={"owner": "user-7"}, sort=(("created_at", -1),))


@pytest.fixture
def sessions(wire_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collection]:
    monkeypatch.setenv("TEST_MONGODB_URI", wire_database)
    name = f"m{secrets.token_hex(4)}"
    with pymongo.MongoClient[dict[str, Any]](wire_database) as client:
        collection = client[name]["sessions"]
        collection.insert_many(
            [
                {
                    "owner": f"user-{n % 50}",
                    "project_id": f"p{n % 7}",
                    "created_at": datetime(2026, 1, 1, n % 24, tzinfo=UTC),
                }
                for n in range(1000)
            ]
        )
        yield collection
        client.drop_database(name)


def stage(sessions: Collection) -> Stage:
    return Stage(
        name="test",
        function="f",
        url="http://127.0.0.1:1",
        api_key="env:NONE",
        log_group="g",
        gateway=GatewayFacts(name="a", stage="test"),
        database=DatabaseFacts(uri="env:TEST_MONGODB_URI", name=sessions.database.name),
    )


@pytest.fixture
def resolver() -> SecretResolver:
    return SecretResolver(None, None)  # type: ignore[arg-type]  # env: references need no AWS


def look(sessions: Collection, resolver: SecretResolver, **more: Any) -> Any:
    request = LookRequest.model_validate({"stage": stage(sessions), "collection": "sessions", "query": QUERY, **more})
    return ActivityEnvironment().run(Migrations(resolver, None).look, request)  # type: ignore[arg-type]


def order(sessions: Collection, index: Index = INDEX) -> IndexOrder:
    return IndexOrder(stage=stage(sessions), collection="sessions", index=index)


def names(sessions: Collection) -> set[str]:
    return set(sessions.index_information())


def test_before_and_after_an_index(sessions: Collection, resolver: SecretResolver) -> None:
    before = look(sessions, resolver, index=INDEX)
    assert (before.kind, before.documents, before.index_ready) == ("collection", 1000, False)
    assert (before.cost.plan, before.cost.index, before.cost.docs_examined) == ("COLLSCAN", None, 1000)
    assert before.collection_bytes > 50_000
    assert before.database_bytes >= before.collection_bytes
    assert before.cost.latency_ms > 0
    assert before.remaining is None
    built = ActivityEnvironment().run(Indexes(resolver).build, order(sessions))
    assert built.built
    assert built.summary.startswith("index owner_1_created_at_-1 {owner: 1, created_at: -1} built in")
    after = look(sessions, resolver, index=INDEX)
    assert after.index_ready
    assert (after.cost.plan, after.cost.index) == ("IXSCAN", INDEX.name)
    assert after.cost.docs_examined < 50
    again = ActivityEnvironment().run(Indexes(resolver).build, order(sessions))
    assert not again.built


def test_documents_left_and_how_they_are_found(sessions: Collection, resolver: SecretResolver) -> None:
    sessions.update_many({"owner": "user-1"}, {"$set": {"environment": "production"}})
    state = look(sessions, resolver, filter={"environment": {"$exists": False}})
    assert (state.remaining, state.change_plan, state.index_ready) == (980, "COLLSCAN", None)
    dated = look(sessions, resolver, filter={"created_at": {"$gte": {"$date": "2026-01-01T23:00:00Z"}}})
    assert dated.remaining == 41


def test_redundant_indexes_both_ways(sessions: Collection, resolver: SecretResolver) -> None:
    sessions.create_index([("owner", 1)], name="short")
    found = look(sessions, resolver, index=INDEX)
    assert (found.covered_by, found.makes_redundant) == (None, ("short",))
    ActivityEnvironment().run(Indexes(resolver).build, order(sessions))
    covering = look(sessions, resolver, index=Index(name="new", keys=(("owner", 1),))).covered_by
    assert covering in {"short", INDEX.name}
    assert look(sessions, resolver, index=Index(name="new", keys=(("owner", -1), ("created_at", 1)))).covered_by


def test_an_index_of_that_name_with_other_keys_stands_in_the_way(
    sessions: Collection, resolver: SecretResolver
) -> None:
    sessions.create_index([("owner", 1)], name=INDEX.name)
    found = look(sessions, resolver, index=INDEX)
    assert found.problems == (
        "an index owner_1_created_at_-1 is there already, with other keys or options: {owner: 1}. Name another",
    )
    for method in (Indexes(resolver).build, Indexes(resolver).drop):
        with pytest.raises(ApplicationError) as failed:
            ActivityEnvironment().run(method, order(sessions))
        assert (failed.value.type, failed.value.non_retryable) == ("IndexConflict", True)
    assert INDEX.name in names(sessions)


def test_a_unique_index_over_values_that_are_not(sessions: Collection, resolver: SecretResolver) -> None:
    unique = Index(name="u", keys=(("owner", 1),), unique=True)
    with pytest.raises(ApplicationError, match="which a unique index forbids") as failed:
        ActivityEnvironment().run(Indexes(resolver).build, order(sessions, unique))
    assert failed.value.type == "DuplicateValues"
    assert "user-" not in failed.value.message, "values of documents stay where they are"
    assert names(sessions) == {"_id_"}


def test_dropping_twice_is_dropping_once(sessions: Collection, resolver: SecretResolver) -> None:
    ActivityEnvironment().run(Indexes(resolver).build, order(sessions))
    drop = Indexes(resolver).drop
    assert ActivityEnvironment().run(drop, order(sessions)).dropped
    assert not ActivityEnvironment().run(drop, order(sessions)).dropped
    assert names(sessions) == {"_id_"}


class LongBuilds(monitoring.CommandListener):
    """Keeps the answer of an index build back, as a large collection would, until somebody drops the index.

    How long a real build takes depends on the machine; when its answer arrives is all that the activity sees of it.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.ended.set()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        pass

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        if event.command_name == "createIndexes":
            self.ended.wait(60)
        if event.command_name == "dropIndexes":
            self.ended.set()

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        pass


LONG_BUILDS = LongBuilds()
monitoring.register(LONG_BUILDS)  # for good, but it does nothing outside of the fixture


@pytest.fixture
def long_build() -> Iterator[threading.Event]:
    """Builds last until the event is set."""
    LONG_BUILDS.ended.clear()
    yield LONG_BUILDS.ended
    LONG_BUILDS.ended.set()


def once(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("long_build")
def test_a_cancelled_build_leaves_no_index(sessions: Collection, resolver: SecretResolver) -> None:
    environment, beats = ActivityEnvironment(), []
    environment.on_heartbeat = lambda *details: beats.append(details)
    ended: list[BaseException] = []

    def build() -> None:
        try:
            environment.run(Indexes(resolver).build, order(sessions))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    once(lambda: INDEX.name in names(sessions) and bool(beats))
    environment.cancel()
    thread.join(60)
    assert [type(error) for error in ended] == [CancelledError]
    assert names(sessions) == {"_id_"}


@pytest.mark.long
def test_a_second_attempt_waits_for_the_build_under_way(sessions: Collection, resolver: SecretResolver) -> None:
    """As after the death of a worker: the server builds on, and the next attempt must not fail on that."""
    many = [{"owner": f"user-{n % 500}", "created_at": n} for n in range(100_000)]
    sessions.insert_many(many, ordered=False)
    answers: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(ActivityEnvironment().run(Indexes(resolver).build, order(sessions)))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 2
    assert names(sessions) == {"_id_", INDEX.name}


@pytest.mark.usefixtures("long_build")
def test_a_worker_that_stops_leaves_the_build_to_the_server(sessions: Collection, resolver: SecretResolver) -> None:
    environment = ActivityEnvironment()
    environment.worker_shutdown()
    with pytest.raises(ApplicationError) as failed:
        environment.run(Indexes(resolver).build, order(sessions))
    assert (failed.value.type, failed.value.non_retryable) == ("WorkerStopping", False)
    once(lambda: INDEX.name in names(sessions))


def test_the_server_does_not_say_how_far_a_build_is(sessions: Collection, resolver: SecretResolver) -> None:
    found = ActivityEnvironment().run(Indexes(resolver).progress, order(sessions))
    assert found.percent is None
    assert "how far is not known" in found.summary


@pytest.mark.parametrize(
    ("make", "kind"),
    [({"viewOn": "sessions", "pipeline": []}, "view"), ({"timeseries": {"timeField": "t"}}, "timeseries")],
)
def test_what_cannot_be_migrated_says_so(
    sessions: Collection, resolver: SecretResolver, make: dict[str, Any], kind: str
) -> None:
    sessions.database.command({"create": "other", **make})
    state = look(sessions, resolver, collection="other", index=INDEX)
    assert (state.kind, len(state.problems)) == (kind, 1)


def test_a_collection_that_is_not_there_and_an_empty_one(sessions: Collection, resolver: SecretResolver) -> None:
    absent = look(sessions, resolver, collection="sesions", index=INDEX)
    assert absent.problems == (f"there is no collection {sessions.database.name}.sesions. Correct the name",)
    sessions.delete_many({})
    empty = look(sessions, resolver, filter={"environment": {"$exists": False}})
    assert (empty.documents, empty.remaining, empty.problems) == (0, 0, ())


def test_a_server_that_is_away_may_come_back(
    sessions: Collection, resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MONGODB_URI", "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=200")
    with pytest.raises(ApplicationError) as failed:
        look(sessions, resolver, index=INDEX)
    assert (failed.value.type, failed.value.non_retryable) == ("MongoUnreachable", False)


@pytest.mark.parametrize(
    ("touches", "hit"),
    [
        (("owner",), False),
        (("project_id",), True),
        (("project_id.x",), True),
        (("a",), True),
        (("a.b",), True),
        (("ab",), False),
    ],
)
def test_fields_of_the_shard_key(touches: tuple[str, ...], hit: bool) -> None:
    assert bool(shard_key_problems(touches, {"project_id": 1, "a.b": "hashed"})) is hit


def scan(stage: str, **more: Any) -> dict[str, Any]:
    return {"stage": stage, **more}


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (scan("FETCH", inputStage=scan("IXSCAN", indexName="x")), ("IXSCAN", "x")),
        (scan("EXPRESS_IXSCAN", indexName="x"), ("EXPRESS_IXSCAN", "x")),
        (scan("SORT", inputStage=scan("COLLSCAN")), ("COLLSCAN", None)),
        (
            scan("SUBPLAN", inputStage=scan("OR", inputStages=[scan("IXSCAN", indexName="x"), scan("COLLSCAN")])),
            ("COLLSCAN", None),
        ),
        (
            {"queryPlan": scan("FETCH", inputStage=scan("IXSCAN", indexName="x")), "slotBasedPlan": {"stages": "..."}},
            ("IXSCAN", "x"),
        ),
        (
            scan(
                "SHARD_MERGE",
                shards=[{"winningPlan": scan("IXSCAN", indexName="x")}, {"winningPlan": scan("COLLSCAN")}],
            ),
            ("COLLSCAN", None),
        ),
        (scan("EOF"), (None, None)),
        ({}, (None, None)),
    ],
)
def test_the_winning_plan_of_servers_of_all_kinds(plan: dict[str, Any], expected: tuple[Any, Any]) -> None:
    assert winning({"queryPlanner": {"winningPlan": plan}}) == expected


def test_the_migration_log(aws: Aws, settings: Settings, resolver: SecretResolver) -> None:
    records = Records(aws.s3, settings)
    moment = datetime(2026, 1, 20, 3, 0, tzinfo=UTC)
    entry = MigrationEntry(
        id="DatabaseMigration/1 x",
        stage="production",
        kind="add_index",
        change={"kind": "add_index"},
        reason="slow list",
        outcome="completed",
        summary="done",
        began_at=moment,
        ended_at=moment,
        facts={"documents": 5},
    )
    logged = ActivityEnvironment().run(Migrations(resolver, records).log, entry)
    assert logged.location.endswith("migrations/production/20260120T030000-DatabaseMigration-1-x.json")
    assert (
        records.fetch_json("migrations/production/20260120T030000-DatabaseMigration-1-x.json", MigrationEntry) == entry
    )
