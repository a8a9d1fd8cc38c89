"""What the activities of a backup are asked and what they answer.

A *reference* names one backup for ever, and its scheme its provider: ``file:///folder/stage/id``,
``s3://bucket/prefix/stage/id``, or ``atlas://project/cluster/snapshot``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from activities.evidence import Finding
from activities.stage import Facts, Stage

Provider = Literal["archive", "atlas"]
DatabaseName = Annotated[str, StringConstraints(pattern=r"^[\w-]{1,63}$")]


class CreateBackup(Facts):
    stage: Stage
    key: str = Field(min_length=1, description="Workflow id and step: the same key never makes two backups")
    at: AwareDatetime = Field(description="When it was asked for; part of an archive's name")
    provider: Provider | None = Field(None, description="The stage's own when absent")
    collections: tuple[str, ...] | None = Field(None, description="Only these (archive only)")
    safety: bool = Field(
        False, description="Of what a restore is about to replace: may be empty, and never counts as the newest backup"
    )


class Backup(Finding):
    """One backup that is there."""

    reference: str
    provider: Provider
    created_at: datetime = Field(description="The moment, or the beginning of the time, that it shows the database at")
    consistency: str = Field(description="'point in time', or why it is not")
    whole: bool = Field(True, description="False when it holds only some collections of the database")
    collections: int | None = None
    documents: int | None = None
    bytes: int | None = Field(None, description="Bytes of BSON; absent where the provider does not say")
    stored_bytes: int | None = None
    checksum: str | None = Field(None, description="SHA-256 of the archive's manifest")
    seconds: float | None = Field(None, description="How long making it took")
    expires_at: datetime | None = None


class FindBackup(Facts):
    stage: Stage
    at: AwareDatetime = Field(description="Now, as the run sees it: ages are counted from here")
    reference: str | None = Field(None, description="The newest whole backup of the provider when absent")
    provider: Provider | None = None


class FoundBackup(Finding):
    """A backup and its age; or that there is none."""

    backup: Backup | None = None
    age_seconds: float | None = None
    restore_from: datetime | None = Field(None, description="Earliest moment of a point-in-time restore, if any")


class BackupOf(Facts):
    stage: Stage
    reference: str


class Verified(Finding):
    """Whether a backup could be restored, as far as reading it tells. A "no" is no error."""

    ok: bool
    problems: tuple[str, ...] = ()
    documents: int | None = None
    bytes: int | None = None
    seconds: float = 0


class RestoreBackup(Facts):
    stage: Stage
    key: str = Field(min_length=1)
    at: AwareDatetime = Field(description="When this restore was asked for: an older one of Atlas is not taken for it")
    reference: str | None = Field(None, description="Absent for a point-in-time restore")
    point_in_time: AwareDatetime | None = Field(None, description="Atlas only")
    into: str = Field(description="Database (archive) or cluster (atlas)")
    replace: bool = Field(
        False, description="The target is the real one and a gate has released it: its contents are replaced"
    )


class PutBack(Facts):
    """Undo of a restore that replaced real contents: what was there before comes back, if anything was replaced."""

    failed: RestoreBackup = Field(description="The restore that is to be undone")
    safety: str = Field(description="Reference of the backup that was made just before it")
    key: str = Field(min_length=1)


class Restored(Finding):
    into: str
    collections: int | None = None
    documents: int | None = None
    indexes: int | None = None
    seconds: float
    notes: tuple[str, ...] = ()


class Compare(Facts):
    stage: Stage
    reference: str | None = None
    into: str


class Comparison(Finding):
    """The restored data against the backup. Differences are no error: the run decides."""

    identical: bool
    differences: tuple[str, ...] = Field((), description="At most twenty, one line each; the rest is counted")
    notes: tuple[str, ...] = Field((), description="What could not be compared, and why")
    collections: int = 0
    documents: int = 0
    indexes: int = 0
    seconds: float = 0


class DropRestored(Facts):
    """Take a copy away again."""

    stage: Stage
    into: str
    key: str = Field("", description="Which restore put it there; a scratch is emptied whoever filled it")


class Dropped(Finding):
    dropped: bool


class Targets(Finding):
    """Where things are, for the plan of a restore. Names only, no address with a password."""

    real: str = Field(description="Database (archive) or cluster (atlas) that the API works on")
    scratch: str | None = Field(None, description="Where to rehearse; absent when Atlas has no scratch cluster set")
    restored: str | None = Field(None, description="Where a restored copy stays for good")
    documents: int | None = Field(None, description="Documents of the real database now, by its metadata")
    bytes: int | None = None
