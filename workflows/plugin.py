"""One object that makes client, worker and replayer agree on conversion, sandbox and the list of workflows."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import ClassVar

from temporalio import workflow
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes
from temporalio.plugin import SimplePlugin
from temporalio.service import ConnectConfig, GrpcCompression, ServiceClient
from temporalio.worker import Worker, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities.keyring import Keyring
from workflows.ahead import Level
from workflows.catalog import WORKFLOWS
from workflows.codec import EncryptionCodec
from workflows.converter import data_converter

PASS_THROUGH = (
    # Interfaces and plain models. Loading them once instead of once a run keeps the start of a run cheap.
    "activities",
    "workflows.backup_models",
    "workflows.canary_evidence",
    "workflows.batch_control",
    "workflows.batched_update_model",
    "workflows.canary_judge",
    "workflows.canary_model",
    "workflows.canary_split",
    "workflows.capacity",
    "workflows.carrying",
    "workflows.client_rate_limit_model",
    "workflows.converter",
    "workflows.database_credential_model",
    "workflows.database_migration_model",
    "workflows.details",
    "workflows.diagnosis_causes",
    "workflows.diagnosis_evidence",
    "workflows.diagnosis_model",
    "workflows.diagnosis_remedies",
    "workflows.diagnosis_tree",
    "workflows.gates",
    "workflows.incident_clocks",
    "workflows.incident_model",
    "workflows.incident_state",
    "workflows.incident_watch",
    "workflows.load_verdict",
    "workflows.maintenance",
    "workflows.migration_plan",
    "workflows.model",
    "workflows.policy",
    "workflows.prices",
    "workflows.remedies",
    "workflows.restart_judge",
    "workflows.restart_steps",
    "workflows.rollback_model",
    "workflows.api_key_model",
    "workflows.rotation_model",
    "workflows.rotation_notices",
    "workflows.rotation_rules",
    "workflows.scaling_model",
    "workflows.scaling_steps",
    "workflows.search_attributes",
    "workflows.signatures",
    "workflows.symptom_children",
    "workflows.symptom_errors",
    "workflows.symptom_model",
    "workflows.symptom_readings",
    "workflows.symptom_recovery",
    "workflows.symptom_remedies",
    # Native code that can be loaded only once in a process. It verifies signatures: a pure function of its input.
    "cryptography",
)


def converter(keyring: Keyring | None) -> DataConverter:
    """How payloads are written and read. Failures are encrypted with them, because their messages quote what failed.

    The codec is there without one as well, because what was encrypted must wait for its key and not be taken for noise.
    """
    codec = dataclasses.replace(data_converter, payload_codec=EncryptionCodec(keyring))
    if keyring is None or keyring.encrypts_with is None:
        return codec
    return dataclasses.replace(codec, failure_converter_class=DefaultFailureConverterWithEncodedAttributes)


class _Runner(SandboxedWorkflowRunner):
    """Tries once a process, not once a task queue, whether each workflow can be loaded: it takes seconds for all.

    Its runs are kept level with their histories.
    """

    _tried: ClassVar[set[type]] = set()

    drop: Callable[[str], None] = staticmethod(lambda run_id: None)
    """Has the worker forget a run. A replayer is never asked anything."""

    def prepare_workflow(self, defn: workflow._Definition) -> None:
        if defn.cls not in self._tried:
            super().prepare_workflow(defn)
            self._tried.add(defn.cls)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return Level(super().create_instance(det), self.drop)


def _runner(existing: WorkflowRunner | None) -> WorkflowRunner:
    if isinstance(existing, SandboxedWorkflowRunner):
        restrictions = existing.restrictions.with_passthrough_modules(*PASS_THROUGH)
        return _Runner(restrictions=restrictions, runner_class=existing.runner_class)
    return existing or SandboxedWorkflowRunner()


_LOOPBACK = ("127.0.0.1:", "localhost:")


class RunbooksPlugin(SimplePlugin):
    """Give it to ``Client.connect``, and every worker made from that client has it too; give it to a ``Replayer``.

    Args:
        keyring: Encrypts what is stored, and decrypts it; None leaves it readable.
    """

    def __init__(self, keyring: Keyring | None = None) -> None:
        super().__init__(
            "operational-runbooks",
            data_converter=converter(keyring),
            workflow_runner=_runner,
            workflows=WORKFLOWS,
        )

    async def connect_service_client(
        self, config: ConnectConfig, next: Callable[[ConnectConfig], Awaitable[ServiceClient]]
    ) -> ServiceClient:
        """Messages that do not leave the machine are not compressed: a tenth of what the SDK does with them."""
        if config.target_host.startswith(_LOOPBACK):
            config.grpc_compression = GrpcCompression.NONE
        return await super().connect_service_client(config, next)

    async def run_worker(self, worker: Worker, next: Callable[[Worker], Awaitable[None]]) -> None:
        """Let the runs of this worker ask it to drop them."""
        runner = worker.config(active_config=True)["workflow_runner"]
        if isinstance(runner, _Runner):
            runner.drop = worker._bridge_worker.request_workflow_eviction  # the SDK has no other way to it
        await super().run_worker(worker, next)
