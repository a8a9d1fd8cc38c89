"""A request and its answer, apart from sockets, so that each service is one ``match`` over method and path."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from email.message import Message
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    method: str
    path: tuple[str, ...]
    query: dict[str, str]
    headers: Message
    body: bytes
    base_url: str

    @property
    def route(self) -> tuple[str, ...]:
        """Method and path in one tuple, for ``match``."""
        return (self.method, *self.path)

    def json_object(self) -> dict[str, Any] | None:
        """The body as a JSON object, or None when it is anything else."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def authorization(self, scheme: str) -> str | None:
        """What follows ``scheme`` in the Authorization header, or None. Never kept."""
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        return value.strip() if kind.lower() == scheme.lower() and value.strip() else None


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Service(Protocol):
    """One outside system. ``request.path`` starts after the system's own first segment."""

    def handle(self, request: Request) -> Reply: ...


def answer(status: int, value: Any, **headers: str) -> Reply:
    """A JSON answer; header names are given with underscores for dashes."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply(status, json.dumps(value).encode(), headers=named)


def plain(status: int, text: str) -> Reply:
    return Reply(status, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")


def text_of(value: Any) -> str:
    """A string that was sent, or nothing when something else was."""
    return value if isinstance(value, str) else ""
