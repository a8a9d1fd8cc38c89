"""``runbooks keys`` and ``runbooks approve --key``: from making a pair to a signed yes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from activities.settings import ConfigError, load_settings
from starters.problems import Code
from tests.starters.conftest import Cli, House
from tests.workflows.probe import at_gate


async def test_a_pair_is_made_once_and_shown_again(cli: Cli, house: House, tmp_path: Path) -> None:
    file = tmp_path / "bob.pem"
    made = await cli("keys", "new", str(file), "--by", 'bob "B" brown')
    assert made.code == Code.DONE
    assert file.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in made.out
    line = made.out.splitlines()[-1]
    assert tomllib.loads(line)['bob "B" brown'].startswith("ed25519:")
    assert line == (await cli("keys", "show", str(file), "--by", 'bob "B" brown')).out.splitlines()[-1]
    again = await cli("keys", "new", str(file))
    assert (again.code, "a key is never overwritten" in again.err) == (Code.CONFLICT, True)
    document = (await cli("keys", "show", str(file), "--json")).document
    assert document.keys() == {"approver", "public_key", "fingerprint"}


async def test_what_is_no_key_is_said(cli: Cli, house: House, tmp_path: Path) -> None:
    file = tmp_path / "k.pem"
    said = await cli("approve", "any", "--key", str(file))
    assert (said.code, "cannot be read: No such file" in said.err) == (Code.BAD_INPUT, True)
    file.write_text("not a key")
    said = await cli("approve", "any", "--key", str(file))
    assert (said.code, f"chmod 600 {file}" in said.err) == (Code.BAD_INPUT, True)
    file.chmod(0o600)
    other = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for text in (b"not a key", other):
        file.write_bytes(text)
        said = await cli("approve", "any", "--key", str(file))
        assert (said.code, "is no Ed25519 private key in PEM" in said.err) == (Code.BAD_INPUT, True)


async def test_a_gate_that_asks_for_it_is_answered_with_a_key(cli: Cli, house: House, tmp_path: Path) -> None:
    file = tmp_path / "bob.pem"
    house.world.keys = {"bob": (await cli("keys", "new", str(file), "--by", "bob", "--json")).document["public_key"]}
    handle = await house.begin()
    gate = (await house.until(handle.id, at_gate)).open_gate()
    said = await cli("approve", handle.id, "--by", "bob")
    assert (said.code, f"--plan {gate.plan_hash}" in said.err) == (Code.CONFLICT, True)
    assert f"--plan {gate.plan_hash}" in (await cli("show", handle.id)).out
    said = await cli("approve", handle.id, "--by", "bob", "--key", str(file))
    assert (said.code, "which a signature has to name" in said.err) == (Code.CONFLICT, True)
    said = await cli("approve", handle.id, "--by", "cid", "--key", str(file), "--plan", gate.plan_hash)
    assert (said.code, "no key is registered for cid" in said.err) == (Code.CONFLICT, True)
    said = await cli("approve", handle.id, "--by", "bob", "--key", str(file), "--plan", gate.plan_hash)
    assert (said.code, said.out) == (Code.DONE, "gate 'turn-it' is approved\n")
    await handle.result()


async def test_where_no_signature_is_asked_for_a_key_changes_nothing(cli: Cli, house: House, tmp_path: Path) -> None:
    file = tmp_path / "bob.pem"
    await cli("keys", "new", str(file))
    handle = await house.begin()
    await house.until(handle.id, at_gate)
    said = await cli("approve", handle.id, "--by", "bob", "--key", str(file))
    assert said.code == Code.DONE, said
    await handle.result()


def test_a_stage_that_wants_signatures_needs_somebody_who_can_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "runbooks.toml"
    file.write_text(
        """
[stages.production]
name = "production"
function = "f"
url = "http://x"
api_key = "env:K"
log_group = "g"
signed_approvals = true
gateway = { name = "a", stage = "p" }
database = { uri = "env:U", name = "d" }
"""
    )
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(file))
    with pytest.raises(ConfigError, match=r"\[approvers\] names nobody's key. Have each approver run"):
        load_settings()
    monkeypatch.setitem(os.environ, "RUNBOOKS_APPROVERS", '{"bob": "ed25519:short"}')
    with pytest.raises(ConfigError, match=r"approvers\.bob: String should match"):
        load_settings()
