"""Fixtures of the people side: the hub, and the AWS emulator for mail and secrets. Named by ``pytest_plugins``."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest

from sandbox.hub.server import Hub, HubServer
from sandbox.ports import any_free
from tests.running_hub import ATLAS_SECRET, WEBHOOK_TOKEN, RunningHub


@pytest.fixture
def hub() -> Iterator[RunningHub]:
    server = HubServer(
        Hub(webhook_token=WEBHOOK_TOKEN, atlas_secret=ATLAS_SECRET, atlas_step=timedelta(seconds=0.2)), port=0
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    running = RunningHub(f"http://127.0.0.1:{server.server_port}")
    yield running
    running.client.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="package")
def people_aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint URL of an AWS emulator for the tests of a folder."""
    home = tmp_path_factory.mktemp("aws")
    port = any_free()
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env=os.environ | {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "TMPDIR": str(home)},
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"{url}/_ministack/health", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, "the AWS emulator did not start"
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=10)
