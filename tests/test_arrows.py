"""Folders depend on one another in one direction only, and workflows do no I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "activities": set(),
    "workflows": {"activities"},
    "worker": {"activities", "workflows"},
    "starters": {"activities", "workflows"},
    "sandbox": {"activities", "workflows"},
}
"""Other folders that a folder may import. The sandbox is a user of the product, never known to it."""

LATE = {("starters", "sandbox")}
"""Allowed inside a function only: the commands that start the sandbox, which need not be installed."""

CLIENTS = {"boto3", "botocore", "pymongo", "httpx", "requests", "socket", "subprocess", "jinja2", "threading"}
CLOCKS = {("datetime", "now"), ("datetime", "utcnow"), ("time", "time"), ("time", "sleep"), ("date", "today")}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Top-level packages that a module imports, and whether only inside a function or for the type checker."""
    tree = ast.parse(path.read_text())
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) or for_types_only(n)]
    late = {id(inner) for block in blocks for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], id(node) in late
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0], id(node) in late


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder: str) -> None:
    own = MAY_IMPORT.keys() | {"tests", "bench"}
    for path in modules(folder):
        for name, late in imports(path):
            if name in own and name != folder and name not in MAY_IMPORT[folder]:
                allowed = late and (folder, name) in LATE
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_workflows_do_no_io_and_have_no_clock_but_temporals() -> None:
    for path in modules("workflows"):
        if path.name == "connection.py":  # how processes connect; no workflow imports it
            continue
        found = {name for name, late in imports(path) if not late} & (CLIENTS | {"random", "uuid"})
        assert not found, f"{path.name} imports {found}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in CLOCKS, f"{path.name}:{node.lineno} reads the wall clock"


def test_timeouts_and_retries_are_set_in_one_module() -> None:
    for path in modules("workflows"):
        text = path.read_text()
        if path.name != "policy.py":
            assert "RetryPolicy(" not in text, path.name
            assert "start_to_close_timeout=" not in text, path.name


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "bench"])
def test_modules_have_one_job(folder: str) -> None:
    for path in modules(folder):
        lines = len(path.read_text().splitlines())
        assert lines <= 420, f"{path.relative_to(ROOT)} has {lines} lines: which job could move out?"
