"""Lambda as the runbooks use it: versions, aliases, limits, guards, metrics and log lines."""

from __future__ import annotations

import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.sandbox.aws_helpers import Aws, code, package, refusal, unique, until


def invoke(aws: Aws, name: str, qualifier: str = "") -> tuple[str, object]:
    """The version that ran and its payload."""
    extra = {"Qualifier": qualifier} if qualifier else {}
    answer = aws.function.invoke(FunctionName=name, Payload=b"{}", **extra)
    return str(answer["ExecutedVersion"]), json.loads(answer["Payload"].read())


def messages(aws: Aws, name: str) -> list[str]:
    events = aws.logs.filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    return [event["message"] for event in events]


def test_versions_keep_their_code_and_settings(aws: Aws) -> None:
    name = aws.make_function(code("first"), MemorySize=512)
    assert aws.function.publish_version(FunctionName=name)["Version"] == "1"
    assert aws.function.publish_version(FunctionName=name)["Version"] == "1", "nothing has changed since"
    aws.function.update_function_configuration(FunctionName=name, MemorySize=1024)
    aws.settled(name)
    aws.function.update_function_code(FunctionName=name, ZipFile=code("second"))
    aws.settled(name)
    assert aws.function.publish_version(FunctionName=name)["Version"] == "2"
    versions = aws.function.list_versions_by_function(FunctionName=name)["Versions"]
    assert [one["Version"] for one in versions] == ["$LATEST", "1", "2"]
    assert aws.function.get_function_configuration(FunctionName=name, Qualifier="1")["MemorySize"] == 512
    assert invoke(aws, name, "1") == ("1", {"statusCode": 200, "body": "first@1"})
    assert invoke(aws, name, "2") == ("2", {"statusCode": 200, "body": "second@2"})


def test_stale_revision_is_refused_everywhere(aws: Aws) -> None:
    name = aws.published("a", "b")
    before = aws.function.get_function_configuration(FunctionName=name)
    aws.function.update_function_configuration(FunctionName=name, Description="x", RevisionId=before["RevisionId"])
    aws.settled(name)
    after = aws.function.get_function_configuration(FunctionName=name)
    assert after["RevisionId"] != before["RevisionId"]
    assert after["LastModified"] != before["LastModified"]
    stale = before["RevisionId"]
    assert (
        refusal(aws.function.update_function_configuration, FunctionName=name, MemorySize=256, RevisionId=stale)
        == "PreconditionFailedException"
    )
    assert refusal(aws.function.publish_version, FunctionName=name, RevisionId=stale) == "PreconditionFailedException"
    alias = aws.function.get_alias(FunctionName=name, Name="live")
    moved = aws.function.update_alias(
        FunctionName=name, Name="live", FunctionVersion="2", RevisionId=alias["RevisionId"]
    )
    assert moved["RevisionId"] != alias["RevisionId"]
    assert (
        refusal(
            aws.function.update_alias,
            FunctionName=name,
            Name="live",
            FunctionVersion="1",
            RevisionId=alias["RevisionId"],
        )
        == "PreconditionFailedException"
    )
    assert aws.function.get_alias(FunctionName=name, Name="live")["FunctionVersion"] == "2"


def test_update_during_an_update_is_a_conflict(aws: Aws) -> None:
    name = aws.make_function()
    aws.function.update_function_configuration(FunctionName=name, Description="one")
    assert (
        refusal(aws.function.update_function_configuration, FunctionName=name, Description="two")
        == "ResourceConflictException"
    )
    aws.settled(name)
    aws.function.update_function_configuration(FunctionName=name, Description="two")


def test_settings_beyond_the_limits_are_refused(aws: Aws) -> None:
    name = aws.make_function()
    for settings in ({"MemorySize": 10_241}, {"Timeout": 901}):
        change = {"FunctionName": name, **settings}
        assert refusal(aws.function.update_function_configuration, **change) == "InvalidParameterValueException"


