"""``runbooks codec``: the life of a key, and the server that decrypts for the UI and the ``temporal`` command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from google.protobuf import json_format
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.client import Client

from activities.keyring import Key, Keyring
from starters import codec_server
from starters.codec_server import CodecServer
from starters.problems import Code
from tests.conftest import temporal_binary
from tests.patience import eventually
from tests.starters.conftest import Cli, House
from tests.workflows.probe import World, at_gate, begin, until, working
from workflows.codec import EncryptionCodec
from workflows.plugin import RunbooksPlugin

UI, TOKEN = "https://ui.example.org", "a-token-of-thirty-two-characters"
KEYRING = Keyring((Key.new("test"),))
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'{"plan": 1}')
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def body(*payloads: Payload) -> str:
    return json_format.MessageToJson(Payloads(payloads=payloads))


def payloads(answer: httpx.Response) -> list[Payload]:
    assert answer.status_code == 200, answer.text
    return list(json_format.Parse(answer.text, Payloads()).payloads)


@pytest_asyncio.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    desk = CodecServer(EncryptionCodec(KEYRING), UI, lambda: TOKEN)
    transport = httpx.ASGITransport(desk.application())
    async with httpx.AsyncClient(transport=transport, base_url="https://codec.example.org") as client:
        yield client


async def sealed(keyring: Keyring = KEYRING) -> Payload:
    return (await EncryptionCodec(keyring).encode([PLAIN]))[0]


async def test_what_is_encoded_is_decoded(http: httpx.AsyncClient) -> None:
    (encoded,) = payloads(await http.post("/encode", content=body(PLAIN), headers=BEARER))
    assert PLAIN.data not in encoded.data
    assert payloads(await http.post("/decode", content=body(encoded, PLAIN), headers=BEARER)) == [PLAIN, PLAIN]


async def test_a_payload_of_a_missing_key_hides_no_other(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    lost = await sealed(Keyring((Key.new("lost"),)))
    assert payloads(await http.post("/decode", content=body(lost, await sealed()), headers=BEARER)) == [lost, PLAIN]
    assert "lacks the key lost-" in caplog.text


@pytest.mark.parametrize("path", ["/encode", "/decode"])
@pytest.mark.parametrize(
    "headers",
    [{}, {"Origin": UI}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": "Bearer "}],
)
async def test_who_does_not_show_the_token_gets_nothing(
    http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    answer = await http.post(path, content=body(await sealed()), headers=headers)
    assert (answer.status_code, answer.json().keys()) == (401, {"error"})


async def test_a_browser_that_signed_in_is_known_to_the_uis_page_only(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = body(await sealed())
    assert (await http.post("/sign-in", data={"token": "wrong"})).status_code == 401
    answer = await http.post("/sign-in", data={"token": TOKEN})
    assert answer.status_code == 303
    for flag in ("HttpOnly", "Secure", "SameSite=strict"):
        assert flag in answer.headers["set-cookie"]
    assert TOKEN not in str(answer.headers)
    assert "You are signed in" in (await http.get("/")).text
    assert payloads(await http.post("/decode", content=asked, headers={"Origin": UI})) == [PLAIN]
    for headers in ({}, {"Origin": "https://evil.example.org"}, {"Origin": "null"}):
        assert (await http.post("/decode", content=asked, headers=headers)).status_code == 401
    cookie = http.cookies[codec_server.COOKIE]
    for forged in ("", "x", cookie + "0", f"{2**33}.{cookie.partition('.')[2]}", f"-1{cookie}", "٣.0"):
        http.cookies.clear()
        cookies = [(b"Origin", UI.encode()), (b"Cookie", f"{codec_server.COOKIE}={forged}".encode())]
        assert (await http.post("/decode", content=asked, headers=cookies)).status_code == 401, forged
    monkeypatch.setattr(codec_server.time, "time", lambda: 2.0**32)
    headers = {"Origin": UI, "Cookie": f"{codec_server.COOKIE}={cookie}"}
    assert (await http.post("/decode", content=asked, headers=headers)).status_code == 401


async def test_browsers_are_told_that_the_ui_may_ask_and_nobody_else(http: httpx.AsyncClient) -> None:
    wish = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-namespace",
    }
    answer = await http.options("/decode", headers={"Origin": UI, **wish})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == UI
    assert answer.headers["access-control-allow-credentials"] == "true"
    for origin in ("https://evil.example.org", f"{UI}.evil.org", "http://ui.example.org", "null"):
        answer = await http.options("/decode", headers={"Origin": origin, **wish})
        assert "access-control-allow-origin" not in answer.headers, origin


async def test_what_is_no_payload_is_refused(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "[1]", "{", '{"payloads": 3}', '{"payloads": [{"data": 1}]}', "\xff"):
        answer = await http.post("/decode", content=text.encode("latin-1"), headers=BEARER)
        assert answer.status_code == 400, text
    monkeypatch.setattr(codec_server, "LARGEST", 10)
    assert (await http.post("/decode", content=body(PLAIN), headers=BEARER)).status_code == 413


async def test_a_key_from_its_making_to_its_end(cli: Cli, client: Client, house: House, tmp_path: Path) -> None:
    """As docs/encryption.md has it: made, used, a second one added, promoted, the first no longer needed."""
    file = tmp_path / "keyring"
    said = await cli("codec", "new", str(file))
    assert (said.code, file.stat().st_mode & 0o777) == (Code.DONE, 0o600)
    first = Keyring.of(file.read_text())
    assert f'[encryption] keys = "file:{file}"' in said.out
    assert first.keys[0].line().split()[1] not in said.out
    settings = tmp_path / "runbooks.toml"
    settings.write_text(f'{settings.read_text()}\n[encryption]\nkeys = "file:{file}"\n')
    keyed = await Client.connect(client.service_client.config.target_host, plugins=[RunbooksPlugin(first)])
    async with working(keyed, World()) as queue:
        handle = await begin(keyed, queue, reason="to be read with the key")
        await until(handle, at_gate)
        shown = await cli("show", handle.id)
        assert "to be read with the key" in shown.out
        said = await cli("codec", "new", str(file))
        both = Keyring.of(file.read_text())
        second = both.keys[1].id
        assert both.keys[0] == first.keys[0]
        assert f"runbooks codec promote {file} {second}" in said.out
        assert (await cli("codec", "promote", str(file), "none")).code == Code.CONFLICT
        assert (await cli("codec", "promote", str(file), second)).code == Code.DONE
        assert Keyring.of(file.read_text()).keys == both.keys[::-1]
        uses = {use["key"]: use for use in (await cli("codec", "used", "--json")).document}
        assert uses[first.keys[0].id]["runs"] >= 1  # and the one of the lock of its stage
        assert not uses[first.keys[0].id]["encrypts"]
        assert (uses[second]["runs"], uses[second]["encrypts"]) == (0, True)
        file.write_text(Keyring(both.keys[1:]).text())
        shown = await cli("show", handle.id)
        assert (shown.code, f"lacks the key {first.keys[0].id}" in shown.err) == (Code.UNREACHABLE, True)
        assert "NOT IN THE KEYRING" in (await cli("codec", "used")).out
        await handle.terminate("seen")


async def test_what_is_gone_when_it_is_looked_at_uses_no_key(
    cli: Cli, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list hears of a deletion a moment after it."""

    async def listed(*_: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(id=f"gone-{uuid.uuid4()}", run_id=str(uuid.uuid4()))

    async def listing(*_: Any) -> AsyncIterator[Any]:
        return listed()

    monkeypatch.setattr(Client, "list_workflows", listed)
    monkeypatch.setattr(Client, "list_schedules", listing)
    said = await cli("codec", "used", "--json")
    assert (said.code, said.document) == (Code.DONE, [])


async def test_a_keyring_that_cannot_be_used_is_said_and_never_overwritten(
    cli: Cli, house: House, tmp_path: Path
) -> None:
    file = tmp_path / "keyring"
    file.write_text("something of value")
    for command in (("new",), ("promote", "k")):
        said = await cli("codec", command[0], str(file), *command[1:])
        assert (said.code, f"chmod 600 {file}" in said.err) == (Code.UNREACHABLE, True)
    file.chmod(0o600)
    said = await cli("codec", "new", str(file))
    assert (said.code, "is no keyring: line 1" in said.err) == (Code.BAD_INPUT, True)
    assert file.read_text() == "something of value"
    said = await cli("codec", "serve")
    assert (said.code, "no [encryption.server] in the settings" in said.err) == (Code.UNREACHABLE, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a file away")
async def test_a_keyring_stays_its_owners_and_a_link_to_it_a_link(cli: Cli, tmp_path: Path) -> None:
    """It belongs to the container's user, and root rotates the key: the workers have to read it afterwards."""
    file, link = tmp_path / "2026" / "keyring", tmp_path / "keyring"
    file.parent.mkdir()
    link.symlink_to(file)
    assert (await cli("codec", "new", str(link))).code == Code.DONE
    os.chown(file, 10001, 10002)
    assert (await cli("codec", "new", str(link))).code == Code.DONE
    second = Keyring.of(file.read_text()).keys[1]
    assert (await cli("codec", "promote", str(link), second.id)).code == Code.DONE
    assert Keyring.of(file.read_text()).keys[0] == second
    found = file.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (10001, 10002, 0o600)
    assert link.is_symlink()


async def test_a_keyring_that_cannot_be_left_to_its_owner_is_not_changed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keyring"
    assert (await cli("codec", "new", str(file))).code == Code.DONE
    before = file.read_text()

    def refused(*_arguments: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    said = await cli("codec", "new", str(file))
    assert (said.code, "Nothing is changed: run this as that user" in said.err) == (Code.CONFLICT, True)
    assert file.read_text() == before
    assert os.listdir(tmp_path) == ["keyring"]


async def test_the_temporal_command_reads_and_answers_by_the_server(
    client: Client, house: House, cli: Cli, tmp_path: Path
) -> None:
    keyring, token, log = tmp_path / "keyring", tmp_path / "token", tmp_path / "server.log"
    await cli("codec", "new", str(keyring))
    token.write_text(TOKEN + "\n")
    settings = tmp_path / "runbooks.toml"
    server = f'[encryption.server]\nlisten = "127.0.0.1:0"\norigin = "{UI}"\ntoken = "file:{token}"\n'
    settings.write_text(f'{settings.read_text()}\n[encryption]\nkeys = "file:{keyring}"\n{server}')
    plugin = RunbooksPlugin(Keyring.of(keyring.read_text()))
    keyed = await Client.connect(client.service_client.config.target_host, plugins=[plugin])
    process = _served(log)
    try:
        address = await _address(log)
        profile = tmp_path / "temporal.toml"
        known = f'address = "{os.environ["TEMPORAL_ADDRESS"]}"\n'
        codec = f'[profile.default.codec]\nendpoint = "http://{address}"\nauth = "Bearer {TOKEN}"\n'
        profile.write_text(f"[profile.default]\n{known}{codec}")
        async with working(keyed, World()) as queue:
            handle = await begin(keyed, queue, reason="to be read by the server")
            await until(handle, at_gate)
            shown = await _temporal(profile, "workflow", "show", "-w", handle.id, "--detailed")
            assert "to be read by the server" in shown
            answer = json.dumps({"by": "ben", "reason": "typed at the temporal command"})
            await _temporal(profile, "workflow", "signal", "-w", handle.id, "--name", "approve", "--input", answer)
            assert (await handle.result())["outcome"] == "completed"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    stored = (await handle.fetch_history()).to_json()
    assert "typed at the temporal command" not in stored
    assert TOKEN not in log.read_text()


def _served(log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "starters", "codec", "serve"], stderr=out)


async def _address(log: Path) -> str:
    async def said() -> str:
        return (await asyncio.to_thread(log.read_text)).partition("listens on ")[2].partition(" ")[0]

    return await eventually(said, "a server that listens")


async def _temporal(profile: Path, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        temporal_binary(),
        *arguments,
        env=os.environ | {"TEMPORAL_CONFIG_FILE": str(profile)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()
