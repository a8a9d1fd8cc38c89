"""A change of what a workflow asks of Temporal is seen before a run under way breaks over it."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

import pytest

from tests import fingerprints
from tests.fingerprints import FOLDER, KEPT, OF_THE_FRAME, patches, recorded_patches, unsafe
from tests.fingerprints import fingerprints as made

TEACHING = """
{path} is no longer what the code does:

{diff}

Runs that are under way replay their history with this code, and give up where it gives other commands than they had:
another step, another order, a timer that was not there. If that is what you changed:
  1. put the new commands behind `if workflow.patched("what-changed"):` and keep the old ones in the else branch;
  2. let a test run the new branch and keep its history: RECORD_HISTORIES=1 pytest tests/runbooks/test_<it>.py;
  3. make fingerprints, and commit the text with the history.
If older runs never come there (the commands hang on a new, optional field of what they have recorded), only a helper
was renamed, or nobody runs the old form any more, and every history replays: make fingerprints ANEW=anew
"""


@pytest.mark.parametrize("path", [OF_THE_FRAME, *KEPT], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_workflow_gives_the_commands_that_its_fingerprint_says(path: Path) -> None:
    assert path.exists(), f"{path.parent.name} has no fingerprint yet: make fingerprints"
    before, after = path.read_text(), made()[path]
    diff = "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "kept", "code", lineterm="", n=2))
    assert before == after, TEACHING.format(path=path.relative_to(FOLDER.parent.parent), diff=diff)


def test_every_patch_is_gone_through_by_a_kept_history() -> None:
    missing = {patch for text in made().values() for patch in patches(text)} - recorded_patches()
    assert not missing, f"no kept history goes through {missing}: the new branch is tried by nobody"


def test_there_is_no_fingerprint_of_what_is_gone() -> None:
    assert {*FOLDER.glob("*/commands.txt"), *FOLDER.glob("*-commands.txt")} == set(made())


# --- the guard itself ------------------------------------------------------------------------------------------------

BEFORE = """
class Thing:
    async def procedure(self, inp):
        if inp.far:
            await self.look("identify", Thing.state, self.stage)
        await self.change("turn", Thing.set, order(), would="turn")
"""


BEGIN = "        "
TURN = f'{BEGIN}await self.change("turn"'


def of(source: str) -> list[str]:
    return [
        line
        for name, function in fingerprints.named(ast.parse(source))
        for line in (name, *fingerprints.lines(function, 1))
    ]


def test_it_reads_as_the_procedure() -> None:
    assert of(BEFORE) == [
        "Thing.procedure",
        "  if",
        "    look 'identify' Thing.state",
        "  change 'turn' Thing.set",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"turn", Thing.set', '"turn-it", Thing.set'),
        ("Thing.set, order()", "Thing.put, order()"),
        ("        if inp.far:\n    ", ""),
        ("if inp.far:", 'if workflow.patched("only-then"):'),
        ("self.change", "self.look"),
        (
            '        await self.change("turn"',
            '        await self.wait("bake", inp.bake, "bake")\n        await self.change("turn"',
        ),
        ('        await self.change("turn"', '        await workflow.sleep(3)\n        await self.change("turn"'),
        ('        await self.change("turn"', '        await self._record()\n        await self.change("turn"'),
    ],
)
def test_what_changes_commands_changes_the_text(old: str, new: str) -> None:
    changed = BEFORE.replace(old, new)
    assert changed != BEFORE
    assert of(changed) != of(BEFORE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('would="turn"', 'would="turn it as far as it goes"'),
        ("if inp.far:", "if inp.far and inp.deep:"),
        ("order()", "another(order())"),
        ("        if", "        seen = len(self.facts)\n        if"),
    ],
)
def test_what_does_not_leaves_it_alone(old: str, new: str) -> None:
    changed = BEFORE.replace(old, new)
    assert changed != BEFORE
    assert of(changed) == of(BEFORE)


def test_a_change_is_kept_only_behind_a_patch_with_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "none of them stands behind a new workflow.patched" in str(unsafe("a\n", "b\n"))
    patched = "  patched 'turn-first'\n"
    assert "no kept history has gone through turn-first" in str(unsafe("a\n", patched))
    monkeypatch.setattr(fingerprints, "recorded_patches", lambda: frozenset({"turn-first"}))
    assert unsafe("a\n", patched) is None
    assert unsafe(patched, f"{patched}b\n") is not None, "an old patch does not cover a new change"
