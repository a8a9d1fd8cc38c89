"""Processes under guard: nothing outlives its owner, and nobody else's process is ever touched."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox import guard, ports, processes
from sandbox.mongodb import cache_size
from sandbox.processes import Identity

GIB = 1024**3
SLEEPER = ["sleep", "1000"]
# A child that shrugs off SIGTERM, below a shell that does not: what an emulator's worker may look like.
STUBBORN = ["sh", "-c", "trap '' TERM; sleep 1000 & trap - TERM; wait"]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Identity]]:
    """Starts a command under guard; whatever is left of it is stopped at the end."""
    started: list[tuple[Identity, subprocess.Popen[bytes]]] = []

    def begin(command: list[str], owner: Identity | None = None) -> Identity:
        started.append(processes.start(command, environment=os.environ, log=tmp_path / "log", owner=owner))
        return started[-1][0]

    yield begin
    processes.stop([leader for leader, _ in started])
    for _, child in started:
        child.wait(5)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any sandbox."""
    with subprocess.Popen(SLEEPER, start_new_session=True) as process:
        yield process
        process.kill()


def command_runs(leader: Identity, members: int) -> Callable[[], bool]:
    """The guard and this many processes below it."""
    return lambda: len(processes.session_members(leader)) == members + 1


@pytest.mark.parametrize(("command", "below"), [(SLEEPER, 1), (STUBBORN, 2)])
def test_stopping_leaves_nothing(start: Callable[..., Identity], command: list[str], below: int) -> None:
    leader = start(command)
    until(command_runs(leader, below))
    processes.stop([leader])
    assert processes.session_members(leader) == []


def test_the_end_of_the_owner_is_the_end_of_the_part(
    start: Callable[..., Identity], stranger: subprocess.Popen[bytes]
) -> None:
    leader = start(STUBBORN, processes.identify(stranger.pid))
    until(command_runs(leader, 2))
    stranger.kill()
    until(lambda: not processes.session_members(leader))


def test_the_end_of_the_guard_is_the_end_of_the_part(start: Callable[..., Identity]) -> None:
    leader = start(SLEEPER)
    until(command_runs(leader, 1))
    os.kill(leader.pid, signal.SIGKILL)
    until(lambda: not processes.session_members(leader))


def test_a_part_whose_guard_is_gone_before_it_could_be_tied_to_it_does_not_begin() -> None:
    assert subprocess.run(["true"], preexec_fn=guard.dies_with(os.getpid())).returncode == 0
    assert subprocess.run(["true"], preexec_fn=guard.dies_with(1)).returncode == 1, "another is its parent now"


def test_orphans_without_their_guard_are_found_and_stopped(start: Callable[..., Identity]) -> None:
    leader = start(["sh", "-c", "sleep 1000 & wait"])
    until(command_runs(leader, 2))
    os.kill(leader.pid, signal.SIGKILL)
    until(lambda: len(processes.session_members(leader)) == 1)
    assert not processes.alive(leader)
    processes.stop([leader])
    assert processes.session_members(leader) == []


def test_the_log_tells_how_a_part_ended(start: Callable[..., Identity], tmp_path: Path) -> None:
    leader = start([sys.executable, "-c", "print('last words'); raise SystemExit(3)"])
    until(lambda: not processes.alive(leader))
    assert (tmp_path / "log").read_text().splitlines() == ["last words", "ended by itself with exit code 3"]


def test_a_command_that_does_not_exist_is_said_in_the_log(start: Callable[..., Identity], tmp_path: Path) -> None:
    leader = start(["/there/is/no/such/program"])
    until(lambda: not processes.alive(leader))
    assert "could not be started" in (tmp_path / "log").read_text()


def test_a_recycled_pid_is_left_alone(stranger: subprocess.Popen[bytes]) -> None:
    found = processes.identify(stranger.pid)
    assert found is not None
    earlier = Identity(pid=found.pid, started=found.started - 1)
    processes.stop([earlier])
    with pytest.raises(subprocess.TimeoutExpired):
        stranger.wait(0.2)
    assert not processes.alive(earlier)


def test_a_zombie_is_nobody() -> None:
    with subprocess.Popen(["true"]) as child:
        until(lambda: processes.identify(child.pid) is None)


def test_the_owner_of_a_port_is_named() -> None:
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen()
        port = server.getsockname()[1]
        assert not ports.free(port)
        assert f"process {os.getpid()} " in str(ports.owner(port))
        named = f"port {port}.*hub.*process {os.getpid()} "
        with ports.Claims() as claims, pytest.raises(ports.PortTakenError, match=named):
            ports.exactly(port, "hub", (), claims)
        with ports.Claims() as claims:
            assert ports.next_free(port, {port + 1}, claims) >= port + 2
    assert ports.free(port)
    assert ports.owner(port) is None


def test_a_port_that_a_server_can_die_on_and_start_again_is_not_one_of_those_that_clients_get() -> None:
    with socket.socket() as client, socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen()
        client.connect(server.getsockname())
        assert {ports.any_free() < client.getsockname()[1] for _ in range(20)} == {True}


def test_a_port_that_one_start_has_chosen_is_not_chosen_by_another() -> None:
    free = ports.any_free()
    with ports.Claims() as one:
        chosen = ports.next_free(free, (), one)
        assert one.take(chosen)  # again, for the same start
        with ports.Claims() as other:
            assert ports.next_free(chosen, (), other) > chosen
            with pytest.raises(ports.PortTakenError, match=f"port {chosen}.*a sandbox that is starting"):
                ports.exactly(chosen, "hub", (), other)
    with ports.Claims() as later:
        assert ports.next_free(chosen, (), later) == chosen


@pytest.mark.parametrize(("memory", "cache"), [(2, "1G"), (9.9, "1G"), (16, "4G"), (28, "8G"), (64, "8G")])
def test_the_cache_follows_the_memory(memory: float, cache: str) -> None:
    assert cache_size(int(memory * GIB)) == cache
