"""Forms of queries, the index that one lacks, and the profiler that shows them, on a server of MongoDB's protocol."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import httpx
import pymongo
import pytest
from bson import ObjectId, json_util
from hypothesis import given
from hypothesis import strategies as st

from activities import profiler
from activities.atlas_advisor import AtlasAdvisor, entries_of
from activities.clients import Aws
from activities.profiler import Profiler
from activities.routes import route_of
from activities.secret_refs import SecretResolver
from activities.slow_queries import Form, form_of, lacks_index, missing_index, without_values
from activities.stage import AtlasFacts, BackupPolicy, DatabaseFacts, GatewayFacts, Stage
from activities.symptom_models import SetProfiler, SlowAsked, SlowQueries
from tests.activities.site import environment

MOMENT = datetime(2026, 1, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("command", "described"),
    [
        (
            {"find": "sessions", "filter": {"owner": "u", "at": {"$lt": MOMENT}}, "sort": {"at": -1}},
            "find {owner: =, at: <} sort {at: -1}",
        ),
        ({"find": "sessions"}, "find {}"),
        ({"find": "sessions", "filter": {"$and": [{"a": 1}, {"b": {"$gte": 1, "$lt": 9}}]}}, "find {a: =, b: >= <}"),
        ({"find": "sessions", "filter": {"$or": [{"a": 1}]}}, "find {$or: …}"),
        ({"find": "sessions", "filter": {"a": {"$in": [1]}, "m": {"x": 1}}}, "find {a: in, m: =}"),
        (
            {"aggregate": "sessions", "pipeline": [{"$match": {"a": 1}}, {"$sort": {"b": 1}}]},
            "aggregate {a: =} sort {b: 1}",
        ),
        ({"aggregate": "sessions", "pipeline": [{"$group": {"_id": 1}}]}, "aggregate {}"),
        ({"count": "sessions", "query": {"a": 1}}, "count {a: =}"),
        ({"findAndModify": "sessions", "query": {"a": 1}}, "findAndModify {a: =}"),
        ({"q": {"a": 1}, "u": {"$set": {"b": 1}}}, "write {a: =}"),
    ],
)
def test_the_form_of_a_command_tells_no_values(command: dict[str, Any], described: str) -> None:
    form = form_of("db.sessions", command)
    assert form is not None
    assert form.described() == described


@pytest.mark.parametrize("command", [{"insert": "sessions"}, {"ping": 1}, {}])
def test_what_is_no_query_has_no_form(command: dict[str, Any]) -> None:
    assert form_of("db.sessions", command) is None
    assert form_of("db.system.profile", {"find": "system.profile"}) is None


ID = [{"name": "_id_", "key": {"_id": 1}}]


@pytest.mark.parametrize(
    ("query", "sort", "keys"),
    [
        ({"owner": "u", "at": {"$lt": 1}}, {"at": -1}, (("owner", 1), ("at", -1))),
        ({"at": {"$gt": 1}, "owner": "u", "n": {"$lte": 2}}, {}, (("owner", 1), ("at", 1), ("n", 1))),
        ({"a": {"$in": [1, 2]}, "b": 3}, {"c": 1}, (("a", 1), ("b", 1), ("c", 1))),
        ({}, {"at": -1}, (("at", -1),)),
        ({}, {}, ()),
        ({"_id": 1}, {}, ()),
        ({"$or": [{"a": 1}]}, {}, ()),
        ({"a": {"$regex": "x"}}, {}, ()),
        ({"a": {"$ne": 1}}, {}, ()),
        (dict.fromkeys("abcdefg", 1), {}, ()),
    ],
)
def test_equal_fields_then_the_sort_then_ranges(
    query: dict[str, Any], sort: dict[str, int], keys: tuple[tuple[str, int], ...]
) -> None:
    found = missing_index(Form("sessions", "find", query, tuple(sort.items())), ID)
    assert found.keys == keys
    assert (found.note is None) == bool(keys), "without keys there is a reason"


def test_an_index_that_is_there_is_not_proposed_again() -> None:
    there = [*ID, {"name": "x", "key": {"owner": 1, "at": -1, "more": 1}}]
    found = missing_index(Form("s", "find", {"owner": "u"}, (("at", -1),)), there)
    assert found.keys == ()
    assert "index x has these keys already" in str(found.note)


@pytest.mark.parametrize(
    ("plan", "sorts", "examined", "returned", "lacks"),
    [
        ("COLLSCAN", False, 50_000, 1, True),
        ("COLLSCAN", False, None, None, True),
        ("COLLSCAN", False, 40, 1, False),
        ("IXSCAN", False, 20, 20, False),
        ("IXSCAN", False, 50_000, 20, True),
        ("IXSCAN", True, 5_000, 5_000, True),
        ("IXSCAN", False, None, None, False),
        (None, False, None, None, False),
    ],
)
def test_whether_a_plan_lacks_an_index(
    plan: str | None, sorts: bool, examined: int | None, returned: int | None, lacks: bool
) -> None:
    assert lacks_index(plan, sorts, examined, returned) is lacks


_VALUES = st.recursive(
    st.text(alphabet="SECRET", min_size=1) | st.integers(min_value=1) | st.booleans() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("$lt", "$in", "x")), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(("a", "b", "c")), _VALUES, max_size=3))
def test_no_value_of_a_filter_is_told(query: dict[str, Any]) -> None:
    told = json.dumps(without_values(query))
    assert "S" not in told
    assert "E" not in told
    assert without_values(query).keys() == query.keys()


def test_values_keep_their_types() -> None:
    query = {"a": ObjectId(), "at": {"$lt": MOMENT}, "n": 7, "s": "x", "in": {"$in": ["p", "q"]}}
    back = json_util.loads(json.dumps(without_values(query)))
    assert [type(value) for value in (back["a"], back["at"]["$lt"], back["s"])] == [ObjectId, datetime, str]
    assert back["in"] == {"$in": ["none"]}


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/sessions/6b06b4da1fb8901ed0c1579e", "GET /sessions/{id}"),
        ("/sessions/{id}", "GET /sessions/{id}"),
        ("/sessions?limit=1", "GET /sessions"),
        ("/sessions/", "GET /sessions"),
        ("/", "GET /"),
        ("/v1/users/17/keys/550e8400-e29b-41d4-a716-446655440000", "GET /v1/users/{id}/keys/{id}"),
        ("/v2/health", "GET /v2/health"),
        ("/" + "/".join("x" * 12), "GET /x/x/x/x/x/x/x/x/…"),
        (None, "GET ?"),
    ],
)
def test_the_route_of_a_path(path: str | None, route: str) -> None:
    assert route_of("GET", path) == route


# --- the profiler ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(wire_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("TEST_MONGODB_URI", wire_database)
    name = f"p{secrets.token_hex(4)}"
    with pymongo.MongoClient[dict[str, Any]](wire_database) as client:
        client[name]["sessions"].insert_many([{"owner": f"user-{n % 50}", "at": n} for n in range(2000)])
        yield Stage(
            name="t",
            function="f",
            url="http://127.0.0.1:1",
            api_key="env:NONE",
            log_group="g",
            gateway=GatewayFacts(name="a", stage="t"),
            database=DatabaseFacts(uri="env:TEST_MONGODB_URI", name=name),
        )
        client[name].command({"profile": 0, "slowms": 100})
        client.drop_database(name)


def _no_atlas(request: httpx.Request) -> httpx.Response:
    raise AssertionError("the profiler was enough")


def _profiler(aws: Aws, answer: Any = _no_atlas) -> Profiler:
    resolver = SecretResolver(aws.ssm, aws.secretsmanager)
    return Profiler(resolver, AtlasAdvisor(httpx.Client(transport=httpx.MockTransport(answer)), resolver))


def test_the_profiler_finds_the_missing_index_and_is_put_back(
    stage: Stage, aws: Aws, wire_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiler = _profiler(aws)
    before = environment().run(profiler.level, stage)
    assert (before.level, before.slow_ms) == (0, 100)
    assert "not MongoDB" in before.server
    environment().run(profiler.set, SetProfiler(stage=stage, level=1, slow_ms=0))
    since = datetime.now(UTC) - timedelta(seconds=5)
    with pymongo.MongoClient[dict[str, Any]](wire_database) as client:
        sessions = client[stage.database.name]["sessions"]
        for n in range(5):
            list(sessions.find({"owner": f"user-{n}", "at": {"$lt": 9999}}).sort("at", -1).limit(5))
    asked = SlowAsked(stage=stage, since=since, until=datetime.now(UTC) + timedelta(seconds=5), over=timedelta(0))
    found = environment().run(profiler.slow, asked)
    assert found.source == "profiler"
    slow = next(query for query in found.queries if query.form.startswith("find {owner"))
    assert (slow.count, slow.plan, slow.examined, slow.missing) == (5, "COLLSCAN", 2000, (("owner", 1), ("at", -1)))
    assert slow.filter == {"owner": "none", "at": {"$lt": 0}}
    assert "user-" not in found.model_dump_json(), "values stay in the database"
    environment().run(profiler.set, SetProfiler(stage=stage, level=0, slow_ms=100))
    assert environment().run(profiler.level, stage).level == 0


class _Busy:
    """A database on which every query that is run takes as long as it is let; plans alone are told at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, Any]]) -> None:
        self.now, self.entries = 1000.0, entries
        self.ran: list[float] = []
        monkeypatch.setattr(profiler, "connect", lambda *_: contextlib.nullcontext(self))
        monkeypatch.setattr(profiler, "_profiled", lambda *_: self.entries)
        monkeypatch.setattr(profiler, "time", SimpleNamespace(monotonic=lambda: self.now))

    def get_database(self, _name: str) -> _Busy:
        return self

    def __getitem__(self, _name: str) -> _Busy:
        return self

    def list_indexes(self) -> list[dict[str, Any]]:
        return ID

    def command(self, command: Any) -> dict[str, Any]:
        if command == "buildInfo":
            return {"version": "8.0"}
        assert command["maxTimeMS"] > 0, "no limit at all"
        if command["verbosity"] == "executionStats":
            self.ran.append(command["maxTimeMS"] / 1000)
            self.now += self.ran[-1]
            raise pymongo.errors.OperationFailure("time limit", 50)
        return {"queryPlanner": {"winningPlan": {"stage": "COLLSCAN"}}}


