"""``runbooks codec``: the keys that encrypt histories, what needs which of them, and the server that decrypts."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from pydantic import BaseModel
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from temporalio.service import RPCError, RPCStatusCode

from activities.clients import Aws
from activities.keyring import Key, Keyring, private, read_keyring
from activities.secret_refs import SecretResolver
from activities.settings import ConfigError, load_settings
from starters.codec_server import CodecServer
from starters.output import AsJson, Output
from starters.problems import Code, Problem
from starters.session import Session, connected
from workflows.codec import KEY_ID, EncryptionCodec

codec = typer.Typer(help="Encryption of histories: its keys, and the server that decrypts.", no_args_is_help=True)

KeyringFile = Annotated[Path, typer.Argument(metavar="FILE", help="The keyring, such as secrets/keyring")]

_SHORTEST_TOKEN = 20
_AT_ONCE = 8


class KeyUse(BaseModel):
    """A key, and what is still encrypted with it."""

    key: str
    encrypts: bool
    known: bool = True
    runs: int | None = None
    schedules: int | None = None


@codec.command()
def new(file: KeyringFile, as_json: AsJson = False) -> None:
    """Make a key and put it into FILE. Beside other keys it only decrypts until 'codec promote'."""
    before = _read(file) if file.exists() else None
    key = Key.new(f"{datetime.now(UTC):%Y-%m-%d}")
    keyring = before.with_key(key) if before else Keyring((key,))
    _write(file, keyring)
    after = (
        f"It only decrypts. When every worker and command has been restarted with it: "
        f"runbooks codec promote {file} {key.id}"
        if before
        else f'Name it in runbooks.toml: [encryption] keys = "file:{file.resolve()}"'
    )
    Output(as_json).show(_uses(keyring), f"{key.id} is in {file}. {after}")


@codec.command()
def promote(
    file: KeyringFile,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key that shall encrypt from now on.")],
    as_json: AsJson = False,
) -> None:
    """Have KEY encrypt, and the others only decrypt. Every process must know it before."""
    try:
        keyring = _read(file).encrypting_with(key)
    except KeyError:
        known = ", ".join(one.id for one in _read(file).keys)
        raise Problem(f"there is no key {key} in {file}; there are: {known}", Code.CONFLICT) from None
    _write(file, keyring)
    Output(as_json).show(_uses(keyring), f"{key} encrypts once the workers and commands have been restarted")


@codec.command()
def used(as_json: AsJson = False) -> None:
    """Which keys the runs and schedules that Temporal keeps are encrypted with. It reads every history."""
    found = connected(_used)
    Output(as_json).show(found, _view(found))


@codec.command()
def serve() -> None:
    """Decrypt for the Temporal UI and the 'temporal' command, until Ctrl-C."""
    settings = load_settings()
    keyring = read_keyring(settings)
    if settings.encryption is None or keyring is None or settings.encryption.server is None:
        raise ConfigError("there is no [encryption.server] in the settings: add it, with origin and token")
    server, aws = settings.encryption.server, Aws(settings)
    resolver = SecretResolver(aws.ssm, aws.secretsmanager)
    if len(resolver.resolve(server.token)) < _SHORTEST_TOKEN:
        raise ConfigError(f"encryption.server.token has fewer than {_SHORTEST_TOKEN} characters: openssl rand -hex 32")
    desk = CodecServer(EncryptionCodec(keyring), server.origin, lambda: resolver.resolve(server.token))
    listening = _listen(server.listen)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    address = "{}:{}".format(*listening.getsockname()[:2])
    logging.info("codec server listens on %s for %s, with %d key(s)", address, server.origin, len(keyring.keys))
    config = uvicorn.Config(desk.application(), log_config=None, access_log=False, lifespan="off")
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise ConfigError(f"encryption.server.listen: {address} cannot be used: {error.strerror or error}") from None


def _read(file: Path) -> Keyring:
    private(file)
    try:
        return Keyring.of(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Problem(f"{file} is no keyring: {error}", Code.BAD_INPUT) from None


def _write(file: Path, keyring: Keyring) -> None:
    """In one go: a keyring that is half written is lost keys. It stays its owner's, who is not always who runs this.

    Raises:
        Problem: the file cannot be left to its owner.
    """
    place = file.resolve()  # of a link, what it leads to: the link itself stays
    beside = place.with_name(f".{place.name}.new")
    with suppress(FileNotFoundError):
        beside.unlink()
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        if place.exists():
            _leave_to(place.stat(), out.fileno(), beside)
        out.write(keyring.text())
        out.flush()
        os.fsync(out.fileno())
    beside.replace(place)


def _leave_to(owner: os.stat_result, descriptor: int, beside: Path) -> None:
    """The workers in their containers are who owns it: a keyring that only root can read stops every one of them."""
    try:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except PermissionError:
        beside.unlink()
        said = f"the keyring belongs to user {owner.st_uid}, group {owner.st_gid}, and would not any more"
        raise Problem(f"{said}. Nothing is changed: run this as that user, or with sudo", Code.CONFLICT) from None


def _uses(keyring: Keyring) -> list[KeyUse]:
    return [KeyUse(key=key.id, encrypts=key is keyring.encrypts_with) for key in keyring.keys]


async def _used(session: Session) -> list[KeyUse]:
    """By the ids that stand, readable, beside what they encrypt."""
    keyring = read_keyring(session.settings)
    runs, schedules = Counter[str](), Counter[str]()
    slots = asyncio.Semaphore(_AT_ONCE)

    async def count(workflow_id: str, run_id: str) -> None:
        async with slots:
            with _unless_gone():
                history = await session.client.get_workflow_handle(workflow_id, run_id=run_id).fetch_history()
                runs.update(_named(b"".join(event.SerializeToString() for event in history.events)))

    kept = [(run.id, run.run_id) async for run in session.client.list_workflows()]
    await asyncio.gather(*(count(*run) for run in kept))
    async for one in await session.client.list_schedules():
        with _unless_gone():
            described = await session.client.get_schedule_handle(one.id).describe()
            schedules.update(_named(described.raw_description.SerializeToString()))
    own = _uses(keyring) if keyring else []
    known = {one.key for one in own}
    others = [KeyUse(key=key, encrypts=False, known=False) for key in sorted({*runs, *schedules} - known)]
    return [one.model_copy(update={"runs": runs[one.key], "schedules": schedules[one.key]}) for one in [*own, *others]]


@contextmanager
def _unless_gone() -> Iterator[None]:
    """What was listed may be deleted, or past its retention: the list hears of it a moment later."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


_NAMED = re.compile(KEY_ID.encode() + rb"\x12(.)", re.DOTALL)
"""The beginning of an entry of a payload's metadata, as it is stored: name, tag, length; the value follows."""


def _named(stored: bytes) -> set[str]:
    found = (stored[entry.end() : entry.end() + entry[1][0]] for entry in _NAMED.finditer(stored))
    return {key_id.decode(errors="replace") for key_id in found}


def _view(found: list[KeyUse]) -> RenderableType:
    if not found:
        return Text("no key, and nothing that is encrypted")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("key", "runs", "schedules", ""):
        table.add_column(column, header_style="dim")
    for one in found:
        needed = bool(one.runs or one.schedules)
        said = "encrypts" if one.encrypts else "still needed" if needed else "can be taken out of the keyring"
        style = "" if one.known else "bold red"
        said = said if one.known else "NOT IN THE KEYRING: what it encrypted cannot be read"
        table.add_row(one.key, str(one.runs), str(one.schedules), Text(said, style))
    return table
