"""CloudFormation: what the stacks of the runbooks hold is created, changed, rolled back and deleted for real."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sandbox.aws.scenarios import BLOCKER, StuckRollback
from tests.sandbox.aws_helpers import ASSUME, Aws, code, refusal, unique, until


@pytest.fixture(scope="module")
def bucket(aws: Aws) -> str:
    name = unique("code")
    aws.s3.create_bucket(Bucket=name)
    for release in ("r1", "r2"):
        aws.s3.put_object(Bucket=name, Key=f"{release}.zip", Body=code(release))
    return name


def template(name: str, bucket: str, release: str = "r1", **changes: Any) -> dict[str, Any]:
    """A service as the sandbox deploys one: function, version, alias, API with a stage variable, logs, alarm."""
    memory, retention = changes.get("memory", 256), changes.get("retention", 14)
    version = f"Version{release}"
    uri = (
        "arn:aws:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/"
        "${Function.Arn}:${!stageVariables.lambdaAlias}/invocations"
    )
    resources: dict[str, Any] = {
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"AssumeRolePolicyDocument": ASSUME, "Description": release},
        },
        "Logs": {
            "Type": "AWS::Logs::LogGroup",
            "Properties": {"LogGroupName": f"/aws/lambda/{name}", "RetentionInDays": retention},
        },
        "Function": {
            "Type": "AWS::Lambda::Function",
            "DependsOn": "Logs",
            "Properties": {
                "FunctionName": name,
                "Runtime": "python3.12",
                "Handler": "app.handler",
                "Role": {"Fn::GetAtt": ["Role", "Arn"]},
                "MemorySize": memory,
                "Code": {"S3Bucket": bucket, "S3Key": f"{release}.zip"},
                "Environment": {"Variables": {"RELEASE": release}},
            },
        },
        version: {
            "Type": "AWS::Lambda::Version",
            "DeletionPolicy": "Retain",
            "Properties": {"FunctionName": {"Ref": "Function"}},
        },
        "Alias": {
            "Type": "AWS::Lambda::Alias",
            "Properties": {
                "Name": "live",
                "FunctionName": {"Ref": "Function"},
                "FunctionVersion": {"Fn::GetAtt": [version, "Version"]},
            },
        },
        "Permission": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {
                "Action": "lambda:InvokeFunction",
                "FunctionName": {"Ref": "Alias"},
                "Principal": "apigateway.amazonaws.com",
            },
        },
        "Api": {"Type": "AWS::ApiGateway::RestApi", "Properties": {"Name": name}},
        "Health": {
            "Type": "AWS::ApiGateway::Resource",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "ParentId": {"Fn::GetAtt": ["Api", "RootResourceId"]},
                "PathPart": "health",
            },
        },
        "Method": {
            "Type": "AWS::ApiGateway::Method",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "ResourceId": {"Ref": "Health"},
                "HttpMethod": "GET",
                "AuthorizationType": "NONE",
                "Integration": {
                    "Type": "AWS_PROXY",
                    "IntegrationHttpMethod": "POST",
                    "Uri": {"Fn::Sub": uri},
                },
            },
        },
        f"Deployment{release}": {
            "Type": "AWS::ApiGateway::Deployment",
            "DependsOn": "Method",
            "Properties": {"RestApiId": {"Ref": "Api"}},
        },
        "Stage": {
            "Type": "AWS::ApiGateway::Stage",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "DeploymentId": {"Ref": f"Deployment{release}"},
                "StageName": "production",
                "Variables": {"lambdaAlias": "live"},
            },
        },
        "Alarm": {
            "Type": "AWS::CloudWatch::Alarm",
            "Properties": {
                "AlarmName": f"{name}-errors",
                "Namespace": "AWS/Lambda",
                "MetricName": "Errors",
                "Dimensions": [{"Name": "FunctionName", "Value": name}],
                "Statistic": "Sum",
                "Period": 60,
                "EvaluationPeriods": 1,
                "Threshold": changes.get("threshold", 1),
                "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            },
        },
        **changes.get("extra", {}),
    }
    return {
        "Description": release,
        "Resources": resources,
        "Outputs": {"Api": {"Value": {"Ref": "Api"}}, "Version": {"Value": {"Fn::GetAtt": [version, "Version"]}}},
    }


def outputs(aws: Aws, stack: str) -> dict[str, str]:
    found = aws.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["Outputs"]
    return {one["OutputKey"]: one["OutputValue"] for one in found}


def seen(aws: Aws, name: str) -> dict[str, Any]:
    """What the services say of the stack ``name``."""
    config = aws.function.get_function_configuration(FunctionName=name)
    alarm = aws.cloudwatch.describe_alarms(AlarmNames=[f"{name}-errors"])["MetricAlarms"][0]
    role = config["Role"].rsplit("/", 1)[1]
    api = outputs(aws, name)["Api"]
    return {
        "memory": config["MemorySize"],
        "release": config["Environment"]["Variables"]["RELEASE"],
        "code": config["CodeSha256"],
        "state": (config["State"], config["LastUpdateStatus"]),
        "alias": aws.function.get_alias(FunctionName=name, Name="live")["FunctionVersion"],
        "retention": aws.logs.describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{name}")["logGroups"][0][
            "retentionInDays"
        ],
        "threshold": alarm["Threshold"],
        "role": aws.iam.get_role(RoleName=role)["Role"]["Description"],
        "deployment": aws.apigateway.get_stage(restApiId=api, stageName="production")["deploymentId"],
        "answer": aws.get(api, "/health").text,
    }


def versions(aws: Aws, name: str) -> list[str]:
    found = aws.function.list_versions_by_function(FunctionName=name)["Versions"]
    return [one["Version"] for one in found if one["Version"] != "$LATEST"]


def test_life_of_a_stack(aws: Aws, bucket: str) -> None:
    name = unique("svc")
    assert aws.create_stack(name, template(name, bucket)) == "CREATE_COMPLETE"
    first = seen(aws, name)
    assert first["answer"] == "r1@1"
    resources = aws.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    assert {one["LogicalResourceId"] for one in resources} == template(name, bucket)["Resources"].keys()
    assert all(one["PhysicalResourceId"] for one in resources)

    changed = template(name, bucket, "r2", memory=512, retention=30, threshold=5)
    assert aws.update_stack(name, changed) == "UPDATE_COMPLETE"
    second = seen(aws, name)
    assert (second["memory"], second["retention"], second["threshold"]) == (512, 30, 5)
    assert (second["release"], second["role"], second["alias"], second["answer"]) == ("r2", "r2", "2", "r2@2")
    assert second["state"] == ("Active", "Successful")
    assert second["deployment"] != first["deployment"]
    assert versions(aws, name) == ["1", "2"], "a version that leaves the template is retained"
    assert json.loads(json.dumps(aws.cloudformation.get_template(StackName=name)["TemplateBody"])) == changed
    listed = aws.cloudformation.list_stacks(StackStatusFilter=["UPDATE_COMPLETE"])["StackSummaries"]
    assert next(one for one in listed if one["StackName"] == name)["LastUpdatedTime"]

    assert refusal(aws.update_stack, name, changed) == "ValidationError", "no updates are to be performed"
    broken = {"Type": "AWS::Lambda::Alias", "Properties": {"Name": "x", "FunctionName": name, "FunctionVersion": "77"}}
    broken["DependsOn"] = ["Stage", "Alarm", "Permission"]
    failing = template(name, bucket, "r1", memory=1024, retention=7, threshold=9, extra={"Broken": broken})
    assert aws.update_stack(name, failing) == "UPDATE_ROLLBACK_COMPLETE"
    rolled_back = seen(aws, name)
    assert rolled_back == second
    assert json.loads(json.dumps(aws.cloudformation.get_template(StackName=name)["TemplateBody"])) == changed
    reasons = {
        event["LogicalResourceId"]: event.get("ResourceStatusReason", "")
        for event in aws.cloudformation.describe_stack_events(StackName=name)["StackEvents"]
        if event["ResourceStatus"] == "CREATE_FAILED" or event["ResourceStatus"] == "UPDATE_FAILED"
    }
    assert "Function not found" in reasons["Broken"]

    assert aws.update_stack(name, template(name, bucket)) == "UPDATE_COMPLETE", "back to the first release"
    assert seen(aws, name)["answer"].startswith("r1@")

    aws.cloudformation.delete_stack(StackName=name)

    def deleted() -> bool:
        gone = aws.cloudformation.list_stacks(StackStatusFilter=["DELETE_COMPLETE"])["StackSummaries"]
        return any(one["StackName"] == name for one in gone)

    until(deleted, "the end of the stack")
    assert refusal(aws.function.get_function, FunctionName=name) == "ResourceNotFoundException"


def test_failing_creates_roll_back(aws: Aws, bucket: str) -> None:
    taken = unique("taken")
    aws.logs.create_log_group(logGroupName=f"/aws/lambda/{taken}")
    missing = unique("missing")
    cases = {missing: template(missing, bucket, "r9"), taken: template(taken, bucket)}
    for name, body in cases.items():
        assert aws.create_stack(name, body) == "ROLLBACK_COMPLETE"
        assert refusal(aws.function.get_function, FunctionName=name) == "ResourceNotFoundException"
        assert not [one for one in aws.apigateway.get_rest_apis(limit=500)["items"] if one["name"] == name]
    reasons = [
        event.get("ResourceStatusReason", "")
        for event in aws.cloudformation.describe_stack_events(StackName=missing)["StackEvents"]
        if event["LogicalResourceId"] == "Function"
    ]
    assert any("NoSuchKey" in reason for reason in reasons)
    assert refusal(aws.update_stack, missing, template(missing, bucket)) == "ValidationError"


def test_templates_that_cannot_be_are_refused_at_once(aws: Aws, bucket: str) -> None:
    name = unique("bad")
    for extra in (
        {"X": {"Type": "AWS::Nope::Thing"}},
        {"X": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": {"Ref": "Absent"}}}},
        {"X": {"Type": "AWS::Logs::LogGroup", "DependsOn": "Absent"}},
    ):
        body = template(name, bucket, extra=extra)
        assert refusal(aws.create_stack, name, body) == "ValidationError"
    assert refusal(aws.cloudformation.describe_stacks, StackName=name) == "ValidationError"


def test_same_token_is_the_same_operation(aws: Aws) -> None:
    name = unique("token")

    def body(days: int) -> dict[str, Any]:
        group = {"LogGroupName": f"/{name}", "RetentionInDays": days}
        return {"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup", "Properties": group}}}

    first = f"{name}-create"
    aws.create_stack(name, body(7), ClientRequestToken=first)
    assert aws.create_stack(name, body(7), ClientRequestToken=first) == "CREATE_COMPLETE"
    token = f"{name}-update"
    for _ in range(2):
        assert aws.update_stack(name, body(14), ClientRequestToken=token) == "UPDATE_COMPLETE"
    events = aws.cloudformation.describe_stack_events(StackName=name)["StackEvents"]
    starts = [
        one for one in events if one["ResourceStatus"] == "UPDATE_IN_PROGRESS" and one["ResourceType"][-5:] == "Stack"
    ]
    assert [one["ClientRequestToken"] for one in starts] == [token]
    assert refusal(aws.update_stack, name, body(30), ClientRequestToken=token) == "TokenAlreadyExistsException"


@pytest.mark.parametrize(
    "text",
    ['{"Resources":{"L":{"Type":"AWS::Logs::LogGroup"}}}', "# kept\nResources:\n  L: {Type: AWS::Logs::LogGroup}\n"],
)
def test_template_comes_back_as_given(aws: Aws, text: str) -> None:
    name = unique("text")
    aws.cloudformation.create_stack(StackName=name, TemplateBody=text)
    assert aws.status(name) == "CREATE_COMPLETE"
    found = aws.cloudformation.get_template(StackName=name)["TemplateBody"]
    assert found == (json.loads(text) if text.startswith("{") else text)


def test_change_set(aws: Aws) -> None:
    name, group = unique("set"), {"Type": "AWS::Logs::LogGroup", "Properties": {"RetentionInDays": 7}}
    aws.create_stack(name, {"Resources": {"Logs": group}})
    body = json.dumps({"Resources": {"Logs": group, "More": group}})
    aws.cloudformation.create_change_set(StackName=name, ChangeSetName="add", ChangeSetType="UPDATE", TemplateBody=body)

    def created() -> Any:
        found = aws.cloudformation.describe_change_set(StackName=name, ChangeSetName="add")
        return found if found["Status"] == "CREATE_COMPLETE" else None

    found = until(created, "the change set")
    assert [one["ResourceChange"]["LogicalResourceId"] for one in found["Changes"]] == ["More"]
    aws.cloudformation.execute_change_set(StackName=name, ChangeSetName="add")
    assert aws.status(name) == "UPDATE_COMPLETE"
    assert len(aws.cloudformation.describe_stack_resources(StackName=name)["StackResources"]) == 2


def test_stuck_rollback_is_cured_and_continued(aws: Aws, bucket: str) -> None:
    name = unique("stuck")
    aws.create_stack(name, template(name, bucket))
    before = seen(aws, name)
    cloudformation = aws.cloudformation
    for operation in ("continue_update_rollback", "cancel_update_stack", "rollback_stack"):
        assert refusal(getattr(cloudformation, operation), StackName=name) == "ValidationError", (
            "not from CREATE_COMPLETE"
        )
    stuck = StuckRollback(name, aws.session, aws.endpoint)
    stuck.stick()
    assert aws.status(name) == "UPDATE_ROLLBACK_FAILED"
    listed = cloudformation.list_stacks(StackStatusFilter=["UPDATE_ROLLBACK_FAILED"])["StackSummaries"]
    assert name in [one["StackName"] for one in listed]
    assert refusal(aws.update_stack, name, template(name, bucket, "r2")) == "ValidationError"
    assert (
        refusal(cloudformation.continue_update_rollback, StackName=name, ResourcesToSkip=["Absent"])
        == "ValidationError"
    )
    cloudformation.continue_update_rollback(StackName=name)
    assert aws.status(name) == "UPDATE_ROLLBACK_FAILED", "the cause is still there"
    stuck.cure()
    cloudformation.continue_update_rollback(StackName=name)
    assert aws.status(name) == "UPDATE_ROLLBACK_COMPLETE"
    assert seen(aws, name) == before
    assert aws.update_stack(name, template(name, bucket, "r2")) == "UPDATE_COMPLETE"


def test_stuck_rollback_is_skipped(aws: Aws) -> None:
    name = unique("skip")
    aws.create_stack(name, {"Resources": {"Logs": {"Type": "AWS::Logs::LogGroup"}}})
    StuckRollback(name, aws.session, aws.endpoint).stick()
    aws.cloudformation.continue_update_rollback(StackName=name, ResourcesToSkip=[BLOCKER])
    assert aws.status(name) == "UPDATE_ROLLBACK_COMPLETE"


def test_another_ministack_is_refused() -> None:
    """The corrections fit one version only."""
    script = (
        "import importlib.metadata as m; m.version = lambda name: '1.6.0'\n"
        "from sandbox.aws.__main__ import main; main()"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "needs ministack 1.5.33 exactly and found 1.6.0" in answer.stderr
