"""Secrets never travel: real procedures with known secrets in every store, then a search of all that they leave."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from temporalio.service import RPCError

from activities.connection_string import password_of
from sandbox.api import tokens
from sandbox.state import Vault
from tests.patience import eventually
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, approve, finished, progress
from tests.secret_search import CommandLines, found, read
from tests.worker.test_process import free_port
from workflows.model import Outcome, RunbookResult

QUICK_ROTATION = {"grace": "PT2S", "look_every": "PT1S", "reminders": [], "quiet": "PT1S", "extension": "PT2S"}
UNWATCHED = {"api_error_rate": None, "api_p95_ms": None}  # a rollback's own traces are still in the figures
ROLES = ("primary", "backup", "internal")


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


class Stores:
    """The secrets that this site has, and all that its runs leave behind."""

    def __init__(self, site: Site, worker: WorkerProcess, folder: Path) -> None:
        self.site, self.worker, self.folder = site, worker, folder
        self.vault = Vault.open(site.house.layout.vault)
        self.receiver_token = secrets.token_urlsafe(24)
        self.began = datetime.now(UTC)
        self.known = self._made() | self._keys("before")

    def _made(self) -> dict[str, str]:
        named = self.vault.model_dump(exclude={"stages"}) | {"receiver_token": self.receiver_token}
        for stage, of_stage in self.vault.stages.items():
            for name, value in of_stage.model_dump(exclude={"api_keys"}).items():
                named[f"{stage} {name}"] = value
            named |= {f"{stage} first key {number}": key for number, key in enumerate(of_stage.api_keys)}
        return named

    def _keys(self, when: str) -> dict[str, str]:
        """The API's keys as they are now: a rotation makes others."""
        house = self.site.house
        return {f"{s} {role} key {when}": house.key(s, role) for s in ("staging", "production") for role in ROLES}

    def take_in_the_new(self, staging: Site) -> None:
        """What the rotations have made meanwhile."""
        ring = tokens.Keyring.of(staging.secret("JwtSecret"))
        self.known |= self._keys("after")
        self.known |= {f"staging signing key {key_id}": key.decode() for key_id, key in ring.keys.items()}
        self.known["staging database password after"] = password_of(staging.secret("MongoDBUri"))

    async def places(self) -> dict[str, bytes]:
        """Everything that is kept of the runs, and everything that processes have said; by kind and name."""
        layout = self.site.house.layout
        database = read("database", layout.data.glob("temporal.db*"))
        logs = read("log", [layout.logs, self.folder]) | {"log: worker": self.worker.log().encode()}
        # The hub names a webhook by the end of its address, which it is the owner of; what was sent is the body.
        bodies = [event["body"] for event in self.site.received()]
        received = {"received: by people": json.dumps(bodies).encode()}
        return database | logs | received | self._records() | self._logs_of_the_api() | await self._runs()

    def _records(self) -> dict[str, bytes]:
        s3, kept = self.site.aws("s3"), {}
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="operational-runbooks")
        for item in (item for page in pages for item in page.get("Contents", [])):
            body = s3.get_object(Bucket="operational-runbooks", Key=item["Key"])["Body"].read()
            kept[f"record: {item['Key']}"] = body
        return kept

    def _logs_of_the_api(self) -> dict[str, bytes]:
        logs = self.site.aws("logs")
        groups = [group["logGroupName"] for group in logs.describe_log_groups()["logGroups"]]
        pages = {g: logs.get_paginator("filter_log_events").paginate(logGroupName=g) for g in groups}
        return {
            f"log: {group}": "\n".join(event["message"] for page in of_group for event in page["events"]).encode()
            for group, of_group in pages.items()
        }

    async def _runs(self) -> dict[str, bytes]:
        """Histories, descriptions with their memos, and what runs answer to the queries of people and of the UI."""
        client, kept = self.site.client, {}
        async for run in client.list_workflows(f"StartTime >= '{self.began.isoformat()}'"):
            handle = client.get_workflow_handle(run.id, run_id=run.run_id)
            history = await handle.fetch_history()
            kept[f"history: {run.id}"] = b"\n".join(event.SerializeToString() for event in history.events)
            kept[f"description: {run.id}"] = (await handle.describe()).raw_description.SerializeToString()
            if run.workflow_type == "StageLock":
                continue
            queries = ["progress", "__temporal_workflow_metadata", "__stack_trace"]
            queries += ["situation"] if run.workflow_type == "Incident" else []
            for query in queries:
                kept[f"{query}: {run.id}"] = repr(await handle.query(query)).encode()
        return kept


@pytest_asyncio.fixture
async def stores(site: Site, worker: WorkerProcess, tmp_path: Path) -> AsyncIterator[Stores]:
    """A worker that also receives alerts, with a folder for whatever it and its children write down."""
    stores = Stores(site, worker, tmp_path / "written")
    (tmp_path / "written").mkdir()
    token = tmp_path / "token"
    token.write_text(stores.receiver_token)
    more = {
        "RUNBOOKS_RECEIVER__LISTEN": f"127.0.0.1:{free_port()}",
        "RUNBOOKS_RECEIVER__WITH_WORKER": "true",
        "RUNBOOKS_RECEIVER__SPOOL": str(tmp_path / "written" / "spool"),
        "RUNBOOKS_RECEIVER__TOKEN": f"file:{token}",
        "RUNBOOKS_STAGES__STAGING__ROLLBACK__ERROR_WINDOW": "PT5S",
        "TMPDIR": str(tmp_path / "written"),
    }
    before = dict(worker.environment)
    worker.stop()
    worker.environment |= more
    worker.start()
    yield stores
    worker.stop()
    worker.environment = before


