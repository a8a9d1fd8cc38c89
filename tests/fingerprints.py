"""Which commands the workflows give to Temporal, in which order: a text a workflow, kept beside its histories.

A run that is under way goes on under tomorrow's code by replaying its history: the code must give the same commands in
the same order. The texts show, in a review, that a change touches them, before any run does. They are made from the
source alone: every call that gives a command, and every call of a method that does, within its branches and loops.

``make fingerprints`` writes them, when a change is safe or nobody runs the old form any more.
"""

from __future__ import annotations

import ast
import base64
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.histories import FOLDER
from workflows.catalog import WORKFLOWS

ROOT = Path(__file__).parent.parent
NAME = "commands.txt"
FRAME = ("runbook", "queueing", "steps", "asking", "waiting", "operator", "carrying", "meters")
"""Modules that every runbook goes through; they have a text of their own."""

OF_TEMPORAL = {
    *("execute_activity", "execute_activity_method", "start_activity", "start_activity_method"),
    *("execute_local_activity", "execute_local_activity_method", "start_local_activity", "start_local_activity_method"),
    *("execute_child_workflow", "start_child_workflow", "continue_as_new", "sleep", "wait_condition"),
    *("upsert_search_attributes", "upsert_memo", "patched", "deprecate_patch"),
}
"""Functions of ``workflow`` (``sleep`` also of asyncio) that give a command."""

OF_FRAME = {
    **dict.fromkeys(("look", "observe", "change", "tell", "run_child"), (0, 1)),
    **dict.fromkeys(("announce", "gate", "wait", "_enter"), (0,)),
    "_run_activity": (0, 2),
}
"""Methods of the frame that give commands, and which of their arguments say which: the step and the activity."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / "workflows" / f"{module}.py").read_text())


@cache
def modules() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (ROOT / "workflows").glob("*.py")))


def callee(call: ast.Call) -> tuple[str, str]:
    """``self.look(...)`` as ``("self", "look")``, ``helper(...)`` as ``("", "helper")``."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="waiting"), attr="until"):  # the same command, see workflows/waiting.py
            return "workflow", "wait_condition"
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            return owner, name
        case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=name):
            return "self", name
        case ast.Attribute(attr=name):
            return "?", name
        case ast.Name(id=name):
            return "", name
    return "?", "?"


def primitive(call: ast.Call) -> bool:
    owner, name = callee(call)
    of_temporal = owner in ("workflow", "asyncio") and name in OF_TEMPORAL
    return (
        of_temporal
        or (owner == "self" and name in OF_FRAME)
        or (owner not in ("self", "workflow") and name == "signal")
    )


def named(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every function below a node, by its dotted name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            if is_function(child):
                yield name, child
            yield from named(child, f"{name}.")


@cache
def issuing() -> frozenset[str]:
    """Names of functions of ours that give commands, themselves or by what they call."""
    found: set[str] = set()
    every = [pair for module in modules() for pair in named(tree(module))]
    while True:
        more = {
            name.rpartition(".")[2] for name, function in every if any(gives(call, found) for call in calls(function))
        } - found
        if not more:
            return frozenset(found)
        found |= more


def is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def calls(node: ast.AST) -> Iterator[ast.Call]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Call))


def gives(call: ast.Call, names: frozenset[str] | set[str]) -> bool:
    owner, name = callee(call)
    return primitive(call) or (owner in ("self", "") and name in names)


def shown(call: ast.Call) -> str:
    """A call with what makes its command: the step, the activity, whether there is a timer."""
    _, name = callee(call)
    if name == "wait_condition":
        return name + (" with a timer" if any(word.arg in ("timeout", "at_most") for word in call.keywords) else "")
    if not primitive(call):
        return name
    places = OF_FRAME.get(name, (0,))
    told = [ast.unparse(call.args[n]) for n in places if n < len(call.args) and not isinstance(call.args[n], ast.Call)]
    return " ".join([name, *(text if len(text) <= 60 else text[:57] + "..." for text in told)])


BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.match_case, ast.ExceptHandler)


