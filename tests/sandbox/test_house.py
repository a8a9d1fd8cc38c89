"""The whole sandbox, really started: every part answers, and nothing of it stays behind, however it ends."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pymongo
import pymongo.errors
import pytest

from activities.clients import Aws
from activities.records import DeployLedger, Records
from activities.secret_refs import SecretResolver
from activities.settings import Settings, load_settings
from sandbox import mongodb, processes
from sandbox.house import House, HouseError
from sandbox.parts import PARTS
from sandbox.processes import Identity
from sandbox.state import STAGES, State, Vault
from tests.sandbox.test_processes import until

ANY_PORT = {port: 0 for part in PARTS.values() for port in part.ports}
LIGHT = ("hub",)
"""Enough where it is about processes and not about what they do."""
LIGHT_PORTS = dict.fromkeys(LIGHT, 0)

LOOPBACK = "0100007F"  # 127.0.0.1 in /proc/net/tcp

SUPERVISOR = """
import sys
from pathlib import Path
from sandbox.house import House
parts = sys.argv[2].split(",")
attached = sys.argv[3] == "attached"
from sandbox.parts import PARTS
with House(Path(sys.argv[1])) as house:
    house.up(parts, {port: 0 for name in parts for port in PARTS[name].ports}, attached=attached)
    print("up", flush=True)
    if attached:
        house.watch()
"""


def recorded(house: House) -> State:
    state = State.read(house.layout.state)
    assert state is not None, "no sandbox is recorded"
    return state


def leaders(house: House) -> list[Identity]:
    return list(recorded(house).parts.values())


def processes_of(sessions: list[Identity]) -> list[int]:
    return [pid for leader in sessions for pid in processes.session_members(leader)]


def supervise(directory: Path, parts: tuple[str, ...], mode: str) -> subprocess.Popen[str]:
    """Another process that brings a sandbox up and watches it; returns when it is up."""
    command = [sys.executable, "-c", SUPERVISOR, str(directory), ",".join(parts), mode]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    return child


def listening_addresses(pids: list[int]) -> list[str]:
    """Addresses that these processes listen on, as /proc/net writes them."""
    sockets = {os.readlink(entry) for pid in pids for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.append(fields[1].rpartition(":")[0])
    return found


def connected(uri: str) -> pymongo.MongoClient[dict[str, Any]]:
    return pymongo.MongoClient(uri)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for this signal."""
    mask = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(mask.split()[1], 16) >> (number - 1) & 1)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("house") / ".sandbox", said.append) as house:
        house.up(ports=ANY_PORT)
        yield house


@pytest.fixture
def settings(house: House, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings as the worker would read them, with the worker's environment."""
    for name, value in house.environment().items():
        monkeypatch.setenv(name, value)
    boto3.setup_default_session()
    return load_settings()


def test_all_parts_answer(house: House) -> None:
    assert {part.name: part.state for part in house.status()} == dict.fromkeys(PARTS, "running")


def test_nothing_listens_beyond_loopback(house: House) -> None:
    listening = listening_addresses(processes_of(leaders(house)))
    assert len(listening) >= len(ANY_PORT) - 1, "all but 'alerts', which is kept for a receiver"
    assert set(listening) == {LOOPBACK}


def test_the_api_is_healthy_on_both_stages(settings: Settings) -> None:
    aws = Aws(settings)
    secrets = SecretResolver(aws.ssm, aws.secretsmanager)
    assert set(settings.stages) == set(STAGES)
    for name, stage in settings.stages.items():
        key = secrets.resolve(stage.api_key)
        assert httpx.get(f"{stage.url}/health").json()["status"] == "ok"
        assert httpx.get(f"{stage.url}/sessions").status_code == 401
        sessions = httpx.get(f"{stage.url}/sessions", params={"limit": "5"}, headers={"X-Api-Key": key})
        assert (sessions.status_code, len(sessions.json())) == (200, 5)
        assert stage.production == (name == "production")
        assert stage.gate("any").requester_may_approve == (name != "production")


def test_every_reference_in_the_settings_leads_to_a_secret(settings: Settings) -> None:
    aws = Aws(settings)
    secrets = SecretResolver(aws.ssm, aws.secretsmanager)
    providers = settings.providers
    references = [
        providers.slack["slack"].webhook,
        providers.pagerduty["pagerduty"].routing_key,
        providers.github["tickets"].token,
        *(stage.database.uri for stage in settings.stages.values()),
    ]
    assert all(secrets.resolve(reference) for reference in references)
    assert httpx.post(secrets.resolve(references[0]), json={"text": "hello"}).text == "ok"


def test_the_ledger_holds_what_is_deployed(settings: Settings) -> None:
    aws = Aws(settings)
    records = Records(aws.s3, settings)
    for stage in settings.stages.values():
        first = DeployLedger(records).list(stage).entries[-1]
        assert (first.label, first.version, first.status) == ("good", "1", "succeeded")
        published = aws.functions.get_function_configuration(FunctionName=stage.function, Qualifier="1")
        assert first.code_sha256 == published["CodeSha256"]
        assert first.code_location is not None
        assert first.template_location is not None
        assert records.digest(first.code_location) is not None
        template = records.fetch(first.template_location)
        assert template is not None
        assert hashlib.sha256(template).hexdigest() == first.template_sha256


def test_a_deployment_stands_in_the_ledger(house: House, settings: Settings) -> None:
    entry = house.deploy("staging", "good", reject_validation=True)
    stage = settings.stages["staging"]
    assert httpx.get(f"{stage.url}/health").json()["release"] == entry.release
    assert DeployLedger(Records(Aws(settings).s3, settings)).list(stage).entries[0] == entry


def test_a_user_reaches_its_own_database_only(house: House) -> None:
    vault = Vault.open(house.layout.vault)
    port = recorded(house).ports["mongodb"]
    for uri in (mongodb.api_uri(port, vault, "staging"), mongodb.operator_uri(port, vault, "staging")):
        with connected(uri) as client:
            assert client["state_api_staging"]["sessions"].find_one()
            with pytest.raises(pymongo.errors.OperationFailure):
                client["state_api_production"]["sessions"].find_one()
    with (
        connected(f"mongodb://127.0.0.1:{port}/?directConnection=true") as nobody,
        pytest.raises(pymongo.errors.OperationFailure),
    ):
        nobody["state_api_staging"]["sessions"].find_one()


def test_secrets_are_private_and_on_no_command_line(house: House) -> None:
    vault = Vault.open(house.layout.vault)
    files = [house.layout.vault, *house.layout.references.iterdir()]
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) != 0o600] == []
    values = [vault.mongodb_admin_password, vault.webhook_token, vault.pagerduty_routing_key, vault.slack_path]
    for stage in vault.stages.values():
        values += [stage.api_password, stage.operator_password, *stage.api_keys]
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_of(leaders(house))]
    open_texts = [
        *lines,
        house.layout.settings.read_text(),
        house.layout.env.read_text(),
        house.layout.state.read_text(),
    ]
    open_texts += [log.read_text(errors="replace") for log in house.layout.logs.iterdir()]
    assert [value for value in values for text in open_texts if value in text] == []


