"""What the backup runbooks take, and what their results hold. Plain data, no clock, no I/O.

A *reference* names one backup for ever: the folder of an archive (``file:///backups/staging/20260120T120000Z-1a2b3c4d``,
``s3://bucket/prefix/staging/...``) or a snapshot (``atlas://<project>/<cluster>/<snapshot>``). Its scheme says which
provider made it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from workflows.model import Name, RunbookInput

Provider = Literal["archive", "atlas"]
Reference = Annotated[str, StringConstraints(pattern=r"^(file:///|s3://|atlas://)[\w./+@:= -]+$", max_length=1000)]
Collection = Annotated[str, StringConstraints(min_length=1, max_length=235, pattern=r"^[^\x00$]+$")]

BACKUP_FACTS = {
    "backup": "reference of the backup, as DatabaseRestore and RestoreDrill take it",
    "provider": "archive or atlas",
    "created_at": "ISO 8601 time that the backup shows the database at",
    "age_seconds": "its age when the run ended",
    "reused": "true when a recent backup was accepted instead of making one (max_age)",
    "collections": "collections in it (archive only)",
    "documents": "documents in it (archive only)",
    "bytes": "bytes of BSON in it (archive only)",
    "stored_bytes": "bytes it takes where it lies",
    "checksum": "SHA-256 of the archive's manifest, which holds a checksum a collection (archive only)",
    "consistency": "'point in time' or why it is not",
    "verified": "true: read back whole and found unaltered (archive), or state 'completed' (atlas)",
    "seconds": "how long making and verifying it took",
}
"""``RunbookResult.facts`` of ``DatabaseBackup``."""

RESTORE_FACTS = {
    "backup": "reference of the backup that was restored",
    "created_at": "writes after this time are lost where 'then' was replace or repoint",
    "then": "keep, replace or repoint",
    "into": "database (archive) or cluster (atlas) that it was restored into first and compared in",
    "collections": "collections restored",
    "documents": "documents restored",
    "identical": "true: counts, indexes and checksums are those of the backup",
    "safety_backup": "reference of the backup of what was there before (replace and repoint)",
    "seconds": "how long the restore took, without waiting for people",
    "reverted": "release that the deployment was reverted to, when that was asked for",
}
"""``RunbookResult.facts`` of ``DatabaseRestore``."""

DRILL_FACTS = {
    "backup": "reference of the backup that was tried",
    "created_at": "ISO 8601 time that the backup shows the database at",
    "age_seconds": "its age when the drill began",
    "into": "scratch database or cluster",
    "collections": "collections compared",
    "documents": "documents compared",
    "indexes": "indexes compared",
    "identical": "true: counts, indexes and checksums are those of the backup",
    "differences": "how many differences were found",
    "restore_seconds": "how long the restore itself took",
    "seconds": "restore and comparison",
    "dropped": "true: the scratch is gone again",
}
"""``RunbookResult.facts`` of ``RestoreDrill``. A backup that cannot be restored fails the run, type ``DrillFailed``."""


class DatabaseBackupInput(RunbookInput):
    provider: Provider | None = Field(None, description="archive or atlas; the stage's own when absent")
    collections: tuple[Collection, ...] | None = Field(
        None, min_length=1, description="Only these collections (archive only); all when absent"
    )
    max_age: timedelta | None = Field(
        None,
        gt=timedelta(0),
        description="Accept the newest backup when it is whole and no older than this, such as PT1H; absent: make one",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.collections is not None and self.provider == "atlas":
            raise ValueError("collections: a snapshot of Atlas always holds the whole cluster. Leave it out")
        if self.collections is not None and self.max_age is not None:
            raise ValueError("max_age: with collections a backup is always made. Leave one of the two out")
        return self


class DatabaseRestoreInput(RunbookInput):
    backup: Reference | None = Field(
        None, description="Reference of the backup; the newest of the stage's provider when absent"
    )
    point_in_time: datetime | None = Field(
        None, description="Atlas with continuous backup only: restore to this moment instead, with time zone"
    )
    then: Literal["keep", "replace", "repoint"] = Field(
        "keep",
        description=(
            "After restoring beside the real database and comparing: keep it there, replace the real database's "
            "contents, or repoint the API's connection string to it"
        ),
    )
    into: Name | None = Field(
        None,
        description=(
            "Database to restore into first (archive): the stage's with '_scratch' or '_restored' and more behind it. "
            "Absent: one of these by 'then'. Atlas restores into the scratch cluster of the settings"
        ),
    )
    revert_deployment: bool = Field(
        False, description="Run QuickRollback afterwards, because the release that is live needs the newer data"
    )
    revert_to: Name | None = Field(None, description="Release to revert to; the last good one when absent")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.point_in_time is not None and self.backup is not None:
            raise ValueError("point_in_time: name either a backup or a moment")
        if self.point_in_time is not None and self.point_in_time.tzinfo is None:
            raise ValueError("point_in_time: needs its time zone, such as 2026-01-20T12:00:00Z")
        if self.revert_to is not None and not self.revert_deployment:
            raise ValueError("revert_to: only with revert_deployment: true")
        if self.revert_deployment and self.then == "keep":
            raise ValueError("revert_deployment: only with then: replace or repoint")
        return self


class RestoreDrillInput(RunbookInput):
    backup: Reference | None = Field(
        None, description="Reference of the backup to try; the newest of the stage's provider when absent"
    )
    max_age: timedelta = Field(
        timedelta(days=1), gt=timedelta(0), description="A newest backup older than this is reported (daily backups)"
    )
    expected: timedelta = Field(
        timedelta(minutes=60), gt=timedelta(0), description="The document: a restore takes 30 to 60 minutes"
    )
