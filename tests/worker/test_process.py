"""The worker as a process: how it starts, refuses to start, and stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from activities.keyring import Key, Keyring
from sandbox.ports import any_free

SETTINGS = """
[stages.test]
name = "test"
function = "f"
url = "http://127.0.0.1:1"
api_key = "env:NONE"
log_group = "g"
gateway = { name = "a", stage = "test" }
database = { uri = "env:NONE", name = "d" }
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return write(tmp_path / "runbooks.toml", SETTINGS)


def environment(client: Client, settings: Path, **more: str) -> dict[str, str]:
    known = {"TEMPORAL_ADDRESS": client.service_client.config.target_host, "RUNBOOKS_CONFIG": str(settings)}
    return os.environ | {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"} | known | more


async def done(*argv: str) -> None:
    """Run a command that has to succeed."""
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def started(environment: dict[str, str]) -> str:
    """What a worker says until it is ready; it is stopped then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", env=environment, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = b""
    while b"worker ready" not in said and not process.stderr.at_eof():
        said += await asyncio.wait_for(process.stderr.readline(), 180)
    process.send_signal(signal.SIGTERM)
    said += await asyncio.wait_for(process.stderr.read(), 180)
    assert await process.wait() == 0, said.decode()
    return said.decode()


async def refusal(environment: dict[str, str]) -> str:
    """The one line of a worker that does not start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 180)
    assert process.returncode == 2, output.decode()
    lines = [line for line in output.decode().splitlines() if line.startswith("worker: ")]
    assert len(lines) == 1
    assert "Traceback" not in output.decode()
    return lines[0]


async def test_it_refuses_settings_it_cannot_use(client: Client, tmp_path: Path) -> None:
    assert "does not exist. Name the settings file with RUNBOOKS_CONFIG" in await refusal(
        environment(client, tmp_path / "none.toml")
    )
    wrong = tmp_path / "wrong.toml"
    write(wrong, SETTINGS.replace('function = "f"', "function = 7"))
    assert "stages.test.function: Input should be a valid string" in await refusal(environment(client, wrong))
    write(wrong, "[stages")
    assert str(wrong) in await refusal(environment(client, wrong))


async def test_it_refuses_a_namespace_that_is_not_there(client: Client, settings: Path) -> None:
    line = await refusal(environment(client, settings, TEMPORAL_NAMESPACE="nowhere"))
    assert "no namespace 'nowhere'" in line


async def test_it_refuses_a_namespace_without_the_search_attributes(client: Client, settings: Path) -> None:
    temporal = Path(sys.executable).with_name("temporal")
    address = client.service_client.config.target_host
    await done(str(temporal), "operator", "namespace", "create", "-n", "bare", "--address", address)
    line = await refusal(environment(client, settings, TEMPORAL_NAMESPACE="bare"))
    assert "lacks the search attributes RunbookStage, RunbookPhase" in line
    command = re.search(r"temporal operator search-attribute create .*", line)
    assert command is not None
    await done(str(temporal), *command[0].split()[1:], "-n", "bare", "--address", address)
    assert "lacks" not in (await started(environment(client, settings, TEMPORAL_NAMESPACE="bare")))


async def test_it_serves_metrics_and_ends_on_sigterm(client: Client, settings: Path) -> None:
    port = any_free()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "worker",
        env=environment(client, settings, RUNBOOKS_METRICS=f"127.0.0.1:{port}"),
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    while b"worker ready" not in await asyncio.wait_for(process.stderr.readline(), 180):
        pass
    async with httpx.AsyncClient() as http:
        shown = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    assert "temporal_worker_start_total" in shown
    second = await refusal(environment(client, settings, RUNBOOKS_METRICS=f"127.0.0.1:{port}"))
    assert f"RUNBOOKS_METRICS=127.0.0.1:{port} cannot be served" in second
    process.send_signal(signal.SIGTERM)
    rest = await asyncio.wait_for(process.stderr.read(), 180)
    assert await process.wait() == 0
    assert b"worker stopping" in rest


def with_receiver(tmp_path: Path, port: int, more: str = "") -> Path:
    receiver = f'[receiver]\nlisten = "127.0.0.1:{port}"\nspool = "{tmp_path / "spool"}"\ntoken = "env:ALERT_TOKEN"\n'
    return write(tmp_path / "runbooks.toml", f"{SETTINGS}{receiver}{more}")


async def said(process: asyncio.subprocess.Process, text: bytes) -> None:
    """Wait until a worker says it, or fail when it ends."""
    assert process.stderr is not None
    read = b""
    while text not in read:
        line = await asyncio.wait_for(process.stderr.readline(), 180)
        assert line, read.decode()
        read += line


async def test_while_temporal_cannot_be_used_a_worker_that_takes_alerts_keeps_them(
    client: Client, tmp_path: Path
) -> None:
    port = any_free()
    settings = with_receiver(tmp_path, port)
    known = environment(client, settings, TEMPORAL_NAMESPACE="nowhere", ALERT_TOKEN="s3cret")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "worker", env=known, stderr=subprocess.PIPE)
    await said(process, b"alerts are kept meanwhile: Temporal at")
    alert = {"stage": "test", "text": "checkout fails", "id": "a-1"}
    async with httpx.AsyncClient(headers={"Authorization": "Bearer s3cret"}) as http:
        assert (await http.post(f"http://127.0.0.1:{port}/alerts", json=alert)).status_code == 202
    process.send_signal(signal.SIGTERM)
    _, rest = await asyncio.wait_for(process.communicate(), 180)
    assert (process.returncode, b"Traceback" in rest) == (0, False), rest.decode()
    assert len(list((tmp_path / "spool").glob("*.json"))) == 1


async def test_a_worker_that_takes_alerts_begins_as_soon_as_its_keys_can_be_read(
    client: Client, tmp_path: Path
) -> None:
    keys = tmp_path / "keyring"
    settings = with_receiver(tmp_path, any_free(), f'[encryption]\nkeys = "file:{keys}"\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", env=environment(client, settings), stderr=subprocess.PIPE
    )
    await said(process, b"alerts are kept meanwhile: the keys of histories")
    keys.touch(mode=0o600)
    write(keys, Keyring((Key.new("first"),)).text())
    await said(process, b"worker ready")
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 180)
    assert process.returncode == 0


async def test_a_door_for_alerts_that_is_taken_ends_it_at_once(client: Client, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = with_receiver(tmp_path, taken.getsockname()[1])
        line = await refusal(environment(client, settings, TEMPORAL_NAMESPACE="nowhere"))
    assert line.startswith("worker: receiver.listen: 127.0.0.1:")


async def test_lines_of_workflows_name_their_run(client: Client, tmp_path: Path) -> None:
    queue = f"logs-{uuid.uuid4()}"
    settings = write(tmp_path / "runbooks.toml", f'task_queue = "{queue}"\n{SETTINGS}')
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", env=environment(client, settings, RUNBOOKS_LOG="json"), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    handle = await client.start_workflow(
        "StageLock",
        {"stage": "test"},
        id=f"lock-{uuid.uuid4()}",
        task_queue=queue,
        start_signal="request",
        start_signal_args=["nonsense"],
    )
    while True:
        line = json.loads(await asyncio.wait_for(process.stderr.readline(), 180))
        if "ignored a message" in line["message"]:
            break
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), 180)
    assert (line["runbook"], line["workflow_id"], line["level"]) == ("StageLock", handle.id, "warning")
    assert line["run_id"] == handle.first_execution_run_id
