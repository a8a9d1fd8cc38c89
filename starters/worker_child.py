"""A worker as a child process of the sandbox's own command: started again whenever it dies."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.processes import Identity

_AGAIN = 2.0
"""Seconds until a worker that died is started again: long enough to see that it was gone."""


class WorkerChild:
    """One ``python -m worker`` for as long as the block lasts, and never longer than this process.

    Args:
        environment: the whole environment of the worker.
        log: takes its output.
        say: takes a line for the person who looks on.
    """

    def __init__(self, environment: Mapping[str, str], log: Path, say: Callable[[str], None]) -> None:
        self._environment = environment
        self._log = log
        self._say = say
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="worker-keeper", daemon=True)
        self._start()

    @property
    def pid(self) -> int:
        """The process to kill, to see that runs survive it: the guard that the worker ends with."""
        return self._identity.pid

    def __enter__(self) -> WorkerChild:
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from sandbox import processes

        self._ended.set()
        self._keeper.join()
        processes.stop([self._identity])
        self._process.wait()

    def _start(self) -> None:
        from sandbox import processes

        self._identity: Identity
        self._identity, self._process = processes.start(
            [sys.executable, "-m", "worker"],
            environment=self._environment,
            log=self._log,
            owner=processes.identify(os.getpid()),
        )

    def _keep(self) -> None:
        while not self._ended.wait(0.2):
            if self._process.poll() is None:
                continue
            self._say(f"the worker ended ({self._last_words()}): started again in {_AGAIN:.0f} s")
            if self._ended.wait(_AGAIN):
                return
            self._start()
            self._say(f"worker started again, process {self.pid}; runs go on where they were")

    def _last_words(self) -> str:
        """Its guard notes how it ended; nothing is noted when the guard was killed, too."""
        from sandbox.guard import ENDED

        *_, before, last = ["", "", *self._log.read_text(errors="replace").splitlines()]
        if not last.startswith(ENDED):
            return "killed"
        return before.strip() or last if "exit code" in last else last
