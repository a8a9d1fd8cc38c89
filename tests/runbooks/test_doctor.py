"""The doctor on the sandbox: green as it is, and red with the right remedy for what can be wrong with a stage."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import boto3
import pytest
from temporalio.client import Client

from activities.calls import kept
from activities.permissions import filled, policy, with_rare
from activities.settings import load_settings
from sandbox.house import House
from starters.app import run
from starters.doctor import examined
from starters.doctor_lines import Line, State
from starters.problems import Code
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, finished

STAGING = "RUNBOOKS_STAGES__STAGING__"
"""Not production: a wrong key leaves refusals there that a diagnosis of another test would find."""


@pytest.fixture
def here(house: House, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process as one beside the worker."""
    worker.start()
    for name, value in house.environment().items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def line(check: str, lines: list[Line] | None = None) -> Line:
    found = [one for one in (lines or examined("staging")) if one.check == check]
    assert found, f"no line about {check}"
    return found[0]


async def test_the_sandboxs_stage_is_in_order(
    here: pytest.MonkeyPatch, house: House, runs: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(house, runs, stage="staging")
    await finished(await site.start("DatabaseBackup", reason="so that there is one"))
    before = len(site.received())
    lines = await asyncio.to_thread(examined, "staging")
    assert [one for one in lines if one.state in (State.WRONG, State.SKIPPED)] == []
    assert {one.check for one in lines} >= {
        "temporal",
        "search attributes",
        "worker",
        "credentials",
        "permissions",
        "engine",
        "alias",
        "versions",
        "log",
        "metrics",
        "database",
        "database roles",
        "backup",
        "chat: slack",
        "page: pagerduty",
        "ticket: tickets",
    }
    told = [event for event in site.received()[before:] if event["action"] != "resolve"]
    assert told == [], "a check-up reaches nobody"
    capsys.readouterr()
    assert await asyncio.to_thread(run, ["doctor", "staging", "--json"]) == Code.DONE
    assert {one["state"] for one in json.loads(capsys.readouterr().out)} <= {"ok", "warning"}


WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    # What is set wrongly, the line that turns red, and what it says to do.
    "alias": ({f"{STAGING}ALIAS": "nope"}, "alias", "aws lambda create-alias --function-name"),
    "function": ({f"{STAGING}FUNCTION": "nope"}, "function", "correct 'function' in [stages.staging]"),
    "log group": ({f"{STAGING}LOG_GROUP": "/aws/lambda/nope"}, "log", "set log_group = '/aws/lambda/claude-"),
    "gateway name": ({f"{STAGING}GATEWAY__NAME": "nope"}, "gateway", "set name = 'state-api-staging'"),
    "gateway stage": ({f"{STAGING}GATEWAY__STAGE": "nope"}, "gateway", "correct 'stage' in"),
    "stack": ({f"{STAGING}STACK": "nope"}, "stack", "correct 'stack' in [stages.staging]"),
    "url": ({f"{STAGING}URL": "http://127.0.0.1:1"}, "service", "correct 'url' in [stages.staging]"),
    "no key": ({f"{STAGING}API_KEY": "env:NOPE"}, "secrets", "store a value where [stages.staging] points"),
    "wrong key": ({f"{STAGING}API_KEY": "env:WRONG"}, "api key", "store a key that the API takes under env:WRONG"),
    "database": (
        {f"{STAGING}DATABASE__URI": "env:NOBODY"},
        "database",
        "the right connection string under env:NOBODY",
    ),
    "no backup": ({f"{STAGING}BACKUP__LOCATION": "file:///nope"}, "backup", "every day: runbooks schedules apply"),
    "bucket": ({"RUNBOOKS_RECORDS__BUCKET": "nope"}, "records", "aws s3 mb s3://nope"),
    "engine": ({f"{STAGING}DEPLOY__ENGINE": "sst-v2"}, "engine", "set engine = 'sst'"),
    "builds": ({f"{STAGING}DEPLOY__RELEASES": "/nope"}, "engine", "mount it on the worker, or correct releases"),
    "region": ({f"{STAGING}REGION": "eu-west-1"}, "credentials", "run a worker for eu-west-1"),
    "AWS": ({"RUNBOOKS_AWS__ENDPOINT_URL": "http://127.0.0.1:1"}, "credentials", "give the worker credentials"),
    "chat": ({f"{STAGING}CHANNELS__CHAT": '["nope"]'}, "chat: nope", "add [providers.KIND.nope]"),
    "slack": ({"RUNBOOKS_PROVIDERS__SLACK__SLACK__WEBHOOK": "env:GONE"}, "chat: slack", "make a new incoming webhook"),
    "Temporal": ({"TEMPORAL_ADDRESS": "127.0.0.1:1"}, "temporal", "start the server, or set TEMPORAL_ADDRESS"),
    "namespace": ({"TEMPORAL_NAMESPACE": "nope"}, "temporal", "temporal operator namespace create -n nope"),
    "queue": ({"RUNBOOKS_TASK_QUEUE": "nobody"}, "worker", "start one: python -m worker"),
    "keyring": ({"RUNBOOKS_ENCRYPTION__KEYS": "file:/nope"}, "encryption", "put the keyring there"),
    "signing": ({f"{STAGING}SIGNED_APPROVALS": "true"}, "settings", "correct the settings"),
    "settings": ({"RUNBOOKS_CONFIG": "/nope.toml"}, "settings", "correct the settings"),
}


