"""A stage for the backup runbooks: a real database server, real archives in a folder, a service that answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pymongo
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.api import Api
from activities.backups import Backups
from activities.clients import Aws, http_client
from activities.connection_string import Address, AddressOf, Repoint, Repointed, address_of
from activities.database import Database
from activities.locks import Locks
from activities.messages import Announcement, Attempt, Delivery
from activities.reports import RunRecord, render
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import Stage
from tests.workflows.bare_stage import bare_stage
from worker.activities import activity_methods
from workflows.converter import data_converter
from workflows.database_backup import DatabaseBackup
from workflows.database_restore import DatabaseRestore
from workflows.model import Outcome, RunbookResult
from workflows.plugin import _runner
from workflows.restore_drill import RestoreDrill
from workflows.stage_lock import StageLock

Mongo = pymongo.MongoClient[dict[str, Any]]


class World:
    """One stage with a database of its own. ``ready`` is what /health/ready answers."""

    def __init__(self, uri: str, home: Path, settings: Settings, **stage: Any) -> None:
        self.name = f"t{secrets.token_hex(4)}"
        self.database = f"d_{self.name}"
        self.archives = home / "archives"
        self.ready = 200
        self.mongo: Mongo = pymongo.MongoClient(uri)
        self._secret = home / "uri"
        self._secret.write_text(uri.replace("/?", f"/{self.database}?"))
        self._home, self._settings, self._stage = home, settings, stage
        self.told: list[Announcement] = []
        self.repointed: list[str] = []
        self.reverts: list[dict[str, Any]] = []
        self.url = ""

    @property
    def data(self) -> Any:
        return self.mongo[self.database]

    def fill(self, count: int = 300) -> None:
        self.data["sessions"].insert_many([{"_id": n, "status": "done"} for n in range(count)])
        self.data["sessions"].create_index("status")
        self.data.create_collection("projects", validator={"name": {"$exists": True}})
        self.data["projects"].insert_one({"name": "one"})

    def databases(self) -> list[str]:
        return sorted(name for name in self.mongo.list_database_names() if name.startswith(self.database))

    def archive(self) -> Path:
        """Folder of the newest archive."""
        return max((self.archives / self.name).glob("*Z-*"))

    def damage(self) -> None:
        """Flip one bit in the middle of the larger collection of the newest archive."""
        file = max(self.archive().glob("*.bson.gz"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    # --- activities that are not the subject ---------------------------------------------------------------------

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(
            name,
            {
                "url": self.url,
                "api_key": f"file:{self._secret}",
                "database": {"uri": f"file:{self._secret}", "name": self.database},
                "backup": {"location": f"file://{self.archives}"},
                "rollback": {"health_checks": 2, "health_interval": "PT0.05S", "health_patience": "PT2S"},
                **self._stage,
            },
        )

    @activity.defn(name="connection.address")
    async def address(self, _asked: AddressOf) -> Address:
        return address_of(self._secret.read_text())

    @activity.defn(name="connection.repoint")
    async def repoint(self, order: Repoint) -> Repointed:
        """The real one works on Lambda and Systems Manager: tests/activities/test_connection_string.py."""
        self.repointed.append(order.to.database)
        return Repointed(summary=f"points at {order.to.database}", changed=True)

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        self.told.append(message)
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        return {"md": f"s3://records/{len(render(record))}.md"}

    @activity.defn(name="world.reverted")
    async def reverted(self, inp: dict[str, Any]) -> RunbookResult:
        self.reverts.append(inp)
        return RunbookResult(
            runbook="QuickRollback",
            outcome=Outcome.COMPLETED,
            summary="reverted",
            stage=inp["stage"],
            facts={"to": "good"},
        )

    def activities(self, client: Client, queue: str) -> list[Any]:
        resolver = SecretResolver(None, None)  # type: ignore[arg-type]  # its secrets are in files
        http = http_client()
        hosts = [
            Backups(self._settings, Aws(self._settings).s3, http, resolver, poll=0.05),
            Api(http, resolver),
            Database(resolver),
            Locks(client, queue),
        ]
        own = [self.resolve, self.address, self.repoint, self.announce, self.write, self.reverted]
        return [*own, *(method for host in hosts for method in activity_methods(host))]


@workflow.defn(name="QuickRollback", sandboxed=False)
class StandInRollback:
    @workflow.run
    async def run(self, inp: dict[str, Any]) -> RunbookResult:
        result: RunbookResult = await workflow.execute_activity(
            "world.reverted", inp, start_to_close_timeout=timedelta(seconds=10), result_type=RunbookResult
        )
        return result


@contextlib.contextmanager
def serving(world: World) -> Iterator[None]:
    """A service whose /health/ready answers what the world says."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"release": "good"}).encode()
            self.send_response(world.ready)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    world.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextlib.asynccontextmanager
async def working(client: Client, world: World, queue: str | None = None) -> AsyncIterator[str]:
    """A worker of the backup runbooks, with a stand-in for the rollback that a restore may ask for."""
    queue = queue or f"backup-{uuid.uuid4()}"
    plain = Client(client.service_client, data_converter=data_converter)
    with ThreadPoolExecutor(8) as threads:
        async with Worker(
            plain,
            task_queue=queue,
            workflows=[DatabaseBackup, DatabaseRestore, RestoreDrill, StandInRollback, StageLock],
            activities=world.activities(plain, queue),
            activity_executor=threads,
            workflow_runner=_runner(SandboxedWorkflowRunner()),
            max_heartbeat_throttle_interval=timedelta(milliseconds=100),
            graceful_shutdown_timeout=timedelta(seconds=5),
        ):
            yield queue


async def begin(client: Client, queue: str, world: World, runbook: str, **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": world.name, "reason": "test", "requested_by": "ann", **inp}
    return await client.start_workflow(runbook, given, id=f"{runbook}-{uuid.uuid4()}", task_queue=queue)


async def finished(handle: WorkflowHandle[Any, Any]) -> RunbookResult:
    return RunbookResult.model_validate(await asyncio.wait_for(handle.result(), 180))
