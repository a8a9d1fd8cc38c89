"""Other runs that are under way, as Temporal's visibility knows them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from temporalio import activity
from temporalio.client import WorkflowQueryFailedError
from temporalio.service import RPCError

from activities.errors import passing
from activities.evidence import Finding
from activities.stage import Facts

if TYPE_CHECKING:
    from temporalio.client import Client

MOST = 20
"""Runs that are listed; it takes one to hold another run up."""


_ANSWER = timedelta(seconds=5)


class InFlightQuery(Facts):
    stage: str
    runbooks: tuple[str, ...]


class RunFound(Facts):
    runbook: str
    workflow_id: str


class InFlight(Finding):
    runs: tuple[RunFound, ...]


class Runs:
    """Temporal as the record of what is under way."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @activity.defn(name="runs.in_flight")
    async def in_flight(self, asked: InFlightQuery) -> InFlight:
        """Runs of these runbooks that work on the stage now.

        One that only queues for the stage has changed nothing, and a dry run changes nothing.
        """
        names = ", ".join(f"'{name}'" for name in asked.runbooks)
        query = (
            f"RunbookStage = '{asked.stage}' AND ExecutionStatus = 'Running' AND WorkflowType IN ({names}) "
            "AND RunbookPhase != 'queued'"
        )
        try:
            running = [one async for one in self._client.list_workflows(query, limit=MOST)]
        except RPCError as error:
            raise passing(f"could not ask Temporal for the runs on {asked.stage}: {error.status.name}") from None
        dry = await asyncio.gather(*(self._is_dry(one.id) for one in running))
        found = [
            RunFound(runbook=one.workflow_type, workflow_id=one.id)
            for one, only_looks in zip(running, dry, strict=True)
            if not only_looks
        ]
        said = ", ".join(f"{one.runbook} {one.workflow_id}" for one in found)
        return InFlight(summary=f"in flight on {asked.stage}: {said}" if found else "none in flight", runs=tuple(found))

    async def _is_dry(self, workflow_id: str) -> bool:
        """Whether that run says of itself that it changes nothing. One that does not answer counts as changing."""
        try:
            state = await self._client.get_workflow_handle(workflow_id).query("progress", rpc_timeout=_ANSWER)
        except (RPCError, WorkflowQueryFailedError):
            return False
        return isinstance(state, dict) and state.get("dry_run") is True
