"""From recorded calls to policies: names, resources, roles, and that what is committed is made of what is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from botocore import xform_name
from botocore.loaders import Loader

from activities.calls import Calls, action_of, atlas_call_of, command_of, kept, read
from activities.permissions import (
    FAMILIES,
    atlas_role,
    by_family,
    documents,
    family_of,
    filled,
    mongodb_role,
    policy,
    resources_of,
    with_rare,
)

USED = {
    "apigateway",
    "application-autoscaling",
    "cloudformation",
    "cloudwatch",
    "lambda",
    "logs",
    "s3",
    "secretsmanager",
    "ses",
    "ssm",
}
OF_OTHERS = {"start_session"}
"""Calls of pymongo that an AWS service happens to have, too."""

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_what_is_committed_is_made_of_the_calls_that_are_kept() -> None:
    made = documents(kept())
    for name, document in made.items():
        assert json.loads((DEPLOY / name).read_text()) == document, f"{name}: run python -m tests.permissions"
    here = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*.json")}
    ours = {name for name in here if name.split("/")[0] in ("iam", "mongodb", "atlas")}
    assert ours == set(made), "a file that no call needs any more, or one that is missing"


@pytest.mark.parametrize(
    ("call", "action"),
    [
        (("lambda", "UpdateAlias", "PUT"), "lambda:UpdateAlias"),
        (("lambda", "Invoke", "POST"), "lambda:InvokeFunction"),
        (("monitoring", "GetMetricData", "POST"), "cloudwatch:GetMetricData"),
        (("s3", "HeadObject", "HEAD"), "s3:GetObject"),
        (("s3", "ListObjectsV2", "GET"), "s3:ListBucket"),
        (("s3", "UploadPart", "PUT"), "s3:PutObject"),
        (("apigateway", "UpdateStage", "PATCH"), "apigateway:PATCH"),
        (("sts", "GetCallerIdentity", "POST"), None),
    ],
)
def test_iam_has_its_own_words(call: tuple[str, str, str], action: str | None) -> None:
    assert action_of(*call) == action


def test_every_kept_action_is_one_that_aws_has() -> None:
    """Against botocore's own models, so that a misspelt mapping cannot pass."""
    loader = Loader()
    services = {"cloudwatch": "cloudwatch", "lambda": "lambda", "ses": "ses"}
    renamed = {"lambda:InvokeFunction", "s3:ListBucket", "s3:ListAllMyBuckets", "s3:ListBucketVersions"}
    for action in {action for made in kept().aws.values() for action in made} - renamed:
        prefix, _, operation = action.partition(":")
        if prefix == "apigateway":
            assert operation in ("GET", "PATCH", "POST", "PUT", "DELETE")
            continue
        model = loader.load_service_model(services.get(prefix, prefix), "service-2")
        assert operation in model["operations"], action


def test_a_policy_is_limited_to_the_stage_where_aws_allows_it() -> None:
    made = policy(["lambda:GetAlias", "lambda:UpdateAlias", "cloudwatch:GetMetricData", "s3:PutObject"])
    by_action = {action: one["Resource"] for one in made["Statement"] for action in one["Action"]}
    assert by_action["cloudwatch:GetMetricData"] == ["*"]
    assert by_action["s3:PutObject"] == ["arn:${Partition}:s3:::${Records}/*"]
    assert len(made["Statement"]) == 3
    assert all("*" not in resource.split(":function:")[1][:5] for resource in by_action["lambda:GetAlias"])
    for family in by_family(kept().aws).values():
        changing = [a for a in family if a.split(":")[1].startswith(("Put", "Update", "Delete", "Create"))]
        assert not [action for action in changing if resources_of(action) == ("*",)], "a change on everything"


def test_both_logs_that_are_read_are_allowed() -> None:
    """The function's, and the gateway's access log: ``signs.gateway_log`` and ``insights.requests`` read it."""
    for action in ("logs:FilterLogEvents", "logs:StartQuery"):
        groups = {resource.partition(":log-group:")[2] for resource in resources_of(action)}
        assert groups == {"${LogGroup}:*", "${GatewayLogGroup}:*"}


def test_names_are_filled_in_and_what_is_not_known_is_any() -> None:
    assert filled("a:${Region}:${Stack}", {"Region": "us-east-1"}) == "a:us-east-1:*"


@pytest.mark.parametrize(
    ("database", "command", "body", "noted"),
    [
        ("state", "find", {}, "stage find"),
        ("state_scratch", "dropDatabase", {}, "scratch dropDatabase"),
        ("state_restored", "insert", {}, "scratch insert"),
        ("state_restored", "insert", {"bypassDocumentValidation": True}, "scratch insertUnchecked"),
        ("admin", "serverStatus", {}, "admin serverStatus"),
        ("state", "update", {"updates": [{"q": {}, "u": {}}]}, "stage update"),
        ("state", "update", {"updates": [{"q": {}, "u": {}}, {"upsert": True}]}, "stage upsert"),
        ("admin", "aggregate", {"pipeline": [{"$currentOp": {}}, {"$match": {}}]}, "admin $currentOp"),
        ("state", "aggregate", {"pipeline": [{"$match": {}}, {"$merge": {}}]}, "stage $merge"),
        ("state", "aggregate", {"pipeline": []}, "stage aggregate"),
        ("admin", "hello", {}, None),
        ("state", "getMore", {}, None),
        ("admin", "saslContinue", {}, None),
    ],
)
def test_commands_are_noted_by_where_they_go(
    database: str, command: str, body: dict[str, Any], noted: str | None
) -> None:
    assert command_of(database, command, body) == noted


