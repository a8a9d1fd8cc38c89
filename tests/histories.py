"""Histories of real runs, kept so that every change of a workflow is replayed against what runs in production.

``make histories`` runs the tests that produce them and writes them to ``tests/histories/<workflow>/<scenario>.json``.
What names a machine (folders, ports, host names, stack traces) is replaced, in the payloads too.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowHandle

FOLDER = Path(__file__).parent / "histories"
RECORDING = os.environ.get("RECORD_HISTORIES") == "1"

_REPLACEMENTS = (
    (re.compile(r"(/[\w.-]+)+/house\d*"), "/srv/sandbox"),
    (re.compile(r"(/[\w.-]+)*/pytest-of-[\w.-]+/pytest-\d+/[\w.-]+"), "/srv/test"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:8000"),
    (re.compile(r"\d+@[\w.-]+"), "1@worker"),
)


async def keep(handle: WorkflowHandle[Any, Any], workflow: str, scenario: str) -> None:
    """Write this run's history, when histories are being recorded."""
    if not RECORDING:
        return
    history = await handle.fetch_history()
    path = FOLDER / workflow / f"{scenario}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_cleaned(json.loads(history.to_json())), indent=1) + "\n")


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        if "data" in value and "metadata" in value:
            plain = base64.b64decode(value["data"]).decode(errors="replace")
            return value | {"data": base64.b64encode(_text(plain).encode()).decode()}
        return {key: "" if key == "stackTrace" else _cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cleaned(inner) for inner in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text
