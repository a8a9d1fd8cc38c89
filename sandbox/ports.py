"""Ports on loopback: which is free, and who has one that is not."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

HOST = "127.0.0.1"
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
_TRIES = 200
_BEGIN = 10_000
_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")  # first and last of what Linux gives connections


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


class Claims(ExitStack):
    """The ports that one start has chosen, which no other start may choose before its parts listen on them.

    Between the look whether a port is free and the part that listens on it lie seconds, in which another sandbox that
    starts would find it free too. A claim is a name among Linux's abstract sockets: one process can have it, and it
    goes with that process, or with the end of the block.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ports: set[int] = set()

    def take(self, port: int) -> bool:
        """Whether ``port`` is free and from now on this start's."""
        if port not in self._ports:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                claim.bind(f"\0runbooks sandbox port {port}")
            except OSError:
                claim.close()
                return False
            self.enter_context(claim)
            self._ports.add(port)
        return free(port)


def exactly(port: int, purpose: str, avoid: Collection[int], claims: Claims) -> int:
    """``port`` itself, or for 0 any free one that is not in ``avoid``.

    Raises:
        PortTakenError: it cannot be listened on, mostly because somebody else does.
    """
    if port == 0:
        while (port := any_free()) in avoid or not claims.take(port):
            pass
        return port
    if claims.take(port):
        return port
    holder = owner(port) or "another process, by a sandbox that is starting, or not allowed to this user"
    raise PortTakenError(f"port {port}, asked for as the port of {purpose}, is taken by {holder}. Name another")


def any_free() -> int:
    """A free port that no client's connection is given.

    One of those can be lost while its server is killed and starts again: to any client, and even to one that keeps
    calling the dead server and so reaches itself.
    """
    try:
        end = int(_CLIENTS.read_text().split()[0])
    except OSError:  # other systems begin further up
        end = 32768
    if end <= _BEGIN:
        end = 65536
    while not free(port := random.randrange(_BEGIN, end)):
        pass
    return port


def next_free(preferred: int, avoid: Collection[int], claims: Claims) -> int:
    """The first free port from ``preferred`` upwards that is not in ``avoid``."""
    for port in range(preferred, preferred + _TRIES):
        if port not in avoid and claims.take(port):
            return port
    raise PortTakenError(f"no port from {preferred} to {preferred + _TRIES - 1} is free")


def _target(entry: Path) -> str | None:
    try:
        return str(entry.readlink())
    except OSError:  # closed meanwhile, which says nothing of the others
        return None


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
            if any(_target(entry) in inodes for entry in (process / "fd").iterdir()):
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:  # another user's process, or it just ended
            continue
    return None
