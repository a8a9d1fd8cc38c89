"""The runbooks that an incident may start as a recovery, with what each takes; all of them are registered."""

from __future__ import annotations

from workflows.canary_model import CanaryRollbackInput
from workflows.model import RunbookInput
from workflows.rollback_model import QuickRollbackInput
from workflows.scaling_model import (
    ConnectionPoolScalingInput,
    ProvisionedConcurrencyInput,
    ServiceRestartInput,
    VerticalScalingInput,
)

REMEDIES: dict[str, type[RunbookInput]] = {
    "QuickRollback": QuickRollbackInput,
    "CanaryRollback": CanaryRollbackInput,
    "ServiceRestart": ServiceRestartInput,
    "VerticalScaling": VerticalScalingInput,
    "ConnectionPoolScaling": ConnectionPoolScalingInput,
    "ProvisionedConcurrency": ProvisionedConcurrencyInput,
}
