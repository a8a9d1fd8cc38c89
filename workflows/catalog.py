"""Every workflow there is, in one list: what the worker registers, the CLI offers and the tests walk."""

from __future__ import annotations

from typing import Any

from workflows.batched_update import BatchedUpdate
from workflows.canary_rollback import CanaryRollback
from workflows.database_backup import DatabaseBackup
from workflows.database_migration import DatabaseMigration
from workflows.database_restore import DatabaseRestore
from workflows.quick_rollback import QuickRollback
from workflows.restore_drill import RestoreDrill
from workflows.runbook import Runbook
from workflows.stage_lock import StageLock

RUNBOOKS: tuple[type[Runbook[Any]], ...] = (
    QuickRollback,
    CanaryRollback,
    DatabaseMigration,
    BatchedUpdate,
    DatabaseBackup,
    DatabaseRestore,
    RestoreDrill,
)
"""What people start, in the order of the operational document."""

WORKFLOWS: tuple[type, ...] = (*RUNBOOKS, StageLock)
"""All that a worker runs."""
