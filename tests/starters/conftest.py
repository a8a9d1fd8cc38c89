"""The command line beside a real Temporal server, with a worker for probes and the probe as its catalog."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client

from starters.app import run
from tests.workflows.probe import Probe, World, begin, progress, until, working


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Any]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs one command with its own event loop, as the real one has."""

    async def call(*arguments: str) -> Said:
        capsys.readouterr()
        code = await asyncio.to_thread(run, arguments, (Probe,))
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@dataclass(frozen=True)
class House:
    """A worker for probes, and the settings by which the command line finds it."""

    client: Client
    queue: str
    world: World

    async def begin(self, **inp: Any) -> Any:
        return await begin(self.client, self.queue, **inp)

    async def until(self, workflow_id: str, holds: Any) -> Any:
        return await until(self.client.get_workflow_handle(workflow_id), holds)

    async def progress(self, workflow_id: str) -> Any:
        return await progress(self.client.get_workflow_handle(workflow_id))


def write_settings(patch: pytest.MonkeyPatch, folder: Path, client: Client, queue: str) -> None:
    """What leads a command to the test's server and task queue, and to an AWS that is not there."""
    settings = folder / "runbooks.toml"
    settings.write_text(f'task_queue = "{queue}"\n[aws]\nendpoint_url = "http://127.0.0.1:1"\n')
    patch.setenv("RUNBOOKS_CONFIG", str(settings))
    patch.setenv("TEMPORAL_ADDRESS", client.service_client.config.target_host)
    patch.setenv("RUNBOOKS_USER", "ann")
    patch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    patch.chdir(folder)


@pytest_asyncio.fixture
async def house(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    world = World(default={"requester_may_approve": False})
    async with working(client, world) as queue:
        write_settings(monkeypatch, tmp_path, client, queue)
        yield House(client, queue, world)
