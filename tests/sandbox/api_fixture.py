"""A running AWS and database for the tests of the State Tracking API, each on a free port of loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest

from sandbox import mongodb
from sandbox.api.checkout import write_checkout
from sandbox.api.deploy import Deployer, Outcome
from sandbox.api.releases import Release
from sandbox.api.stack import invoke_url, secret_parameter, service_name
from sandbox.parts import program
from sandbox.ports import any_free

KEY = "11111111-2222-4333-8444-555555555555"
SIGNING_SECRET = "kJ0x5v3mQ8c1Zr7yT2bN9wLp4sHd6fGa"
_PATIENCE = 30.0


@dataclass(frozen=True)
class Surroundings:
    """The running servers, and what a test does with a stage on them."""

    endpoint: str
    mongodb: str
    releases: Path

    def uri(self, stage: str) -> str:
        return f"{self.mongodb}/state_api_{stage}?directConnection=true&serverSelectionTimeoutMS=1000"

    def secrets(self, stage: str, *, keys: str = KEY, uri: str | None = None, signing: str = SIGNING_SECRET) -> None:
        values = {"ApiKeys": keys, "MongoDBUri": uri or self.uri(stage), "JwtSecret": signing}
        for name, value in values.items():
            boto3.client("ssm").put_parameter(
                Name=secret_parameter(stage, name), Value=value, Type="SecureString", Overwrite=True
            )

    def deploy(self, stage: str, release: Release) -> Outcome:
        return Deployer().deploy(write_checkout(release, self.releases), stage, lambda _line: None)

    def url(self, stage: str) -> str:
        stack = boto3.client("cloudformation").describe_stacks(StackName=service_name(stage))["Stacks"][0]
        outputs = {entry["OutputKey"]: entry["OutputValue"] for entry in stack["Outputs"]}
        return invoke_url(self.endpoint, outputs["ApiId"], outputs["ApiStage"])

    def client(self, stage: str, key: str | None = KEY) -> httpx.Client:
        headers = {"X-Api-Key": key} if key else {}
        return httpx.Client(base_url=self.url(stage), headers=headers, timeout=40, trust_env=False)

    def messages(self, stage: str) -> list[str]:
        """The lines of the function's log group, oldest first."""
        pages = (
            boto3.client("logs")
            .get_paginator("filter_log_events")
            .paginate(logGroupName=f"/aws/lambda/{service_name(stage)}")
        )
        return [event["message"] for page in pages for event in page["events"]]

    def log(self, stage: str) -> list[dict[str, Any]]:
        """The lines that the function itself wrote."""
        return [json.loads(message) for message in self.messages(stage) if message.startswith("{")]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    """The servers, with this process's environment leading to them."""
    port = any_free()
    directory = tmp_path_factory.mktemp("surroundings")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    aws = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "123456789012",
        "AWS_SECRET_ACCESS_KEY": "sandbox",
        "NO_PROXY": "127.0.0.1",
    }
    emulator = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "MINISTACK_ACCOUNT_ID": "123456789012"}
    storage = directory / "mongodb"
    daemon = mongodb.command(program(mongodb.PROGRAM), 0, storage, auth=False)
    with (
        _running([sys.executable, "-m", "sandbox.aws"], clean | emulator, directory / "aws.log") as emulator_alive,
        _running(daemon, clean, directory / "mongodb.log") as daemon_alive,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in aws.items():
            patch.setenv(name, value)
        _until(lambda: _answers(aws["AWS_ENDPOINT_URL"]), emulator_alive, directory / "aws.log")
        listening = re.compile(r"listening on (127\.0\.0\.1:\d+)")
        _until(
            lambda: listening.search((directory / "mongodb.log").read_text()), daemon_alive, directory / "mongodb.log"
        )
        found = listening.search((directory / "mongodb.log").read_text())
        assert found
        boto3.setup_default_session()  # the one made before, if any, keeps an older environment
        yield Surroundings(aws["AWS_ENDPOINT_URL"], f"mongodb://{found[1]}", directory / "releases")


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[Callable[[], bool]]:
    """A server in a process group of its own, so that its Lambda workers end with it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield lambda: process.poll() is None
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)


def _answers(endpoint: str) -> bool:
    try:
        return httpx.get(f"{endpoint}/_ministack/health", timeout=2, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False


def _until(condition: Callable[[], object], alive: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert alive(), log.read_text()
        assert time.monotonic() < deadline, f"not ready in time: {log.read_text()}"
        time.sleep(0.05)
