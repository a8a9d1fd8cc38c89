"""The API's database user: a real server that enforces logins and roles, by command and through Atlas's interface."""

from __future__ import annotations

import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pymongo.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.api_secrets import ApiSecrets
from activities.atlas import Atlas
from activities.clients import Aws
from activities.connection_string import password_of, user_of, with_login
from activities.credential_models import CredentialOrder, LoginQuery, PutUserBack, SwitchUser, TestLogin
from activities.database import Database
from activities.database_credentials import DatabaseCredentials
from activities.database_users import AtlasUsers, Grants, MongoUsers, _logins, _ours
from activities.deployment_models import DeployAgain
from activities.secret_refs import SecretResolver
from activities.stage import (
    AtlasFacts,
    BackupPolicy,
    DatabaseFacts,
    DeployPolicy,
    GatewayFacts,
    RotatedSecret,
    RotationPolicy,
    Stage,
)
from activities.staged_secrets import StagedSecrets
from sandbox import mongodb
from sandbox.hub.cluster import Cluster
from sandbox.hub.server import Hub, HubServer
from sandbox.parts import program
from sandbox.ports import any_free

run = ActivityEnvironment().run
ADMIN = "admin-pass"
SECRET = "atlas-secret"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for a login; ``admin`` may do everything."""
    home, port = tmp_path_factory.mktemp("users"), any_free()
    binary = program(mongodb.PROGRAM)

    def start(*, auth: bool) -> subprocess.Popen[bytes]:
        with (home / "log").open("ab") as log:
            return subprocess.Popen(mongodb.command(binary, port, home / "data", auth=auth), stdout=log, stderr=log)

    def ready(uri: str) -> pymongo.MongoClient[dict[str, Any]]:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=20_000)
        client.admin.command("ping")
        return client

    first = start(auth=False)
    with ready(f"mongodb://127.0.0.1:{port}/?directConnection=true") as client:
        client.admin.command("createUser", "admin", pwd=ADMIN, roles=["root"])
    first.terminate()
    first.wait(timeout=10)
    second = start(auth=True)
    with ready(f"mongodb://admin:{ADMIN}@127.0.0.1:{port}/?directConnection=true&authSource=admin"):
        pass
    yield f"127.0.0.1:{port}"
    second.terminate()
    second.wait(timeout=10)


class Ground:
    """A stage with a user of its own in the database, and its stores."""

    def __init__(self, aws: Aws, address: str, folder: Path, users: str, hub: str | None) -> None:
        self.name = f"t{uuid.uuid4().hex[:8]}"
        self.address, self.ssm = address, aws.ssm
        self.old, self.database = f"api_{self.name}", f"d_{self.name}"
        self.admin_uri = self.uri("admin", ADMIN, "admin")
        self.first = self.uri(self.old, "old/pass:w%rd", self.database)
        self.parameter = f"/sst/app/{self.name}/MongoDBUri"
        self.put(self.parameter, self.first)
        self.put(f"{self.parameter}/admin", self.admin_uri)
        with self.admin() as client:
            roles = [{"role": "readWrite", "db": self.database}, {"role": "read", "db": "other"}]
            client.admin.command("createUser", self.old, pwd="old/pass:w%rd", roles=roles)
            client[self.database]["sessions"].insert_one({"a": 1})
        self.deployed: list[str] = []
        self.staged = StagedSecrets(aws.secretsmanager)
        resolver = SecretResolver(aws.ssm, aws.secretsmanager)
        self.http = httpx.Client(timeout=10)
        self.activities = DatabaseCredentials(
            self.staged,
            ApiSecrets(resolver, aws.functions),
            resolver,
            self.http,
            self,  # type: ignore[arg-type]  # of deployments it needs to deploy again
        )
        self.store = f"app/{self.name}/MongoDBUri"
        ref = f"ssm:{self.parameter}"
        (folder / "secret").write_text(SECRET)
        secret = f"file:{folder / 'secret'}"
        atlas = AtlasFacts(group="g", cluster="c", url=hub, id=secret, secret=secret) if hub else None
        self.stage = Stage(
            name=self.name,
            function="f",
            url="http://api",
            api_key="env:NONE",
            log_group="g",
            gateway=GatewayFacts(name="g", stage=self.name),
            database=DatabaseFacts(uri=ref, name=self.database),
            deploy=DeployPolicy(engine="cloudformation"),
            backup=BackupPolicy(atlas=atlas),
            rotation=RotationPolicy(
                database=RotatedSecret(name="MongoDBUri", store=self.store, ref=ref),
                users=users,  # type: ignore[arg-type]
                users_uri=f"ssm:{self.parameter}/admin",
            ),
        )
        self.order = CredentialOrder(stage=self.stage, rotation="rotation-1")
        self.seen = run(self.activities.look, self.stage)
        self.switched = datetime.now(UTC)

    def uri(self, user: str, password: str, database: str) -> str:
        return with_login(f"mongodb://{self.address}/{database}?directConnection=true&authSource=admin", user, password)

    def put(self, name: str, value: str) -> None:
        self.ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)

    def stored(self) -> str:
        return str(self.ssm.get_parameter(Name=self.parameter, WithDecryption=True)["Parameter"]["Value"])

    def admin(self) -> pymongo.MongoClient[dict[str, Any]]:
        return pymongo.MongoClient(self.admin_uri, serverSelectionTimeoutMS=10_000)

    def users(self) -> set[str]:
        with self.admin() as client:
            found = client.admin.command("usersInfo", 1)["users"]
        return {user["user"] for user in found if self.name in user["user"]}

    def again(self, order: DeployAgain) -> None:
        self.deployed.append(order.deployment_id.rpartition("/")[2])

    def create(self) -> Any:
        return run(self.activities.create, self.order)

    def login(self, **order: Any) -> Any:
        given = {**self.order.model_dump(), "old": self.old, "patience": timedelta(0), **order}
        return run(self.activities.login, TestLogin(**given))

    def switch(self) -> Any:
        return run(self.activities.switch, self.to_switch())

    def to_switch(self) -> SwitchUser:
        return SwitchUser(**self.order.model_dump(), old=self.old)

    def put_back(self) -> Any:
        back = PutUserBack(**self.order.model_dump(), old=self.old, labels=self.seen.labels)
        return run(self.activities.put_back, back)

    def logins(self) -> Any:
        query = LoginQuery(**self.order.model_dump(), old=self.old, since=self.switched)
        return run(self.activities.logins, query)


@pytest.fixture
def atlas_hub(address: str) -> Iterator[str]:
    """Atlas's interface with that database behind it."""
    cluster = Cluster(f"mongodb://admin:{ADMIN}@{address}/?directConnection=true&authSource=admin")
    server = HubServer(Hub(atlas_secret=SECRET, atlas_cluster=cluster), port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


NewGround = Callable[[str], Ground]


@pytest.fixture
def new_ground(aws: Aws, address: str, tmp_path: Path, atlas_hub: str) -> NewGround:
    return lambda users: Ground(aws, address, tmp_path, users, f"{atlas_hub}/atlas" if users == "atlas" else None)


@pytest.fixture(params=["mongodb", "atlas"])
def ground(request: pytest.FixtureRequest, new_ground: NewGround) -> Ground:
    return new_ground(request.param)


def test_from_the_old_user_to_the_new_one(ground: Ground) -> None:
    assert (ground.seen.user, ground.seen.source) == (ground.old, "admin")
    assert ground.seen.roles == (f"readWrite@{ground.database}", "read@other")[::-1]
    made = ground.create()
    assert made.roles == ground.seen.roles
    assert made.user.startswith(f"{ground.old}-")
    assert ground.login().ok, "it works before anything is switched"
    assert ground.stored() == ground.first
    assert ground.switch().changed
    assert user_of(ground.stored()).name == made.user
    assert not ground.switch().changed
    run(ground.activities.promote, ground.order)
    assert ground.staged.value(ground.store) == ground.stored()
    for existed in (True, False):
        assert run(ground.activities.remove, ground.to_switch()).existed is existed
    assert ground.users() == {made.user}
    refused = ground.login(as_old=True, refused=True)
    assert (refused.ok, refused.outcome) == (True, "refused")
    assert ground.login().ok
    run(ground.activities.restore, ground.to_switch())
    assert ground.login(as_old=True).ok, "with its former password"
    with ground.admin() as client:
        found = client.admin.command("usersInfo", {"user": ground.old, "db": "admin"})["users"][0]
    assert sorted(f"{role['role']}@{role['db']}" for role in found["roles"]) == sorted(ground.seen.roles)


def test_where_the_apis_user_may_not_count_connections_its_operator_does(new_ground: NewGround, aws: Aws) -> None:
    ground, database = new_ground("mongodb"), Database(SecretResolver(aws.ssm, aws.secretsmanager))
    alone = run(database.connections, ground.stage)
    assert (alone.current, alone.available) == (None, None)
    facts = {"operator_uri": f"ssm:{ground.parameter}/admin", "most_connections": 1000}
    stage = ground.stage.model_copy(update={"database": ground.stage.database.model_copy(update=facts)})
    found = run(database.connections, stage)
    assert found.current
    assert found.available == 1000 - found.current, "of this server only the settings know"


def test_the_next_rotation_takes_the_place_of_this_ones_name(ground: Ground) -> None:
    first = ground.create().user
    ground.switch()
    ground.order = CredentialOrder(stage=ground.stage, rotation="rotation-2")
    second = ground.create().user
    assert (first.rpartition("-")[0], first != second) == (second.rpartition("-")[0], True)


@pytest.mark.parametrize("died_after", ["former", "new", "user"])
def test_repeated_after_a_death_it_makes_one_user(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, died_after: str
) -> None:
    """Killed between 'created' and 'stored': one login, none lost, none orphaned."""
    left = {"former": 1, "new": 2}.get(died_after, 0)
    real = ground.staged.stage

    def dying(*given: Any, **named: Any) -> str:
        nonlocal left
        value = real(*given, **named)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return value

    with monkeypatch.context() as patch:
        if died_after == "user":
            cls = AtlasUsers if ground.stage.rotation.users == "atlas" else MongoUsers
            original = cls.ensure

            def made_then_dead(self: Any, *given: Any) -> None:
                original(self, *given)
                raise KeyboardInterrupt

            patch.setattr(cls, "ensure", made_then_dead)
        else:
            patch.setattr(ground.staged, "stage", dying)
        with pytest.raises(KeyboardInterrupt):
            ground.create()
    made = ground.create()
    assert ground.create() == made
    assert ground.users() == {ground.old, made.user}
    assert ground.login().ok


@pytest.mark.parametrize("died_after", ["write", "deploy", "drop"])
def test_the_way_back_is_whole_though_the_worker_dies_on_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, died_after: str
) -> None:
    ground.create()
    ground.switch()

    def dying(*_given: Any) -> Any:
        raise KeyboardInterrupt

    cls = AtlasUsers if ground.stage.rotation.users == "atlas" else MongoUsers
    place = {"write": (ground, "again"), "deploy": (cls, "drop"), "drop": (ground.staged, "restore")}[died_after]
    with monkeypatch.context() as patch:
        patch.setattr(*place, dying)
        with pytest.raises(KeyboardInterrupt):
            ground.put_back()
    ground.put_back()
    assert ground.stored() == ground.first, "byte for byte"
    assert ground.users() == {ground.old}, "no orphan"
    assert "put-back" in ground.deployed
    assert ground.staged.labels(ground.store) == ground.seen.labels


