"""What every rotation takes."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from workflows.model import RunbookInput


class RotationInput(RunbookInput):
    """What every rotation takes, whatever is rotated."""

    emergency: bool = Field(False, description="The secret is known to others: no overlap, behind a gate")
    rehearsal_max_age: timedelta = Field(
        timedelta(days=7), ge=timedelta(0), description="How old the rotation of the non-production stage may be"
    )
    schedule_next: bool = Field(True, description="Whether the next rotation is scheduled at the end")