AT_ONCE = (
    # What can be wrong at the same time, because a check-up is not stopped by the first red line.
    ("alias", "log group", "gateway name", "stack", "wrong key", "database", "engine", "chat", "queue", "keyring"),
    ("function", "gateway stage", "no backup", "bucket", "url", "builds", "slack", "namespace"),
    ("no key",),
    ("region",),
    ("AWS", "Temporal"),
    ("signing",),
    ("settings",),
)


def test_every_case_is_tried() -> None:
    assert {case for cases in AT_ONCE for case in cases} == WRONG.keys()


@pytest.mark.parametrize("cases", AT_ONCE, ids=" ".join)
def test_what_is_wrong_is_red_with_its_remedy(here: pytest.MonkeyPatch, house: House, cases: tuple[str, ...]) -> None:
    here.setenv("WRONG", "no-such-key")
    here.setenv("NOBODY", f"mongodb://nobody:none@{_mongodb(house)}")
    here.setenv("GONE", f"{_hub(house)}/slack/gone/webhook")
    for case in cases:
        for name, value in WRONG[case][0].items():
            here.setenv(name, value)
    lines = examined("staging")
    for _, check, remedy in (WRONG[case] for case in cases):
        found = line(check, lines)
        assert (found.state, remedy in (found.remedy or "")) == (State.WRONG, True), found
    text = " ".join(f"{one.said} {one.remedy}" for one in lines)
    assert "no-such-key" not in text
    assert "nobody:none" not in text


def test_search_attributes_and_keys_of_approvers(here: pytest.MonkeyPatch) -> None:
    here.setenv("TEMPORAL_NAMESPACE", "temporal-system")  # one that every server has, and that has none of ours
    assert "temporal operator search-attribute create --name RunbookStage" in (line("search attributes").remedy or "")
    here.setenv("TEMPORAL_NAMESPACE", "default")
    here.setenv(f"{STAGING}SIGNED_APPROVALS", "true")
    here.setenv("RUNBOOKS_APPROVERS", json.dumps({"ann": "ed25519:" + "A" * 43 + "="}))
    here.setenv(f"{STAGING}GATES", json.dumps({"default": {"approvers": ["ann", "bob"]}}))
    found = line("approvals")
    assert (found.state, "runbooks keys new" in (found.remedy or "")) == (State.WRONG, True)
    assert "bob" in found.said


def test_a_role_that_lacks_a_permission_is_told_which(here: pytest.MonkeyPatch, house: House) -> None:
    settings = load_settings()
    stage = settings.stages["staging"]
    names = {"Partition": "aws", "Region": "us-east-1", "Account": "*", "Function": stage.function}
    names |= {"Stack": stage.stack or "", "LogGroup": stage.log_group, "Records": settings.records.bucket}
    names |= {"GatewayLogGroup": stage.gateway.log_group or ""}
    allowed = [action for made in with_rare(kept(), "aws", stage).values() for action in made]
    iam: Any = boto3.client("iam", endpoint_url=settings.aws.endpoint_url, region_name="us-east-1")
    iam.create_user(UserName="runbooks")
    key = iam.create_access_key(UserName="runbooks")["AccessKey"]

    def may(actions: list[str]) -> None:
        document = filled(json.dumps(policy([*actions, "iam:SimulatePrincipalPolicy"])), names)
        iam.put_user_policy(UserName="runbooks", PolicyName="runbooks", PolicyDocument=document)

    may(allowed)
    here.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    here.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    assert line("permissions").state is State.OK
    may([action for action in allowed if action not in ("lambda:UpdateAlias", "s3:PutObject")])
    found = line("permissions")
    assert (found.state, "deploy/iam" in (found.remedy or "")) == (State.WRONG, True)
    assert found.said.endswith("may not: lambda:UpdateAlias, s3:PutObject")
    names["GatewayLogGroup"] = "/another"
    may(allowed)
    assert line("permissions").said.endswith("may not: logs:FilterLogEvents, logs:StartQuery")


def _port(house: House, name: str) -> int:
    return next(port for part in house.status() for kind, port in part.ports.items() if kind == name)


def _mongodb(house: House) -> str:
    return f"127.0.0.1:{_port(house, 'mongodb')}"


def _hub(house: House) -> str:
    return f"http://127.0.0.1:{_port(house, 'hub')}"