def test_impossible_alias_is_refused(aws: Aws) -> None:
    name = aws.published("a", "b")
    cases: list[tuple[str, dict[str, float], str]] = [
        ("1", {"2": 1.5}, "InvalidParameterValueException"),
        ("1", {"1": 0.5}, "InvalidParameterValueException"),
        ("$LATEST", {"2": 0.1}, "InvalidParameterValueException"),
        ("1", {"9": 0.1}, "ResourceNotFoundException"),
        ("9", {}, "ResourceNotFoundException"),
    ]
    for version, weights, error in cases:
        change = {
            "FunctionName": name,
            "Name": "live",
            "FunctionVersion": version,
            "RoutingConfig": {"AdditionalVersionWeights": weights},
        }
        assert error == refusal(aws.function.update_alias, **change)
    assert aws.function.get_alias(FunctionName=name, Name="live")["FunctionVersion"] == "1"


def test_alias_weights_decide_and_metrics_tell_the_versions_apart(aws: Aws) -> None:
    name = aws.published("old", "new")
    aws.function.update_alias(FunctionName=name, Name="live", RoutingConfig={"AdditionalVersionWeights": {"2": 0.5}})
    assert aws.function.get_function_configuration(FunctionName=name, Qualifier="live")["Version"] == "1"
    ran = [invoke(aws, name, "live") for _ in range(30)]
    assert {version for version, _ in ran} == {"1", "2"}
    assert {body["body"] for _, body in ran if isinstance(body, dict)} == {"old@1", "new@2"}
    invoke(aws, name)  # the bare function is $LATEST, and not the alias
    alias = f"{name}:live"
    assert aws.total("Invocations", FunctionName=name) == 31
    assert aws.total("Invocations", FunctionName=name, Resource=alias) == 30
    assert aws.total("Invocations", FunctionName=name, Resource=name) == 1
    for version in ("1", "2"):
        expected = sum(executed == version for executed, _ in ran)
        dimensions = {"FunctionName": name, "Resource": alias, "ExecutedVersion": version}
        assert aws.total("Invocations", **dimensions) == expected
        assert aws.total("Errors", **dimensions) == 0
        assert aws.total("Duration", "SampleCount", **dimensions) == expected
    aws.function.update_alias(
        FunctionName=name, Name="live", FunctionVersion="2", RoutingConfig={"AdditionalVersionWeights": {}}
    )
    assert {invoke(aws, name, "live")[0] for _ in range(5)} == {"2"}


def test_reserved_concurrency_of_zero_stops_every_way_in(aws: Aws) -> None:
    name = aws.published("a")
    aws.function.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    assert aws.function.get_function(FunctionName=name)["Concurrency"] == {"ReservedConcurrentExecutions": 0}
    for qualifier in ("", "1", "live"):
        assert refusal(invoke, aws, name, qualifier) == "TooManyRequestsException"
    assert aws.total("Throttles", FunctionName=name) == 3
    assert aws.total("Throttles", FunctionName=name, Resource=f"{name}:live") == 1
    assert aws.total("Invocations", FunctionName=name) == 0
    assert aws.total("Errors", FunctionName=name) == 0
    aws.function.delete_function_concurrency(FunctionName=name)
    assert "ReservedConcurrentExecutions" not in aws.function.get_function_concurrency(FunctionName=name)
    assert invoke(aws, name, "live")[0] == "1"


def test_reserved_concurrency_has_its_bounds(aws: Aws) -> None:
    name, reserve = aws.published("a"), aws.function.put_function_concurrency
    assert refusal(reserve, FunctionName=name, ReservedConcurrentExecutions=901) == "InvalidParameterValueException"
    provision = aws.function.put_provisioned_concurrency_config
    provision(FunctionName=name, Qualifier="live", ProvisionedConcurrentExecutions=2)
    for value in (0, 1):
        said = refusal(reserve, FunctionName=name, ReservedConcurrentExecutions=value)
        assert said == "InvalidParameterValueException", value
    reserve(FunctionName=name, ReservedConcurrentExecutions=3)
    more = {"FunctionName": name, "Qualifier": "live", "ProvisionedConcurrentExecutions": 4}
    assert refusal(provision, **more) == "InvalidParameterValueException"


