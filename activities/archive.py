"""Backups by archive: a logical dump that this project makes, checks, restores and compares."""

from __future__ import annotations

import hashlib
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from activities import mongo_clients
from activities.archive_dump import Client, check, dump
from activities.archive_format import MANIFEST, CollectionEntry, Damaged, Manifest
from activities.archive_load import compare, discard, drop_all, load, shown
from activities.archive_store import Folder, folder
from activities.backup_models import (
    Backup,
    Compare,
    Comparison,
    CreateBackup,
    Dropped,
    DropRestored,
    RestoreBackup,
    Restored,
    Targets,
    Verified,
)
from activities.connection_string import address_of
from activities.errors import lasting
from activities.progress import beat
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import SecretRef, Stage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCRATCH, RESTORED = "_scratch", "_restored"
"""What stands behind the name of a stage's database in the names of those that a restore may make and drop."""


class ArchiveBackups:
    """Archives of a stage lie in ``<location>/<stage>/<time>-<key>``, so that their names sort by age."""

    def __init__(self, settings: Settings, s3: S3Client, resolver: SecretResolver) -> None:
        self._settings, self._s3, self._resolver = settings, s3, resolver

    def create(self, order: CreateBackup) -> Backup:
        stage, began = order.stage, time.monotonic()
        self._fits(stage)
        at = order.at.astimezone(UTC)
        name = f"{at:%Y%m%dT%H%M%SZ}-{_token(order.key)}"
        target = self.root(stage).below(name)
        base = Manifest(
            id=name,
            stage=stage.name,
            database=stage.database.name,
            server="",
            started_at=datetime.now(UTC),
            finished_at=at,
            consistency="",
            safety=order.safety,
            collections=(),
        )
        try:
            with connect(self._resolver, stage.backup.uri or stage.database.uri) as client:
                manifest = dump(client, target, base, order.collections, beat)
        except Damaged as error:
            raise lasting(f"{target.reference}: {error}. Delete it, then start again", type="DamagedBackup") from None
        return _backup(target.reference, manifest, round(time.monotonic() - began, 1))

    def discard(self, order: CreateBackup) -> Dropped:
        """Delete what an unfinished backup left; a finished one is kept."""
        suffix = _token(order.key)
        for name in self.root(order.stage).folders():
            unfinished = self.root(order.stage).below(name)
            if name.endswith(f"-{suffix}") and unfinished.get(MANIFEST) is None:
                for file in unfinished.names():
                    unfinished.delete(file)
                return Dropped(summary=f"the unfinished {unfinished.reference} is deleted", dropped=True)
        return Dropped(summary="nothing unfinished is left", dropped=False)

    def newest(self, stage: Stage) -> Backup | None:
        """The newest whole archive whose manifest can be read; others are passed over."""
        root = self.root(stage)
        for name in reversed(root.folders()):
            candidate = root.below(name)
            text = candidate.get(MANIFEST)
            if text is None:
                continue
            try:
                manifest = Manifest.read(text)
            except Damaged:
                continue
            counts = manifest.whole and not manifest.safety and _has_files(manifest)
            if counts and manifest.database == stage.database.name:
                return _backup(candidate.reference, manifest)
        return None

    def describe(self, stage: Stage, reference: str) -> Backup:
        return _backup(reference, self.manifest(reference))

    def restore_from(self, stage: Stage) -> datetime | None:
        """An archive knows no other moment than its own."""
        return None

    def verify(self, stage: Stage, reference: str) -> Verified:
        began = time.monotonic()
        manifest, problems = check(folder(self._s3, reference), beat)
        seconds = round(time.monotonic() - began, 1)
        if manifest is None or problems:
            return Verified(
                summary=f"{reference} is damaged: {'; '.join(problems[:5])}",
                ok=False,
                problems=shown(problems),
                seconds=seconds,
            )
        return Verified(
            summary=f"read back whole: {manifest.documents:,} documents, {manifest.size:,} bytes, every checksum fits",
            ok=True,
            documents=manifest.documents,
            bytes=manifest.size,
            seconds=seconds,
        )

    def restore(self, order: RestoreBackup) -> Restored:
        began, stage = time.monotonic(), order.stage
        if order.reference is None:
            raise lasting("an archive has no point in time. Name a backup", type="BadInput")
        scratch = self._is_ours(stage, order.into, SCRATCH)
        if order.replace != (order.into == stage.database.name):
            raise lasting(
                f"database {order.into!r} is only replaced when that is asked for, and no other", type="BadTarget"
            )
        if not order.replace:
            self._may_fill(stage, order.into)
        source = folder(self._s3, order.reference)
        with connect(self._resolver, stage.backup.uri or stage.database.uri) as client:
            manifest = load(
                client,
                order.into,
                source,
                order.reference,
                order.key,
                beat,
                scratch=scratch,
                replace=order.replace,
                swapping=lambda: self.root(stage).below("replaced").put(_token(order.key), b"{}"),
            )
        indexes = sum(len(entry.indexes) for entry in manifest.collections)
        seconds = round(time.monotonic() - began, 1)
        return Restored(
            summary=(
                f"{manifest.documents:,} documents of {len(manifest.collections)} collections restored into "
                f"{order.into} in {seconds:.0f} s"
            ),
            into=order.into,
            collections=len(manifest.collections),
            documents=manifest.documents,
            indexes=indexes,
            seconds=seconds,
            notes=manifest.notes,
        )

    def replaced(self, order: RestoreBackup) -> bool:
        """Whether this restore has begun to replace what was there. What it left beside that is dropped."""
        if self.root(order.stage).below("replaced").get(_token(order.key)) is not None:
            return True
        with connect(self._resolver, order.stage.backup.uri or order.stage.database.uri) as client:
            discard(client, order.into, key=order.key, copy=False)
        return False

    def compare(self, order: Compare) -> Comparison:
        if order.reference is None:
            raise lasting("there is no archive to compare with. Name a backup", type="BadInput")
        began, manifest = time.monotonic(), self.manifest(order.reference)
        with connect(self._resolver, order.stage.backup.uri or order.stage.database.uri) as client:
            found = compare(client, order.into, manifest, beat)
        return comparison(order.into, found, time.monotonic() - began)

    def drop(self, order: DropRestored) -> Dropped:
        stage = order.stage
        self._may_fill(stage, order.into)
        with connect(self._resolver, stage.backup.uri or stage.database.uri) as client:
            if self._is_ours(stage, order.into, SCRATCH):
                dropped = drop_all(client, order.into)
            else:
                dropped = discard(client, order.into, key=order.key, copy=True)
        said = f"database {order.into} is gone" if dropped else f"nothing of this run is in {order.into}"
        return Dropped(summary=said, dropped=dropped)

    def targets(self, stage: Stage) -> Targets:
        name = stage.database.name
        with connect(self._resolver, stage.backup.uri or stage.database.uri) as client:
            stats = client[name].command("dbStats")
        documents, size = int(stats.get("objects", 0)), int(stats.get("dataSize", 0))
        return Targets(
            summary=f"{name} holds {documents:,} documents, {size:,} bytes",
            real=name,
            scratch=name + SCRATCH,
            restored=name + RESTORED,
            documents=documents,
            bytes=size,
        )

    def root(self, stage: Stage) -> Folder:
        """The folder of the stage's backups."""
        records = self._settings.records
        prefix = f"{records.prefix.strip('/')}/backups".lstrip("/")
        location = stage.backup.location or f"s3://{records.bucket}/{prefix}"
        return folder(self._s3, location.rstrip("/")).below(stage.name)

    def manifest(self, reference: str) -> Manifest:
        text = folder(self._s3, reference).get(MANIFEST)
        if text is None:
            raise lasting(f"there is no finished archive at {reference}. Name another as 'backup'", type="NoBackup")
        try:
            return Manifest.read(text)
        except Damaged as error:
            raise lasting(f"{reference}: {error}. Name another as 'backup'", type="DamagedBackup") from None

    def _fits(self, stage: Stage) -> None:
        """After a restore the API may have been pointed at a copy: the settings have to say so before a backup."""
        named = address_of(self._resolver.resolve(stage.database.uri)).database
        if named != stage.database.name and self._is_ours(stage, named, RESTORED):
            raise lasting(
                f"the API works on database {named!r}, the settings say {stage.database.name!r}. "
                f"Correct stages.{stage.name}.database.name",
                type="OtherDatabase",
            )

    def _may_fill(self, stage: Stage, into: str) -> None:
        if not (self._is_ours(stage, into, SCRATCH) or self._is_ours(stage, into, RESTORED)):
            name = stage.database.name
            raise lasting(
                f"{into!r} is no place to restore into. Name one that begins with {name + SCRATCH!r} or "
                f"{name + RESTORED!r}",
                type="BadTarget",
            )
        if address_of(self._resolver.resolve(stage.database.uri)).database == into:
            raise lasting(f"{into!r} is what the API works on. Name another as 'into'", type="BadTarget")

    @staticmethod
    def _is_ours(stage: Stage, name: str, ending: str) -> bool:
        return name.startswith(stage.database.name + ending)


