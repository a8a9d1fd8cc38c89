"""What of a run is being tried again, and why: Temporal knows it between two attempts, the run itself does not."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, Field
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import WorkflowExecutionDescription

from starters.session import Session
from workflows.details import clock
from workflows.steps import describe


class Trying(BaseModel):
    """A call that has failed at least once and has not been given up."""

    step: str
    attempt: int = Field(description="The one under way, or the next one")
    said: str = Field(description="How the last attempt failed")
    next_at: datetime | None = Field(None, description="When it is tried again; absent while it is under way")

    @property
    def text(self) -> str:
        """In one sentence, the way out last."""
        if self.next_at is None:
            return f"{self.step}: attempt {self.attempt} is under way. The last one: {self.said}"
        return f"{self.step}: attempt {self.attempt} at {clock(self.next_at)} UTC. The last one: {self.said}"


async def trying(session: Session, description: WorkflowExecutionDescription) -> list[Trying]:
    """What is being tried again in this run. Of runs below it, each tells its own."""
    found = []
    for pending in description.raw_description.pending_activities:
        if not pending.HasField("last_failure"):
            continue
        error = await session.client.data_converter.decode_failure(pending.last_failure)
        under_way = pending.state != PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        found.append(
            Trying(
                step=pending.activity_id,
                attempt=pending.attempt,
                said=describe(error)[0],
                next_at=None if under_way else pending.scheduled_time.ToDatetime(UTC),
            )
        )
    return sorted(found, key=lambda one: one.step)
