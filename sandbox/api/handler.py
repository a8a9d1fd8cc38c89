"""The State Tracking API: the whole source of its Lambda function.

A build packs this file beside a ``release.json`` (see :mod:`sandbox.api.releases`), which names the release and its
faults. Everything above :func:`handler` that reads or connects is done once an execution environment, as on Lambda.
Only the standard library, boto3 and pymongo are used: all a Python runtime with a MongoDB layer has.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import boto3
import faults  # type: ignore[import-not-found]  # packed beside this file
import tokens  # type: ignore[import-not-found]  # and this one
from bson import ObjectId
from bson.errors import InvalidId
from pymongo import DESCENDING, MongoClient, ReturnDocument
from pymongo.collection import Collection
from pymongo.errors import OperationFailure, PyMongoError

Document = dict[str, Any]

STATUSES = ("pending", "active", "completed", "failed")
DEFAULT_LIMIT, MAX_LIMIT = 20, 100


# --- once an execution environment ---------------------------------------------------------------------------------

_init_began = time.perf_counter()
RELEASE: Document = json.loads(Path(__file__).with_name("release.json").read_text())
FAULTS: Document = RELEASE["faults"]

if FAULTS["crash_on_init"]:
    raise ImportError(f"release {RELEASE['id']} needs a module that its build left out")
time.sleep(FAULTS["cold_start_ms"] / 1000)


_parameters = boto3.client("ssm")


def _secret(variable: str) -> str:
    """A secret by the SSM parameter that ``variable`` names: the environment holds names, never values."""
    return _parameters.get_parameter(Name=os.environ[variable], WithDecryption=True)["Parameter"]["Value"]


API_KEYS = tuple(key.strip().encode() for key in _secret("API_KEYS_PARAM").split(",") if key.strip())
KEYRING = tokens.Keyring.of(_secret("JWT_SECRET_PARAM"), single=FAULTS["single_signing_secret"])
POOL_SIZE = int(os.environ.get("MONGODB_MAX_POOL_SIZE", "50"))
CLIENT: MongoClient[Document] = MongoClient(
    _secret("MONGODB_URI_PARAM"),
    tz_aware=True,
    maxPoolSize=POOL_SIZE,
    waitQueueTimeoutMS=faults.POOL_WAIT_MS if FAULTS["queries_at_once"] else None,
)
SESSIONS: Collection[Document] = CLIENT.get_default_database()["sessions"]

LIMITS_PARAMETER = f"/sst/state-api/{os.environ['SST_STAGE']}/ClientLimits"
"""Limits by key id, as JSON: ``{"1a2b3c4d": {"per_minute": 60, "until": "2026-01-20T12:00:00Z"}}``; may be absent."""

MEMORY = faults.Memory(FAULTS["memory_held_mb"])
IDLENESS = faults.Idleness(FAULTS["idle_seconds"])
_init_ms: float | None = (time.perf_counter() - _init_began) * 1000


# --- requests and answers ------------------------------------------------------------------------------------------


class HttpError(Exception):
    """An answer other than success that the API gives on purpose."""

    def __init__(self, status: int, message: str | list[str]) -> None:
        super().__init__("; ".join(message) if isinstance(message, list) else message)
        self.status = status
        self.body = {"statusCode": status, "message": message, "error": HTTPStatus(status).phrase}


@dataclass(frozen=True)
class Request:
    id: str
    method: str
    path: str
    query: Mapping[str, str]
    api_key: str | None
    raw_body: str
    client: str | None = None
    bearer: str | None = None

    @classmethod
    def of(cls, event: Mapping[str, Any], request_id: str) -> Request:
        headers = {name.lower(): value for name, value in (event.get("headers") or {}).items()}
        body = event.get("body") or ""
        if event.get("isBase64Encoded"):
            body = base64.b64decode(body).decode("utf-8", errors="replace")
        path = "/" + event["path"].strip("/")
        query = event.get("queryStringParameters") or {}
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return cls(
            id=request_id,
            method=event["httpMethod"],
            path=path,
            query=query,
            api_key=headers.get("x-api-key"),
            raw_body=body,
            client=_client_name(headers),
            bearer=token.strip() if scheme.lower() == "bearer" else None,
        )

    @property
    def key_id(self) -> str | None:
        """Names the key in logs without telling it."""
        return tokens.fingerprint(self.api_key) if self.api_key else None

    def chance(self, purpose: str) -> float:
        """A number in [0, 1) that is the same for the same request of the same release."""
        digest = hashlib.sha256(f"{purpose}:{RELEASE['id']}:{self.id}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def _client_name(headers: Mapping[str, str]) -> str | None:
    """What the client calls itself: its own header, else the product of its user agent."""
    said = headers.get("x-client-name") or headers.get("user-agent", "").partition("/")[0]
    return re.sub(r"[^\w .@-]", "", said)[:40] or None


Answer = tuple[int, Any]


def health(_request: Request) -> Answer:
    version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION")
    return 200, {"status": "ok", "release": RELEASE["id"], "label": RELEASE["label"], "version": version}


def ready(_request: Request) -> Answer:
    began = time.perf_counter()
    try:
        CLIENT.admin.command("ping")
        latency = round((time.perf_counter() - began) * 1000, 1)
        return 200, {
            "status": "ready",
            "release": RELEASE["id"],
            "database": {"status": "up", "latencyMs": latency, "connections": _connections()},
        }
    except PyMongoError as error:
        # The text of a pymongo error can carry the address and user of the database.
        raise HttpError(503, f"database is down: {type(error).__name__}") from error


def _connections() -> dict[str, int] | None:
    """The server's own count, or none when the API's user may not ask for it (it needs ``clusterMonitor``)."""
    try:
        counts = CLIENT.admin.command("serverStatus")["connections"]
    except OperationFailure:
        return None
    return {name: int(counts[name]) for name in ("current", "available") if name in counts}


def list_sessions(request: Request) -> Answer:
    problems = []
    limit = request.query.get("limit", str(DEFAULT_LIMIT))
    if not limit.isdecimal() or not 1 <= int(limit) <= MAX_LIMIT:
        problems.append(f"limit must be a number from 1 to {MAX_LIMIT}")
    status = request.query.get("status")
    if status is not None and status not in STATUSES:
        problems.append(f"status must be one of {', '.join(STATUSES)}")
    if problems:
        raise HttpError(400, problems)
    wanted = {name: request.query[name] for name in ("project_id", "status") if name in request.query}
    found = list(SESSIONS.find(wanted).sort("created_at", DESCENDING).limit(int(limit)))
    faults.at_once(FAULTS["queries_at_once"], lambda number: SESSIONS.count_documents({"owner": f"user-{number:03d}"}))
    if FAULTS["unindexed_query"]:
        for session in found:
            session["previous_id"] = _previous_of_owner(session)
    return 200, [_shown(session) for session in found]


def _previous_of_owner(session: Document) -> str | None:
    """One query a session, and each reads the whole collection until there is an index on owner and created_at."""
    earlier = {"owner": session.get("owner"), "created_at": {"$lt": session["created_at"]}}
    previous = SESSIONS.find_one(earlier, {"_id": 1}, sort=[("created_at", DESCENDING)])
    return str(previous["_id"]) if previous else None


def create_session(request: Request) -> Answer:
    try:
        body = json.loads(request.raw_body)
    except ValueError:
        raise HttpError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HttpError(400, "the body must be an object")
    problems = [f"property {name} should not exist" for name in body if name not in ("project_id", "status", "owner")]
    for name in ("project_id", "owner"):
        if (name in body or name == "project_id") and not (isinstance(body.get(name), str) and body[name].strip()):
            problems.append(f"{name} must be a non-empty string")
    if body.get("status", "pending") not in STATUSES:
        problems.append(f"status must be one of {', '.join(STATUSES)}")
    if FAULTS["reject_validation"]:
        problems.append("project_id must be a UUID")
    if problems:
        raise HttpError(400, problems)
    now = datetime.now(UTC)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # MongoDB keeps milliseconds
    session = {"status": "pending", **RELEASE["session_defaults"], **body, "created_at": now, "updated_at": now}
    SESSIONS.insert_one(session)
    return 201, _shown(session)


def get_session(request: Request) -> Answer:
    identifier = unquote(request.path.rpartition("/")[2])
    try:
        session = SESSIONS.find_one({"_id": ObjectId(identifier)})
    except InvalidId:
        session = None
    if session is None:
        raise HttpError(404, f"session {identifier} not found")
    return 200, _shown(session)


def _shown(session: Document) -> Document:
    return {("id" if name == "_id" else name): value for name, value in session.items()}


def issue_token(_request: Request) -> Answer:
    seconds = FAULTS["token_seconds"]
    return 201, {"token": KEYRING.issue(seconds), "expiresIn": seconds}


def read_token(request: Request) -> Answer:
    try:
        return 200, KEYRING.read(request.bearer or "")
    except tokens.TokenError as error:
        raise HttpError(401, str(error)) from None


HEALTH = "/health"
TOKEN = "/tokens/self"
ROUTES: tuple[tuple[str, str, str, Callable[[Request], Answer]], ...] = (
    ("GET", HEALTH, r"/health", health),
    ("GET", "/health/ready", r"/health/ready", ready),
    ("GET", "/sessions", r"/sessions", list_sessions),
    ("POST", "/sessions", r"/sessions", create_session),
    ("GET", "/sessions/{id}", r"/sessions/[^/]+", get_session),
    ("POST", "/tokens", r"/tokens", issue_token),
    ("GET", TOKEN, r"/tokens/self", read_token),
)


def _route(request: Request) -> tuple[str, Callable[[Request], Answer]] | None:
    for method, name, pattern, answer in ROUTES:
        if method == request.method and re.fullmatch(pattern, request.path):
            return None if f"{method} {name}" == FAULTS["missing_route"] else (name, answer)
    return None


def _authorize(request: Request) -> None:
    # All keys are compared, whichever fits, so that the time taken tells nothing about them.
    presented = (request.api_key or "").encode()
    if not sum(hmac.compare_digest(presented, key) for key in API_KEYS):
        raise HttpError(401, "X-Api-Key is missing or not known")


# --- limits ---------------------------------------------------------------------------------------------------------

_LIMITS_KEPT_S = 2.0
_SLICE_S = 10
"""Requests are counted in slices of so many seconds, in the database: environments share one count."""

_limits: tuple[float, Document] = (-1e9, {})


def _client_limits() -> Document:
    """The limits that hold now, read again every few seconds."""
    global _limits
    if time.monotonic() - _limits[0] > _LIMITS_KEPT_S:
        try:
            found = json.loads(_parameters.get_parameter(Name=LIMITS_PARAMETER)["Parameter"]["Value"])
        except _parameters.exceptions.ParameterNotFound:
            found = {}
        _limits = (time.monotonic(), found)
    now = datetime.now(UTC).isoformat()
    return {key: one for key, one in _limits[1].items() if not one.get("until") or one["until"] > now}


def _limit(request: Request) -> None:
    """429 for a client above its own limit, and for everybody above the limit that all share."""
    own = _client_limits().get(request.key_id or "")
    if own is not None and _counted(f"key {request.key_id}") > own["per_minute"] * _SLICE_S / 60:
        raise HttpError(429, "too many requests of this key")
    if FAULTS["shared_limit"] and _counted("all") > FAULTS["shared_limit"] * _SLICE_S / 60:
        raise HttpError(429, "too many requests")


def _counted(what: str) -> int:
    """How many there were in this slice, this one included."""
    number = int(time.time()) // _SLICE_S
    slices = CLIENT.get_default_database()["rate_limits"]
    found: Document = slices.find_one_and_update(  # type: ignore[assignment]  # an upsert always finds one
        {"_id": f"{what} {number}"},
        {"$inc": {"n": 1}, "$set": {"slice": number}},
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    if found["n"] == 1:
        slices.delete_many({"slice": {"$lt": number - 6}})
    return int(found["n"])


# --- faults that strike while a request is served ------------------------------------------------------------------


def _strike(request: Request) -> None:
    time.sleep((FAULTS["latency_ms"] + faults.worked(FAULTS["work_ms"])) / 1000)
    if request.chance("error") < FAULTS["error_rate"]:
        raise faults.SessionStateError("cannot read property 'state' of undefined session")


# --- the function --------------------------------------------------------------------------------------------------


def handler(event: Mapping[str, Any], context: Any) -> Document:
    """Answer one API Gateway proxy event, and log one JSON line about it."""
    with IDLENESS:
        return _logged(event, context)


def _logged(event: Mapping[str, Any], context: Any) -> Document:
    global _init_ms
    began = time.perf_counter()
    request = Request.of(event, context.aws_request_id)
    entry: Document = {"level": "INFO", "message": "request", "method": request.method, "route": request.path}
    try:
        status, body = _answer(request, entry)
    except HttpError as error:
        status, body = error.status, error.body
        entry |= {"error": str(error), "errorType": HTTPStatus(status).phrase}
    except faults.RuntimeExitError:
        raise
    except Exception as error:
        status, body = 500, {"statusCode": 500, "message": "Internal server error"}
        entry |= {"error": _safe(error), "errorType": type(error).__name__, "stack": _stack(error)}
    entry |= {
        "level": "ERROR" if status >= 500 else "WARN" if status >= 400 else "INFO",
        "statusCode": status,
        "durationMs": round((time.perf_counter() - began) * 1000, 1),
        "requestId": request.id,
        "release": RELEASE["id"],
        "version": context.function_version,
        "apiKeyId": request.key_id,
        "client": request.client,
        "memoryUsedMb": MEMORY.used_mb(),
        "coldStart": _init_ms is not None,
    }
    if _init_ms is not None:
        entry["initMs"], _init_ms = round(_init_ms, 1), None
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()
    headers = {"Content-Type": "application/json", "X-Release": RELEASE["id"], "X-Request-Id": request.id}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body, default=_plain)}


def _answer(request: Request, entry: Document) -> Answer:
    if request.chance("crash") < FAULTS["crash_rate"]:
        raise faults.RuntimeExitError("unhandled rejection outside of the request")
    MEMORY.leak(FAULTS["memory_leak_mb"])
    found = _route(request)
    if found is None:
        raise HttpError(404, f"Cannot {request.method} {request.path}")
    entry["route"], answer = found
    if entry["route"] != HEALTH:
        if entry["route"] != TOKEN:  # there the token itself is what lets the request in
            _authorize(request)
        _limit(request)
        _strike(request)
    return answer(request)


def _safe(error: Exception) -> str:
    """The text of an error for the log. A database error's text is its code only: the rest can name hosts and users."""
    if isinstance(error, PyMongoError):
        return f"database error {getattr(error, 'code', None) or 'without a code'}"
    return str(error)


def _stack(error: Exception) -> str:
    """Where it happened, without the message: that is in ``error``, made safe."""
    return "".join(traceback.format_tb(error.__traceback__))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return str(value)