def test_the_written_environment_serves_a_shell(house: House) -> None:
    script = f". {house.layout.env}; sst version; temporal workflow count; echo $AWS_ENDPOINT_URL"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=house.layout.releases)
    assert done.stdout.startswith("sst ")
    assert "Total: " in done.stdout
    assert f"http://127.0.0.1:{recorded(house).ports['aws']}" in done.stdout


def test_up_again_changes_nothing_and_says_so(house: House, said: list[str]) -> None:
    before = recorded(house)
    house.up()
    assert "already up" in said[-1]
    assert recorded(house) == before


def test_a_block_around_somebody_elses_sandbox_leaves_it_up(house: House) -> None:
    other = [sys.executable, "-c", SUPERVISOR, str(house.layout.root), "hub", "detached"]
    subprocess.run(other, check=True, capture_output=True)
    assert {part.state for part in house.status()} == {"running"}


def test_a_running_part_does_not_move(house: House) -> None:
    with pytest.raises(HouseError, match=r"hub already runs on port \d+"):
        house.up(ports={"hub": 1})


def test_services_fail_and_are_mended_by_switch(house: House, settings: Settings) -> None:
    hook = Path(settings.providers.slack["slack"].webhook.removeprefix("file:")).read_text()
    house.fault("slack", status=429, retry_after=7)
    refused = httpx.post(hook, json={"text": "hello"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "7")
    house.mend("slack")
    assert httpx.post(hook, json={"text": "hello"}).text == "ok"


def test_the_index_is_dropped_and_mended(house: House) -> None:
    vault = Vault.open(house.layout.vault)
    with connected(mongodb.api_uri(recorded(house).ports["mongodb"], vault, "staging")) as client:
        sessions = client.get_default_database()["sessions"]
        assert len(sessions.index_information()) == 2
        house.fault("index/staging")
        assert len(sessions.index_information()) == 1
        house.mend("index/staging")
        assert len(sessions.index_information()) == 2


def test_traffic_is_answered(house: House) -> None:
    traffic = house.traffic("production", rate=20, seconds=1)
    until(lambda: not traffic.running)
    stats = traffic.stop()
    assert stats.sent == 20
    assert stats.error_rate == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda house: house.deploy("nowhere"), "no stage 'nowhere'.*staging, production"),
        (lambda house: house.deploy("staging", "best"), "no release best.*good, better"),
        (lambda house: house.deploy("staging", "good", error_rate=2), "error_rate"),
        (lambda house: house.fault("index/nowhere"), "no stage 'nowhere'"),
        (lambda house: house.fault("telegraph"), "slack, webhook"),
        (lambda house: house.fault("slack", "sulk"), "mode"),
        (lambda house: house.traffic("staging", 0, 1), "rate"),
        (lambda house: house.up(["kitchen"]), "no part kitchen.*temporal, aws"),
        (lambda house: house.up(ports={"door": 1}), "no port door"),
        (lambda house: house.up(ports={"hub": 70000}), "70000 cannot be used"),
        (lambda house: house.up(ports={"hub": 7000, "aws": 7000}), "7000 cannot be used"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(house: House, wrong, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(HouseError, match=message):
        wrong(house)


def test_a_crashed_part_is_noticed_and_started_again_in_its_place(house: House, said: list[str]) -> None:
    before = recorded(house)
    _, hub = sorted(processes.session_members(before.parts["hub"]))
    os.kill(hub, signal.SIGKILL)
    until(lambda: not processes.alive(before.parts["hub"]))
    status = {part.name: part for part in house.status()}
    assert {part.state for part in status.values()} == {"running", "crashed"}
    assert status["hub"].state == "crashed"
    assert "ended by itself with signal 9" in status["hub"].note
    house.up()
    assert "but for hub" in said[-1]
    after = recorded(house)
    assert after.ports == before.ports
    assert {name for name, part in after.parts.items() if part != before.parts[name]} == {"hub"}
    assert {part.state for part in house.status()} == {"running"}


def test_a_new_aws_gets_its_stages_again(house: House, settings: Settings) -> None:
    aws = recorded(house).parts["aws"]
    processes.stop([aws])
    house.up()
    renewed = load_settings()
    for stage in renewed.stages.values():
        assert httpx.get(f"{stage.url}/health").json()["label"] == "good"


def test_down_leaves_nothing(house: House) -> None:
    sessions = leaders(house)
    pids = processes_of(sessions)
    assert len(pids) > 2 * len(PARTS), "guards and parts, and the emulator's Lambda workers"
    assert set(house.down()) == set(PARTS)
    assert processes_of(sessions) == []
    assert [pid for pid in pids if processes.identify(pid)] == []
    assert {part.state for part in house.status()} == {"stopped"}
    assert house.down() == []
    with pytest.raises(HouseError, match="no sandbox is up"):
        house.environment()


@pytest.mark.long
def test_nothing_outlives_a_killed_supervisor(house: House) -> None:
    house.down()
    with supervise(house.layout.root, tuple(PARTS), "attached") as supervisor:
        sessions = leaders(house)
        assert len(processes_of(sessions)) > 2 * len(PARTS)
        supervisor.kill()
    until(lambda: not processes_of(sessions))
    # Its record is still there, of a sandbox that is not.
    assert {part.state for part in house.status()} == {"crashed"}
    house.up(LIGHT, LIGHT_PORTS)
    assert set(recorded(house).parts) == set(LIGHT)
    house.down()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_supervisor_that_is_asked_to_end_takes_all_with_it(tmp_path: Path, number: signal.Signals) -> None:
    house = House(tmp_path)
    with supervise(tmp_path, LIGHT, "attached") as supervisor:
        sessions = leaders(house)
        until(lambda: catches(supervisor.pid, signal.SIGTERM))  # it says 'up' a moment before it watches
        supervisor.send_signal(number)
        assert supervisor.wait(15) == 0
    assert processes_of(sessions) == []
    assert State.read(house.layout.state) is None


def test_a_supervisor_ends_when_another_brings_its_sandbox_down(tmp_path: Path) -> None:
    with supervise(tmp_path, LIGHT, "attached") as supervisor:
        assert set(House(tmp_path).down()) == set(LIGHT)
        assert supervisor.wait(15) == 0


@pytest.mark.long
def test_a_detached_sandbox_stays_until_down(tmp_path: Path) -> None:
    house = House(tmp_path)
    with supervise(tmp_path, LIGHT, "detached") as starter:
        assert starter.wait(15) == 0
    sessions = leaders(house)
    try:
        assert {part.name for part in house.status() if part.state == "running"} == set(LIGHT)
    finally:
        house.down()
    assert processes_of(sessions) == []


def test_a_taken_port_is_named_or_stepped_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with socket.socket() as squatter, House(tmp_path, said.append) as house:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        taken = squatter.getsockname()[1]
        with pytest.raises(HouseError, match=f"port {taken}.*hub.*process {os.getpid()} "):
            house.up(["hub"], {"hub": taken})
        assert not house.layout.state.exists()
        monkeypatch.setitem(PARTS["hub"].ports, "hub", taken)
        house.up(["hub"])
        assert recorded(house).ports["hub"] > taken
        assert said == [
            f"port {taken} is taken by process {os.getpid()} ({comm()}): hub is on {recorded(house).ports['hub']}"
        ]


def comm() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_a_part_that_cannot_start_undoes_the_start(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.layout.create()
    (house.layout.data / "hub.jsonl").mkdir()  # where the hub wants its file
    with pytest.raises(HouseError, match=r"hub ended while it started: .*cannot start.* exit code 1"):
        house.up(LIGHT, LIGHT_PORTS)
    assert not house.layout.state.exists()
    commands = [path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert [command for command in commands if str(tmp_path) in command] == []


def test_an_interrupted_first_start_is_simply_done_again(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        house.layout.create()
        (house.layout.data / "mongodb.new").mkdir()
        (house.layout.data / "mongodb.new" / "half").write_text("a storage")
        house.up(["mongodb"], {"mongodb": 0})
        assert {part.name for part in house.status() if part.state == "running"} == {"mongodb"}
