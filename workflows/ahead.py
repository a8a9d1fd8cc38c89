"""A guard against runs that are ahead of their history, because a worker has carried them on to answer a query.

A worker that does not have a run loads it for a query. What has come in since the last task that was answered, such as
a result, a signal, or a task that another worker died with, the SDK's core (temporalio 1.35) then makes a step of, for
the query to see. The history has no such step: the next task has the same news, at another time and together with
others, so that a replay decides otherwise than was decided for the query, and the run can never go on. A run that may
be ahead answers its query here, and this worker drops it: for its next task it is loaded anew.

A run whose tasks this worker answers is taken to be level with its history.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import SerializationContext, StorageDriverStoreContext
from temporalio.worker import WorkflowInstance

_ONLY_ASKED = frozenset(("query_workflow", "remove_from_cache"))
_ALONE = "legacy_query"
"""Id of a query that came by itself, not with a task."""


class Level(WorkflowInstance):
    """A run that is dropped when it may be ahead."""

    def __init__(self, instance: WorkflowInstance, drop: Callable[[str], None]) -> None:
        """``drop`` has the worker forget a run, by the run's id, after what it is doing."""
        self._instance, self._drop = instance, drop
        self._answered = False
        """Whether this worker has answered a task of this run, since it was loaded."""
        self._step: int | None = None
        """How long the history was at the last step, unless that was a replay."""

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        jobs = {job.WhichOneof("variant") for job in act.jobs}
        if jobs <= _ONLY_ASKED:
            alone = any(job.query_workflow.query_id == _ALONE for job in act.jobs)
            if alone and self._step is not None and not self._answered:
                self._drop(act.run_id)  # said before the answer is given, so that no task can come between
        elif act.is_replaying:
            self._answered, self._step = False, None
        else:
            # A step for a query is followed by the query: a second one shows that the first was a task's.
            went_on = self._step is not None and act.history_length > self._step
            self._answered = self._answered or went_on or "initialize_workflow" in jobs
            self._step = act.history_length
        return self._instance.activate(act)

    def get_info(self) -> workflow.Info:
        return self._instance.get_info()

    def get_thread_id(self) -> int | None:
        return self._instance.get_thread_id()

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:
        """None: no converter here asks whose a payload is, and to find out would enter the sandbox for each of them."""
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:
        return self._instance.get_external_store_context(command_info)
