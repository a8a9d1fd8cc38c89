"""How each fault of the database reaches a run: as one that may pass or one that will not, and without its password."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pymongo
import pymongo.errors
import pytest
from pymongo.uri_parser import parse_uri
from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.database_load import LoadReader
from activities.errors import RENEWAL, classified, from_mongo
from activities.mongo_clients import MongoClients, connect
from activities.secret_refs import SecretResolver
from activities.stage import Stage
from sandbox import mongodb
from sandbox.parts import program
from sandbox.ports import any_free
from tests.chaos.strikes import Mode, Strikes
from tests.chaos.wire import Wire
from tests.workflows.bare_stage import bare_stage

REF = "env:TEST_MONGODB_URI"
UNREACHABLE = ("MongoUnreachable", True)


@pytest.fixture
def resolver(aws: Aws) -> SecretResolver:
    return SecretResolver(aws.ssm, aws.secretsmanager)


@contextmanager
def behind(mode: Mode, database: str) -> Iterator[str]:
    """The database's address behind this fault."""
    host, port = parse_uri(database)["nodelist"][0]
    wire = Wire(port, Strikes(mode))
    try:
        yield database.replace(f"{host}:{port}", f"{host}:{wire.port}")
    finally:
        wire.close()


def until_it_works(ask: Callable[[], Any]) -> list[tuple[str | None, bool]]:
    """Type of each failure, and whether a retry was worth it."""
    failures = []
    for _ in range(10):
        try:
            classified("count sessions")(ask)()
            return failures
        except ApplicationError as error:
            failures.append((error.type, not error.non_retryable))
    raise AssertionError(f"it never worked: {failures}")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("500", UNREACHABLE),
        ("throttled", ("Mongo462", True)),
        ("reset", UNREACHABLE),
        ("garbage", UNREACHABLE),
        ("time-out", UNREACHABLE),
        ("slow", None),
    ],
)
def test_every_fault_on_the_wire_is_told_as_what_it_is(
    mode: Mode,
    expected: tuple[str, bool] | None,
    wire_database: str,
    resolver: SecretResolver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with behind(mode, wire_database) as uri:
        monkeypatch.setenv("TEST_MONGODB_URI", uri)
        with connect(resolver, REF, socketTimeoutMS=3000, heartbeatFrequencyMS=500, retryReads=False) as client:
            failures = until_it_works(lambda: client["any"]["sessions"].count_documents({}))
    assert (failures[-1] if failures else None) == expected, failures
    assert set(failures) <= {expected, UNREACHABLE}, "the first greeting meets the fault too"


def a_stage() -> Stage:
    return bare_stage("stage-x", {"database": {"uri": REF, "name": "any"}})


def test_an_answer_may_take_its_time_and_a_server_that_hangs_is_noticed(
    tmp_path: Path, resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, binary = any_free(), program(mongodb.PROGRAM)
    options = "directConnection=true&heartbeatFrequencyMS=500&retryReads=false"
    monkeypatch.setenv("TEST_MONGODB_URI", f"mongodb://127.0.0.1:{port}/?{options}")
    with subprocess.Popen(mongodb.command(binary, port, tmp_path, auth=False)) as server:
        try:
            with MongoClients(resolver).client(a_stage()) as client:
                assert client.options.pool_options.socket_timeout is None, "a scan can take longer than any limit"
                client.admin.command("ping")
                server.send_signal(signal.SIGSTOP)  # it neither answers nor hangs up
                os.waitid(os.P_PID, server.pid, os.WSTOPPED)
                with pytest.raises(pymongo.errors.AutoReconnect):
                    client["any"]["sessions"].count_documents({})
                server.send_signal(signal.SIGCONT)
        finally:
            server.kill()


def test_a_slow_ping_is_told_as_slow_as_it_is(
    wire_database: str, resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as one without an answer, because three of them together take longer than there is time."""
    with behind("slow", wire_database) as uri:
        monkeypatch.setenv("TEST_MONGODB_URI", uri)
        monkeypatch.setattr("activities.database_load.PATIENCE", 2.4)
        clients, stage = MongoClients(resolver), a_stage()
        with clients.client(stage) as client:
            client.list_database_names()  # it has connected, and greeted
            load = LoadReader(clients, None).read(stage)
    assert 700 < (load.ping_ms or 0) < 2000


@pytest.mark.parametrize(
    "stored",
    [
        "cluster0.example.mongodb.net",
        "https://user:hunter2@cluster0.example.mongodb.net",
        "mongodb://user:hunter2:more@host/db",
        "mongodb://user:hun@ter2@host/db",
        "mongodb://user:hunter2@host:hunter2/db",
        "mongodb://user:hunter2@host/?tls=true&ssl=false",
        '{"uri": "mongodb://user:hunter2@host/db"}',
    ],
)
def test_what_is_no_connection_string_is_said_at_once_and_not_shown(
    stored: str, resolver: SecretResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_MONGODB_URI", stored)
    with pytest.raises(ApplicationError, match=f"what {REF} holds is no connection string of MongoDB") as caught:
        connect(resolver, REF)
    assert (caught.value.type, caught.value.non_retryable) == ("BadConnectionString", True)
    assert caught.value.__cause__ is None
    assert not any(part in str(caught.value) for part in ("hunter2", "ter2", "cluster0"))


def test_a_password_may_be_renewed_and_a_role_is_not_given_by_waiting() -> None:
    wrong, lacking = (
        from_mongo(pymongo.errors.OperationFailure("no", code, {}), "count sessions") for code in (18, 13)
    )
    assert (wrong.non_retryable, wrong.next_retry_delay) == (False, timedelta(seconds=RENEWAL))
    assert "wrong user or password. Renew the database secret" in wrong.message
    assert lacking.non_retryable


def test_a_host_that_no_name_server_knows_may_be_known_later() -> None:
    unknown = pymongo.errors.ConfigurationError("The DNS query name does not exist: _mongodb._tcp.cluster0.")
    found = from_mongo(unknown, "count sessions")
    assert (found.type, found.non_retryable) == ("MongoUnreachable", False)
    assert "its host is not found, or an option of its connection string is wrong" in found.message


def test_more_requests_than_the_server_lets_in_are_asked_again_later() -> None:
    """Such an error has other codes too: the label tells (client backpressure, MongoDB's specification)."""
    overloaded = pymongo.errors.OperationFailure("rejected", 1, {"errorLabels": ["SystemOverloadedError"]})
    assert not from_mongo(overloaded, "count sessions").non_retryable
    assert from_mongo(pymongo.errors.OperationFailure("no", 1, {}), "count sessions").non_retryable