def test_provisioned_environments_are_started_before_anybody_calls(aws: Aws) -> None:
    """And again when the alias moves on."""
    name = aws.published("a", "b")
    invoke(aws, name, "")  # makes the log group
    settings = aws.function.get_provisioned_concurrency_config

    def kept() -> list[tuple[str, int]]:
        found = aws.function.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]
        return [(each["FunctionArn"], each["RequestedProvisionedConcurrentExecutions"]) for each in found]

    assert kept() == []
    aws.function.put_provisioned_concurrency_config(
        FunctionName=name, Qualifier="live", ProvisionedConcurrentExecutions=2
    )

    def ready() -> bool:
        return bool(settings(FunctionName=name, Qualifier="live")["Status"] == "READY")

    until(ready, "provisioning")
    assert [(arn.rpartition(":")[2], wanted) for arn, wanted in kept()] == [("live", 2)]
    before = len(cold_starts(aws, name))
    invoke(aws, name, "live")
    assert len(cold_starts(aws, name)) == before
    aws.function.update_alias(FunctionName=name, Name="live", FunctionVersion="2")
    until(ready, "provisioning")
    assert invoke(aws, name, "live")[0] == "2"
    assert len(cold_starts(aws, name)) == before


def test_a_provisioned_environment_knows_it_is_called_first_and_goes_with_its_provision(aws: Aws) -> None:
    source = """
import os
def handler(event, context):
    return os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE", "another")
"""
    name = aws.make_function(package(source))
    aws.function.publish_version(FunctionName=name)
    aws.function.create_alias(FunctionName=name, Name="live", FunctionVersion="1")

    def answers() -> object:
        return invoke(aws, name, "live")[1]

    def provision(wanted: int) -> None:
        settings = {"FunctionName": name, "Qualifier": "live"}
        aws.function.put_provisioned_concurrency_config(**settings, ProvisionedConcurrentExecutions=wanted)
        until(lambda: aws.function.get_provisioned_concurrency_config(**settings)["Status"] == "READY", "provisioning")

    assert answers() == "another"
    for wanted in (2, 1):
        provision(wanted)
        assert answers() == "provisioned-concurrency"
    aws.function.delete_provisioned_concurrency_config(FunctionName=name, Qualifier="live")
    assert answers() == "another"


def cold_starts(aws: Aws, name: str) -> list[str]:
    """The REPORT lines of invocations that waited for a start."""
    found = aws.logs.filter_log_events(logGroupName=f"/aws/lambda/{name}", filterPattern='"Init Duration"')
    return [event["message"] for event in found["events"]]


def test_provisioned_concurrency_needs_a_version_or_alias(aws: Aws) -> None:
    name = aws.published("a")
    provisioned = {"FunctionName": name, "ProvisionedConcurrentExecutions": 5}
    assert (
        refusal(aws.function.put_provisioned_concurrency_config, Qualifier="$LATEST", **provisioned)
        == "InvalidParameterValueException"
    )
    aws.function.put_provisioned_concurrency_config(Qualifier="live", **provisioned)
    until(
        lambda: (
            aws.function.get_provisioned_concurrency_config(FunctionName=name, Qualifier="live")["Status"] == "READY"
        ),
        "provisioning",
    )
    aws.function.delete_provisioned_concurrency_config(FunctionName=name, Qualifier="live")
    assert (
        refusal(aws.function.get_provisioned_concurrency_config, FunctionName=name, Qualifier="live")
        == "ProvisionedConcurrencyConfigNotFoundException"
    )


def test_log_lines_of_cold_and_warm_invocations(aws: Aws) -> None:
    source = """
import time
def handler(event, context):
    print("first line", flush=True)
    time.sleep(0.2)
    print("second line")
"""
    name = aws.make_function(package(source), MemorySize=256)
    invoke(aws, name)
    invoke(aws, name)
    lines = messages(aws, name)
    kinds = [line.split(" ", 1)[0] for line in lines]
    once = ["START", "first", "second", "END", "REPORT"]
    assert kinds == ["INIT_START", *once, *once]
    assert lines[1].endswith("Version: $LATEST")
    cold, warm = (line for line in lines if line.startswith("REPORT"))
    pattern = (
        r"REPORT RequestId: (\S+)\tDuration: ([\d.]+) ms\tBilled Duration: (\d+) ms\tMemory Size: 256 MB"
        r"\tMax Memory Used: (\d+) MB(?:\tInit Duration: ([\d.]+) ms)?"
    )
    first, second = re.fullmatch(pattern, cold), re.fullmatch(pattern, warm)
    assert first
    assert second
    assert first[5]
    assert second[5] is None, "the environment was kept warm"
    assert 200 <= float(first[2]) < 1000, "starting the environment is no part of the duration"
    assert 5 < int(first[4]) < 256
    events = aws.logs.filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
    assert len({event["logStreamName"] for event in events}) == 1, "an environment has one stream"
    at = {event["message"]: event["timestamp"] for event in events[:4]}
    assert at["second line"] - at["first line"] >= 150, "a line has the time at which it was written"
    assert aws.total("Duration", "SampleCount", FunctionName=name) == 2


