"""Secrets never travel: how all that the tests of real procedures leave behind is searched for what is secret."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from temporalio.service import RPCError

from sandbox.ports import any_free
from tests.patience import eventually
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, finished
from tests.runbooks.stores import Stores
from tests.secret_search import found


@dataclass(frozen=True)
class Receiver:
    address: str
    token: str


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])
@pytest.mark.parametrize("secret", ["sk-7f3a9c1e5d", "pass word/with+signs=", "b1946ac9-2f3e-4b5a"])
def test_a_secret_is_found_in_every_form(secret: str, before: str) -> None:
    text = f"{before}{secret}and more".encode()
    for shape in (
        text,
        base64.b64encode(text),
        base64.urlsafe_b64encode(text),
        text.hex().encode(),
        secret[:12].encode(),
    ):
        assert found({"it": secret}, {"here": b"..." + shape + b"..."}) == {"here": {"it"}}, shape
    assert found({"it": secret}, {"url": f"mongodb://u:{quote(secret, safe='')}@h".encode()})
    assert not found({"it": secret}, {"other": b"nothing of it", "near": secret[:7].encode()})


@pytest_asyncio.fixture
async def receiver(site: Site, worker: WorkerProcess, stores: Stores, tmp_path: Path) -> AsyncIterator[Receiver]:
    """A worker that also receives alerts."""
    made = Receiver(f"127.0.0.1:{any_free()}", secrets.token_urlsafe(24))
    stores.known["token of the receiver"] = made.token
    token = tmp_path / "token"
    token.write_text(made.token)
    before = dict(worker.environment)
    worker.stop()
    worker.environment |= {
        "RUNBOOKS_RECEIVER__LISTEN": made.address,
        "RUNBOOKS_RECEIVER__WITH_WORKER": "true",
        "RUNBOOKS_RECEIVER__SPOOL": str(worker.folder / "written" / "spool"),
        "RUNBOOKS_RECEIVER__TOKEN": f"file:{token}",
    }
    worker.start()
    yield made
    worker.stop()
    worker.environment = before


async def test_what_was_planted_is_found_everywhere(site: Site, stores: Stores, receiver: Receiver) -> None:
    """That no secret of any run is left anywhere is looked at when all have run (``stores``): this is how sharply."""
    planted = f"planted-{secrets.token_hex(12)}"
    for channel in ("slack", "pagerduty", "webhook", "github"):  # errors like to quote addresses and what was sent
        site.house.fault(channel, "http", status=500, times=2)
    look = await site.start("Diagnosis", reason=f"is it slow? {planted}")
    await open_an_incident(site, receiver, planted)
    await finished(look)
    await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(2)", planted)
    await eventually(lambda: stores.commands.saw(planted), "a command line that holds what was planted")
    (stores.logs / "planted.log").write_text(f"somebody logs {planted}\n")
    places = await stores.places()
    assert len(set(stores.known.values())) >= 20
    assert found(stores.known, places) == {}
    kinds = {place.partition(":")[0] for place in found({"planted": planted}, places)}
    assert kinds >= {"database", "log", "received", "record", "history", "progress", "command lines"}


async def open_an_incident(site: Site, receiver: Receiver, planted: str) -> None:
    """By the receiver, with its token, and with a wrong one before."""
    alert = {
        "stage": "staging",
        "text": f"checkout fails, {planted}",
        "id": secrets.token_hex(4),
        "source": "probe",
        "severity": "P2",
    }

    async def posted() -> bool:
        async with httpx.AsyncClient(base_url=f"http://{receiver.address}", trust_env=False) as http:
            try:
                wrong = await http.post("/alerts", json=alert, headers={"Authorization": f"Bearer x{receiver.token}"})
                assert wrong.status_code == 401
                right = await http.post("/alerts", json=alert, headers={"Authorization": f"Bearer {receiver.token}"})
            except httpx.TransportError:
                return False
        return right.status_code == 202

    await eventually(posted, "a receiver that takes alerts")

    async def opened() -> Any:
        return [
            run async for run in site.client.list_workflows("WorkflowType = 'Incident' AND RunbookStage = 'staging'")
        ]

    (run, *_) = await eventually(opened, "an incident")
    handle = site.client.get_workflow_handle(run.id)

    async def diagnosed() -> bool:
        try:
            return bool((await handle.query("situation")).get("conclusion"))
        except RPCError:  # the worker is busy
            return False

    await eventually(diagnosed, "a diagnosis", 120)

    async def told() -> bool:  # the first attempts were answered 500
        return planted in json.dumps([event["body"] for event in site.received()])

    await eventually(told, "a message about it", 120)
    await handle.terminate("the search has what it wanted")
