"""Scripted worlds run their workflows outside of Temporal's sandbox, which loads them anew for each of many runs.

That nothing in them offends the sandbox is shown where every workflow is walked through (``test_conformance``), by the
replays of all kept histories, and by the tests of real procedures, whose worker is ``python -m worker``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from temporalio.worker import UnsandboxedWorkflowRunner, WorkflowInstance, WorkflowInstanceDetails
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

_BARE = UnsandboxedWorkflowRunner()
_SANDBOXED = {"test_conformance", "test_frame", "test_encryption"}


def _bare(_runner: SandboxedWorkflowRunner, details: WorkflowInstanceDetails) -> WorkflowInstance:
    return _BARE.create_instance(details)


@pytest.fixture(scope="module", autouse=True)
def _outside_of_the_sandbox(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        if request.module.__name__.rpartition(".")[2] not in _SANDBOXED:
            patched.setattr(SandboxedWorkflowRunner, "create_instance", _bare)
        yield


@pytest.fixture
def outside_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """For one test: hundreds of runs that end in their first task, whose loading would be most of its time."""
    monkeypatch.setattr(SandboxedWorkflowRunner, "create_instance", _bare)