def test_an_address_that_was_changed_meanwhile_stays(new_ground: NewGround) -> None:
    ground = new_ground("mongodb")
    ground.create()
    moved = ground.first.replace(f"/{ground.database}?", f"/{ground.database}_restored?")
    ground.put(ground.parameter, moved)
    ground.switch()
    switched = ground.stored()
    assert f"/{ground.database}_restored?" in switched
    ground.put(ground.parameter, ground.uri("somebody", "x", ground.database))
    for attempt in (ground.switch, ground.put_back):
        with pytest.raises(ApplicationError, match="somebody else has changed it") as refused:
            attempt()
        assert refused.value.non_retryable
    ground.put(ground.parameter, switched)
    ground.put_back()
    assert ground.stored() == moved


def test_a_user_that_cannot_be_rotated_is_said(new_ground: NewGround) -> None:
    ground = new_ground("mongodb")
    for uri, kind in (
        (f"mongodb://{ground.address}/d", "NoPassword"),
        (ground.uri("nobody", "x", "d"), "NoSuchUser"),
        (ground.admin_uri, "NotConfigured"),
    ):
        ground.put(ground.parameter, uri)
        with pytest.raises(ApplicationError) as refused:
            run(ground.activities.look, ground.stage)
        assert refused.value.type == kind
        assert ADMIN not in str(refused.value)


