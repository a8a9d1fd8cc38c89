"""The secrets that a sandbox has or had, and everything that its runs have left behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from temporalio.client import Client

from activities.connection_string import password_of
from sandbox.house import House
from sandbox.state import STAGES, Vault
from tests.runbooks.site import Site
from tests.secret_search import CommandLines, found, read

READ_BY_THE_API = ("ApiKeys", "JwtSecret", "MongoDBUri")

_SHORTEST = 16
"""Characters of a secret. What is shorter is the id of one."""

_ASKED = 3
"""Runs of each workflow that are asked what they answer to queries: the answer is of the same kind for all."""


def words(text: str) -> Iterator[str]:
    """The secrets in what a store keeps: a list of keys, a ring of them, a connection string, or one alone."""
    try:
        kept = json.loads(text)
    except ValueError:
        kept = None
    if isinstance(kept, dict):
        for value in kept.values():
            yield from words(value if isinstance(value, str) else json.dumps(value))
    elif text.startswith("mongodb"):
        yield password_of(text)
    else:
        yield from (word for word in text.split(",") if len(word) >= _SHORTEST)


class Stores:
    """Of one sandbox. The secrets are noted before and after each test, because rotations make others."""

    def __init__(self, house: House, client: Client, logs: Path) -> None:
        self.house, self.client = house, client
        self.site = Site(house, client)
        self.commands = CommandLines()
        self.known = self._made()
        self.logs = logs

    def _made(self) -> dict[str, str]:
        vault = Vault.open(self.house.layout.vault)
        named = vault.model_dump(exclude={"stages"})
        for stage, of_stage in vault.stages.items():
            for name, value in of_stage.model_dump(exclude={"api_keys"}).items():
                named[f"{stage} {name}"] = value
            named |= {f"{stage} first key {number}": key for number, key in enumerate(of_stage.api_keys)}
        return named

    def note(self) -> None:
        """Take in the secrets that there are now: those the API reads, and every version that is kept of them."""
        manager = self.site.aws("secretsmanager")
        kept = [Site(self.house, self.client, stage).secret(name) for stage in STAGES for name in READ_BY_THE_API]
        for secret in manager.list_secrets()["SecretList"]:
            for version in manager.list_secret_version_ids(SecretId=secret["ARN"], IncludeDeprecated=True)["Versions"]:
                value = manager.get_secret_value(SecretId=secret["ARN"], VersionId=version["VersionId"])
                kept.append(value["SecretString"])
        for value in {word for text in kept for word in words(text)} - set(self.known.values()):
            self.known[f"secret number {len(self.known)}"] = value

    async def places(self) -> dict[str, bytes]:
        """Everything that is kept of the runs, and everything that processes have said; by kind and name."""
        layout = self.house.layout
        database = read("database", layout.data.glob("temporal.db*"))
        logs = read("log", [layout.logs, self.logs])
        # The hub names a webhook by the end of its address, which it is the owner of; what was sent is the body.
        bodies = [event["body"] for event in self.site.received()]
        received = {"received: by people": json.dumps(bodies).encode(), "command lines": self.commands.text()}
        return database | logs | received | self._records() | self._logs_of_the_api() | await self._runs()

    async def leaks(self) -> dict[str, set[str]]:
        """The names of the secrets that stand somewhere, by place."""
        return found(self.known, await self.places())

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
        kept: dict[str, bytes] = {}
        asked = Counter[str]()
        async for run in self.client.list_workflows():
            handle = self.client.get_workflow_handle(run.id, run_id=run.run_id)
            history = await handle.fetch_history()
            kept[f"history: {run.id}"] = b"\n".join(event.SerializeToString() for event in history.events)
            kept[f"description: {run.id}"] = (await handle.describe()).raw_description.SerializeToString()
            asked[run.workflow_type] += 1
            if run.workflow_type != "StageLock" and asked[run.workflow_type] <= _ASKED:
                kept |= await _answers(handle, run.workflow_type)
        return kept


async def _answers(handle: Any, kind: str) -> dict[str, bytes]:
    queries = ["progress", "__temporal_workflow_metadata", "__stack_trace"]
    queries += ["situation"] if kind == "Incident" else []
    return {f"{query}: {handle.id}": repr(await handle.query(query)).encode() for query in queries}
