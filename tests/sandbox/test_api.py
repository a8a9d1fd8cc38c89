"""The State Tracking API and its releases, deployed for real on the embedded AWS."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pymongo
import pytest
from pydantic import ValidationError

from sandbox.api import data, tokens
from sandbox.api.checkout import write_checkout
from sandbox.api.deploy import Deployer
from sandbox.api.releases import CATALOGUE, GOOD, Faults, Release, ReleaseError, build, code_sha256
from sandbox.api.stack import ALIAS, Deployable, api_name, service_name, template
from sandbox.traffic import NotLoopbackError, Traffic
from sandbox.traffic import main as traffic_main
from tests.sandbox.api_fixture import KEY, SIGNING_SECRET, Surroundings, here

__all__ = ["here"]
STAGE = "faults"
QUERY = {"project_id": data.PROJECTS[1], "status": "active", "limit": "20"}


@pytest.fixture(scope="module")
def stage(here: Surroundings) -> str:
    here.secrets(STAGE)
    data.seed(here.uri(STAGE), 500)
    here.deploy(STAGE, GOOD)
    return STAGE


def deploy_with(here: Surroundings, **faults: Any) -> Release:
    release = GOOD.with_faults("test", **faults)
    here.deploy(STAGE, release)
    return release


def timed(client: httpx.Client, path: str, **parameters: Any) -> tuple[float, httpx.Response]:
    began = time.monotonic()
    answer = client.get(path, **parameters)
    return time.monotonic() - began, answer


def metric(namespace: str, name: str, dimension: str, value: str) -> float:
    now = datetime.now(UTC)
    points = boto3.client("cloudwatch").get_metric_statistics(
        Namespace=namespace,
        MetricName=name,
        Dimensions=[{"Name": dimension, "Value": value}],
        StartTime=now - timedelta(hours=1),
        EndTime=now + timedelta(minutes=2),
        Period=3600,
        Statistics=["Sum"],
    )["Datapoints"]
    return sum(point["Sum"] for point in points)


# --- builds, templates, checkouts ----------------------------------------------------------------------------------


def test_a_build_is_the_same_bytes_each_time_and_differs_by_release() -> None:
    assert build(GOOD) == build(Release(label="good"))
    assert len({code_sha256(build(release)) for release in CATALOGUE.values()}) == len(CATALOGUE)
    assert len({release.id for release in CATALOGUE.values()}) == len(CATALOGUE)
    assert all(re.fullmatch(r"[0-9a-f]{10}", release.id) for release in CATALOGUE.values())


def test_a_release_is_read_back_as_it_was_written_and_not_when_it_was_edited(tmp_path: Path) -> None:
    release = GOOD.with_faults("broken", error_rate=0.3)
    checkout = write_checkout(release, tmp_path)
    assert checkout.name == release.id
    assert Release.read(checkout / "release.json") == release
    edited = json.loads((checkout / "release.json").read_text())
    edited["faults"]["error_rate"] = 0.1
    (checkout / "release.json").write_text(json.dumps(edited))
    with pytest.raises(ReleaseError, match="it was edited"):
        Release.read(checkout / "release.json")
    (checkout / "release.json").write_text("[]")
    with pytest.raises(ReleaseError, match="not the JSON object"):
        Release.read(checkout / "release.json")
    with pytest.raises(ReleaseError, match="missing"):
        Release.read(tmp_path / "release.json")


@pytest.mark.parametrize(
    "fault", [{"error_rate": 1.5}, {"latency_ms": -1}, {"misspelt": 1}, {"missing_route": "GET /x"}]
)
def test_impossible_faults_are_refused(fault: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        GOOD.with_faults(**fault)


def test_a_template_is_decided_by_its_values_alone() -> None:
    wanted = Deployable(stage="x", release="abc", bucket="b", code_key="k", code_sha256="s")
    assert template(wanted) == template(replace(wanted))
    other = json.loads(template(replace(wanted, secrets_version="2")))["Resources"]
    versions = {name for name in other if other[name]["Type"] == "AWS::Lambda::Version"}
    assert versions.isdisjoint(json.loads(template(wanted))["Resources"])


# --- signed tokens -------------------------------------------------------------------------------------------------


def test_tokens_are_signed_by_the_key_that_signs_and_let_in_by_every_accepted_one(
    here: Surroundings, stage: str
) -> None:
    old = tokens.Keyring.of(SIGNING_SECRET)
    here.deploy(stage, GOOD)
    with here.client(stage) as client, here.client(stage, key=None) as anybody:

        def bearer(token: str) -> httpx.Response:
            return anybody.get("/tokens/self", headers={"Authorization": f"Bearer {token}"})

        assert anybody.post("/tokens").status_code == 401, "a token costs a key"
        issued = client.post("/tokens").json()
        assert issued["expiresIn"] == 900
        assert bearer(issued["token"]).json()["exp"] > time.time()
        assert bearer(old.issue(60)).status_code == 200
        for refused, why in (
            (old.issue(-1), "expired"),
            ("x.y.z", "no token"),
            (f"{issued['token'][:-4]}AAAA", "wrong"),
        ):
            answer = bearer(refused)
            assert (answer.status_code, why in answer.json()["message"]) == (401, True)
        assert "not accepted" in bearer(tokens.Keyring.of("another-secret").issue(60)).json()["message"]

        ring = json.dumps({"sign": "new", "keys": {old.sign: SIGNING_SECRET, "new": "another-signing-secret"}})
        here.secrets(stage, signing=ring)
        here.deploy(stage, GOOD)
        assert bearer(issued["token"]).status_code == bearer(tokens.Keyring.of(ring).issue(60)).status_code == 200
        here.deploy(stage, GOOD.with_faults("one-secret", single_signing_secret=True))
        assert bearer(issued["token"]).status_code == 401, "dual verification is not deployed"
        assert bearer(client.post("/tokens").json()["token"]).status_code == 200
    here.secrets(stage)


# --- the service ---------------------------------------------------------------------------------------------------


def test_routes(here: Surroundings, stage: str) -> None:
    here.deploy(stage, GOOD)
    with here.client(stage) as client:
        alive = client.get("/health").json()
        assert (alive["status"], alive["release"]) == ("ok", GOOD.id)
        database = client.get("/health/ready").json()["database"]
        assert database["status"] == "up"
        assert database["latencyMs"] > 0
        assert database["connections"]["current"] >= 1
        made = client.post("/sessions", json={"project_id": "routes", "owner": "me"})
        assert made.status_code == 201
        assert client.get(f"/sessions/{made.json()['id']}").json() == made.json()
        listed = client.get("/sessions", params=QUERY).json()
        assert 0 < len(listed) <= 20
        assert {(s["project_id"], s["status"]) for s in listed} == {(QUERY["project_id"], "active")}
        assert [s["created_at"] for s in listed] == sorted((s["created_at"] for s in listed), reverse=True)
        for path in ("/", "/nowhere", "/sessions/not-an-id", f"/sessions/{'0' * 24}"):
            assert client.get(path).status_code == 404, path
        for query in ({"limit": "0"}, {"limit": "x"}, {"status": "odd"}):
            assert client.get("/sessions", params=query).status_code == 400, query
        for body in ("", "[]", "{", '{"project_id": ""}', '{"project_id": "p", "status": "odd"}', '{"x": 1}'):
            assert client.post("/sessions", content=body).status_code == 400, body


def test_a_key_is_asked_for_everywhere_but_at_health(here: Surroundings, stage: str) -> None:
    here.deploy(stage, GOOD)
    for key in (None, "wrong", KEY[:-1]):
        with here.client(stage, key) as client:
            assert client.get("/health").status_code == 200
            assert client.get("/health/ready").status_code == 401
            assert client.get("/sessions").status_code == 401
    refused = [entry for entry in here.log(stage) if entry["statusCode"] == 401]
    presented = {entry["apiKeyId"] for entry in refused}
    assert presented == {None, *(hashlib.sha256(key.encode()).hexdigest()[:12] for key in ("wrong", KEY[:-1]))}
    assert {entry["level"] for entry in refused} == {"WARN"}
    assert KEY[:-1] not in json.dumps(here.log(stage))


def test_a_database_that_is_down_is_told_from_a_dead_process(here: Surroundings) -> None:
    here.secrets("nodb", uri="mongodb://spy:hushhush@127.0.0.1:1/state?serverSelectionTimeoutMS=200")
    here.deploy("nodb", GOOD)
    with here.client("nodb") as client:
        assert client.get("/health").status_code == 200
        assert client.get("/health/ready").status_code == 503
        answer = client.get("/sessions")
    assert (answer.status_code, answer.json()) == (500, {"statusCode": 500, "message": "Internal server error"})
    failed = here.log("nodb")[-1]
    assert (failed["level"], failed["errorType"]) == ("ERROR", "ServerSelectionTimeoutError")
    assert "list_sessions" in failed["stack"]
    assert "hushhush" not in json.dumps(here.log("nodb"))


def test_a_changed_secret_counts_from_the_next_deployment_on(here: Surroundings) -> None:
    here.secrets("rotation", keys="old-key")
    first = here.deploy("rotation", GOOD)
    with here.client("rotation", "old-key") as old, here.client("rotation", "new-key") as new:
        assert old.get("/sessions").status_code == 200
        here.secrets("rotation", keys="new-key, old-key")
        second = here.deploy("rotation", GOOD)
        assert second.changed
        assert second.outputs["Version"] != first.outputs["Version"]
        assert (old.get("/sessions").status_code, new.get("/sessions").status_code) == (200, 200)
        here.secrets("rotation", keys="new-key")
        here.deploy("rotation", GOOD)
        assert (old.get("/sessions").status_code, new.get("/sessions").status_code) == (401, 200)
        assert not here.deploy("rotation", GOOD).changed


# --- releases ------------------------------------------------------------------------------------------------------


def test_a_broken_release_is_seen_everywhere_and_rolled_back_by_deploying_the_former(here: Surroundings) -> None:
    here.secrets("rollback")
    data.seed(here.uri("rollback"), 100)
    functions = boto3.client("lambda")
    name = service_name("rollback")

    def live() -> Any:
        return functions.get_function_configuration(FunctionName=name, Qualifier=ALIAS)

    first = here.deploy("rollback", GOOD)
    good = live()["CodeSha256"]
    assert good == code_sha256(build(GOOD))
    broken = CATALOGUE["broken"]
    here.deploy("rollback", broken)
    with here.client("rollback") as client:
        answers = [client.get("/sessions", params={"limit": "1"}).status_code for _ in range(150)]
        assert {client.get("/health").status_code for _ in range(20)} == {200}
    failures = answers.count(500)
    assert set(answers) == {200, 500}
    assert 0.15 < failures / len(answers) < 0.45  # four standard deviations around 0.3
    errors = [entry for entry in here.log("rollback") if entry["level"] == "ERROR"]
    assert len(errors) == failures
    assert {entry["release"] for entry in errors} == {broken.id}
    assert {entry["route"] for entry in errors} == {"/sessions"}
    assert all("_strike" in entry["stack"] for entry in errors)
    assert metric("AWS/ApiGateway", "5XXError", "ApiName", api_name("rollback")) == failures

    assert here.deploy("rollback", GOOD).changed
    assert live()["CodeSha256"] == good
    versions = functions.list_versions_by_function(FunctionName=name)["Versions"]
    described = {v["Version"]: v["Description"] for v in versions if v["Version"] != "$LATEST"}
    assert described == {"1": f"release {GOOD.id}", "2": f"release {broken.id}", "3": f"release {GOOD.id}"}
    with here.client("rollback") as client:
        assert client.get("/health").json()["release"] == GOOD.id

    # What the deployment stored is enough to deploy it again: the template alone, which names the package.
    here.deploy("rollback", broken)
    stored = boto3.client("s3").get_object(Bucket=first.bucket, Key=first.template_key)["Body"].read().decode()
    stacks = boto3.client("cloudformation")
    stacks.update_stack(StackName=name, TemplateBody=stored, Capabilities=["CAPABILITY_NAMED_IAM"])
    stacks.get_waiter("stack_update_complete").wait(StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    assert live()["CodeSha256"] == good


def test_an_old_version_still_answers_for_itself(here: Surroundings, stage: str) -> None:
    before = here.deploy(stage, GOOD).outputs["Version"]
    release = deploy_with(here, latency_ms=1)
    event = {"httpMethod": "GET", "path": "/health", "headers": {}}
    functions = boto3.client("lambda")
    for version, expected in ((before, GOOD.id), (ALIAS, release.id)):
        answer = functions.invoke(FunctionName=service_name(stage), Qualifier=version, Payload=json.dumps(event))
        assert json.loads(json.loads(answer["Payload"].read())["body"])["release"] == expected


def test_slow(here: Surroundings, stage: str) -> None:
    deploy_with(here, latency_ms=600)
    with here.client(stage) as client:
        client.get("/health")
        assert timed(client, "/sessions", params=QUERY)[0] >= 0.6
        assert min(timed(client, "/health")[0] for _ in range(3)) < 0.3


def test_more_memory_is_more_of_a_processor(here: Surroundings, stage: str) -> None:
    deploy_with(here, work_ms=1500)
    functions, name = boto3.client("lambda"), service_name(stage)
    with here.client(stage) as client:
        client.get("/health")
        assert timed(client, "/sessions", params=QUERY)[0] >= 1.5
        functions.update_function_configuration(FunctionName=name, MemorySize=2048)
        functions.get_waiter("function_updated_v2").wait(FunctionName=name)
        version = functions.publish_version(FunctionName=name)["Version"]
        functions.update_alias(FunctionName=name, Name=ALIAS, FunctionVersion=version)
        client.get("/health")
        assert 0.375 <= timed(client, "/sessions", params=QUERY)[0] < 1.2


def test_cold(here: Surroundings, stage: str) -> None:
    deploy_with(here, cold_start_ms=1200)
    with here.client(stage) as client:
        assert timed(client, "/health")[0] >= 1.2
        assert min(timed(client, "/health")[0] for _ in range(3)) < 0.6
    first, *later = here.log(stage)[-4:]
    assert first["coldStart"]
    assert first["initMs"] >= 1200
    assert not any(entry["coldStart"] for entry in later)


def test_memory_that_is_held(here: Surroundings, stage: str) -> None:
    deploy_with(here, memory_held_mb=200)
    with here.client(stage) as client:
        assert client.get("/health").status_code == 200
    assert 230 < here.log(stage)[-1]["memoryUsedMb"] < 400
    reported = [int(used) for used in re.findall(r"Max Memory Used: (\d+) MB", "\n".join(here.messages(stage)))]
    assert 230 < reported[-1] < 400


def test_memory_that_leaks_until_the_function_is_killed(here: Surroundings, stage: str) -> None:
    release = GOOD.with_faults("test", memory_leak_mb=60)
    checkout = write_checkout(release, here.releases)
    config = checkout / "sst.config.ts"
    config.write_text(config.read_text().replace('"512 MB"', '"256 MB"'))
    Deployer().deploy(checkout, stage, lambda _line: None)
    configured = boto3.client("lambda").get_function_configuration(FunctionName=service_name(stage), Qualifier=ALIAS)
    assert (configured["MemorySize"], configured["Timeout"]) == (256, 30)
    with here.client(stage) as client:
        answers = [client.get("/health").status_code for _ in range(6)]
    grown = [entry["memoryUsedMb"] for entry in here.log(stage) if entry["release"] == release.id]
    assert grown[0] < grown[1] < grown[2]
    assert 502 in answers
    assert answers[0] == 200


def test_refused_bodies(here: Surroundings, stage: str) -> None:
    deploy_with(here, reject_validation=True)
    with here.client(stage) as client:
        assert client.post("/sessions", json={"project_id": "p"}).status_code == 400
        assert client.get("/sessions", params=QUERY).status_code == 200


def test_a_missing_route(here: Surroundings, stage: str) -> None:
    deploy_with(here, missing_route="POST /sessions")
    with here.client(stage) as client:
        assert client.post("/sessions", json={"project_id": "p"}).status_code == 404
        assert client.get("/sessions", params=QUERY).status_code == 200


def test_a_release_that_never_starts(here: Surroundings, stage: str) -> None:
    deploy_with(here, crash_on_init=True)
    with here.client(stage) as client:
        assert client.get("/health").status_code == 502


def test_a_release_whose_invocations_fail(here: Surroundings, stage: str) -> None:
    before = metric("AWS/Lambda", "Errors", "FunctionName", service_name(stage))
    deploy_with(here, crash_rate=1)
    with here.client(stage) as client:
        assert [client.get("/health").status_code for _ in range(3)] == [502] * 3
    assert metric("AWS/Lambda", "Errors", "FunctionName", service_name(stage)) - before == 3


def test_new_sessions_get_the_release_s_defaults(here: Surroundings, stage: str) -> None:
    here.deploy(stage, Release(label="environment", session_defaults={"environment": "production"}))
    with here.client(stage) as client:
        assert client.post("/sessions", json={"project_id": "p"}).json()["environment"] == "production"


def test_a_query_without_its_index(here: Surroundings, stage: str) -> None:
    data.seed(here.uri(stage), 30_000)
    deploy_with(here, unindexed_query=True)
    with here.client(stage) as client:
        assert client.get("/sessions", params=QUERY).status_code == 200  # the cold start is not measured
        slow = min(timed(client, "/sessions", params=QUERY)[0] for _ in range(3))
        with pymongo.MongoClient[dict[str, Any]](here.uri(stage)) as database:
            database.get_default_database()[data.COLLECTION].create_index([("owner", 1), ("created_at", -1)])
        fast = min(timed(client, "/sessions", params=QUERY)[0] for _ in range(3))
    assert fast * 3 < slow


def test_the_index_of_the_list_can_be_taken_away_and_is_put_back(here: Surroundings) -> None:
    uri = here.uri("index")
    assert data.seed(uri, 50) == 50
    assert data.seed(uri, 50) == 0
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        sessions = client.get_default_database()[data.COLLECTION]

        def plan() -> str:
            return json.dumps(sessions.find({"project_id": "x", "status": "active"}).explain(), default=str)

        assert "IXSCAN" in plan()
        data.drop_list_index(uri)
        data.drop_list_index(uri)
        assert "IXSCAN" not in plan()
        data.seed(uri, 50)
        assert "IXSCAN" in plan()
        assert data.seed(uri, 20, fresh=True) == 20
        assert sessions.count_documents({}) == 20


# --- traffic -------------------------------------------------------------------------------------------------------


def test_traffic_is_counted(here: Surroundings, stage: str) -> None:
    here.deploy(stage, GOOD)
    with here.client(stage) as client:
        client.get("/health")
    traffic = Traffic(here.url(stage), 15, KEY, seconds=2, seed=1).start()
    deadline = time.monotonic() + 60
    while traffic.running and time.monotonic() < deadline:
        time.sleep(0.05)
    stats = traffic.stop()
    assert (stats.sent, stats.dropped) == (30, 0)
    assert stats.statuses.keys() == {"200", "201"}
    assert len(stats.routes) == 5
    assert stats.error_rate == 0
    assert stats.p50_ms is not None
    assert stats.p99_ms is not None
    assert 0 < stats.p50_ms <= stats.p99_ms
    assert "30 answered" in stats.line()


def test_traffic_stops_when_told_and_counts_silence_as_failure() -> None:
    traffic = Traffic("http://127.0.0.1:1", 100).start()
    deadline = time.monotonic() + 10
    while traffic.stats().sent < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    stats = traffic.stop()
    assert not traffic.running
    assert stats.statuses.keys() == {"none"}
    assert stats.error_rate == 1


@pytest.mark.parametrize(
    "url", ["https://claude-projects.truapi.com", "http://10.0.0.1", "http://127.0.0.1.evil.test", "x"]
)
def test_traffic_leaves_other_machines_alone(url: str) -> None:
    with pytest.raises(NotLoopbackError):
        Traffic(url, 1)
    with pytest.raises(SystemExit, match="2"):
        traffic_main(["--url", url])


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (201, 1), (1, 0), (1, 1e9)])
def test_traffic_is_bounded(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Traffic("http://127.0.0.1:1", rate, seconds=seconds)


def test_every_fault_has_a_named_release() -> None:
    shown = {name for release in CATALOGUE.values() for name, value in release.faults if value}
    assert shown == set(Faults.model_fields)
