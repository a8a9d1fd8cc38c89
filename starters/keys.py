"""``runbooks keys``: the key pair with which an approver signs decisions. The private half stays here."""

from __future__ import annotations

import base64
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from starters.output import AsJson, Output
from starters.problems import Code, Problem
from starters.session import somebody
from workflows import signatures
from workflows.gates import find_gate
from workflows.model import Decision, RunState

keys = typer.Typer(help="The key pair with which an approver signs decisions.", no_args_is_help=True)

KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="The private key, such as ~/.ssh/runbooks.pem")]


@keys.command()
def new(
    file: KeyFile,
    by: Annotated[str | None, typer.Option("--by", help="Whose it is. Default: RUNBOOKS_USER, or your login.")] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Ask for a passphrase and encrypt it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a key pair: the private key goes into FILE, the line to register the public one is printed."""
    secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True).encode() if passphrase else None
    key = Ed25519PrivateKey.generate()
    sealed = BestAvailableEncryption(secret) if secret else NoEncryption()
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Problem(f"{file} exists, and a key is never overwritten: name another file", Code.CONFLICT) from None
    with os.fdopen(handle, "wb") as out:
        out.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealed))
    _tell(key, somebody(by), as_json)


@keys.command()
def show(
    file: KeyFile,
    by: Annotated[str | None, typer.Option("--by", help="Whose it is. Default: RUNBOOKS_USER, or your login.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the line that registers the public half of a private key."""
    _tell(load(file), somebody(by), as_json)


def _tell(key: Ed25519PrivateKey, person: str, as_json: bool) -> None:
    public = public_of(key)
    line = f'{json.dumps(person)} = "{public}"'
    document = {"approver": person, "public_key": public, "fingerprint": signatures.fingerprint(public)}
    Output(as_json).show(document, "Register it in the workers' runbooks.toml, under [approvers]:", line)


def load(file: Path) -> Ed25519PrivateKey:
    """The private key of a file.

    Raises:
        Problem: it cannot be read, others can read it, or it is no Ed25519 key.
    """
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise Problem(f"others can read {file}, so it proves nothing. Run: chmod 600 {file}", Code.BAD_INPUT)
        text = file.read_bytes()
    except OSError as error:
        raise Problem(f"the key {file} cannot be read: {error.strerror}", Code.BAD_INPUT) from None
    try:
        return _private(text, None)
    except TypeError:  # it is encrypted
        secret = typer.prompt(f"Passphrase of {file}", hide_input=True, err=True).encode()
    except ValueError:
        raise _no_key(file) from None
    try:
        return _private(text, secret)
    except ValueError:
        raise Problem(f"that is not the passphrase of {file}", Code.BAD_INPUT) from None


def _private(text: bytes, secret: bytes | None) -> Ed25519PrivateKey:
    key = load_pem_private_key(text, secret)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("not Ed25519")
    return key


def _no_key(file: Path) -> Problem:
    return Problem(f"{file} is no Ed25519 private key in PEM. Make one: runbooks keys new FILE", Code.BAD_INPUT)


def public_of(key: Ed25519PrivateKey) -> str:
    """The public half as it is registered."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return signatures.PREFIX + base64.b64encode(raw).decode()


def signed(key: Ed25519PrivateKey, state: RunState, decision: Decision) -> Decision:
    """The decision with its proof, or as it is where the gate asks for none.

    What is signed is the plan as this machine has just read it, and only when it is the one that the person names.

    Raises:
        Problem: the person has not said which plan, or it is another by now.
        Refused: no gate fits.
    """
    gate = find_gate(state.gates, decision.gate)
    if gate.signing is None:
        return decision
    digest = signatures.digest(gate.plan)
    if decision.plan_hash is None or not digest.startswith(decision.plan_hash) or len(decision.plan_hash) < 12:
        named = f"not {decision.plan_hash}" if decision.plan_hash else "which a signature has to name"
        raise Problem(
            f"the plan of '{gate.id}' is {digest[:12]}, {named}. Read it with: runbooks show {state.workflow_id}. "
            f"Then answer with --plan {digest[:12]}",
            Code.CONFLICT,
        )
    said = decision.model_copy(update={"gate": gate.id, "plan_hash": gate.plan_hash})
    nonce = secrets.token_hex(16)
    signature = base64.b64encode(key.sign(signatures.statement(gate, said, nonce))).decode()
    return said.model_copy(update={"proof": f"{nonce}.{signature}"})
