"""REST APIs over HTTP: deployments, canaries, stage variables, refusals and their metrics."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.sandbox.aws_helpers import Aws, code, package, refusal, unique

CANARY = {"percentTraffic": 50.0, "useStageCache": False}


def patch(aws: Aws, api: str, *operations: tuple[str, str, str]) -> dict[str, object]:
    """``(op, path, value or from)``"""
    patches = [
        {"op": op, "path": path, "from" if op == "copy" else "value": value} if value else {"op": op, "path": path}
        for op, path, value in operations
    ]
    found: dict[str, object] = aws.apigateway.update_stage(
        restApiId=api, stageName="production", patchOperations=patches
    )
    return found


def stage(aws: Aws, api: str) -> dict[str, object]:
    found: dict[str, object] = aws.apigateway.get_stage(restApiId=api, stageName="production")
    return found


def test_request_runs_the_alias_and_is_measured(aws: Aws) -> None:
    name = aws.published("old", "new")
    aws.function.update_alias(FunctionName=name, Name="live", RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}})
    api = aws.make_api(f"{name}:live")
    answers = Counter(aws.get(api).text for _ in range(40))
    assert answers.keys() == {"old@1", "new@2"}
    for body, version in (("old@1", "1"), ("new@2", "2")):
        assert answers[body] == aws.total(
            "Invocations", FunctionName=name, Resource=f"{name}:live", ExecutedVersion=version
        )
    assert aws.total("Invocations", FunctionName=name) == 40
    assert aws.get(api, "/nowhere").status_code == 403
    for extra in ({}, {"Stage": "production"}):
        dimensions = {"ApiName": aws.api_name(api), **extra}
        assert aws.total("Count", **dimensions) == 41
        assert aws.total("4XXError", **dimensions) == 1
        assert aws.total("5XXError", **dimensions) == 0
        assert aws.total("Latency", "SampleCount", **dimensions) == 41
        assert aws.total("IntegrationLatency", "SampleCount", **dimensions) == 40, "one never reached the function"
        assert aws.total("Latency", **dimensions) >= aws.total("IntegrationLatency", **dimensions)
    assert aws.total("IntegrationLatency", ApiName=aws.api_name(api)) >= aws.total("Duration", FunctionName=name) - 40


def test_stage_variable_names_the_alias_and_the_canary_overrides_it(aws: Aws) -> None:
    name = aws.published("old", "new")
    aws.function.create_alias(FunctionName=name, Name="next", FunctionVersion="2")
    api = aws.make_api(f"{name}:${{stageVariables.lambdaAlias}}", variables={"lambdaAlias": "live", "kept": "yes"})
    assert {aws.get(api).text for _ in range(5)} == {"old@1"}
    before = stage(aws, api)["deploymentId"]
    overrides = {"lambdaAlias": "next"}
    canary = aws.apigateway.create_deployment(
        restApiId=api, stageName="production", canarySettings={**CANARY, "stageVariableOverrides": overrides}
    )["id"]
    found = stage(aws, api)
    assert found["deploymentId"] == before, "the stage stays where it is"
    assert found["canarySettings"] == {**CANARY, "deploymentId": canary, "stageVariableOverrides": overrides}
    answers = Counter(aws.get(api).text for _ in range(40))
    assert answers.keys() == {"old@1", "new@2"}
    assert aws.total("Count", ApiName=aws.api_name(api), Stage="production/Canary") == answers["new@2"]
    assert aws.total("Count", ApiName=aws.api_name(api), Stage="production") == answers["old@1"] + 5
    assert aws.total("Count", ApiName=aws.api_name(api)) == 45

    promoted = patch(
        aws,
        api,
        ("replace", "/canarySettings/percentTraffic", "0"),
        ("copy", "/variables", "/canarySettings/stageVariableOverrides"),
        ("copy", "/deploymentId", "/canarySettings/deploymentId"),
        ("remove", "/canarySettings", ""),
    )
    assert promoted["deploymentId"] == canary
    assert promoted["variables"] == {"lambdaAlias": "next", "kept": "yes"}
    assert "canarySettings" not in promoted
    assert {aws.get(api).text for _ in range(5)} == {"new@2"}


def test_deployment_is_a_snapshot(aws: Aws) -> None:
    first, second = aws.make_function(code("first")), aws.make_function(code("second"))
    api = aws.make_api(first)
    before = str(stage(aws, api)["deploymentId"])
    aws.integrate(api, second)
    assert aws.get(api).text == "first@$LATEST", "a change is not live before it is deployed"
    aws.apigateway.create_deployment(restApiId=api, stageName="production")
    assert aws.get(api).text == "second@$LATEST"
    patch(aws, api, ("replace", "/deploymentId", before))
    assert aws.get(api).text == "first@$LATEST"
    assert len(aws.apigateway.get_deployments(restApiId=api)["items"]) == 2


def test_canary_percentage_is_changed_and_ended_on_the_live_stage(aws: Aws) -> None:
    first, second = aws.make_function(code("first")), aws.make_function(code("second"))
    api = aws.make_api(first)
    aws.integrate(api, second)
    aws.apigateway.create_deployment(
        restApiId=api, stageName="production", canarySettings={**CANARY, "percentTraffic": 0.0}
    )
    assert {aws.get(api).text for _ in range(5)} == {"first@$LATEST"}
    patch(aws, api, ("replace", "/canarySettings/percentTraffic", "100.0"))
    assert {aws.get(api).text for _ in range(5)} == {"second@$LATEST"}, "100 % serves the canary and promotes nothing"
    patch(aws, api, ("remove", "/canarySettings", ""))
    assert {aws.get(api).text for _ in range(5)} == {"first@$LATEST"}


def test_impossible_stage_patch_is_refused_whole(aws: Aws) -> None:
    api = aws.make_api(unique("none"))
    before = stage(aws, api)
    cases = [
        [("replace", "/deploymentId", "nope")],
        [("replace", "/canarySettings/deploymentId", "nope")],
        [("replace", "/canarySettings/percentTraffic", "101")],
        [("copy", "/deploymentId", "/canarySettings/deploymentId")],
        [("replace", "/description", "x"), ("replace", "/deploymentId", "nope")],
    ]
    for operations in cases:
        assert refusal(patch, aws, api, *operations) == "BadRequestException"
    assert {**stage(aws, api), "ResponseMetadata": 0} == {**before, "ResponseMetadata": 0}


def test_impossible_canary_deployment_is_refused(aws: Aws) -> None:
    api = aws.make_api(unique("none"))
    assert (
        refusal(
            aws.apigateway.create_deployment,
            restApiId=api,
            stageName="production",
            canarySettings={"percentTraffic": 150.0},
        )
        == "BadRequestException"
    )
    assert (
        refusal(aws.apigateway.create_deployment, restApiId=api, stageName="absent", canarySettings=CANARY)
        == "BadRequestException"
    )


def test_deployment_in_use_cannot_be_deleted(aws: Aws) -> None:
    api = aws.make_api(unique("none"))
    used = str(stage(aws, api)["deploymentId"])
    canary = aws.apigateway.create_deployment(restApiId=api, stageName="production", canarySettings=CANARY)["id"]
    for deployment in (used, canary):
        delete = {"restApiId": api, "deploymentId": deployment}
        assert refusal(aws.apigateway.delete_deployment, **delete) == "BadRequestException"
    patch(aws, api, ("remove", "/canarySettings", ""))
    aws.apigateway.delete_deployment(restApiId=api, deploymentId=canary)


def test_stage_throttling(aws: Aws) -> None:
    api = aws.make_api(aws.make_function())
    found = patch(
        aws,
        api,
        ("replace", "/*/*/throttling/rateLimit", "0.001"),
        ("replace", "/*/*/throttling/burstLimit", "2"),
    )
    assert found["methodSettings"]["*/*"]["throttlingBurstLimit"] == 2  # type: ignore[index]  # as AWS nests it
    assert [aws.get(api).status_code for _ in range(4)] == [200, 200, 429, 429]


def test_what_a_failing_function_becomes(aws: Aws) -> None:
    source = """