def test_failures_time_outs_and_memory(aws: Aws) -> None:
    source = """
import time
hoard = []
def handler(event, context):
    if event == "fail":
        raise ValueError("no such project")
    if event == "sleep":
        time.sleep(30)
    if event == "grow":
        hoard.append(bytearray(300_000_000))
    return "fine"
"""
    name = aws.make_function(package(source), Timeout=1, MemorySize=128)
    patient = aws.make_function(package(source), Timeout=30, MemorySize=128)

    def run(event: str, name: str = name) -> tuple[str | None, dict[str, str] | str]:
        answer = aws.function.invoke(FunctionName=name, Payload=json.dumps(event))
        return answer.get("FunctionError"), json.loads(answer["Payload"].read())

    error, body = run("fail")
    assert isinstance(body, dict)
    assert (error, body["errorType"], body["errorMessage"]) == ("Unhandled", "ValueError", "no such project")
    assert run("fine") == (None, "fine")
    reports = [line for line in messages(aws, name) if line.startswith("REPORT")]
    assert ["Init Duration" in line for line in reports] == [True, False], "an exception leaves the environment warm"
    error, body = run("sleep")
    assert isinstance(body, dict)
    assert (error, body["errorMessage"]) == ("Unhandled", "Task timed out after 1.00 seconds")
    error, body = run("grow", patient)
    assert isinstance(body, dict)
    assert (error, body["errorType"]) == ("Unhandled", "Runtime.ExitError")
    lines = messages(aws, name)
    assert any(line.startswith("[ERROR] ValueError: no such project\nTraceback") for line in lines)
    assert any("Task timed out after 1.00 seconds" in line for line in lines)
    grown = [line for line in messages(aws, patient) if line.startswith("REPORT")]
    assert any("Max Memory Used: 128 MB" in line for line in grown)
    assert aws.total("Invocations", FunctionName=name) == 3
    assert aws.total("Errors", FunctionName=name) == 2
    assert aws.total("Errors", FunctionName=patient) == 1


def test_update_lets_a_running_invocation_finish(aws: Aws) -> None:
    source = """
import os, time
def handler(event, context):
    open(event, "w").close()
    while os.path.exists(event):
        time.sleep(0.02)
    return "finished"
"""
    name = aws.make_function(package(source))
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as pool:
        busy = Path(directory) / "busy"
        running = pool.submit(aws.function.invoke, FunctionName=name, Payload=json.dumps(str(busy)))
        until(busy.exists, "the start of the invocation")
        aws.function.update_function_code(FunctionName=name, ZipFile=code("new"))
        busy.unlink()
        assert json.loads(running.result()["Payload"].read()) == "finished"
    assert invoke(aws, name)[1] == {"statusCode": 200, "body": "new@$LATEST"}


def test_asynchronous_invocation_is_counted_when_it_runs(aws: Aws) -> None:
    name = aws.published("a")
    aws.function.invoke(FunctionName=name, Qualifier="live", InvocationType="Event", Payload=b"{}")
    until(lambda: aws.total("Invocations", FunctionName=name, Resource=f"{name}:live") == 1, "the invocation")
    assert aws.total("Invocations", FunctionName=name) == 1


def test_unknown_names(aws: Aws) -> None:
    assert refusal(invoke, aws, unique("none")) == "ResourceNotFoundException"
    name = aws.make_function()
    assert refusal(invoke, aws, name, "live") == "ResourceNotFoundException"
