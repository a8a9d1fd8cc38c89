"""What the runbooks ask of AWS, MongoDB and Atlas, written down as they ask it: what their permissions are made of.

Where ``RUNBOOKS_CALLS`` names a file, a worker appends each call that is new to it, with the type of the workflow that
it was made for. The test suite does so, and what it found is kept in ``calls.json`` beside this module: the policies
under ``deploy/`` are generated from that, and ``runbooks doctor`` asks AWS whether the worker's role may do it all.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pymongo.monitoring
from pydantic import BaseModel, Field
from temporalio import activity

if TYPE_CHECKING:
    import boto3

System = Literal["aws", "mongodb", "atlas"]

NOBODY = "worker"
"""Whose calls they are that no workflow asked for, such as those at the worker's start."""

_ALSO = {
    # The API's word for it where IAM has another one.
    "lambda:Invoke": "lambda:InvokeFunction",
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:CreateMultipartUpload": "s3:PutObject",
    "s3:UploadPart": "s3:PutObject",
    "s3:CompleteMultipartUpload": "s3:PutObject",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
}
_FREE = {"sts:GetCallerIdentity"}
"""What everybody may ask."""

_IAM_PREFIX = {"email": "ses", "monitoring": "cloudwatch"}
_HANDSHAKE = {
    "hello",
    "ismaster",
    "isMaster",
    "ping",
    "buildInfo",
    "endSessions",
    "getMore",
    "killCursors",
    "saslStart",
}
_MORE_THAN_READING = ("$currentOp", "$collStats", "$indexStats", "$out", "$merge", "$listSessions")
_TESTED = re.compile(r"_(scratch|restored)\w*$")


class Calls(BaseModel):
    """Calls by system and then by workflow."""

    aws: dict[str, list[str]] = Field(default_factory=dict, description="IAM actions")
    mongodb: dict[str, list[str]] = Field(default_factory=dict, description="Commands, as 'place command'")
    atlas: dict[str, list[str]] = Field(default_factory=dict, description="Method and path, ids left out")

    def add(self, system: System, workflow: str, call: str) -> bool:
        """Note a call; false when it was known."""
        known = getattr(self, system).setdefault(workflow, [])
        if call in known:
            return False
        known.append(call)
        known.sort()
        return True

    def missing_from(self, other: Calls) -> list[str]:
        """What is here and not in ``other``, one line a call."""
        return [
            f"{workflow}: {call}"
            for system in ("aws", "mongodb", "atlas")
            for workflow, calls in sorted(getattr(self, system).items())
            for call in calls
            if call not in getattr(other, system).get(workflow, ())
        ]


def kept() -> Calls:
    """The calls that the test suite has seen."""
    return Calls.model_validate_json(files("activities").joinpath("calls.json").read_text(encoding="utf-8"))


def read(path: Path) -> Calls:
    """What workers have written to that file."""
    calls = Calls()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        system, workflow, call = json.loads(line)
        calls.add(system, workflow, call)
    return calls


def action_of(service: str, operation: str, method: str) -> str | None:
    """The IAM action that a call needs, None where it needs none. API Gateway's are the HTTP methods themselves."""
    if service == "apigateway":
        return f"apigateway:{method}"
    name = f"{_IAM_PREFIX.get(service, service)}:{operation}"
    return None if name in _FREE else _ALSO.get(name, name)


def command_of(database: str, command: str, body: Mapping[str, Any]) -> str | None:
    """A MongoDB command and where it goes: ``admin``, a ``scratch`` database of a restore, or the ``stage``'s own.

    Where the body decides which privilege it needs, the name says so: an update that may insert is an ``upsert``, an
    insert past the collection's validator an ``insertUnchecked``, and an aggregation is called by the stage that needs
    more than reading.
    """
    if command in _HANDSHAKE or command.startswith("sasl"):
        return None
    if command == "update" and any(one.get("upsert") for one in body.get("updates", ())):
        command = "upsert"
    if command == "insert" and body.get("bypassDocumentValidation"):
        command = "insertUnchecked"
    if command == "aggregate":
        stages = [next(iter(stage), "") for stage in body.get("pipeline", ())]
        command = next((stage for stage in stages if stage in _MORE_THAN_READING), command)
    if database not in ("admin", "local", "config"):
        database = "scratch" if _TESTED.search(database) else "stage"
    return f"{database} {command}"


def atlas_call_of(method: str, path: str) -> str | None:
    """A call of the Atlas Administration API without the ids in it, None for any other URL."""
    _, found, rest = path.partition("/api/atlas/v2/groups/")
    if not found:
        return None
    parts = rest.split("/")[1:]
    collections = {"clusters", "snapshots", "restoreJobs", "databaseUsers"}
    shown = [
        "{id}" if index and (parts[index - 1] in collections or parts[index - 1] == "admin") else part
        for index, part in enumerate(parts)
    ]
    return f"{method} /{'/'.join(shown)}"


class Recorder(pymongo.monitoring.CommandListener):
    """Writes down every call that is new to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: set[tuple[str, str, str]] = set()

    def watch_aws(self, session: boto3.Session) -> None:
        """Every client that this session makes from now on is listened to."""
        session.events.register("before-call", self._aws)

    def watch_mongodb(self) -> None:
        """Every client that this process makes from now on is listened to."""
        pymongo.monitoring.register(self)

    def note(self, system: System, call: str | None) -> None:
        if call is None:
            return
        workflow = activity.info().workflow_type or NOBODY if activity.in_activity() else NOBODY
        with self._lock:
            if (system, workflow, call) in self._seen:
                return
            self._seen.add((system, workflow, call))
            with self._path.open("a", encoding="utf-8") as out:
                out.write(json.dumps([system, workflow, call]) + "\n")

    def _aws(self, model: Any, **_: Any) -> None:
        prefix = model.service_model.signing_name
        self.note("aws", action_of(prefix, model.name, model.http.get("method", "POST")))

    def http(self, request: httpx.Request) -> None:
        self.note("atlas", atlas_call_of(request.method, request.url.path))

    def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
        self.note("mongodb", command_of(event.database_name, event.command_name, event.command))

    def succeeded(self, event: pymongo.monitoring.CommandSucceededEvent) -> None:
        """Counted when it started."""

    def failed(self, event: pymongo.monitoring.CommandFailedEvent) -> None:
        """Counted when it started."""


def recorder() -> Recorder | None:
    """The recorder that the environment asks for, once a process."""
    global _recorder
    path = os.environ.get("RUNBOOKS_CALLS")
    if path and _recorder is None:
        _recorder = Recorder(Path(path))
        _recorder.watch_mongodb()
    return _recorder if path else None


_recorder: Recorder | None = None
