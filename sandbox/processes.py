"""Processes of the sandbox: told apart by pid *and* start time, so that a recycled pid is never signalled.

Each part runs in a session of its own, led by its guard (:mod:`sandbox.guard`). What a part starts, such as the
emulator's Lambda workers, stays in that session and is found through it even when the leader is gone. Linux only: all
is read from ``/proc``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sandbox import guard

_POLL = 0.02
_KILL_PATIENCE = 5.0


class Identity(BaseModel):
    """One process, for as long as the machine is up."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: int
    """Clock ticks between boot and the start of the process."""


class _Stat(BaseModel):
    state: str
    session: int
    started: int


def boot_id() -> str:
    """The current boot: pids and start times say nothing about another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Who has ``pid`` now; ``None`` when nobody does or only a zombie is left."""
    stat = _stat(pid)
    return Identity(pid=pid, started=stat.started) if stat and stat.state not in "ZX" else None


def alive(process: Identity) -> bool:
    return identify(process.pid) == process


def session_members(leader: Identity) -> list[int]:
    """Pids of all living processes in the session that ``leader`` leads or led.

    A session's id is not given to a new process while the session has members, so members without their leader are
    still ours; another process under the leader's pid means that our session is gone.
    """
    holder = _stat(leader.pid)
    if holder and holder.started != leader.started:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        stat = _stat(int(entry.name))
        if stat and stat.session == leader.pid and stat.started >= leader.started and stat.state not in "ZX":
            found.append(int(entry.name))
    return found


def start(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path, owner: Identity | None
) -> tuple[Identity, subprocess.Popen[bytes]]:
    """Start ``command`` under a guard, in a session of its own, with its output appended to ``log``.

    Args:
        owner: the process whose end, however it comes, ends the command too; ``None`` to let it run until stopped.
    """
    guarded = [sys.executable, "-I", "-S", str(guard.__file__), str(owner.pid if owner else 0), *command]
    with log.open("ab") as output:
        process = subprocess.Popen(
            guarded,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stat = _stat(process.pid)
    if stat is None:  # our own child: it is at least a zombie until we wait for it
        raise RuntimeError(f"process {process.pid} vanished from /proc")
    return Identity(pid=process.pid, started=stat.started), process


def stop(leaders: Iterable[Identity]) -> None:
    """End these sessions, all at once: asked first, killed after the guard's grace. Returns when none is left.

    Raises:
        RuntimeError: a process survived even SIGKILL.
    """
    remaining = list(leaders)
    for leader in remaining:
        # A guard passes the request on and waits; without a guard its orphans are asked one by one.
        for pid in [leader.pid] if alive(leader) else session_members(leader):
            _signal(pid, signal.SIGTERM)
    remaining = _wait_until_gone(remaining, guard.GRACE + 1)
    for leader in remaining:
        for pid in session_members(leader):
            _signal(pid, signal.SIGKILL)
    survivors = [pid for leader in _wait_until_gone(remaining, _KILL_PATIENCE) for pid in session_members(leader)]
    if survivors:
        raise RuntimeError(f"could not end the processes {survivors}")


def _wait_until_gone(leaders: list[Identity], seconds: float) -> list[Identity]:
    deadline = time.monotonic() + seconds
    remaining = [leader for leader in leaders if session_members(leader)]
    while remaining and time.monotonic() < deadline:
        time.sleep(_POLL)
        remaining = [leader for leader in remaining if session_members(leader)]
    return remaining


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name stands in parentheses and may hold anything, so count from the last one. See proc_pid_stat(5).
    fields = text.rpartition(")")[2].split()
    return _Stat(state=fields[0], session=int(fields[3]), started=int(fields[19]))
