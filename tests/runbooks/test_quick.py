"""The quick commands on the sandbox: looks, a deployment and a rollback, as somebody types them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.client import Client

from sandbox.house import House
from sandbox.state import Vault
from starters.app import run
from starters.problems import Code
from tests.histories import keep
from tests.patience import eventually
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, finished
from workflows.model import Outcome

Typed = Callable[..., Any]


@pytest.fixture
def staging(house: House, worker: WorkerProcess, runs: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Staging with a broken release after a good one, and this process as one beside the worker."""
    worker.start()
    for name, value in house.environment().items():
        monkeypatch.setenv(name, value)
    site = Site(house, runs, stage="staging")
    site.deploy("good")
    site.deploy("broken")
    traffic = house.traffic("staging", 6, 300)
    yield site
    traffic.stop()


async def test_quick_looks_and_the_quick_way_to_deploy_and_back(
    staging: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site = staging

    async def quick(*words: str) -> tuple[int, Any]:
        code = await asyncio.to_thread(run, ["quick", *words, "--json"])
        said = capsys.readouterr()
        assert said.out, said.err
        return code, json.loads(said.out)

    async def ready() -> bool:
        code, status = await quick("status", "staging")
        assert code == (Code.DONE if status["status"] == 200 else Code.RUN_FAILED)
        return (status["status"], status["body"].get("status")) == (200, "ready")

    await eventually(ready, "an answer that is not one of the broken release's errors")

    async def errors() -> list[dict[str, str]]:
        return list((await quick("errors", "staging", "--since", "5m"))[1])

    found = await eventually(errors, "an error line")
    assert all('"level": "ERROR"' in line["line"] for line in found)
    began = datetime.now(UTC)
    _, lines = await quick("logs", "staging", "--since", "10m", "--pattern", '"statusCode"')
    assert len(lines) > len(found)
    assert all(datetime.fromisoformat(line["at"]) < began for line in lines[:1])
    vault = Vault.open(site.house.layout.vault).stages["staging"]
    assert not any(key in line["line"] for line in lines for key in vault.api_keys)

    code, dry = await quick("rollback", "staging", "--reason", "500s", "--dry-run", "--wait")
    assert (code, dry["outcome"]) == (Code.DONE, "dry_run")

    code, started = await quick("deploy", "staging", "good", "--reason", "back to what worked")
    assert code == Code.DONE
    handle = site.client.get_workflow_handle(started["id"])
    await approve(handle)
    result = await finished(handle, 120)
    assert result.outcome is Outcome.COMPLETED, result
    assert site.health()["label"] == "good"
    assert all(item.done for item in result.checklist), result.checklist
    await keep(handle, "Deploy", "real")
