"""What people type, checked before anything is started: no server is needed for that."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from starters.app import run
from starters.problems import Code, Problem
from starters.schema import fields, typed, validated
from tests.hostile import VALUES, WORDS, Sent
from tests.workflows.probe import Probe, ProbeInput
from workflows.model import Name, RunbookInput, plain

GOOD = ["--set", "stage=stage-x", "--set", "reason=why"]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["stage: is required. stage takes text", "reason: is required"]),
        ([*GOOD, "--set", "two=2"], ["two: there is no such field; did you mean to?"]),
        ([*GOOD, "--set", "zzz=2"], ["zzz: there is no such field; the fields are stage, reason,"]),
        (
            [*GOOD, "--set", "to=up"],
            ["to: Input should be a valid integer", "to takes whole number 0..9 (Where to put the dial)"],
        ),
        ([*GOOD, "--set", "to=10"], ["to: Input should be less than or equal to 9"]),
        ([*GOOD, "--set", "bake=long"], ["bake: ", "bake takes duration such as PT15M"]),
        ([*GOOD, "--set", "severity=P9"], ["severity takes P1 | P2 | P3 | P4"]),
        (["--set", "stage=../x", "--set", "reason=r"], ["stage: String should match pattern"]),
        ([*GOOD, "--set", "stage"], ["--set takes key=value or key.key=value, not 'stage'"]),
        ([*GOOD, "--set", "stage.name=x"], ["--set stage.name: stage is no object"]),
        (["--input", "{stage"], ["--input is no JSON: Expecting property name"]),
        (["--input", "[1]"], ["--input takes one JSON object, not a list"]),
        (["--input", "@nowhere.json"], ["--input: nowhere.json cannot be read: No such file"]),
        (["--nope"], ["No such option: --nope"]),
    ],
)
def test_wrong_input_is_one_line_that_names_the_field(
    arguments: list[str], texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["start", "Probe", *arguments], (Probe,)) == Code.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("runbooks: ")
    assert said.err.count("\n") == 1
    for text in texts:
        assert text in said.err


def test_whatever_is_typed_is_one_line(capsys: pytest.CaptureFixture[str], sent: Sent) -> None:
    lines = [["--set", f"{field}={word}"] for field in ("stage", "no_such") for word in WORDS]
    lines += [["--input", word] for word in WORDS] + [["--set", word] for word in WORDS]
    lines += [["--input", json.dumps(value)] for value in VALUES] + [["--input", "[" * 100_000]]
    refused = 0
    for line in lines:
        code = run(["start", "Probe", "--set", "reason=why", *line], (Probe,))
        said = capsys.readouterr()
        assert code == Code.BAD_INPUT, line
        assert (said.out, said.err.count("\n"), len(said.err) < 5000) == ("", 1, True), said.err[:300]
        assert said.err == plain(said.err)
        refused += 1
    sent("command line", refused)


def test_a_wrong_value_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["start", "Probe", *GOOD, "--set", "to=hunter2"], (Probe,)) == Code.BAD_INPUT
    assert "hunter2" not in capsys.readouterr().err


def test_input_comes_from_text_file_and_standard_input_and_assignments_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = {"stage": "stage-x", "inner": {"a": 1}}
    file = tmp_path / "input.json"
    file.write_text(json.dumps(document))
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(document)))
    for source in (json.dumps(document), f"@{file}", "-"):
        given, _raw = typed(source, ["inner.b=[2]", "stage=stage-y", "reason=it is = so"])
        assert given == {"stage": "stage-y", "inner": {"a": 1, "b": [2]}, "reason": "it is = so"}


class Release(RunbookInput):
    to: Name
    count: int = 1
    ratio: float = Field(0.5, gt=0, le=1)
    mode: Literal["fast", "safe"] | None = None
    stages: list[str] = Field(default_factory=list)


def test_a_number_that_is_meant_as_text_is_text() -> None:
    given, raw = typed(None, ["stage=s", "reason=404", "to=12e4567", "count=3"])
    inp = validated(Release, given, raw)
    assert isinstance(inp, Release)
    assert (inp.to, inp.reason, inp.count) == ("12e4567", "404", 3)


def test_a_number_in_a_document_that_should_be_text_stays_wrong() -> None:
    with pytest.raises(Problem, match="to: Input should be a valid string"):
        validated(Release, {"stage": "s", "reason": "r", "to": 12})


def test_fields_are_told_in_words() -> None:
    told = {field.name: field.takes for field in fields(Release)}
    assert told["count"] == "whole number"
    assert told["ratio"] == "number up to 1 above 0"
    assert told["mode"] == "fast | safe"
    assert told["stages"] == "list of text"
    assert {field.name: field.takes for field in fields(ProbeInput)}["bake"] == "duration such as PT15M"


def test_the_catalog_lists_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalog"], (Probe,)) == Code.DONE
    assert "never outside the tests" in capsys.readouterr().out
    assert run(["catalog", "probe"], (Probe,)) == Code.DONE
    page = capsys.readouterr().out
    for text in ("Looks at a dial", "whole number 0..9", "Turn the dial", "turn it back", "turn-it: Turn the dial?"):
        assert text in page
    assert """runbooks start Probe --input '{"stage": "stage-x", "reason": "to see it turn"}'""" in page
    assert run(["catalog", "nope"], (Probe,)) == Code.CONFLICT
    assert capsys.readouterr().err == "runbooks: there is no runbook nope; there are: Probe\n"


def test_every_command_tells_its_exit_codes_and_offers_json(capsys: pytest.CaptureFixture[str]) -> None:
    names = (
        "catalog start list show report locks approve reject revoke pause resume abort note tick extend end-wait demo"
    )
    commands = [[name] for name in names.split()]
    commands += [["keys", name] for name in ("new", "show")]
    commands += [["sandbox", name] for name in ("up", "down", "status", "deploy", "traffic", "fault")]
    for command in commands:
        assert run([*command, "--help"], (Probe,)) == Code.DONE
        assert "--json" in capsys.readouterr().out, command
    assert run(["--help"], (Probe,)) == Code.DONE
    assert "Exit codes: 0 done" in capsys.readouterr().out


def starters(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "starters", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_as_a_process_the_catalog_is_json_and_a_wrong_input_is_one_line() -> None:
    done = starters("catalog", "--json")
    pages: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.returncode == Code.DONE
    assert done.stderr == ""
    assert "QuickRollback" in [page["name"] for page in pages]
    done = starters("start", "QuickRollback", "--set", "stage=production")
    assert (done.returncode, done.stdout) == (Code.BAD_INPUT, "")
    assert done.stderr.startswith("runbooks: reason: is required.")
    assert done.stderr.count("\n") == 1


def test_with_nobody_to_read_on_it_leaves_without_taking_the_interpreter_down() -> None:
    program = """if True:
        import atexit, sys
        from starters.__main__ import main
        atexit.register(print, "taken down", file=sys.stderr)
        sys.argv = ["runbooks", "catalog"]
        main()
    """
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (Code.RUN_FAILED, b"")


def test_without_settings_or_temporal_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(tmp_path / "none.toml"))
    assert run(["list"]) == Code.UNREACHABLE
    assert "none.toml does not exist" in capsys.readouterr().err
    (tmp_path / "some.toml").write_text("")
    monkeypatch.setenv("RUNBOOKS_CONFIG", str(tmp_path / "some.toml"))
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    assert run(["list"]) == Code.UNREACHABLE
    told = capsys.readouterr().err
    assert told.startswith("runbooks: Temporal does not answer at 127.0.0.1:1")
    assert told.count("\n") == 1


def test_without_the_sandbox_all_else_works() -> None:
    program = """if True:
        import sys
        sys.modules["sandbox"] = None
        from starters.app import run
        print([int(run(typed.split())) for typed in ("catalog --json", "sandbox status", "demo")], file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    *told, codes = done.stderr.splitlines()
    assert codes == str([int(code) for code in (Code.DONE, Code.UNREACHABLE, Code.UNREACHABLE)])
    remedy = "runbooks: the sandbox is not installed. Run: pip install 'operational-runbooks[sandbox]'"
    assert [line[: len(remedy)] for line in told] == [remedy, remedy]