def test_other_references_that_log_in_as_it_are_named(new_ground: NewGround) -> None:
    ground = new_ground("mongodb")
    ground.put(f"{ground.parameter}/backup", ground.first)
    backup = BackupPolicy(uri=f"ssm:{ground.parameter}/backup")
    ground.stage = ground.stage.model_copy(update={"backup": backup})
    ground.order = CredentialOrder(stage=ground.stage, rotation="rotation-1")
    assert run(ground.activities.look, ground.stage).also_in == ("backup.uri",)
    assert ground.logins().holders == ("backup.uri",)


# --- who logs in ----------------------------------------------------------------------------------------------------


def test_atlas_tells_from_its_access_history(new_ground: NewGround, atlas_hub: str) -> None:
    ground = new_ground("atlas")
    new = ground.create().user

    def logged_in(name: str) -> None:
        login = {"group": "g", "cluster": "c", "username": name}
        httpx.post(f"{atlas_hub}/_control/atlas/login", json=login).raise_for_status()

    assert not ground.logins().known, "an empty history tells nothing"
    logged_in(new)
    silent = ground.logins()
    assert (silent.known, silent.old_last) == (True, None)
    logged_in(ground.old)
    used = ground.logins()
    assert (used.known, used.old_count) == (True, 1)
    assert abs(used.old_last - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_access_history_that_is_cut_off_tells_of_no_silence(
    new_ground: NewGround, atlas_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground = new_ground("atlas")
    new = ground.create().user
    for module in ("atlas", "database_users"):
        monkeypatch.setattr(f"activities.{module}.MOST_LOGINS", 2)
    for name in (ground.old, new, new):
        login = {"group": "g", "cluster": "c", "username": name}
        httpx.post(f"{atlas_hub}/_control/atlas/login", json=login).raise_for_status()
    found = ground.logins()
    assert (found.known, found.old_last) == (False, None)
    assert "not known, the access history was cut off after 2 logins" in found.summary


def test_a_server_that_does_not_name_users_is_not_taken_for_silence(new_ground: NewGround) -> None:
    """The embedded server does not; MongoDB does."""
    found = new_ground("mongodb").logins()
    assert (found.known, "not known" in found.summary) == (False, True)


class _Answers:
    """A MongoDB server's own answers, as its manual shows them."""

    def __init__(self, open_now: list[dict[str, Any]], log: list[str]) -> None:
        self.open_now, self.log, self.admin = open_now, log, self

    def __enter__(self) -> _Answers:
        return self

    def __exit__(self, *_: object) -> None: ...

    def aggregate(self, _pipeline: Any) -> list[dict[str, Any]]:
        return self.open_now

    def command(self, *_: Any) -> dict[str, Any]:
        return {"log": self.log}


def connection(user: str, app: str = "api") -> dict[str, Any]:
    return {"effectiveUsers": [{"user": user, "db": "admin"}], "appName": app}


def line(user: str, at: datetime, message: str = "Successfully authenticated") -> str:
    stamp = at.isoformat(timespec="milliseconds")
    return f'{{"t":{{"$date":"{stamp}"}},"s":"I","msg":"{message}","attr":{{"user":"{user}","db":"admin"}}}}'


@pytest.mark.parametrize(
    ("open_now", "log", "known", "seen"),
    [
        ([connection("admin")], [], True, set()),
        ([connection("admin"), connection("old")], [], True, {"old"}),
        ([connection("admin"), connection("old", "operational-runbooks")], [], True, set()),  # a worker's idle one
        ([connection("admin")], ["old"], True, {"old"}),
        ([connection("admin")], ["gibberish", "{", "old"], True, {"old"}),
        ([{"type": "op"}], [], False, set()),
        ([], ["old"], False, {"old"}),
    ],
)
def test_what_mongodb_tells(
    monkeypatch: pytest.MonkeyPatch, open_now: list[dict[str, Any]], log: list[str], known: bool, seen: set[str]
) -> None:
    now = datetime.now(UTC)
    lines = [line(entry, now) if entry == "old" else entry for entry in log]
    users = MongoUsers("mongodb://admin:p@h/?authSource=admin")
    monkeypatch.setattr(users, "_admin", lambda: _Answers(open_now, lines))
    found = users.access(["old", "new"], now - timedelta(minutes=1))
    assert (found.known, set(found.last)) == (known, seen)


def test_lines_of_the_servers_log() -> None:
    at = datetime(2026, 1, 20, 12, tzinfo=UTC)
    older = (
        '{"t":{"$date":"2026-01-20T12:00:00.000+00:00"},"msg":"Authentication succeeded","attr":{"principalName":"a"}}'
    )
    assert list(_logins([line("b", at), older, line("c", at, "Connection ended"), "not json", "[]", "1"])) == [
        ("b", at),
        ("a", at),
    ]
    assert _ours({"clientMetadata": {"application": {"name": "operational-runbooks"}}})


def test_atlas_users_with_scopes_and_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    user = {
        "roles": [{"roleName": "readWrite", "databaseName": "d", "collectionName": "c"}],
        "scopes": [{"name": "cluster-1", "type": "CLUSTER"}],
    }
    sent: list[tuple[str, Any]] = []
    atlas = object.__new__(Atlas)
    monkeypatch.setattr(
        atlas, "_call", lambda method, path, doing, body=None, query=None: sent.append((method, body)) or user
    )
    users = AtlasUsers(atlas)
    grants = users.grants("a", "admin")
    assert grants == Grants(user, ("only CLUSTER cluster-1", "readWrite@d.c"))
    users.ensure("b", "admin", "p", grants)
    assert sent[-1] == ("POST", {"databaseName": "admin", "username": "b", "password": "p", **user})


@pytest.mark.parametrize(
    ("uri", "name", "source"),
    [
        ("mongodb://a:b@h/d", "a", "d"),
        ("mongodb://a:b@h", "a", "admin"),
        ("mongodb://a:b@h1,h2/d?authSource=x&w=1", "a", "x"),
        ("mongodb+srv://a%40b:p%3Aq@h/d?retryWrites=true&w=majority", "a@b", "admin"),
    ],
)
def test_users_in_connection_strings(uri: str, name: str, source: str) -> None:
    assert (user_of(uri).name, user_of(uri).source) == (name, source)
    other = with_login(uri, "new/user", "p@ss:w/rd%")
    assert (user_of(other).name, user_of(other).source, password_of(other)) == ("new/user", source, "p@ss:w/rd%")
    assert with_login(other, "", "") == with_login(uri, "", "")


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(words, words)
def test_any_login_survives_a_connection_string(name: str, password: str) -> None:
    uri = with_login("mongodb+srv://a:b@cluster.example.net/d?retryWrites=true&w=majority", name, password)
    assert (user_of(uri).name, password_of(uri)) == (name, password)
    assert uri.endswith("@cluster.example.net/d?retryWrites=true&w=majority")
    assert with_login(uri, "a", "b") == "mongodb+srv://a:b@cluster.example.net/d?retryWrites=true&w=majority"
