"""The stand-in for ``sst``: arguments, exit codes and quirks of three major versions, and real deployments."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from sandbox.api.checkout import write_checkout
from sandbox.api.releases import CATALOGUE, GOOD
from sandbox.api.stack import ALIAS, secret_parameter, service_name
from sandbox.sst import main
from tests.sandbox.api_fixture import Surroundings, here

__all__ = ["here"]
MODERN, V2 = ("3", "4"), ("2",)
ALL = V2 + MODERN
USAGE = "sst [command]"


@pytest.fixture(autouse=True)
def checkout(here: Surroundings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in a checkout of the good release, as version 4, with nothing on its standard input."""
    directory = write_checkout(GOOD, here.releases)
    monkeypatch.chdir(directory)
    monkeypatch.delenv("SST_STANDIN_MAJOR", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    return directory


def live(stage: str) -> str:
    """The version that the alias points at, by its description."""
    found = boto3.client("lambda").get_function_configuration(FunctionName=service_name(stage), Qualifier=ALIAS)
    return found["Description"]


# (majors, command line, exit code, part of standard output, part of standard error)
TABLE = [
    (("4",), "version", 0, "sst 4.17.1", ""),
    (("3",), "version", 0, "sst 3.19.3", ""),
    (V2, "version", 0, "SST: v2.49.8", ""),
    (V2, "--version", 0, "2.49.8", ""),
    (MODERN, "--help", 1, USAGE, ""),
    (MODERN, "deploy --help", 1, USAGE, ""),
    (V2, "--help", 0, USAGE, ""),
    (V2, "deploy --help", 0, USAGE, ""),
    (MODERN, "", 1, USAGE, ""),
    (MODERN, "rollback", 1, USAGE, ""),
    (V2, "rollback", 1, "", "Unknown command"),
    (MODERN, "deploy --stage none --prior-deployment", 1, USAGE, ""),
    (MODERN, "deploy --stage", 1, USAGE, ""),
    (MODERN, "deploy", 1, "", "Could not find stage"),
    (MODERN, "deploy --stage Not_A_Stage", 1, "", "stage name"),
    (MODERN, "deploy --stage none", 1, "", "Set a value for ApiKeys"),
    (V2, "deploy", 0, "Please enter a name", ""),
    (V2, "deploy --stage none", 1, "", "Set a value for ApiKeys"),
    (MODERN, "secret", 1, USAGE, ""),
    (MODERN, "secrets set A b --stage none", 1, USAGE, ""),
    (V2, "secret set A b --stage none", 1, "", "Unknown command"),
    (MODERN, "secret set apiKeys x --stage none", 1, "", "must start with a capital letter"),
    (MODERN, "secret set Api-Keys x --stage none", 1, "", "must start with a capital letter"),
    (MODERN, "secret set ApiKeys -x --stage none", 1, USAGE, ""),
    (MODERN, "secret set ApiKeys x", 1, "", "Could not find stage"),
    (MODERN, "secret list --stage none", 1, "", "No secrets found"),
    (MODERN, "secret remove Nothing --stage none", 1, "", "does not exist"),
    (V2, "secrets set ApiKeys x", 0, "Please enter a name", ""),
    (V2, "secrets set ApiKeys --stage none", 1, "", "Not enough non-option arguments"),
    (V2, "secrets list --stage none", 0, "Secrets", ""),
]


@pytest.mark.parametrize(
    ("major", "line", "code", "out", "err"),
    [(major, line, code, out, err) for majors, line, code, out, err in TABLE for major in majors],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    major: str,
    line: str,
    code: int,
    out: str,
    err: str,
) -> None:
    monkeypatch.setenv("SST_STANDIN_MAJOR", major)
    assert main(line.split()) == code
    said = capsys.readouterr()
    assert out in said.out
    assert err in said.err
    assert said.err if err else not said.err
    parameters = boto3.client("ssm").describe_parameters()["Parameters"]
    assert not [p for p in parameters if p["Name"].startswith("/sst/state-api/none/")]


def test_an_unknown_generation_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SST_STANDIN_MAJOR", "5")
    assert main(["version"]) == 1
    assert "SST_STANDIN_MAJOR" in capsys.readouterr().err


@pytest.mark.parametrize("major", ALL)
def test_outside_of_a_checkout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, major: str
) -> None:
    monkeypatch.setenv("SST_STANDIN_MAJOR", major)
    monkeypatch.chdir(tmp_path)
    assert main(["deploy", "--stage", "none"]) == 1
    assert "sst.config.ts" in capsys.readouterr().err


