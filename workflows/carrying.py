"""What a long run hands to its next run when its history is cut: everything that its page and its undo need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_jsonable_python
from temporalio import activity

from activities.stage import Stage
from workflows.model import RunState, Scalar
from workflows.steps import Undo

CARRIED_TIMELINE = 100
"""Timeline entries that are handed on; all of them stand in the histories."""


class CarriedUndo(BaseModel):
    """An undo by the name of its activity, which is for ever."""

    step: str
    title: str
    activity: str
    argument: Any

    @staticmethod
    def of(step_id: str, undo: Undo) -> CarriedUndo:
        return CarriedUndo(
            step=step_id,
            title=undo.title,
            activity=activity_name(undo.activity),
            argument=to_jsonable_python(undo.argument),
        )


class Carried(BaseModel):
    """The whole of a run between two of its histories."""

    input: dict[str, Any]
    state: RunState
    stage: Stage
    facts: dict[str, Scalar] = Field(default_factory=dict)
    would: list[str] = Field(default_factory=list)
    ids: dict[str, int] = Field(default_factory=dict)
    undos: list[CarriedUndo] = Field(default_factory=list)
    cursor: dict[str, Any] = Field(default_factory=dict)


def read_carried(payload: Sequence[Any]) -> Carried | None:
    """What was carried, when this run continues another; anything else is input that a person gave."""
    if len(payload) == 1 and isinstance(payload[0], dict) and payload[0].keys() == {"carried"}:
        try:
            return Carried.model_validate(payload[0]["carried"])
        except ValidationError:
            return None
    return None


def activity_name(named: Any) -> str:
    """The registered name of an activity method."""
    if isinstance(named, str):
        return named
    return activity._Definition.must_from_callable(named).name or ""
