"""Which fault strikes which operation, and how often."""

from __future__ import annotations

import threading
import zlib
from collections import Counter
from typing import Literal, get_args

Mode = Literal["500", "throttled", "reset", "time-out", "slow", "garbage", "expired"]
MODES: tuple[Mode, ...] = get_args(Mode)

TIMES = {"time-out": 1}
"""How often each operation meets the fault; three times otherwise, which is more than a client tries by itself."""


class Strikes:
    """Every operation meets its fault at first: all in one way, or, from a seed, each in its own."""

    def __init__(self, mode: Mode | None, seed: int = 0) -> None:
        self._mode, self._seed = mode, seed
        self._lock, self._met = threading.Lock(), Counter[str]()

    def way(self, operation: str) -> Mode:
        return self._mode or MODES[(zlib.crc32(operation.encode()) + self._seed) % len(MODES)]

    def fault(self, operation: str) -> Mode | None:
        """How this call of the operation fails; None when it has failed often enough."""
        mode = self.way(operation)
        with self._lock:
            self._met[operation] += 1
            return mode if self._met[operation] <= TIMES.get(mode, 3) else None

    @property
    def pairs(self) -> set[tuple[str, str]]:
        """Each operation that was asked for, and how it failed."""
        with self._lock:
            return {(operation, self.way(operation)) for operation in self._met}
