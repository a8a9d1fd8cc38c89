"""Backups of a stage's database, by the provider that its settings or the backup's reference name."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol

import httpx
from temporalio import activity

from activities.archive import ArchiveBackups
from activities.atlas_backups import AtlasBackups
from activities.backup_models import (
    Backup,
    BackupOf,
    Compare,
    Comparison,
    CreateBackup,
    Dropped,
    DropRestored,
    FindBackup,
    FoundBackup,
    Provider,
    PutBack,
    RestoreBackup,
    Restored,
    Targets,
    Verified,
)
from activities.errors import classified, lasting
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import Stage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Port(Protocol):
    """What a provider of backups can do."""

    def create(self, order: CreateBackup) -> Backup: ...

    def discard(self, order: CreateBackup) -> Dropped: ...

    def newest(self, stage: Stage) -> Backup | None: ...

    def describe(self, stage: Stage, reference: str) -> Backup: ...

    def restore_from(self, stage: Stage) -> datetime | None: ...

    def verify(self, stage: Stage, reference: str) -> Verified: ...

    def restore(self, order: RestoreBackup) -> Restored: ...

    def replaced(self, order: RestoreBackup) -> bool: ...

    def compare(self, order: Compare) -> Comparison: ...

    def drop(self, order: DropRestored) -> Dropped: ...

    def targets(self, stage: Stage) -> Targets: ...


class Backups:
    def __init__(
        self, settings: Settings, s3: S3Client, http: httpx.Client, resolver: SecretResolver, poll: float = 10.0
    ) -> None:
        """``poll`` is the time between two looks at a snapshot or restore of Atlas, in seconds."""
        self._archive = ArchiveBackups(settings, s3, resolver)
        self._atlas = AtlasBackups(self._archive, http, resolver, poll)

    @activity.defn(name="backups.create", no_thread_cancel_exception=True)
    @classified("back the database up")
    def create(self, order: CreateBackup) -> Backup:
        """Make a backup; the same order again finds the one it made, or goes on with it."""
        return self._by(order.stage, provider=order.provider).create(order)

    @activity.defn(name="backups.discard", no_thread_cancel_exception=True)
    @classified("delete an unfinished backup")
    def discard(self, order: CreateBackup) -> Dropped:
        """Delete what an unfinished backup left. A finished backup is kept: it does no harm."""
        return self._by(order.stage, provider=order.provider).discard(order)

    @activity.defn(name="backups.latest")
    @classified("look for a backup")
    def latest(self, wanted: FindBackup) -> FoundBackup:
        """The named backup, or the newest whole one, with its age. That there is none is no error."""
        provider = self._by(wanted.stage, wanted.reference, wanted.provider)
        if wanted.reference is not None:
            found: Backup | None = provider.describe(wanted.stage, wanted.reference)
        else:
            found = provider.newest(wanted.stage)
        since = provider.restore_from(wanted.stage)
        window = f"; any moment since {since:%Y-%m-%d %H:%M} UTC can be restored" if since else ""
        if found is None:
            return FoundBackup(summary=f"there is no backup{window}", restore_from=since)
        age = max((wanted.at - found.created_at).total_seconds(), 0.0)
        return FoundBackup(
            summary=f"{found.summary}; {age / 3600:.1f} hours old{window}",
            backup=found,
            age_seconds=round(age, 1),
            restore_from=since,
        )

    @activity.defn(name="backups.verify", no_thread_cancel_exception=True)
    @classified("verify a backup")
    def verify(self, asked: BackupOf) -> Verified:
        """Read an archive back against its checksums; ask Atlas for the state of a snapshot. Damage is no error."""
        return self._by(asked.stage, asked.reference).verify(asked.stage, asked.reference)

    @activity.defn(name="backups.restore", no_thread_cancel_exception=True)
    @classified("restore a backup")
    def restore(self, order: RestoreBackup) -> Restored:
        """Restore into a scratch place, or with ``replace`` into the real one. Safe to repeat.

        Raises:
            DamagedBackup: before anything was dropped.
            BadTarget, TargetNotEmpty: it is no place for this restore.
        """
        return self._by(order.stage, order.reference, "atlas" if order.point_in_time else None).restore(order)

    @activity.defn(name="backups.put_back", no_thread_cancel_exception=True)
    @classified("put back what a restore replaced")
    def put_back(self, order: PutBack) -> Restored:
        """Restore the safety backup over what a restore has replaced. Where it replaced nothing, nothing is lost."""
        failed = order.failed
        provider = self._by(failed.stage, failed.reference, "atlas" if failed.point_in_time else None)
        if not provider.replaced(failed):
            return Restored(summary=f"nothing in {failed.into} had been replaced", into=failed.into, seconds=0)
        wanted = {"reference": order.safety, "point_in_time": None, "key": order.key}
        return provider.restore(failed.model_copy(update=wanted))

    @activity.defn(name="backups.compare", no_thread_cancel_exception=True)
    @classified("compare what was restored")
    def compare(self, order: Compare) -> Comparison:
        """Collections, options, indexes, counts and contents of what was restored, against the backup."""
        return self._by(order.stage, order.reference, None if order.reference else "atlas").compare(order)

    @activity.defn(name="backups.drop_scratch", no_thread_cancel_exception=True)
    @classified("drop what was restored")
    def drop_scratch(self, order: DropRestored) -> Dropped:
        """Take away what a restore put somewhere; never the real database's own contents."""
        atlas = order.stage.backup.atlas
        is_cluster = atlas is not None and order.into in (atlas.scratch_cluster, atlas.cluster)
        return self._by(order.stage, provider="atlas" if is_cluster else "archive").drop(order)

    @activity.defn(name="backups.targets")
    @classified("look at the database")
    def targets(self, wanted: FindBackup) -> Targets:
        """Where the real data is and where a restore may go, by the provider of the backup."""
        return self._by(wanted.stage, wanted.reference, wanted.provider).targets(wanted.stage)

    def _by(self, stage: Stage, reference: str | None = None, provider: Provider | None = None) -> Port:
        if reference is not None:
            if not reference.startswith(("file:///", "s3://", "atlas://")):
                raise lasting(
                    f"{reference!r} is no backup: it begins with none of file:///, s3://, atlas://", type="BadReference"
                )
            return self._atlas if reference.startswith("atlas://") else self._archive
        return self._atlas if (provider or stage.backup.provider) == "atlas" else self._archive
