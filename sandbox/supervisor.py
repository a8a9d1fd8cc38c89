"""Starts, watches and stops the parts of the sandbox as processes, and remembers them in ``house.json``."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
import pymongo.errors

from sandbox import mongodb, ports, processes
from sandbox.parts import PARTS, NotInstalledError, NotReadyError, Part, Site, base_environment, program
from sandbox.processes import Identity
from sandbox.state import Layout, State, Vault

_START_SECONDS = 30.0
_POLL = 0.05
_WATCH_SECONDS = 0.5
_TAIL_BYTES = 4096
_NOT_YET = (httpx.HTTPError, pymongo.errors.PyMongoError, OSError, NotReadyError, KeyError, ValueError)


class HouseError(Exception):
    """The sandbox cannot do what was asked. One readable line that says what to do."""


@dataclass(frozen=True)
class PartStatus:
    name: str
    state: Literal["running", "not answering", "crashed", "stopped"]
    ports: Mapping[str, int]
    pid: int | None = None
    """The guard at the head of the part's session."""
    note: str = ""
    """Of a crashed or silent part: the end of its log in one line."""


@dataclass
class Timing:
    """How long bringing the sandbox up took, in seconds; parts start side by side, so they do not add up."""

    steps: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.steps[name] = time.monotonic() - begun

    def table(self) -> str:
        rows = [*self.steps.items(), ("ready", self.total)]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {seconds:6.2f} s" for name, seconds in rows)


