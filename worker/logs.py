"""The worker's log: which run and which step each line is about, and no secret in any.

Lines for people by default; ``RUNBOOKS_LOG=json`` prints one JSON object a line, for a collector.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from temporalio import activity, workflow

from activities.redaction import redact
from activities.settings import ConfigError
from workflows.codec import MissingKeyError


def about() -> dict[str, Any]:
    """The run and the step that this thread works for at the moment, as far as it works for one."""
    if activity.in_activity():
        info = activity.info()
        found = {"runbook": info.workflow_type, "workflow_id": info.workflow_id, "run_id": info.workflow_run_id}
        return found | {"step": info.activity_id, "activity": info.activity_type, "attempt": info.attempt}
    if workflow.in_workflow():
        run = workflow.info()
        return {"runbook": run.workflow_type, "workflow_id": run.workflow_id, "run_id": run.run_id}
    return {}


def _of_sdk(record: logging.LogRecord) -> dict[str, Any]:
    """What the SDK itself puts on its lines about an activity that failed, outside of the activity's own context."""
    for name in ("temporal_activity", "temporal_workflow"):
        if isinstance(told := getattr(record, name, None), Mapping):
            pairs = {
                "runbook": told.get("workflow_type"),
                "workflow_id": told.get("workflow_id"),
                "run_id": told.get("workflow_run_id") or told.get("run_id"),
                "step": told.get("activity_id"),
                "activity": told.get("activity_type"),
                "attempt": told.get("attempt"),
            }
            return {key: value for key, value in pairs.items() if value is not None}
    return {}


def _one_line(record: logging.LogRecord) -> None:
    """Take the traceback off where the settings are to blame and no code is: its reason goes into the message."""
    error = record.exc_info[1] if record.exc_info else None
    while error is not None and not isinstance(error, MissingKeyError):
        error = error.__cause__
    if error is not None:
        record.msg, record.args = f"{record.getMessage()}: {error}", None
        record.exc_info = record.exc_text = None


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        _one_line(record)
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **(about() or _of_sdk(record)),
        }
        if record.exc_info:
            line["error"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A line for people, with run and step at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        _one_line(record)
        found = about() or _of_sdk(record)
        where = " ".join(f"{key}={found[key]}" for key in ("workflow_id", "run_id", "step", "attempt") if key in found)
        first, separator, rest = super().format(record).partition("\n")
        return redact(f"{first} [{where}]{separator}{rest}" if where else f"{first}{separator}{rest}")


def set_up(environment: Mapping[str, str]) -> None:
    """Log to standard error as the environment asks.

    Raises:
        ConfigError: it asks for something else than ``text`` or ``json``.
    """
    kind = environment.get("RUNBOOKS_LOG", "text")
    if kind not in ("text", "json"):
        raise ConfigError(f"RUNBOOKS_LOG is {kind!r}: it takes 'text' or 'json'")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if kind == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # The SDK repeats run and step within its message; they have fields of their own here.
    workflow.logger.workflow_info_on_message = False
    activity.logger.activity_info_on_message = False
