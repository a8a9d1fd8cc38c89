"""What a DatabaseCredentialRotation is given, and what it has to know of itself over all of its histories."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, Field

from activities.rotation_models import RotationEntry
from workflows.rotation_model import RotationInput


class DatabaseCredentialRotationInput(RotationInput):
    quiet: timedelta = Field(
        timedelta(days=1), ge=timedelta(0), description="For so long nobody may have logged in as the old user"
    )
    look_every: timedelta = Field(
        timedelta(hours=1), ge=timedelta(seconds=1), description="How often it is looked who logs in"
    )
    patience: timedelta = Field(
        timedelta(days=7),
        ge=timedelta(0),
        le=timedelta(days=180),
        description="After so long people are asked, when the old user is still in use or it cannot be told",
    )
    extension: timedelta = Field(
        timedelta(days=7), ge=timedelta(seconds=1), le=timedelta(days=90), description="How much a no adds"
    )
    max_extensions: int = Field(
        3, ge=0, le=20, description="How often; after that a no ends the run, both users able to log in"
    )
    rehearsal_quiet: timedelta = Field(
        timedelta(0), ge=timedelta(0), description="The quiet time on the non-production stage, which is rotated first"
    )


class CredentialProgress(BaseModel):
    """What the run has to know of itself while it waits."""

    entry: RotationEntry | None
    old: str
    new: str
    switched_at: datetime
    deadline: datetime
    known: bool = False
    old_last: datetime | None = None
    holders: tuple[str, ...] = ()
    seen: str = "not looked yet"
    extensions: int = 0
