"""What can be wrong with a release, where it strikes while requests are served. Packed beside the handler."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

POOL_WAIT_MS = 20
"""How long a query of a release that asks many things at once waits for a connection of its pool."""

_MEGABYTE = 1024 * 1024


class SessionStateError(Exception):
    """What the release with an error rate fails with: a mistake in its own code."""


class RuntimeExitError(Exception):
    """Ends the invocation itself, past the API's own error handling."""


def worked(milliseconds: float) -> float:
    """How long what takes so long at 512 MB takes here: Lambda gives a function CPU by its memory."""
    return milliseconds * 512 / int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"])


class Memory:
    """What an execution environment holds and never gives back. It is written to, so that it really is resident."""

    def __init__(self, megabytes: int) -> None:
        self._held = [b"\x01" * (megabytes * _MEGABYTE)]

    def leak(self, megabytes: float) -> None:
        if megabytes:
            self._held.append(b"\x01" * int(megabytes * _MEGABYTE))

    @staticmethod
    def used_mb() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") // _MEGABYTE


def at_once(count: int, query: Callable[[int], object]) -> None:
    """As many queries side by side, each on a connection of its own, as a page of a dashboard asks them."""
    if count:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(query, range(count)))


class Idleness:
    """Ends an environment that nobody has called for ``seconds``, as Lambda does in its own time; 0 is never.

    One that was provisioned stays.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._since = seconds, time.monotonic()
        self._busy = threading.Lock()
        if seconds and os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "provisioned-concurrency":
            threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> None:
        self._busy.acquire()

    def __exit__(self, *_: object) -> None:
        self._since = time.monotonic()
        self._busy.release()

    def _watch(self) -> None:
        while True:
            time.sleep(0.05)
            with self._busy:
                if time.monotonic() - self._since > self._seconds:
                    os._exit(0)
