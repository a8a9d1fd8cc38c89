"""What every client reads from disk: the certificates of all authorities, and AWS's own description."""

from __future__ import annotations

import functools

import httpx

from sandbox import descriptions


def read_once() -> None:
    """From now on it is read once a process. Nothing here is encrypted, and tests make hundreds of clients."""
    httpx._transports.default.create_ssl_context = functools.cache(httpx._config.create_ssl_context)
    descriptions.read_once()