def connect(resolver: SecretResolver, uri: SecretRef) -> Client:
    """A client for long reads and writes: no limit on the time of one answer, an index takes as long as it does."""
    return mongo_clients.connect(
        resolver,
        uri,
        appname="operational-runbooks-backup",
        connectTimeoutMS=5000,
        serverSelectionTimeoutMS=10_000,
        maxPoolSize=4,
    )


def comparison(into: str, found: Any, seconds: float) -> Comparison:
    """What the run is told of a comparison."""
    what = f"{found.collections} collections, {found.documents:,} documents, {found.indexes} indexes"
    problems = f"{len(found.differences)} differences: {'; '.join(found.differences[:3])}"
    return Comparison(
        summary=f"{into}: {what} compared, " + (problems if found.differences else "all as in the backup"),
        identical=not found.differences,
        differences=shown(found.differences),
        notes=shown(found.notes),
        collections=found.collections,
        documents=found.documents,
        indexes=found.indexes,
        seconds=round(seconds, 1),
    )


def _token(key: str) -> str:
    """What names a run's own things where they lie."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _has_files(manifest: Manifest) -> bool:
    """Not the record of a snapshot, which lies beside the archives and holds no documents."""
    return all(_kept(entry) for entry in manifest.collections)


def _kept(entry: CollectionEntry) -> bool:
    return entry.file is not None or entry.kind == "view"


def _backup(reference: str, manifest: Manifest, seconds: float | None = None) -> Backup:
    return Backup(
        summary=(
            f"{reference}: {manifest.documents:,} documents of {len(manifest.collections)} collections, "
            f"{manifest.size:,} bytes ({manifest.stored_bytes:,} stored), {manifest.consistency}"
        ),
        reference=reference,
        provider="archive",
        created_at=manifest.started_at,
        consistency=manifest.consistency,
        whole=manifest.whole,
        collections=len(manifest.collections),
        documents=manifest.documents,
        bytes=manifest.size,
        stored_bytes=manifest.stored_bytes,
        checksum=manifest.checksum,
        seconds=seconds,
    )
