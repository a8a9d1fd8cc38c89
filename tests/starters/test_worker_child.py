"""The worker that the sandbox's command looks after."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from temporalio.client import Client

from sandbox import processes
from starters.worker_child import WorkerChild
from tests.starters.conftest import write_settings


def until_ready(log: Path, times: int) -> None:
    deadline = time.monotonic() + 30
    while not log.exists() or log.read_text().count("worker ready") < times:
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)


def members(pid: int) -> list[int]:
    identity = processes.identify(pid)
    return processes.session_members(identity) if identity else []


async def test_a_killed_worker_is_started_again_and_goes_with_the_block(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(Path.cwd())
    write_settings(monkeypatch, tmp_path, client, "kept")
    monkeypatch.setenv("PYTHONPATH", root)
    log, said = tmp_path / "worker.log", list[str]()

    def watch() -> None:
        with WorkerChild(os.environ, log, said.append) as child:
            until_ready(log, 1)
            first = child.pid
            os.kill(first, signal.SIGKILL)
            until_ready(log, 2)
            assert child.pid != first
            assert members(first) == []
            second = child.pid
            assert len(members(second)) >= 2
        assert members(second) == []

    await asyncio.to_thread(watch)
    assert said[0].startswith("the worker ended (killed)")
    assert "started again" in said[1]
