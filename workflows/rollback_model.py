"""What a rollback takes."""

from __future__ import annotations

from pydantic import Field

from activities.releases import Strategy
from workflows.model import Name, RunbookInput


class RollbackInput(RunbookInput):
    to: Name | None = Field(None, description="Commit, label or Lambda version to go to; the last good one when absent")


class QuickRollbackInput(RollbackInput):
    strategy: Strategy | None = Field(
        None, description="redeploy, alias, cloudformation or command; the stage's own when absent"
    )
