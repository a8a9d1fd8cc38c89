"""The sandbox from the command line: brought up, used by a run with a worker of its own, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.house import House
from starters.problems import Code

PROJECT = str(Path(__file__).parents[2])


class Shell:
    """A terminal in a folder with a sandbox."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": PROJECT, "RUNBOOKS_USER": "ann"}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "starters", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def json(self, *arguments: str, code: Code = Code.DONE) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.run("sandbox", "down")


@pytest.mark.long
def test_a_sandbox_serves_a_run_and_a_worker_comes_and_goes(shell: Shell) -> None:
    assert {part["state"] for part in shell.json("sandbox", "status")} == {"stopped"}
    nothing = shell.run("sandbox", "deploy", "staging")
    assert nothing.returncode == Code.UNREACHABLE
    assert nothing.stderr.startswith("runbooks: no sandbox is up in ")

    book = shell.json("sandbox", "up")
    assert set(book["addresses"]) >= {"temporal", "temporal-ui", "aws", "mongodb", "hub", "API, production"}
    assert {part["state"] for part in shell.json("sandbox", "status")} == {"running"}
    assert shell.json("sandbox", "deploy", "staging", "broken", "--set", "latency_ms=1")["stage"] == "staging"
    assert shell.json("sandbox", "fault", "slack", "--set", "status=500") == {"target": "slack", "failing": True}
    assert shell.json("sandbox", "fault", "slack", "--mend")["failing"] is False
    assert shell.json("sandbox", "traffic", "production", "--rate", "2", "--seconds", "1")["sent"] >= 1
    wrong = shell.run("sandbox", "fault", "slack", "--set", "status=1")
    assert wrong.returncode == Code.UNREACHABLE
    assert wrong.stderr.count("\n") == 1

    with (shell.folder / "up.log").open("w") as log:
        up = subprocess.Popen(
            shell.command("sandbox", "up", "--worker"),
            cwd=shell.folder,
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 30
    while "Ctrl-C stops it all" not in (text := (shell.folder / "up.log").read_text()):
        assert up.poll() is None, text
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    for part in ("worker started, process", "Temporal UI", "runbooks start QuickRollback", ". ./.sandbox/env"):
        assert part in text

    shell.environment |= House(shell.folder / ".sandbox", lambda _line: None).environment()
    document = shell.json(
        "start", "QuickRollback", "--set", "stage=staging", "--set", "reason=test", "--dry-run", "--wait"
    )
    assert document["outcome"] == "dry_run"
    assert any("back to good" in line for line in document["result"]["would_change"])
    report = shell.json("report", document["id"])
    assert "dry_run" in (shell.folder / report["md"]).read_text()

    up.send_signal(signal.SIGINT)
    assert up.wait(30) == Code.DONE
    # It had been brought up to stay, and stays.
    assert {part["state"] for part in shell.json("sandbox", "status")} == {"running"}
    assert set(shell.json("sandbox", "down")["stopped"]) == {"temporal", "aws", "mongodb", "hub"}