def lines(node: ast.AST | Sequence[ast.AST], depth: int) -> Iterator[str]:
    """The commands below a node, in the order of the source, with the branches they stand in."""
    for child in ast.iter_child_nodes(node) if isinstance(node, ast.AST) else node:
        if is_function(child) or isinstance(child, ast.ClassDef):
            continue
        if isinstance(child, ast.If):
            yield from lines([child.test], depth)
            yield from within("if", list(lines(child.body, depth + 1)), depth)
            yield from within("else", list(lines(child.orelse, depth + 1)), depth)
            continue
        if isinstance(child, BRANCHES):
            word = {"match_case": "case", "excepthandler": "except"}.get(type(child).__name__.lower())
            yield from within(word or type(child).__name__.lower(), list(lines(child, depth + 1)), depth)
            continue
        if isinstance(child, ast.Call) and gives(child, issuing()):
            yield f"{'  ' * depth}{shown(child)}"
        yield from lines(child, depth)


def within(word: str, inside: list[str], depth: int) -> Iterator[str]:
    if inside:
        yield f"{'  ' * depth}{word}"
        yield from inside


@cache
def of_module(module: str) -> list[str]:
    """Every function of a module that gives commands, with them."""
    found = []
    for name, function in named(tree(module)):
        inside = list(lines(function, 1))
        if inside:
            found += [f"{module}.{name}", *inside]
    return found


def reached(module: str) -> set[str]:
    """The module and all of ``workflows`` that it is made of, without the frame."""
    found, waiting = set(), [module]
    while waiting:
        one = waiting.pop()
        if one in found or one in FRAME or one not in modules():
            continue
        found.add(one)
        for node in ast.walk(tree(one)):
            if isinstance(node, ast.ImportFrom) and node.module == "workflows":
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("workflows."):
                waiting.append(node.module.removeprefix("workflows."))
    return found


OF_THE_FRAME = FOLDER / f"frame-{NAME}"
KEPT = {FOLDER / cls.__name__ / NAME: cls for cls in WORKFLOWS}
"""The file of each workflow."""


@cache
def fingerprints() -> dict[Path, str]:
    """The text of every workflow, and of the frame, by the file it is kept in."""
    made_of: dict[Path, Sequence[str]] = {OF_THE_FRAME: FRAME}
    for path, cls in KEPT.items():
        made_of[path] = sorted(reached(cls.__module__.removeprefix("workflows.")))
    return {
        path: "\n".join(line for module in modules for line in of_module(module)) + "\n"
        for path, modules in made_of.items()
    }


def patches(text: str) -> set[str]:
    """The ids of the patches in a fingerprint."""
    return {line.split(maxsplit=1)[1].strip("'\"") for line in text.splitlines() if line.strip().startswith("patched ")}


@cache
def recorded_patches() -> frozenset[str]:
    """The ids of the patches that some kept history has gone through."""
    found = set()
    for path in FOLDER.glob("*/*.json"):
        for event in json.loads(path.read_text())["events"]:
            marker = event.get("markerRecordedEventAttributes", {})
            if marker.get("markerName") == "core_patch":
                for payload in marker["details"]["patch-data"]["payloads"]:
                    found.add(json.loads(base64.b64decode(payload["data"]))["id"])
    return frozenset(found)


def unsafe(before: str, after: str) -> str | None:
    """Why a changed fingerprint must not simply be kept; None when it may."""
    fresh = patches(after) - patches(before)
    if not fresh:
        return "it gives other commands, and none of them stands behind a new workflow.patched('what-changed')"
    missing = fresh - recorded_patches()
    return f"no kept history has gone through {', '.join(sorted(missing))}: record one" if missing else None


def main(arguments: list[str]) -> int:
    """Write the texts. ``anew``: also where nothing says that it is safe, because nobody runs the old form."""
    refused = 0
    for path, text in fingerprints().items():
        before = path.read_text() if path.exists() else None
        if before == text:
            continue
        why = unsafe(before, text) if before is not None and "anew" not in arguments else None
        if why is not None:
            print(f"{path.relative_to(ROOT)}: {why}", file=sys.stderr)
            refused += 1
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"{path.relative_to(ROOT)} written")
    if refused:
        print("Where nobody runs the old form any more: make fingerprints ANEW=anew", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