def test_secrets_of_v4(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def value(name: str) -> str:
        path = secret_parameter("secrets", name)
        found = boto3.client("ssm").get_parameter(Name=path, WithDecryption=True)["Parameter"]
        assert found["Type"] == "SecureString"
        return found["Value"]

    assert main(["secret", "set", "--stage", "secrets", "ApiKeys", "one,two"]) == 0
    assert value("ApiKeys") == "one,two"
    for piped in ("first\nsecond", ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        assert main(["secret", "set", "Piped", "--stage=secrets"]) == 0
        assert value("Piped") == piped
    said = capsys.readouterr()
    assert said.out == ""
    assert "one,two" not in said.err
    assert main(["secret", "list", "--stage", "secrets"]) == 0
    assert capsys.readouterr().out.splitlines() == ["# state-api/secrets", "ApiKeys=one,two", "Piped="]
    assert main(["secret", "remove", "Piped", "--stage", "secrets"]) == 0
    assert main(["secret", "remove", "Piped", "--stage", "secrets"]) == 1
    assert main(["secret", "remove", "ApiKeys", "--stage", "secrets"]) == 0
    assert main(["secret", "list", "--stage", "secrets"]) == 1


def test_secrets_of_v2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SST_STANDIN_MAJOR", "2")
    assert main(["secrets", "set", "ApiKeys", "one", "--stage", "v2"]) == 0
    assert "one" not in capsys.readouterr().out
    assert main(["secrets", "list", "env", "--stage", "v2"]) == 0
    assert capsys.readouterr().out == "ApiKeys=one\n"
    assert main(["secrets", "remove", "ApiKeys", "--stage", "v2"]) == 0
    assert main(["secrets", "list", "env", "--stage", "v2"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("major", "complete"), [("4", "✓  Complete"), ("2", "✔  Deployed:")])
def test_deploying_and_the_flag_that_does_not_exist(
    here: Surroundings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    major: str,
    complete: str,
) -> None:
    stage, token = f"sst-v{major}", f"ticket-{major}"
    here.secrets(stage)
    monkeypatch.setenv("SST_STANDIN_MAJOR", major)
    monkeypatch.setenv("SST_STANDIN_REQUEST_TOKEN", token)
    assert main(["deploy", "--stage", stage]) == 0
    assert complete in capsys.readouterr().out
    assert live(stage) == f"release {GOOD.id}"
    events = boto3.client("cloudformation").describe_stack_events(StackName=service_name(stage))["StackEvents"]
    assert {event.get("ClientRequestToken") for event in events} == {token}
    monkeypatch.delenv("SST_STANDIN_REQUEST_TOKEN")
    assert main(["deploy", "--stage", stage]) == 0
    assert complete not in capsys.readouterr().out

    broken = CATALOGUE["broken"]
    monkeypatch.chdir(write_checkout(broken, here.releases))
    code = main(["deploy", "--stage", stage, "--prior-deployment"])
    if major == "2":  # it deploys the current checkout, the opposite of what was meant
        assert code == 0
        assert live(stage) == f"release {broken.id}"
    else:
        assert code == 1
        assert live(stage) == f"release {GOOD.id}"


def test_a_busy_stack_is_left_alone(here: Surroundings, capsys: pytest.CaptureFixture[str]) -> None:
    here.secrets("busy")
    stacks = boto3.client("cloudformation")
    waiting = {
        "Handle": {"Type": "AWS::CloudFormation::WaitConditionHandle"},
        "Wait": {
            "Type": "AWS::CloudFormation::WaitCondition",
            "Properties": {"Handle": {"Ref": "Handle"}, "Timeout": "60"},
        },
    }
    stacks.create_stack(StackName=service_name("busy"), TemplateBody=json.dumps({"Resources": waiting}))
    assert main(["deploy", "--stage", "busy"]) == 1
    assert "A concurrent update was detected on the app" in capsys.readouterr().err
    described = stacks.describe_stacks(StackName=service_name("busy"))["Stacks"][0]
    assert described["StackStatus"] == "CREATE_IN_PROGRESS"


def test_a_change_that_is_rolled_back_is_a_failure(
    here: Surroundings, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.secrets("back")
    assert main(["deploy", "--stage", "back"]) == 0
    broken = write_checkout(CATALOGUE["broken"], here.releases)
    config = broken / "sst.config.ts"
    config.write_text(config.read_text().replace('"512 MB"', '"20 GB"'))
    monkeypatch.chdir(broken)
    assert main(["deploy", "--stage", "back"]) == 1
    said = capsys.readouterr().err
    assert "UPDATE_ROLLBACK_COMPLETE" in said
    assert "20480" in said
    assert live("back") == f"release {GOOD.id}"
    monkeypatch.chdir(checkout)
    assert main(["deploy", "--stage", "back"]) == 0


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("sst.config.ts", ('"512 MB"', '"lots"'), "memory"),
        ("sst.config.ts", ('"30 seconds"', '"a while"'), "timeout"),
        ("release.json", ('"error_rate": 0', '"error_rate": 1'), "it was edited"),
    ],
)
def test_a_checkout_that_cannot_be_deployed(
    here: Surroundings,
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    change: tuple[str, str],
    problem: str,
) -> None:
    here.secrets("unusable")
    text = (checkout / file).read_text()
    assert change[0] in text
    (checkout / file).write_text(text.replace(*change))
    assert main(["deploy", "--stage", "unusable"]) == 1
    assert problem in capsys.readouterr().err
    write_checkout(GOOD, here.releases)


def test_as_a_command_with_aws_out_of_reach() -> None:
    """One line and no traceback; the secret is nowhere in it."""
    environment = os.environ | {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_MAX_ATTEMPTS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.sst", "secret", "set", "ApiKeys", "--stage", "far"],
        input="hushhush",
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip() == "✕  Unexpected error occurred: EndpointConnectionError"
