"""What an ApiKeyRotation is given, what it is told, and what it has to know of itself over all of its histories."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import BaseModel, Field

from activities.rotation_models import RotationEntry
from activities.stage import Role
from workflows.model import By
from workflows.rotation_model import RotationInput
from workflows.rotation_rules import ClientState

LATE_LINES = timedelta(minutes=10)
"""How late a log line may arrive: each look begins so long before the end of the one before."""

BEFORE = timedelta(days=7)
"""How far back it is looked who uses the keys, for the plan of an emergency."""


class ApiKeyRotationInput(RotationInput):
    grace: timedelta = Field(
        timedelta(days=30), ge=timedelta(0), le=timedelta(days=180), description="How long old and new keys both work"
    )
    look_every: timedelta = Field(
        timedelta(days=1), ge=timedelta(seconds=1), description="How often it is looked who still uses old keys"
    )
    reminders: tuple[timedelta, ...] = Field(
        tuple(timedelta(days=days) for days in (14, 7, 3, 1)),
        max_length=20,
        description="How long before the deadline clients on an old key are reminded",
    )
    quiet: timedelta = Field(
        timedelta(days=1), ge=timedelta(0), description="A client that used an old key so recently has not changed it"
    )
    extension: timedelta = Field(
        timedelta(days=7),
        ge=timedelta(seconds=1),
        le=timedelta(days=90),
        description="How much a no at the deadline adds",
    )
    max_extensions: int = Field(
        3, ge=0, le=20, description="How often; after that a no ends the run, both keys working"
    )
    rehearsal_grace: timedelta = Field(
        timedelta(0), ge=timedelta(0), description="Grace on the non-production stage, which is rotated first"
    )


class Acknowledge(By):
    client: str = Field(min_length=1, max_length=60, description="Name of the client that uses its new key now")


class KeyProgress(BaseModel):
    """What the run has to know of itself in the grace, over all of its histories."""

    entry: RotationEntry | None
    old: tuple[str, ...]
    new: dict[Role, str]
    owners: dict[str, Role]
    added_at: datetime
    deadline: datetime
    looked_until: datetime
    named: int = 0
    complete: bool = True
    extensions: int = 0
    clients: dict[str, ClientState] = Field(default_factory=dict)
