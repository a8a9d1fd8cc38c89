"""What the limit of one client takes."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from activities.client_limits import ClientId
from workflows.model import RunbookInput

USUAL_WATCH, SHORTEST_WATCH = timedelta(minutes=2), timedelta(seconds=5)


class ClientRateLimitInput(RunbookInput):
    client: ClientId = Field(description="Id of its key, as the log has it (never the key)", examples=["1a2b3c4d"])
    per_minute: int = Field(60, ge=1, le=1_000_000, description="Requests a minute that it is still answered")
    expires_after: timedelta | None = Field(
        timedelta(hours=24),
        gt=timedelta(0),
        le=timedelta(days=90),
        description="The API itself no longer heeds the limit after this; null: it stays until it is taken away",
    )
    window: timedelta = Field(
        timedelta(minutes=10),
        ge=timedelta(seconds=10),
        le=timedelta(hours=24),
        description="Requests of this long are looked at before",
    )
    watch: timedelta = Field(
        USUAL_WATCH,
        ge=SHORTEST_WATCH,
        le=timedelta(hours=1),
        description="How long to look afterwards whether it holds, and whether the others are well",
    )
