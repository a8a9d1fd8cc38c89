"""Runs every scenario undisturbed and then with each fault, and says in what they differ."""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from temporalio.client import Client

from sandbox.house import House
from tests.chaos.faults import Kills, Proxy, hub_fails
from tests.chaos.ground import Ending, Ground
from tests.chaos.scenario import Scenario, mongodb_port
from tests.chaos.strikes import MODES, Strikes
from tests.chaos.surroundings import surroundings
from tests.chaos.wire import Wire
from workflows.plugin import RunbooksPlugin

PHASES = ("before", "during", "after")
"""Of each activity: when the worker is killed."""

PARTS = {"temporal dies": "temporal", "database dies": "mongodb"}
"""What is killed at random moments, and started again on what it left on disk."""

MIXED = {"mixed": 0, "mixed again": 3}
"""Each operation fails in its own way, from a seed: over all scenarios the common ones fail in all of them."""

FAILING = (*MIXED, *MODES)
"""What a run rightly sees: it measures a service that was failing. A death of the worker or of Temporal is its own."""

FAULTS: tuple[str, ...] = (*PHASES, *PARTS, *MIXED, *MODES)
WHOLE: tuple[str, ...] = (*PHASES, *PARTS, *MIXED)
"""What the whole proof does to every scenario; one mode for all operations is there to look closer."""
PORTS = dict.fromkeys(("temporal", "temporal-ui", "aws", "alerts", "mongodb", "hub"), 0)
PATIENCE = 1800.0
"""Seconds until a run counts as stuck. Forty deaths of the worker take ten minutes on a machine that is busy."""


@dataclass
class Row:
    """One scenario under one kind of fault, beside the undisturbed run."""

    scenario: Scenario
    fault: str
    ending: Ending
    undisturbed: Ending

    @property
    def mark(self) -> str:
        """``=`` the same end; ``≈`` the same, with items left open that check what was failing; ``↩`` a clear failure
        with everything undone; ``✘`` none of these, or something was done twice.
        """
        if self.doubled:
            return "✘"
        if self.differences:
            return "↩" if self.ending.undone else "✘"
        if self.unconfirmed:
            measured = self.fault == "database dies" and self.scenario.measures.issuperset(self.unconfirmed)
            return "≈" if self.fault in FAILING or measured else "✘"
        return "="

    @property
    def differences(self) -> list[str]:
        return self.ending.differences(self.undisturbed)

    @property
    def doubled(self) -> list[str]:
        return self.ending.doubled(self.undisturbed)

    @property
    def unconfirmed(self) -> list[str]:
        return self.ending.unconfirmed(self.undisturbed)

    @property
    def verdict(self) -> str:
        found = [*self.differences, *self.doubled, *(f"{item} is not confirmed" for item in self.unconfirmed)]
        if self.ending.outcome == "failed":
            found += [f"{what} is not as before" for what in self.ending.changed]
        said = {
            "=": "the same end, nothing twice",
            "≈": f"the same end, nothing twice; {', '.join(self.unconfirmed)} could not be confirmed",
            "↩": f"failed, all undone: {self.ending.summary}",
        }
        return said.get(self.mark) or "; ".join([*found, self.ending.summary])


@contextlib.asynccontextmanager
async def ground(home: Path) -> AsyncIterator[Ground]:
    """A sandbox of its own."""
    with House(home / "house", say=lambda line: None) as house:
        house.up(ports=PORTS)
        client = await Client.connect(house.environment()["TEMPORAL_ADDRESS"], plugins=[RunbooksPlugin()])
        yield Ground(house, client, home / "notes")


@contextlib.contextmanager
def traffic(on: Ground, scenario: Scenario) -> Iterator[None]:
    if not scenario.traffic:
        yield
        return
    running = on.house.traffic("production", scenario.traffic, 3600)
    try:
        yield
    finally:
        running.stop()


async def one(on: Ground, scenario: Scenario, fault: str) -> Ending:
    """One run of the scenario under one fault: a phase to kill the worker in, a part to kill, or a mode to fail in."""
    began = time.monotonic()
    inp = await asyncio.to_thread(scenario.prepare, on)
    found, around = scenario.state(on), surroundings(on)
    phase = fault if fault in PHASES else "undisturbed"
    with contextlib.ExitStack() as stack:
        stack.enter_context(traffic(on, scenario))
        strikes: Strikes | None = None
        settings, counted = {}, lambda: on.notes(scenario.name).kills(phase)
        if fault in MODES or fault in MIXED:
            seed = MIXED.get(fault, 0) + zlib.crc32(scenario.name.encode())
            strikes = Strikes(fault if fault in MODES else None, seed)
            proxy = Proxy(on.house.environment()["AWS_ENDPOINT_URL"], strikes)
            stack.callback(proxy.close)
            wire = Wire(port := mongodb_port(on), strikes)
            stack.callback(wire.close)
            stack.enter_context(hub_fails(on.house, strikes))
            settings, counted = on.through(proxy.url, (port, wire.port)), lambda: len(strikes.pairs)
        stack.enter_context(on.worker(scenario.name, phase, settings))
        if fault in PARTS:
            kills = stack.enter_context(Kills(on.house, PARTS[fault], seed=len(scenario.name)))
            counted = lambda: kills.count  # noqa: E731
        ending = await on.play(scenario.runbook, inp, PATIENCE, scenario.beside)
        ending.pairs = strikes.pairs if strikes else set()
    ending.found, ending.state, ending.faults = found, scenario.state(on), counted()
    now = surroundings(on)
    ending.seconds = time.monotonic() - began
    ending.changed = sorted(key for key in around.keys() | now.keys() if around.get(key) != now.get(key))
    return ending


async def rows(on: Ground, scenario: Scenario, faults: Sequence[str] = WHOLE) -> AsyncIterator[Row]:
    """The scenario under each of the faults."""
    undisturbed = await one(on, scenario, "none")
    for fault in faults:
        yield Row(scenario, fault, await one(on, scenario, fault), undisturbed)
