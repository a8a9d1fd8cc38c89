"""Waiting in tests: for a condition, never for a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(look: Callable[[], Awaitable[T]], what: str, patience: float = 60, every: float = 0.05) -> T:
    """The first true answer of ``look``; fails, saying ``what`` never came about."""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        if found := await look():
            return found
        assert asyncio.get_running_loop().time() < deadline, f"never came about: {what}; last seen: {found!r}"
        await asyncio.sleep(every)
