"""``python -m tests.chaos [SCENARIO ...] [--fault FAULT ...]``: the whole proof, or a part of it.

Each scenario has a sandbox and a process of its own; some are under way side by side, because most of the time is spent
waiting for the time-outs that give a dead worker away. What is found goes to ``docs/chaos.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.matrix import FAULTS, WHOLE, ground, rows
from tests.chaos.page import PAGE, Found, keep, longest_first, stamped
from tests.chaos.scenarios import SCENARIOS
from tests.few_cores import GO
from tests.read_once import read_once

LANES = 7
"""Sandboxes side by side on two cores. With more, heartbeats come late, and what is tried again costs more time."""


async def scenario(name: str, faults: Sequence[str]) -> None:
    """One scenario in this process; prints a line of JSON a row.

    Nothing else may come to standard output, and Temporal's core writes its warnings there.
    """
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    read_once()
    os.environ |= GO
    wanted = next(scenario for scenario in SCENARIOS if scenario.name == name)
    with tempfile.TemporaryDirectory(prefix="chaos-") as home:
        async with ground(Path(home)) as on:
            async for row in rows(on, wanted, faults):
                ending = row.ending
                found = {
                    "scenario": name,
                    "runbook": wanted.runbook,
                    "fault": row.fault,
                    "faults": ending.faults,
                    "seconds": round(ending.seconds),
                    "mark": row.mark,
                    "verdict": row.verdict,
                    "pairs": sorted(ending.pairs),
                }
                print(json.dumps(found), file=told, flush=True)


async def lane(names: asyncio.Queue[str], faults: Sequence[str], found: list[Found]) -> None:
    """Scenarios one after the other, until none is left."""
    while not names.empty():
        name = names.get_nowait()
        command = [sys.executable, "-m", "tests.chaos", name, "--alone"]
        for fault in faults:
            command += ["--fault", fault]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        async for line in process.stdout:
            row = kept(json.loads(line), found)
            figures = f"{row['faults']:>4} {row['seconds']:>5} s"
            print(f"{name:<18} {row['fault']:<14} {figures}  {row['verdict']}", flush=True)
        if await process.wait():
            for row in broken_off(name, faults, found):
                kept(row, found)


def kept(row: Found, found: list[Found]) -> Found:
    """Written to the page at once: what comes later may break off."""
    found.append(stamped(row))
    if row["fault"] in WHOLE:
        keep(found[-1:], [scenario.name for scenario in SCENARIOS])
    return found[-1]


def broken_off(name: str, faults: Sequence[str], found: Sequence[Found]) -> list[Found]:
    """Rows for what a scenario that broke off has not shown: a proof that failed is no good end."""
    runbook = next(scenario.runbook for scenario in SCENARIOS if scenario.name == name)
    told = {row["fault"] for row in found if row["scenario"] == name}
    rest = {"faults": 0, "seconds": 0, "mark": "✘", "verdict": "the proof itself broke off", "pairs": []}
    return [{"scenario": name, "runbook": runbook, "fault": fault, **rest} for fault in faults if fault not in told]


async def side_by_side(names: Sequence[str], faults: Sequence[str]) -> int:
    """These scenarios, each in a process; returns the exit code."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    for name in longest_first(names):
        queue.put_nowait(name)
    found: list[Found] = []
    began = datetime.now(UTC)
    await asyncio.gather(*(lane(queue, faults, found) for _ in range(min(LANES, len(names)))))
    took = (datetime.now(UTC) - began).total_seconds()
    bad = [row for row in found if row["mark"] == "✘"]
    print(f"written to {PAGE.relative_to(Path.cwd())}")
    print(f"{len(found)} runs, {sum(row['faults'] for row in found)} faults, {len(bad)} bad ends, {took:.0f} s")
    return min(len(bad), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    every = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("scenarios", nargs="*", help=", ".join(every))
    parser.add_argument("--fault", action="append", default=[], choices=FAULTS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.scenarios) - set(every):
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(every)}")
    faults = given.fault or list(WHOLE)
    # Each process, and the workflow sandbox for each run, loads modules anew: without bytecode, from their source.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if given.alone:
        asyncio.run(scenario(given.scenarios[0], faults))
        return 0
    return asyncio.run(side_by_side(given.scenarios or every, faults))


if __name__ == "__main__":
    sys.exit(main())
