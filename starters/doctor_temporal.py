"""What all stages share: Temporal, its search attributes, and workers that serve."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client

from activities.keyring import read_keyring
from activities.settings import ConfigError, Settings
from starters.doctor_lines import Line, State
from starters.session import PATIENCE
from workflows.connection import ConnectionProblem, connect, require_search_attributes

AREA = "workers"

_FRESH = timedelta(minutes=2)
"""A worker that serves has asked for work within this time; the server remembers one for five minutes."""


async def temporal_lines(settings: Settings | None) -> list[Line]:
    """The lines about Temporal; those about task queues only where the settings can be read."""
    try:
        client = await connect(None, patience=PATIENCE)
    except ConnectionProblem as problem:
        text = str(problem)
        remedy = "start the server, or set TEMPORAL_ADDRESS (or TEMPORAL_PROFILE) to the one there is"
        if found := re.search(r"has no namespace '([^']+)'", text):
            remedy = f"create it: temporal operator namespace create -n {found[1]}, or set TEMPORAL_NAMESPACE"
        elif " refuses " in text:
            text, _, remedy = text.rpartition(". ")
        return [_line("temporal", State.WRONG, text, remedy)]
    lines = [_line("temporal", State.OK, f"{client.service_client.config.target_host}, namespace {client.namespace}")]
    try:
        await require_search_attributes(client)
        lines.append(_line("search attributes", State.OK, "all are registered"))
    except ConnectionProblem as problem:
        said, _, remedy = str(problem).partition(". ")
        lines.append(_line("search attributes", State.WRONG, said, remedy))
    if settings is not None:
        lines.append(_encryption(settings))
        queues = (settings.task_queue, settings.migrations_queue)
        lines += await asyncio.gather(*(_served(client, queue) for queue in queues))
    return lines


def _encryption(settings: Settings) -> Line:
    try:
        keyring = read_keyring(settings)
    except ConfigError as error:
        remedy = "put the keyring there; the remedy for a lost one is in docs/encryption.md"
        return _line("encryption", State.WRONG, str(error), remedy)
    if keyring is None:
        return _line("encryption", State.OK, "off: who may read the namespace can read histories")
    more = len(keyring.keys) - 1
    if (key := keyring.encrypts_with) is None:
        return _line("encryption", State.OK, f"nothing is encrypted, {more + 1} keys decrypt")
    return _line("encryption", State.OK, f"histories are encrypted with {key.id}; {more} more keys decrypt")


async def _served(client: Client, queue: str) -> Line:
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=queue),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        )
    )
    oldest = datetime.now(UTC) - _FRESH
    fresh = [p.identity for p in answer.pollers if p.last_access_time.ToDatetime(UTC) > oldest]
    if not fresh:
        return _line(
            "worker",
            State.WRONG,
            f"no worker serves task queue {queue}",
            "start one: python -m worker; if one runs, its task_queue and namespace are others",
        )
    return _line("worker", State.OK, f"{len(fresh)} serve task queue {queue}")


def _line(check: str, state: State, said: str, remedy: str | None = None) -> Line:
    return Line(area=AREA, check=check, state=state, said=said, remedy=remedy)
