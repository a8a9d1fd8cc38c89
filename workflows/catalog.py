"""Every workflow there is, in one list: what the worker registers, the CLI offers and the tests walk."""

from __future__ import annotations

from typing import Any

from workflows.api_key_rotation import ApiKeyRotation
from workflows.backup_check import BackupCheck
from workflows.batched_update import BatchedUpdate
from workflows.canary_rollback import CanaryRollback
from workflows.client_rate_limit import ClientRateLimit
from workflows.connection_pool_scaling import ConnectionPoolScaling
from workflows.database_backup import DatabaseBackup
from workflows.database_credential_rotation import DatabaseCredentialRotation
from workflows.database_migration import DatabaseMigration
from workflows.database_restore import DatabaseRestore
from workflows.deploy import Deploy
from workflows.diagnosis import Diagnosis
from workflows.high_error_rate import HighErrorRate
from workflows.high_memory_usage import HighMemoryUsage
from workflows.incident import Incident
from workflows.load_test import LoadTest
from workflows.performance_degradation import PerformanceDegradation
from workflows.provisioned_concurrency import ProvisionedConcurrency
from workflows.quick_rollback import QuickRollback
from workflows.rehearsal import Rehearsal
from workflows.restore_drill import RestoreDrill
from workflows.runbook import Runbook
from workflows.scaling_expiry import ScalingExpiry
from workflows.service_restart import ServiceRestart
from workflows.service_restart_watchdog import ServiceRestartWatchdog
from workflows.signing_secret_rotation import SigningSecretRotation
from workflows.stage_lock import StageLock
from workflows.vertical_scaling import VerticalScaling

RUNBOOKS: tuple[type[Runbook[Any]], ...] = (
    QuickRollback,
    CanaryRollback,
    Deploy,
    DatabaseMigration,
    BatchedUpdate,
    DatabaseBackup,
    DatabaseRestore,
    RestoreDrill,
    BackupCheck,
    PerformanceDegradation,
    HighMemoryUsage,
    HighErrorRate,
    ClientRateLimit,
    Rehearsal,
    VerticalScaling,
    ConnectionPoolScaling,
    ProvisionedConcurrency,
    ScalingExpiry,
    LoadTest,
    ServiceRestart,
    ServiceRestartWatchdog,
    Incident,
    Diagnosis,
    ApiKeyRotation,
    DatabaseCredentialRotation,
    SigningSecretRotation,
)
"""What people start, in the order of the operational document."""

WORKFLOWS: tuple[type, ...] = (*RUNBOOKS, StageLock)
"""All that a worker runs."""
