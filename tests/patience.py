"""Waiting in tests: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

SLOWER = 3.0
"""How much slower a machine may be than the one on which a patience was chosen. It costs nothing where all is well."""

LONGEST = 0.2
"""Seconds between two looks, at most: a look costs the server and the worker a task."""


async def eventually(
    look: Callable[[], Awaitable[T | None]],
    what: str | Callable[[], str],
    patience: float = 60,
    every: float = 0.05,
    news: asyncio.Event | None = None,
) -> T:
    """The first true answer of ``look``; fails, saying ``what`` never came about. It looks less often with time.

    Args:
        every: seconds between the first two looks.
        news: is set when there is something new to see, which is looked at at once.
    """
    news = news or asyncio.Event()
    deadline = asyncio.get_running_loop().time() + patience * SLOWER
    longest = max(every, LONGEST)
    while True:
        news.clear()
        if found := await look():
            return found
        if asyncio.get_running_loop().time() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"never came about: {said}; last seen: {found!r}")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(news.wait(), every)
        every = min(every * 1.3, longest)


async def soon(holds: Callable[[], bool], patience: float = 30) -> None:
    """As soon as it holds here, in this process."""
    deadline = asyncio.get_running_loop().time() + patience * SLOWER
    while not holds():
        assert asyncio.get_running_loop().time() < deadline, "it never came about"
        await asyncio.sleep(0.02)
