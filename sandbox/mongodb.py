"""The embedded MongoDB wire server (SecantusDB): its command line, its users, its connection strings.

It is a stand-in: label what is measured on it 'embedded SecantusDB, not MongoDB'.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pymongo
import pymongo.errors

from sandbox.ports import HOST
from sandbox.state import Vault

PROGRAM = "secantusd-rs"
ADMIN = "admin"
_DUPLICATE_USER = 51003
_GIB = 1024**3
_SELECTION_MS = 2000
_PROBE_SECONDS = 2.0
_FIRST_START_SECONDS = 15.0
_POLL = 0.02


def command(binary: str, port: int, directory: Path, *, auth: bool, log: str = "128MB") -> list[str]:
    """The server's command line.

    ``--sync-on-commit`` because an acknowledged write is otherwise lost when the server is killed, which the sandbox is
    there to rehearse.

    Args:
        log: how large a file of its log is, and so a transaction at most. The next start reads the last one whole.
    """
    options = ["--port", str(port), "--storage-path", str(directory), "--log-file-max", log]
    options += ["--cache-size", cache_size(memory()), "--log-level", "WARNING", "--sync-on-commit"]
    return [binary, *options, *(["--auth"] if auth else [])]


def memory() -> int:
    """Bytes this machine, or this container, has."""
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(text)) if text.isdigit() else total


def cache_size(available: int) -> str:
    """Cache by the memory of the machine: an index over a million documents is never finished below 4 GB."""
    if available >= 28 * _GIB:
        return "8G"
    return "4G" if available >= 10 * _GIB else "1G"


def database(stage: str) -> str:
    return f"state_api_{stage}"


def admin_uri(port: int, vault: Vault) -> str:
    return _uri(port, ADMIN, vault.mongodb_admin_password, "admin")


def api_uri(port: int, vault: Vault, stage: str) -> str:
    """What the API of a stage logs in with."""
    return _uri(port, f"api_{stage}", vault.stages[stage].api_password, database(stage))


def operator_uri(port: int, vault: Vault, stage: str) -> str:
    """What a person at the stage's database logs in with."""
    return _uri(port, f"operator_{stage}", vault.stages[stage].operator_password, database(stage))


def ready(port: int, vault: Vault) -> None:
    """Log in and ping.

    Raises:
        OSError: it does not listen (yet).
        pymongo.errors.PyMongoError: it listens, but does not let us in.
    """
    # A plain connection first: the driver, once refused, would not try again for half a second.
    socket.create_connection((HOST, port), timeout=_PROBE_SECONDS).close()
    with _client(admin_uri(port, vault)) as client:
        client.admin.command("ping")


def create_storage(directory: Path, vault: Vault, run: Callable[[Path], tuple[int, Callable[[], None]]]) -> None:
    """Make the storage with its administrator, once. The server knows no localhost exception, so the first user is
    created while it asks for no password.

    The storage appears under its name only when it is complete: an interrupted first start is simply done again.

    Args:
        run: starts the server without authentication on a directory; returns its port and what stops it.
    """
    if directory.exists():
        return
    fresh = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    port, stop = run(fresh)
    try:
        _await_listening(port)
        with _client(f"mongodb://{HOST}:{port}/?directConnection=true") as client:
            client.admin.command("createUser", ADMIN, pwd=vault.mongodb_admin_password, roles=["root"])
    finally:
        stop()
    fresh.rename(directory)


def ensure_users(port: int, vault: Vault) -> None:
    """Two users a stage, each with ``readWrite`` on the stage's own database; passwords and roles as in the vault.

    The operator may also look at the server (``clusterMonitor``, connection counts are not a database's), and fill the
    databases that a restore makes; the API may work on the one that can take the place of its own.
    """
    with _client(admin_uri(port, vault)) as client:
        for stage, secret in vault.stages.items():
            own, scratch, restored = (
                {"role": "readWrite", "db": database(stage) + ending} for ending in ("", "_scratch", "_restored")
            )
            monitor = {"role": "clusterMonitor", "db": "admin"}
            _ensure_user(client, f"api_{stage}", secret.api_password, [own, restored])
            _ensure_user(client, f"operator_{stage}", secret.operator_password, [own, scratch, restored, monitor])


def _ensure_user(client: pymongo.MongoClient[dict[str, Any]], name: str, password: str, roles: list[Any]) -> None:
    try:
        client.admin.command("createUser", name, pwd=password, roles=roles)
    except pymongo.errors.OperationFailure as error:
        if error.code != _DUPLICATE_USER:
            raise
        client.admin.command("updateUser", name, pwd=password, roles=roles)


def _await_listening(port: int) -> None:
    deadline = time.monotonic() + _FIRST_START_SECONDS
    while True:
        try:
            return socket.create_connection((HOST, port), timeout=_PROBE_SECONDS).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL)


def _client(uri: str) -> pymongo.MongoClient[dict[str, Any]]:
    return pymongo.MongoClient(uri, serverSelectionTimeoutMS=_SELECTION_MS)


def _uri(port: int, user: str, password: str, name: str) -> str:
    return (
        f"mongodb://{user}:{quote(password, safe='')}@{HOST}:{port}/{name}"
        "?directConnection=true&authSource=admin&serverSelectionTimeoutMS=5000"
    )
