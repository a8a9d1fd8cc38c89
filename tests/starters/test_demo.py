"""The demo, as a newcomer runs it: to its end, and interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from starters.problems import Code

PROJECT = str(Path(__file__).parents[2])


def begin(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo in a folder of its own, so that whatever it leaves can be found."""
    (folder / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "starters", "demo", *arguments],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": PROJECT, "RUNBOOKS_USER": "newcomer"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that were started below the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture
def nothing_left(tmp_path: Path) -> object:
    yield
    assert left_running(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("scenario", ["rollback", pytest.param("canary", marks=pytest.mark.long)])
def test_the_demo_rolls_a_broken_release_back(tmp_path: Path, scenario: str) -> None:
    demo = begin(tmp_path, scenario, "--json")  # no terminal: it answers its question by itself
    out, err = demo.communicate(timeout=240)
    assert demo.returncode == Code.DONE, err
    document = json.loads(out)
    assert document["outcome"] == "completed"
    assert document["error_rate_before"] > 0.03
    assert document["error_rate_after"] == 0
    done = {item["id"] for item in document["checklist"] if item["done"]}
    assert {"api", "errors", "metrics", "stakeholders", "ticket"} <= done
    report = json.loads((tmp_path / document["copy"]["json"]).read_text())
    assert report["outcome"] == "completed"
    assert {kind: location.rpartition(".")[2] for kind, location in document["report"].items()} == {
        kind: kind for kind in ("md", "html", "json")
    }
    for text in ("deploying a release that is broken", "demo colleague answers approve", document["ui"]):
        assert text in err


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGINT as at a terminal: a test run started in the background ignores it, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_an_interrupt_that_falls_into_a_destructor_is_heard() -> None:
    program = """
        import os, signal, time
        from starters.__main__ import lose_no_interrupt

        class Dying:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)

        lose_no_interrupt()
        Dying()
        print("deaf so far", flush=True)
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=50)
    assert done.stdout == "deaf so far\n"
    assert done.returncode == -signal.SIGINT


@pytest.mark.long
@pytest.mark.usefixtures("nothing_left", "heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_cleans_up_when_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    demo = begin(tmp_path, "--json")
    assert demo.stderr is not None
    for line in demo.stderr:
        if "deploying a release" in line:
            break
    demo.send_signal(number)
    _out, err = demo.communicate(timeout=60)
    assert demo.returncode == Code.INTERRUPTED, err
    assert err.splitlines()[-1] == "runbooks: interrupted"


@pytest.mark.usefixtures("nothing_left")
def test_only_a_migration_has_documents(tmp_path: Path) -> None:
    demo = begin(tmp_path, "rollback", "--documents", "300000")
    _out, err = demo.communicate(timeout=60)
    assert demo.returncode == Code.BAD_INPUT, err
    assert err.strip() == "runbooks: Invalid value for --documents: only 'migration' has documents"