def test_a_role_has_the_actions_of_its_commands_and_no_more() -> None:
    users = mongodb_role("rotation", ["admin createUser", "admin getLog"])["privileges"]
    assert users == [
        {"resource": {"db": "admin", "collection": ""}, "actions": ["createUser"]},
        {"resource": {"cluster": True}, "actions": ["getLog"]},
        {"resource": {"db": "${Database}", "collection": ""}, "actions": ["grantRole"]},
    ]
    unchecked = mongodb_role("database", ["stage insertUnchecked"])["privileges"]
    assert [one["actions"] for one in unchecked] == [["bypassDocumentValidation", "insert"]]
    role = mongodb_role("database", ["stage find", "stage aggregate", "stage createIndexes", "admin serverStatus"])
    assert role["createRole"] == "runbooks-database"
    assert role["privileges"] == [
        {"resource": {"cluster": True}, "actions": ["serverStatus"]},
        {"resource": {"db": "${Database}", "collection": ""}, "actions": ["createIndex", "find"]},
    ]


@pytest.mark.parametrize(
    ("call", "path", "noted", "role"),
    [
        ("GET", "clusters/prod/backup/snapshots/123", "GET /clusters/{id}/backup/snapshots/{id}", "GROUP_READ_ONLY"),
        ("POST", "clusters/prod/backup/restoreJobs", "POST /clusters/{id}/backup/restoreJobs", "GROUP_BACKUP_MANAGER"),
        ("DELETE", "databaseUsers/admin/ann", "DELETE /databaseUsers/{id}/{id}", "GROUP_DATABASE_ACCESS_ADMIN"),
        ("GET", "dbAccessHistory/clusters/prod", "GET /dbAccessHistory/clusters/{id}", "GROUP_DATABASE_ACCESS_ADMIN"),
    ],
)
def test_atlas_calls_lose_their_ids(call: str, path: str, noted: str, role: str) -> None:
    assert atlas_call_of(call, f"/api/atlas/v2/groups/abc/{path}") == noted
    assert atlas_role(noted) == role
    assert atlas_call_of("POST", "/api/oauth/token") is None
    assert atlas_call_of("POST", "/services/T000/B000") is None


def test_a_call_that_is_not_kept_is_named_with_its_workflow(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    file.write_text('["aws", "QuickRollback", "lambda:GetAlias"]\n["aws", "QuickRollback", "lambda:DeleteFunction"]\n')
    known = Calls(aws={"QuickRollback": ["lambda:GetAlias"]})
    assert read(file).missing_from(known) == ["QuickRollback: lambda:DeleteFunction"]
    assert read(tmp_path / "none").missing_from(known) == []


def operations() -> dict[str, list[str]]:
    """Actions by the name that boto3's clients give to the call."""
    loader, found = Loader(), dict[str, list[str]]()
    for service in loader.list_available_services("service-2"):
        if service in USED:
            for name, facts in loader.load_service_model(service, "service-2")["operations"].items():
                action = action_of(service, name, facts["http"]["method"])
                if action:
                    found.setdefault(xform_name(name), []).append(action)
    return found


def test_no_activity_has_a_call_that_no_policy_allows() -> None:
    """The quick half of the guard: by reading the code. The other half is in the tests of real procedures."""
    allowed = {action for made in with_rare(kept(), "aws").values() for action in made}
    known = operations()
    for path in sorted((DEPLOY.parent / "activities").glob("*.py")):
        text = path.read_text()
        called = re.findall(r"\.([a-z_]+)\(", text) + re.findall(r"get_paginator\(\"(\w+)\"\)", text)
        for name in set(called) & known.keys() - OF_OTHERS:
            assert allowed & set(known[name]), (
                f"{path.name} calls {name}, which no policy under deploy/ allows. Run the test of a runbook that "
                "does so with RECORD_CALLS=1; if none can, describe it in RARE of activities/permissions.py"
            )


def test_families() -> None:
    assert family_of("BatchedUpdate") == "database"
    assert family_of("SomethingNew") == "something-new"
    named = [workflow for workflows in FAMILIES.values() for workflow in workflows]
    assert len(named) == len(set(named))
    page = (DEPLOY / "README.md").read_text()
    for family, workflows in FAMILIES.items():
        assert f"| `{family}` | {', '.join(workflows)} |" in page, "people attach a policy by what it is for"
    everybody = by_family({"worker": ["sts:AssumeRole"], "QuickRollback": ["lambda:GetAlias"]})
    assert everybody == {"rollback": ["lambda:GetAlias", "sts:AssumeRole"]}