async def test_no_secret_is_left_anywhere(stores: Stores) -> None:
    site, planted = stores.site, f"planted-{secrets.token_hex(12)}"
    staging = Site(site.house, site.client, "staging")
    with CommandLines() as commands:
        begun = [
            rotate(staging, planted),
            work_on_production(site),
            open_an_incident(stores, planted),
        ]
        await asyncio.gather(*begun)
        await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(2)", planted)
        await eventually(lambda: commands.saw(planted), "a command line that holds what was planted")
    stores.take_in_the_new(staging)
    assert len(set(stores.known.values())) >= 24
    (stores.folder / "planted.log").write_text(f"somebody logs {planted}\n")
    places = await stores.places() | {"command lines": commands.text()}
    assert found(stores.known, places) == {}
    # What was planted on purpose is found everywhere, so the search would have found a secret.
    kinds = {place.partition(":")[0] for place in found({"planted": planted}, places)}
    assert kinds >= {"database", "log", "received", "record", "history", "progress", "command lines"}


async def rotate(site: Site, planted: str) -> None:
    """All three kinds of secrets, one after another: each wants the stage for itself."""
    site.deploy("good", token_seconds=3)
    everyday = {"reason": f"rotation, {planted}"}
    keys = await site.start("ApiKeyRotation", **everyday, **QUICK_ROTATION)
    signing = await site.start("SigningSecretRotation", **everyday, skew="PT1S")
    users = await site.start("DatabaseCredentialRotation", **everyday, quiet="PT1S", patience="PT2S")
    for run in (keys, signing, users):
        result = await agreed_to(run)
        assert result.outcome is Outcome.COMPLETED, result


async def agreed_to(run: Any) -> RunbookResult:
    """How it ended, with a yes to whatever it asked: that depends on who uses an old secret just then."""
    ending = asyncio.create_task(finished(run, 240))
    while not ending.done():
        if gate := (await progress(run)).open_gate():
            await run.signal("approve", {"by": "bob", "gate": gate.id})
        await asyncio.wait({ending}, timeout=0.5)
    return ending.result()


async def work_on_production(site: Site) -> None:
    """One after another: each wants the stage for itself. The rehearsal reads what all the others would read."""
    for runbook in ("DatabaseBackup", "Rehearsal"):
        assert (await agreed_to(await site.start(runbook))).outcome is Outcome.COMPLETED
    for channel in ("slack", "pagerduty", "webhook", "github"):  # errors like to quote addresses and what was sent
        site.house.fault(channel, "http", status=500, times=2)
    rollback = await site.start("QuickRollback")
    await approve(rollback)
    assert (await finished(rollback, 120)).outcome is Outcome.COMPLETED
    update = await site.start(
        "BatchedUpdate",
        collection="sessions",
        filter={"planted_by_the_secret_search": {"$exists": False}},
        update={"$set": {"planted_by_the_secret_search": True}},
        sweep_pause="PT0.5S",
        throttle=UNWATCHED,
        abort=UNWATCHED,
    )
    await approve(update)
    assert (await finished(update, 120)).outcome is Outcome.COMPLETED
    restart = await site.start("ServiceRestart", drain="PT1S", ladder=[10], hold="PT1S")
    await approve(restart)
    assert (await finished(restart, 120)).outcome is Outcome.COMPLETED


async def open_an_incident(stores: Stores, planted: str) -> None:
    """By the receiver, with its token, and with a wrong one before."""
    address = stores.worker.environment["RUNBOOKS_RECEIVER__LISTEN"]
    alert = {
        "stage": "staging",
        "text": f"checkout fails, {planted}",
        "id": secrets.token_hex(4),
        "source": "probe",
        "severity": "P2",
    }

    async def posted() -> bool:
        async with httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as http:
            try:
                wrong = await http.post(
                    "/alerts", json=alert, headers={"Authorization": f"Bearer x{stores.receiver_token}"}
                )
                assert wrong.status_code == 401
                right = await http.post(
                    "/alerts", json=alert, headers={"Authorization": f"Bearer {stores.receiver_token}"}
                )
            except httpx.TransportError:
                return False
        return right.status_code == 202

    await eventually(posted, "a receiver that takes alerts")

    async def opened() -> Any:
        return [
            run
            async for run in stores.site.client.list_workflows("WorkflowType = 'Incident' AND RunbookStage = 'staging'")
        ]

    (run, *_) = await eventually(opened, "an incident")
    handle = stores.site.client.get_workflow_handle(run.id)

    async def diagnosed() -> bool:
        try:
            return bool((await handle.query("situation")).get("conclusion"))
        except RPCError:  # the worker is busy
            return False

    await eventually(diagnosed, "a diagnosis", 120)

    async def told() -> bool:  # the first attempts were answered 500
        return planted in json.dumps([event["body"] for event in stores.site.received()])

    await eventually(told, "a message about it", 120)
    await handle.terminate("the search has what it wanted")