class Supervisor:
    """The processes of one sandbox; see :class:`sandbox.house.House` for what they are for.

    Args:
        say: takes the lines meant for the person who started it.
        furnish: called when all parts answer and before the start counts as done; what it raises undoes the start.
    """

    def __init__(
        self, layout: Layout, say: Callable[[str], None], furnish: Callable[[State, Site, Timing], None]
    ) -> None:
        self._layout = layout
        self._say = say
        self._furnish = furnish
        self._children: list[subprocess.Popen[bytes]] = []

    def up(self, names: Collection[str], asked: Mapping[str, int], *, attached: bool) -> Timing:
        """See :meth:`sandbox.house.House.up`."""
        wanted = self._checked(names, asked)
        begun = time.monotonic()
        timing = Timing()
        self._layout.create()
        with self._layout.locked(), ports.Claims() as claims:
            state = self._settle_leftovers() or State(
                boot=processes.boot_id(),
                started_at=datetime.now(UTC),
                owner=_this_process() if attached else None,
            )
            missing = [part for part in wanted if part.name not in state.parts]
            self._choose_ports(state, wanted, missing, asked, claims)
            if not missing:
                self._say(f"the sandbox is already up, since {state.started_at:%Y-%m-%d %H:%M:%S} UTC")
            elif state.parts:
                self._say(f"the sandbox is up, but for {', '.join(part.name for part in missing)}: starting that")
            try:
                # Also when nothing is missing: a start that was killed may have got no further than the processes.
                self._furnish(state, self._start(state, missing, timing), timing)
            except BaseException:
                self._stop(state, [part.name for part in missing])
                raise
        timing.total = time.monotonic() - begun
        return timing

    def _checked(self, names: Collection[str], asked: Mapping[str, int]) -> list[Part]:
        unknown = [name for name in names if name not in PARTS]
        if unknown:
            raise HouseError(f"there is no part {unknown[0]}. The parts are {', '.join(PARTS)}")
        wanted = [part for part in PARTS.values() if part.name in names]
        known = [port for part in wanted for port in part.ports]
        for port in asked:
            if port not in known:
                raise HouseError(f"there is no port {port} to choose. The ports are {', '.join(known)}")
        chosen = [number for number in asked.values() if number]
        wrong = next((number for number in chosen if not 0 < number < 65536 or chosen.count(number) > 1), None)
        if wrong is not None:
            raise HouseError(f"{wrong} cannot be used: each port is a number of its own up to 65535")
        return wanted

    def _settle_leftovers(self) -> State | None:
        """What still runs of the recorded state. Whatever lost its owner or its leader is ended first."""
        state = State.read(self._layout.state)
        if state is None or state.boot != processes.boot_id():
            return None
        orphaned = state.owner is not None and not processes.alive(state.owner)
        dead = [name for name, leader in state.parts.items() if orphaned or not processes.alive(leader)]
        self._stop(state, dead)
        return state if state.parts else None

    def _choose_ports(
        self, state: State, wanted: list[Part], missing: list[Part], asked: Mapping[str, int], claims: ports.Claims
    ) -> None:
        for part in wanted:
            for name, preferred in part.ports.items():
                if part not in missing:
                    if asked.get(name) not in (None, 0, state.ports[name]):
                        raise HouseError(
                            f"{name} already runs on port {state.ports[name]}. Bring the sandbox down to change that"
                        )
                    continue
                try:
                    state.ports[name] = self._port(name, preferred, state.ports, asked, claims)
                except ports.PortTakenError as error:
                    raise HouseError(str(error)) from None

    def _port(
        self, name: str, preferred: int, given: Mapping[str, int], asked: Mapping[str, int], claims: ports.Claims
    ) -> int:
        others = {port for other, port in given.items() if other != name} | set(asked.values())
        if name in asked:
            return ports.exactly(asked[name], name, others, claims)
        # A part that is started again keeps its port, because others have been told of it.
        before = given.get(name, preferred)
        chosen = ports.next_free(before, others, claims)
        if chosen != before:
            self._say(f"port {before} is taken by {ports.owner(before) or 'another process'}: {name} is on {chosen}")
        return chosen

    def _start(self, state: State, missing: list[Part], timing: Timing) -> Site:
        site = Site(self._layout, state.ports, Vault.open(self._layout.vault))
        # The database comes last: making its storage takes a moment, in which the others start already.
        for part in sorted(missing, key=lambda part: part.name == "mongodb"):
            if part.name == "mongodb":
                with timing.step("mongodb storage"):
                    self._create_mongodb_storage(site)
            try:
                state.parts[part.name] = self._spawn(part.name, part.command(site), part.environment(site), state.owner)
            except NotInstalledError as error:
                raise HouseError(str(error)) from None
            state.write(self._layout.state)
        given_up = threading.Event()
        with ThreadPoolExecutor() as pool:
            try:
                waits = [
                    pool.submit(self._wait, part, site, state.parts[part.name], timing, given_up) for part in missing
                ]
                for wait in as_completed(waits):
                    wait.result()
            finally:
                given_up.set()  # so that one that fails, or Ctrl-C, does not wait for the others
        return site

    def _spawn(self, name: str, command: list[str], environment: dict[str, str], owner: Identity | None) -> Identity:
        leader, child = processes.start(
            command, environment=base_environment() | environment, log=self._layout.log(name), owner=owner
        )
        self._children.append(child)
        return leader

    def _create_mongodb_storage(self, site: Site) -> None:
        def run(directory: Path) -> tuple[int, Callable[[], None]]:
            port = ports.any_free()
            command = mongodb.command(program(mongodb.PROGRAM), port, directory, auth=False, log="1MB")
            # Asks for no password: ends with this process in any case.
            leader = self._spawn("mongodb", command, {}, _this_process())
            return port, lambda: processes.stop([leader])

        mongodb.create_storage(self._layout.data / "mongodb", site.vault, run)

    def _wait(self, part: Part, site: Site, leader: Identity, timing: Timing, given_up: threading.Event) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with timing.step(part.name):
            while not given_up.wait(_POLL):
                if not processes.alive(leader):
                    raise HouseError(f"{part.name} ended while it started: {self._log_end(part.name)}")
                try:
                    part.ready(site)
                    return
                except _NOT_YET as error:
                    if time.monotonic() > deadline:
                        raise HouseError(
                            f"{part.name} did not answer within {_START_SECONDS:.0f} s ({type(error).__name__}). "
                            f"See {self._layout.log(part.name)}"
                        ) from None

    # --- down, status, watch ----------------------------------------------------------------------------------------

    def down(self) -> list[str]:
        """See :meth:`sandbox.house.House.down`."""
        if not self._layout.state.exists():
            return []
        with self._layout.locked():
            state = State.read(self._layout.state)
            if state is None or state.boot != processes.boot_id():
                self._layout.state.unlink(missing_ok=True)
                return []
            stopped = list(state.parts)
            self._stop(state, stopped)
        return stopped

    def down_if_owned(self) -> None:
        """Stop what ends with this process anyway. A sandbox that is another's, or is meant to stay, is left alone."""
        state = State.read(self._layout.state)
        if state and state.owner == _this_process():
            self.down()

    def _stop(self, state: State, names: Collection[str]) -> None:
        processes.stop(state.parts[name] for name in names if name in state.parts)
        state.parts = {name: leader for name, leader in state.parts.items() if name not in names}
        if state.parts:
            state.write(self._layout.state)
        else:
            self._layout.state.unlink(missing_ok=True)
        for child in self._children:
            child.poll()

    def status(self) -> list[PartStatus]:
        """See :meth:`sandbox.house.House.status`."""
        state = State.read(self._layout.state)
        if state is None or state.boot != processes.boot_id():
            return [PartStatus(name, "stopped", {}) for name in PARTS]
        site = Site(self._layout, state.ports, Vault.open(self._layout.vault))
        with ThreadPoolExecutor(max_workers=len(PARTS)) as pool:
            return list(pool.map(lambda part: self._status(part, site, state.parts.get(part.name)), PARTS.values()))

    def _status(self, part: Part, site: Site, leader: Identity | None) -> PartStatus:
        if leader is None:
            return PartStatus(part.name, "stopped", {})
        own = {name: site.ports[name] for name in part.ports}
        if not processes.alive(leader):
            return PartStatus(part.name, "crashed", own, note=self._log_end(part.name))
        try:
            part.ready(site)
        except _NOT_YET as error:
            note = f"{type(error).__name__}: {self._log_end(part.name)}"
            return PartStatus(part.name, "not answering", own, leader.pid, note)
        return PartStatus(part.name, "running", own, leader.pid)

    def watch(self) -> None:
        """See :meth:`sandbox.house.House.watch`."""
        # A handler that runs while its own thread waits for an Event can find the Event's lock taken, by that thread.
        asked = queue.SimpleQueue[int]()
        before = {
            number: signal.signal(number, lambda n, _: asked.put(n)) for number in (signal.SIGINT, signal.SIGTERM)
        }
        crashed: set[Identity] = set()
        try:
            while not _heard(asked, _WATCH_SECONDS):
                state = State.read(self._layout.state)
                if state is None:
                    return
                for name, leader in state.parts.items():
                    if not processes.alive(leader) and leader not in crashed:
                        crashed.add(leader)
                        self._say(f"{name} crashed: {self._log_end(name)}. Start it again with another 'up'")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _log_end(self, name: str) -> str:
        """The last two lines of a part's log: its own last word and what the guard says about its end."""
        try:
            with self._layout.log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            return "it left no log"
        return " | ".join([line.strip() for line in lines if line.strip()][-2:]) or "its log is empty"


def _heard(asked: queue.SimpleQueue[int], seconds: float) -> bool:
    """Whether a signal has come, after so many seconds at most. Of all queues this one may be used in a handler."""
    try:
        asked.get(timeout=seconds)
    except queue.Empty:
        return False
    return True


def _this_process() -> Identity:
    identity = processes.identify(os.getpid())
    if identity is None:
        raise HouseError("this process cannot find itself in /proc")
    return identity