import time
def handler(event, context):
    path = event["path"]
    if path == "/raise":
        raise ValueError("boom")
    if path == "/slow":
        time.sleep(2)
    return {"/object": {"statusCode": 200, "body": {"a": 1}}, "/text": "hello"}.get(
        path, {"statusCode": 503, "headers": {"x-a": "b"}, "body": "busy"}
    )
"""
    name = aws.make_function(package(source))
    api = aws.make_api(name)
    aws.apigateway.create_resource(restApiId=api, parentId=aws.root(api), pathPart="{proxy+}")
    proxy = next(one for one in aws.apigateway.get_resources(restApiId=api)["items"] if one["path"] != "/")["id"]
    aws.apigateway.put_method(restApiId=api, resourceId=proxy, httpMethod="ANY", authorizationType="NONE")
    arn = aws.function.get_function_configuration(FunctionName=name)["FunctionArn"]
    aws.apigateway.put_integration(
        restApiId=api,
        resourceId=proxy,
        httpMethod="ANY",
        type="AWS_PROXY",
        integrationHttpMethod="POST",
        uri=f"arn:aws:apigateway:us-east-1:lambda:path/2015-03-31/functions/{arn}/invocations",
        timeoutInMillis=1000,
    )
    aws.apigateway.create_deployment(restApiId=api, stageName="production")
    aws.function.invoke(FunctionName=name, Payload=b'{"path": "/other"}')  # a cold start may outlast that time-out
    expected = {"/other": 503, "/raise": 502, "/object": 502, "/text": 502, "/slow": 504}
    answers = {path: aws.get(api, path) for path in expected}
    assert {path: answer.status_code for path, answer in answers.items()} == expected
    assert answers["/other"].headers["x-a"] == "b"
    assert answers["/raise"].json() == {"message": "Internal server error"}
    assert answers["/slow"].json() == {"message": "Endpoint request timed out"}
    aws.function.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    throttled = aws.get(api, "/other")
    assert (throttled.status_code, throttled.json()) == (500, {"message": "Internal server error"})
    assert aws.total("Throttles", FunctionName=name) == 1
    assert aws.total("5XXError", ApiName=aws.api_name(api), Stage="production") == 6


def test_integration_of_an_unknown_function_is_a_500(aws: Aws) -> None:
    api = aws.make_api(aws.make_function() + ":absent")
    assert aws.get(api).status_code == 500


def test_traffic_from_many_threads_loses_nothing(aws: Aws) -> None:
    threads, each = 20, 15
    name = aws.published("a")
    api = aws.make_api(f"{name}:live")
    start = threading.Barrier(threads)

    def visit(_: int) -> list[int]:
        start.wait()
        return [aws.get(api).status_code for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        statuses = [status for found in pool.map(visit, range(threads)) for status in found]
    total = threads * each
    assert statuses == [200] * total
    assert aws.total("Invocations", FunctionName=name, Resource=f"{name}:live", ExecutedVersion="1") == total
    assert aws.total("Duration", "SampleCount", FunctionName=name) == total
    assert aws.total("Count", ApiName=aws.api_name(api), Stage="production") == total
    pages = aws.logs.get_paginator("filter_log_events").paginate(
        logGroupName=f"/aws/lambda/{name}", filterPattern='"REPORT RequestId"', PaginationConfig={"PageSize": 70}
    )
    reports = [event["message"] for page in pages for event in page["events"]]
    assert len(reports) == total
    cold = sum("Init Duration" in report for report in reports)
    assert 1 <= cold <= threads, "environments are kept warm"


def test_api_key_and_usage_plan(aws: Aws) -> None:
    key = aws.apigateway.create_api_key(name=unique("key"), enabled=True)["id"]
    plan = aws.apigateway.create_usage_plan(name=unique("plan"), throttle={"rateLimit": 5, "burstLimit": 10})["id"]
    aws.apigateway.create_usage_plan_key(usagePlanId=plan, keyId=key, keyType="API_KEY")
    changed = aws.apigateway.update_api_key(
        apiKey=key, patchOperations=[{"op": "replace", "path": "/enabled", "value": "false"}]
    )
    assert changed["enabled"] is False
