"""Ports on loopback: which is free, and who has one that is not."""

from __future__ import annotations

import socket
from collections.abc import Collection
from pathlib import Path

HOST = "127.0.0.1"
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_TRIES = 200


class PortTakenError(Exception):
    """A port that was asked for is in use; the message names it and, when it can be read, its owner."""


def free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connection still lingers in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def exactly(port: int, purpose: str, avoid: Collection[int]) -> int:
    """``port`` itself, or for 0 any free one that is not in ``avoid``.

    Raises:
        PortTakenError: it cannot be listened on, mostly because somebody else does.
    """
    if port == 0:
        while (port := any_free()) in avoid:
            pass
        return port
    if free(port):
        return port
    holder = owner(port) or "another process, or not allowed to this user"
    raise PortTakenError(f"port {port}, asked for as the port of {purpose}, is taken by {holder}. Name another")


def any_free() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def next_free(preferred: int, avoid: Collection[int]) -> int:
    """The first free port from ``preferred`` upwards that is not in ``avoid``."""
    for port in range(preferred, preferred + _TRIES):
        if port not in avoid and free(port):
            return port
    raise PortTakenError(f"no port from {preferred} to {preferred + _TRIES - 1} is free")


def owner(port: int) -> str | None:
    """Pid and name of the process that listens on ``port``; ``None`` when this user may not see it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(str(entry.readlink()) in inodes for entry in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:  # another user's process, or it just ended
            continue
    return None
