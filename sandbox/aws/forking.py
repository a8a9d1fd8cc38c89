"""Python environments are forked from one process that has loaded what they all need (:mod:`sandbox.aws.preloaded`).

ministack starts an interpreter for each, which then reads boto3, pymongo and the description of SSM: more than half a
second of a core, on a machine that runs everything else of the sandbox too. Forked, an environment takes a fraction.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import types
from multiprocessing.connection import Connection
from typing import Any

from ministack.core import lambda_runtime as runtime

_context = multiprocessing.get_context("forkserver")


class Forked:
    """A process with the part of :class:`subprocess.Popen` that ministack and the environments use."""

    def __init__(self, script: str, cwd: str, env: dict[str, str]) -> None:
        (stdin, to_it), (from_it, stdout), (errors, stderr) = (_context.Pipe(duplex=False) for _ in range(3))
        self._process = _context.Process(target=_become, args=(script, cwd, env, stdin, stdout, stderr), daemon=True)
        self._process.start()
        self.pid = self._process.pid
        self.stdin = os.fdopen(os.dup(to_it.fileno()), "w", buffering=1)
        self.stdout = os.fdopen(os.dup(from_it.fileno()))
        self.stderr = os.fdopen(os.dup(errors.fileno()))
        for end in (stdin, to_it, from_it, stdout, errors, stderr):
            end.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"environment {self.pid}", timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _become(script: str, cwd: str, env: dict[str, str], *streams: Connection) -> None:
    """In the forked process: be what ``python script`` would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


def popen(command: list[str], **options: Any) -> Any:
    """As ministack's start of an environment; other interpreters than this one are started as they were."""
    if command[0] == sys.executable:
        return Forked(command[1], options["cwd"], options["env"])
    return subprocess.Popen(command, **options)


def install() -> None:
    _context.set_forkserver_preload(["sandbox.aws.preloaded"])
    runtime.subprocess = types.SimpleNamespace(**vars(subprocess) | {"Popen": popen})
