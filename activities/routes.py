"""Which route a path belongs to, where the log has only the path: ids are taken out of it. Pure functions."""

from __future__ import annotations

import re

MOST_SEGMENTS = 8

_ID = re.compile(r"(?i)(\d+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{16,}|(?=.*\d)[\w~-]{20,})")
"""A number, a UUID, a long hexadecimal word (ObjectId, hash), or a long word with figures in it (a token)."""


def route_of(method: str | None, path: str | None) -> str:
    """``GET /sessions/{id}`` of ``GET`` and ``/sessions/6b06b4da1fb8901ed0c1579e?x=1``. A template stays what it is."""
    if path is None:
        return f"{method or '?'} ?"
    plain = path.split("?", 1)[0].rstrip("/") or "/"
    segments = plain.split("/")
    shown = "/".join("{id}" if _ID.fullmatch(segment) else segment for segment in segments[: MOST_SEGMENTS + 1])
    if len(segments) > MOST_SEGMENTS + 1:
        shown += "/…"
    return f"{method or '?'} {shown}"[:120]