def _slow_entries(**more: Any) -> list[dict[str, Any]]:
    return [
        {"ns": "d.sessions", "command": {"find": "sessions", "filter": {f"f{n}": 1}}, "millis": 9000 - n, **more}
        for n in range(8)
    ]


def _read(stage: Stage, aws: Aws) -> SlowQueries:
    asked = SlowAsked(stage=stage, since=MOMENT, until=MOMENT + timedelta(minutes=5), over=timedelta(seconds=1))
    found: SlowQueries = environment().run(_profiler(aws).slow, asked)
    return found


def test_plans_cost_a_busy_database_ten_seconds_at_the_most(
    stage: Stage, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = _Busy(monkeypatch, _slow_entries())
    found = _read(stage, aws)
    assert sum(busy.ran) <= 10
    assert [query.plan for query in found.queries] == ["COLLSCAN"] * 8, "a plan is told without running the query"


def test_what_the_profiler_tells_is_not_found_out_by_running_the_query(
    stage: Stage, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = _Busy(monkeypatch, _slow_entries(docsExamined=50_000, nreturned=3))
    found = _read(stage, aws)
    assert busy.ran == []
    assert {(query.plan, query.examined, query.returned) for query in found.queries} == {("COLLSCAN", 50_000, 3)}
    assert found.queries[0].missing == (("f0", 1),)


def test_where_there_is_no_profile_atlas_is_asked(stage: Stage, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_ID", "id")
    monkeypatch.setenv("ATLAS_SECRET", "secret")
    line = {
        "msg": "Slow query",
        "attr": {
            "ns": f"{stage.database.name}.sessions",
            "command": {"find": "sessions", "filter": {"owner": "user-1"}, "sort": {"at": -1}},
            "durationMillis": 900,
        },
    }
    asked_of: list[str] = []

    def atlas(request: httpx.Request) -> httpx.Response:
        asked_of.append(request.url.path)
        if request.url.path.endswith("/oauth/token"):
            return httpx.Response(200, json={"access_token": "t", "expires_in": 3600})
        if request.url.path.endswith("/processes"):
            nodes = [
                {"id": "h1:27017", "userAlias": "main-shard-00-00.x.mongodb.net"},
                {"id": "h2:27017", "userAlias": "other-shard-00-00.x.mongodb.net"},
            ]
            return httpx.Response(200, json={"results": nodes, "totalCount": 2})
        assert {"since", "duration"} <= set(request.url.params)
        return httpx.Response(200, json={"slowQueries": [{"line": json.dumps(line)}, {"line": "no JSON"}]})

    facts = AtlasFacts(group="g", cluster="Main", url="http://atlas", id="env:ATLAS_ID", secret="env:ATLAS_SECRET")
    named = stage.model_copy(update={"backup": BackupPolicy(atlas=facts)})
    wanted = SlowAsked(stage=named, since=MOMENT - timedelta(minutes=1), until=MOMENT, over=timedelta(milliseconds=500))
    found = environment().run(_profiler(aws, atlas).slow, wanted)
    assert (found.source, found.count) == ("atlas", 1)
    assert found.queries[0].missing == (("owner", 1), ("at", -1))
    assert not any("h2" in path for path in asked_of), "another cluster of the project is left alone"
    without = environment().run(_profiler(aws).slow, wanted.model_copy(update={"stage": stage}))
    assert (without.source, without.count) == ("none", None), "not known is not zero"


def test_lines_of_another_kind_are_left_out() -> None:
    assert entries_of(
        ["", "{}", '{"attr": {}}', "[]", '{"attr": {"ns": "a.b", "command": {}, "durationMillis": 1}}']
    ) == [{"ns": "a.b", "command": {}, "millis": 1.0, "appName": None, "docsExamined": None, "nreturned": None}]
