"""A guard against a clock that stands still: a task of a run that a worker has just loaded to answer a query.

A worker that does not have a run yet loads it for a query. Where an activity's result has come in meanwhile, the SDK's
core (temporalio 1.35) carries the run on while it answers: with the result, but with the time of the task *before* it.
The next task then does what was decided so, and a replay, which knows the right time, decides otherwise: from then on
the run cannot go on. Such a step forward without a new time is failed here: the query gets an error, the run is loaded
anew, and its next task has a time of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.client import Interceptor, OutboundInterceptor, QueryWorkflowInput, WorkflowQueryFailedError
from temporalio.converter import SerializationContext, StorageDriverStoreContext
from temporalio.worker import WorkflowInstance

ASK_AGAIN = "this worker has just loaded the run for this query; ask again"

_ONLY_ASKED = frozenset(("query_workflow", "remove_from_cache"))


class Timely(WorkflowInstance):
    """A run, in which every task has a time of its own."""

    def __init__(self, instance: WorkflowInstance) -> None:
        self._instance = instance
        self._at, self._length, self._replayed = 0, 0, False

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        if {job.WhichOneof("variant") for job in act.jobs} <= _ONLY_ASKED:
            return self._instance.activate(act)
        at = act.timestamp.ToNanoseconds()
        goes_on = self._replayed and not act.is_replaying and act.history_length > self._length
        if goes_on and at == self._at:
            failed = WorkflowActivationCompletion(run_id=act.run_id)
            failed.failed.failure.message = ASK_AGAIN
            return failed
        self._at, self._length, self._replayed = at, act.history_length, act.is_replaying
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


class AskAgain(Interceptor):
    """A client that does ask again, a few times within seconds."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _AskAgain(next)


class _AskAgain(OutboundInterceptor):
    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        for pause in (0.02, 0.1, 0.5, 1.0):
            try:
                return await super().query_workflow(input)
            except WorkflowQueryFailedError as error:
                if ASK_AGAIN not in str(error):
                    raise
            await asyncio.sleep(pause)
        return await super().query_workflow(input)
