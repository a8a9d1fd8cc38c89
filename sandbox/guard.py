"""Runs one part of the sandbox as its child and sees to it that nothing of the part outlives it.

Started as ``python guard.py OWNER COMMAND...`` at the head of a session of its own. The part is ended when the guard is
asked to (SIGTERM), when the process OWNER ends in whatever way (0: nobody owns it), and when the guard itself is
killed. Whatever else is left in the process group, such as the emulator's Lambda workers, goes with it.

It is run by path, without site packages, because one is started for every part: standard library only.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

GRACE = 5.0
"""Seconds that a part has to end by itself after SIGTERM."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


_LIBC = ctypes.CDLL(None)


ENDED = "ended by itself"
"""How the line begins that a part's log ends with, when nobody stopped it."""


class _Stop(Exception):
    """The part shall end."""


def main(owner: int, command: list[str]) -> NoReturn:
    signal.signal(signal.SIGTERM, _on_stop)
    child: subprocess.Popen[bytes] | None = None
    try:
        child = subprocess.Popen(command, preexec_fn=dies_with(os.getpid()))
        if owner:
            threading.Thread(target=_stop_after, args=(owner,), daemon=True).start()
        code = child.wait()
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        print(f"{ENDED} with {cause}", file=sys.stderr, flush=True)
    except _Stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if child:
            _end(child)
    except OSError as error:
        print(f"could not be started: {error}", file=sys.stderr, flush=True)
    finally:
        # The guard goes with its group: this is its own end, too.
        os.killpg(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process cannot outlive SIGKILL")


def dies_with(parent: int) -> Callable[[], None]:
    """What a new child runs before its program: the kernel kills it as soon as the thread that started it is gone."""

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel had been asked
            os._exit(1)

    return prepare


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        print(f"did not end within {GRACE:.0f} s of SIGTERM: killed", file=sys.stderr, flush=True)


def _on_stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stop


def _stop_after(owner: int) -> None:
    """Wait for the end of ``owner``. A pidfd becomes readable then; unlike a parent-death signal, no thread matters."""
    try:
        handle = os.pidfd_open(owner)
    except ProcessLookupError:
        pass
    else:
        select.select([handle], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
