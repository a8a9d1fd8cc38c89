"""An embedded AWS for the folder, and stages of the State Tracking API in it, each with a history of its own."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pymongo
import pytest

from activities.clients import Aws
from activities.settings import Aws as AwsSettings
from activities.settings import RecordsStore, Settings
from sandbox import mongodb
from sandbox.parts import program
from sandbox.ports import any_free
from tests.activities.site import Site

REGION = "us-east-1"


@pytest.fixture(scope="package")
def embedded_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint URL of an embedded AWS, to which the environment of this process leads too."""
    home = tmp_path_factory.mktemp("embedded-aws")
    port = any_free()
    url = f"http://127.0.0.1:{port}"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox.aws"],
            env=os.environ | {"GATEWAY_PORT": str(port), "TMPDIR": str(home), "PYTHONPATH": str(Path.cwd())},
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{url}/_ministack/health", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, "the embedded AWS did not start"
                time.sleep(0.05)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", url)
            patch.setenv("AWS_DEFAULT_REGION", REGION)
            patch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "example")
            yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)


@pytest.fixture(scope="package")
def settings(embedded_aws: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNBOOKS_CONFIG", str(tmp_path_factory.mktemp("settings") / "runbooks.toml"))
        return Settings(
            aws=AwsSettings(region=REGION, endpoint_url=embedded_aws),
            records=RecordsStore(bucket="test-records", prefix="team/"),
        )


@pytest.fixture(scope="package")
def aws(settings: Settings) -> Aws:
    made = Aws(settings)
    made.s3.create_bucket(Bucket=settings.records.bucket)
    return made


@pytest.fixture
def new_site(aws: Aws, settings: Settings, tmp_path: Path) -> Callable[[], Site]:
    """Makes stages that nothing is deployed to yet."""
    return lambda: Site(aws, settings, f"t{secrets.token_hex(4)}", tmp_path)


@pytest.fixture
def site(new_site: Callable[[], Site]) -> Site:
    """A stage where 'good' was deployed first and 'broken' is live."""
    made = new_site()
    made.deploy("good")
    made.deploy("broken")
    return made


@pytest.fixture(scope="package")
def wire_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a server that speaks MongoDB's wire protocol."""
    port = any_free()
    uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    home = tmp_path_factory.mktemp("database")
    binary = program(mongodb.PROGRAM)
    with (home / "log").open("wb") as log:
        command = mongodb.command(binary, port, home / "data", auth=False)
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        with pymongo.MongoClient[dict[str, object]](uri, serverSelectionTimeoutMS=20_000) as client:
            client.admin.command("ping")
        yield uri
    finally:
        process.terminate()
        process.wait(timeout=10)
