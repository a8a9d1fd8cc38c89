"""Releases of the State Tracking API: the same source, each with the faults chosen for it, built reproducibly."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

HANDLER = Path(__file__).with_name("handler.py")
BESIDE = ("faults.py", "tokens.py")
"""What the handler imports: packed with it."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_ID_LENGTH = 10

Route = Literal["GET /health", "GET /health/ready", "GET /sessions", "POST /sessions", "GET /sessions/{id}"]


class ReleaseError(ValueError):
    """A ``release.json`` cannot be used; the message is one line and says why."""


class Faults(BaseModel):
    """What is wrong with a release. ``/health`` says only that the process lives, so most faults leave it alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error_rate: float = Field(0, ge=0, le=1, description="Share of requests, except /health, that are answered 500")
    crash_rate: float = Field(
        0,
        ge=0,
        le=1,
        description="Share of all requests that end the invocation: 502, and in Lambda's own Errors metric",
    )
    latency_ms: int = Field(0, ge=0, description="Added to each request except /health")
    work_ms: int = Field(
        0, ge=0, description="Added likewise at 512 MB, and half of it at 1024: Lambda gives CPU by memory"
    )
    cold_start_ms: int = Field(0, ge=0, description="Added to the start of each execution environment")
    memory_held_mb: int = Field(0, ge=0, description="Held by each execution environment from its start")
    memory_leak_mb: float = Field(
        0, ge=0, description="Kept from each request for good; Lambda ends an environment above its memory"
    )
    reject_validation: bool = Field(False, description="Whether POST /sessions refuses valid bodies with 400")
    missing_route: Route | None = Field(None, description="A route that is answered 404")
    unindexed_query: bool = Field(
        False, description="Whether GET /sessions also reads by (owner, created_at), slow until such an index exists"
    )
    queries_at_once: int = Field(
        0,
        ge=0,
        le=50,
        description="Queries that GET /sessions makes side by side, and fails where its pool is too small",
    )
    idle_seconds: float = Field(
        0,
        ge=0,
        description="After this long without a call an environment is gone, unless it was provisioned; 0 is never",
    )
    shared_limit: int = Field(
        0, ge=0, description="Requests a minute of all clients together, above which everybody is answered 429"
    )
    single_signing_secret: bool = Field(
        False, description="Whether tokens are verified with the signing key only, as before dual verification"
    )
    token_seconds: int = Field(900, ge=1, description="How long a token is good for")
    crash_on_init: bool = Field(False, description="Whether no execution environment ever starts")


class Release(BaseModel):
    """One version of the code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,39}$")
    faults: Faults = Faults()
    session_defaults: dict[str, str] = Field(
        default_factory=dict, description="Fields that a new session gets when its body has none, such as environment"
    )

    @property
    def id(self) -> str:
        """Stands for the content, as a short git commit does."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:_ID_LENGTH]

    def with_faults(self, label: str | None = None, **faults: Any) -> Release:
        """The same release with these faults besides its own.

        Raises:
            pydantic.ValidationError: there is no such fault, or its value is out of range.
        """
        merged = Faults.model_validate({**self.faults.model_dump(), **faults})
        return Release(label=label or self.label, faults=merged, session_defaults=self.session_defaults)

    def to_json(self) -> str:
        """The ``release.json`` of a checkout and of a build."""
        return json.dumps({"id": self.id, **self.model_dump(mode="json")}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> Release:
        """Read a ``release.json``.

        Raises:
            ReleaseError: it is missing, damaged, or its id stands for another content.
        """
        try:
            content = json.loads(path.read_text())
            stated = content.pop("id")
            release = cls.model_validate(content)
        except FileNotFoundError:
            raise ReleaseError(f"{path.name} is missing: this is no checkout of the State Tracking API") from None
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ReleaseError(f"{path.name}: {problems}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ReleaseError(f"{path.name} is not the JSON object that write_checkout makes") from None
        if stated != release.id:
            raise ReleaseError(f"{path.name} says id {stated}, but its content is {release.id}: it was edited")
        return release


GOOD = Release(label="good")
CATALOGUE: dict[str, Release] = {
    release.label: release
    for release in (
        GOOD,
        Release(label="better"),  # as good as good, under another name: then there is something to go back to
        GOOD.with_faults("broken", error_rate=0.3),
        GOOD.with_faults("flaky", error_rate=0.02),
        GOOD.with_faults("crashing", crash_rate=0.3),
        GOOD.with_faults("dead", crash_on_init=True),
        GOOD.with_faults("slow", latency_ms=2500),
        GOOD.with_faults("cold", cold_start_ms=4000),
        GOOD.with_faults("drowsy", idle_seconds=0.5),
        GOOD.with_faults("leaky", memory_leak_mb=4),
        GOOD.with_faults("heavy", memory_held_mb=370, work_ms=400),
        GOOD.with_faults("rejecting", reject_validation=True),
        GOOD.with_faults("incomplete", missing_route="GET /sessions/{id}"),
        GOOD.with_faults("unindexed", unindexed_query=True),
        GOOD.with_faults("chatty", queries_at_once=8),
        GOOD.with_faults("throttled", shared_limit=360),
        GOOD.with_faults("one-secret", single_signing_secret=True),
    )
}
"""Named releases for demos and tests; others are made with :meth:`Release.with_faults`."""


def build(release: Release, handler: Path = HANDLER) -> bytes:
    """The deployment package: the same bytes for the same release and source, so that its hash identifies it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        sources = {name: handler.with_name(name).read_bytes() for name in ("handler.py", *BESIDE)}
        for name, content in {**sources, "release.json": release.to_json().encode()}.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def code_sha256(package: bytes) -> str:
    """What Lambda calls ``CodeSha256``: base64, not hex."""
    return base64.b64encode(hashlib.sha256(package).digest()).decode()
