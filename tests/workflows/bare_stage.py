"""A stage of which scripted worlds need nothing but its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from activities.stage import Stage


def bare_stage(name: str, more: Mapping[str, Any]) -> Stage:
    """The least that settings of a stage hold, and what the test is about."""
    return Stage.model_validate(
        {
            "name": name,
            "function": "f",
            "url": "http://127.0.0.1:1",
            "api_key": "env:NONE",
            "log_group": "g",
            "gateway": {"name": "a", "stage": name},
            "database": {"uri": "env:NONE", "name": "d"},
            **more,
        }
    )
