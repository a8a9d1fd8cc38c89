"""One embedded AWS for all tests of this folder that ask for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sandbox.ports import any_free
from tests.sandbox.aws_helpers import Aws


@contextlib.contextmanager
def running_aws(directory: Path) -> Iterator[str]:
    """URL of a server on a free port, with the sandbox's corrections. Its temporary files go to ``directory``."""
    port = any_free()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"GATEWAY_PORT": str(port), "TMPDIR": str(directory), "LOG_LEVEL": "WARNING"}
    log = directory / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen([sys.executable, "-m", "sandbox.aws"], env=environment, stdout=output, stderr=output)
    endpoint = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 20
    try:
        while True:
            try:
                httpx.get(f"{endpoint}/_ministack/health", timeout=2, trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the embedded AWS did not start: {log.read_text()[-2000:]}")
                time.sleep(0.05)
        yield endpoint
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="package")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server of this folder."""
    with running_aws(tmp_path_factory.mktemp("aws")) as endpoint:
        yield endpoint


@pytest.fixture(scope="package")
def aws(aws_endpoint: str) -> Aws:
    """Clients of that server."""
    return Aws(aws_endpoint)
