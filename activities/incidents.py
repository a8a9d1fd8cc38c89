"""Opening an incident, or joining the running one of the same problem.

The incident itself is a workflow; it is reached by name through Temporal's client, so that this package knows no
workflow.
"""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import AwareDatetime, Field
from temporalio import activity
from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
    WorkflowUpdateStage,
)
from temporalio.common import Priority, SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.common import WorkflowIDConflictPolicy as OnConflict
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import lasting, passing
from activities.evidence import Finding
from activities.facts import Facts
from activities.incident_policy import SeverityName

if TYPE_CHECKING:
    from temporalio.client import Client

INCIDENT_TYPE = "Incident"
ANSWER = timedelta(seconds=10)
"""How long a worker may take to accept the alert. The incident exists even when none does."""

CLOSING = "Closing"
"""Type of the error when the incident of the problem is just closing."""

_CLOSING = ("Refused", "AcceptedUpdateCompletedWorkflow")
"""How an incident answers then: it says so, or has ended before it could answer."""

_LONGEST, _DIGITS = 100, 8
"""Characters of an incident's id, which is its ``key`` too (a ``Name``), and of the digest in it."""


class OpenIncident(Facts):
    """A problem, as whoever noticed it describes it."""

    stage: str
    reason: str = Field(description="What is wrong, in one line")
    key: str = Field(description="Names the problem, such as the name of the alarm: one incident a key and stage")
    alert: str = Field(description="Id of this alert; for a workflow its id and step. Sent twice it counts once")
    source: str = Field(description="Who or what noticed it; asks for the run, so in production it may not approve")
    severity: SeverityName | None = Field(None, description="Worked out from the evidence when absent")
    detected_at: AwareDatetime | None = None
    drill: bool = False


class Opened(Finding):
    """The incident that the alert belongs to."""

    workflow_id: str
    new: bool | None = Field(description="False when a running incident was joined; None when nobody answered yet")


def incident_id(stage: str, key: str, *, drill: bool = False) -> str:
    """Workflow id of the incident of a problem on a stage; a drill has one of its own, which no real alert joins.

    Keys that differ by more than capitals, spaces and hyphens have different ids: what the id cannot show of a key
    stands in it as a digest. A stage with a hyphen is set off by a dot, which no key's part has, because ``eu`` and
    ``prod-x`` are not ``eu-prod`` and ``x``.
    """
    said = " ".join(key.lower().split())
    slug = re.sub(r"[^a-z0-9]+", "-", said).strip("-")
    whole = f"{'drill' if drill else 'incident'}-{stage}{'.' if '-' in stage else '-'}{slug or 'unnamed'}"
    if slug == said.replace(" ", "-") and len(whole) <= _LONGEST:
        return whole
    digest = hashlib.sha256(f"{stage}\0{said}".encode()).hexdigest()[:_DIGITS]
    return f"{whole[: _LONGEST - _DIGITS - 1].rstrip('.-')}-{digest}"


class Incidents:
    def __init__(self, client: Client, task_queue: str) -> None:
        self._client = client
        self._task_queue = task_queue

    @activity.defn(name="incidents.open")
    async def open(self, problem: OpenIncident) -> Opened:
        """Open an incident, or tell the running one of the same problem. Safe to repeat: the alert's id counts once."""
        return await open_incident(self._client, self._task_queue, problem)


async def open_incident(client: Client, task_queue: str, problem: OpenIncident) -> Opened:
    """Update-with-start: whoever is first opens it, everybody else joins.

    Raises:
        ApplicationError: Temporal is away or the incident is just closing, after which a new one can be opened (both
            pass), or the incident cannot read the alert (lasting).
    """
    workflow_id = incident_id(problem.stage, problem.key, drill=problem.drill)
    given: dict[str, Any] = {
        "stage": problem.stage,
        "reason": problem.reason,
        "key": workflow_id,
        "alert": problem.alert,
        "requested_by": problem.source,
        "detected_by": problem.source,
        "severity": problem.severity,
        "detected_at": problem.detected_at.isoformat() if problem.detected_at else None,
        "drill": problem.drill,
    }
    start: WithStartWorkflowOperation[Any, Any] = WithStartWorkflowOperation(
        INCIDENT_TYPE,
        {name: value for name, value in given.items() if value not in (None, False)},
        id=workflow_id,
        task_queue=task_queue,
        id_conflict_policy=OnConflict.USE_EXISTING,
        priority=Priority(priority_key=1),
        static_summary=f"incident on {problem.stage}: {problem.reason}"[:120],
        search_attributes=TypedSearchAttributes(
            [SearchAttributePair(SearchAttributeKey.for_keyword("RunbookStage"), problem.stage)]
        ),
    )
    news = {"alert": problem.alert, "source": problem.source, "text": problem.reason, "severity": problem.severity}
    try:
        update = await client.start_update_with_start_workflow(
            "join",
            {name: value for name, value in news.items() if value is not None},
            start_workflow_operation=start,
            wait_for_stage=WorkflowUpdateStage.COMPLETED,
            rpc_timeout=ANSWER,
            result_type=str,
        )
        answer = str(await update.result(rpc_timeout=ANSWER))
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        message = cause.message if isinstance(cause, ApplicationError) else str(cause)
        if isinstance(cause, ApplicationError) and cause.type in _CLOSING:
            raise passing(f"{workflow_id} is closing: try again until a new one opens", type=CLOSING) from None
        raise lasting(f"the incident {workflow_id} did not take the alert: {message}", type="Refused") from None
    except WorkflowUpdateRPCTimeoutOrCancelledError:
        return _nobody_yet(workflow_id)
    except RPCError as error:
        if error.status is RPCStatusCode.DEADLINE_EXCEEDED:
            return _nobody_yet(workflow_id)
        raise passing(f"could not open {workflow_id}: Temporal answered {error.status.name}") from None
    return Opened(summary=f"{workflow_id}: {answer}", workflow_id=workflow_id, new=answer == "opened")


def _nobody_yet(workflow_id: str) -> Opened:
    return Opened(summary=f"{workflow_id} is open; no worker has answered yet", workflow_id=workflow_id, new=None)
