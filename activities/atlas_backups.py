"""Backups by Atlas: snapshots, restored into the cluster that the settings keep for it.

A snapshot cannot be looked into. What its databases should hold is written down when it is taken (collections, options,
indexes, counts before and after it), beside where archives would lie, so that a restored one can be compared.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import httpx
from temporalio.exceptions import CancelledError

from activities.archive import ArchiveBackups, comparison, connect
from activities.archive_dump import Client, described, live_count, server_name
from activities.archive_format import MANIFEST, CollectionEntry, Damaged, Manifest
from activities.archive_load import Difference, compare
from activities.atlas import Atlas, Conflict, RestoreJob, Snapshot
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
from activities.errors import lasting, passing
from activities.progress import beat
from activities.secret_refs import SecretResolver
from activities.stage import AtlasFacts, Stage

_SAFETY = "runbooks safety"
"""How the description of a snapshot begins that shows what a restore was about to replace."""
_OWN = ("admin", "local", "config")


class AtlasBackups:
    def __init__(self, archive: ArchiveBackups, http: httpx.Client, resolver: SecretResolver, poll: float) -> None:
        """``poll`` is the time between two looks at a snapshot or restore, in seconds."""
        self._archive, self._http, self._resolver, self._poll = archive, http, resolver, poll
        self._clients: dict[AtlasFacts, Atlas] = {}

    def create(self, order: CreateBackup) -> Backup:
        """Take a snapshot and wait until it is completed. One that is under way is joined: Atlas takes one at a time.

        Raises:
            SnapshotFailed: it ended as failed.
        """
        stage, began = order.stage, time.monotonic()
        if order.collections is not None:
            raise lasting("a snapshot of Atlas holds the whole cluster. Leave out 'collections'", type="BadInput")
        atlas, mine = self._atlas(stage), f"{_SAFETY if order.safety else 'runbooks'} {order.key}"
        snapshot = next((s for s in atlas.snapshots() if s.description == mine and s.status != "failed"), None)
        before: list[CollectionEntry] | None = None
        joined = False
        if snapshot is None:
            before = self._counted(stage)
            try:
                snapshot = atlas.take_snapshot(mine)
            except Conflict:
                under_way = [s for s in atlas.snapshots() if s.status in ("queued", "inProgress")]
                if not under_way:
                    raise passing(
                        "a snapshot was under way and has just ended: asking again", type="Conflict"
                    ) from None
                snapshot, joined, before = under_way[0], True, None
        while snapshot.status in ("queued", "inProgress"):
            beat(f"snapshot {snapshot.id} is {snapshot.status}", self._poll)
            snapshot = atlas.snapshot(snapshot.id)
        if snapshot.status == "failed":
            raise lasting(
                f"Atlas says that snapshot {snapshot.id} failed. Look at the cluster's backups, then start again",
                type="SnapshotFailed",
            )
        if before is not None:
            self._write_down(stage, snapshot, before)
        made = self._backup(stage, snapshot, round(time.monotonic() - began, 1))
        if joined:
            made = made.model_copy(update={"summary": f"joined a snapshot that was under way. {made.summary}"})
        return made

    def discard(self, order: CreateBackup) -> Dropped:
        """A snapshot that was asked for cannot be called off; Atlas deletes it when its time is over."""
        return Dropped(summary="Atlas deletes the snapshot by itself when its retention ends", dropped=False)

    def newest(self, stage: Stage) -> Backup | None:
        completed = (s for s in self._atlas(stage).snapshots() if s.status == "completed")
        snapshot = next((s for s in completed if not s.description.startswith(_SAFETY)), None)
        return self._backup(stage, snapshot) if snapshot else None

    def describe(self, stage: Stage, reference: str) -> Backup:
        return self._backup(stage, self._snapshot(stage, reference))

    def restore_from(self, stage: Stage) -> datetime | None:
        """The earliest moment that can be restored to, read live."""
        window = self._atlas(stage).restore_window()
        return datetime.now(UTC) - window if window else None

    def verify(self, stage: Stage, reference: str) -> Verified:
        snapshot = self._snapshot(stage, reference)
        problems = []
        if snapshot.status != "completed":
            problems.append(f"Atlas says it is {snapshot.status}")
        if snapshot.expires_at is not None and snapshot.expires_at < datetime.now(UTC):
            problems.append("its retention is over")
        said = f"{reference}: {'; '.join(problems)}"
        return Verified(
            summary=said if problems else f"{reference} is completed. Only a restore shows what is in it",
            ok=not problems,
            problems=tuple(problems),
        )

    def restore(self, order: RestoreBackup) -> Restored:
        """Restore into a cluster and wait for the end. An unfinished restore of the same into the same is joined.

        Raises:
            RestoreFailed: Atlas says so, or somebody cancelled it there.
        """
        stage, began = order.stage, time.monotonic()
        atlas, facts = self._atlas(stage), self._facts(stage)
        if order.into == facts.cluster:
            if not order.replace:
                raise lasting(
                    f"a restore deletes everything in {order.into!r}: it has to be asked for", type="BadTarget"
                )
        elif order.replace or order.into != facts.scratch_cluster:
            raise lasting(f"{order.into!r} is not the scratch cluster of the settings", type="BadTarget")
        else:
            self._not_live(stage)
        job = self._restore_job(atlas, order)
        while not job.ended:
            try:
                beat(f"restore job {job.id} into {order.into}", self._poll)
            except CancelledError:
                atlas.cancel_restore(job.id)
                raise
            job = atlas.restore_job(job.id)
        if job.failed or job.cancelled or job.expired:
            how = "failed" if job.failed else "was cancelled" if job.cancelled else "expired"
            raise lasting(
                f"restore job {job.id} into {order.into} {how}. What was in {order.into} is gone: restore again",
                type="RestoreFailed",
            )
        seconds = round(time.monotonic() - began, 1)
        return Restored(
            summary=f"restored into cluster {order.into} in {seconds:.0f} s", into=order.into, seconds=seconds
        )

    def replaced(self, order: RestoreBackup) -> bool:
        """Whether Atlas has begun this restore, however it ended: its first deed is to delete what was there."""
        return any(self._is_of(job, order) for job in self._atlas(order.stage).restore_jobs())

    def compare(self, order: Compare) -> Comparison:
        """What the restored cluster holds of the stage's database, against what was written down or is live now."""
        began, stage = time.monotonic(), order.stage
        expected = self._written_down(stage, order.reference) if order.reference else None
        with self._scratch(stage) as client:
            if expected is not None:
                found = compare(client, stage.database.name, expected, beat)
                found.notes.append("counts are by the collections' metadata, before and after the snapshot")
            else:
                found = self._against_live(stage, client)
        return comparison(order.into, found, time.monotonic() - began)

    def drop(self, order: DropRestored) -> Dropped:
        """Empty the scratch cluster. The cluster itself is the team's, and stays."""
        facts = self._facts(order.stage)
        if order.into != facts.scratch_cluster:
            raise lasting(f"{order.into!r} is not the scratch cluster of the settings", type="BadTarget")
        self._not_live(order.stage)
        with self._scratch(order.stage) as client:
            names = [name for name in client.list_database_names() if name not in _OWN]
            for name in names:
                client.drop_database(name)
        return Dropped(summary=f"{len(names)} databases dropped in cluster {order.into}", dropped=bool(names))

    def targets(self, stage: Stage) -> Targets:
        facts = self._facts(stage)
        cluster = self._atlas(stage).cluster()
        return Targets(
            summary=f"cluster {cluster.name} is {cluster.state}, {cluster.tier or 'of unknown tier'}",
            real=facts.cluster,
            scratch=facts.scratch_cluster,
            restored=facts.scratch_cluster,
        )

    # --- helpers ------------------------------------------------------------------------------------------------

    def _restore_job(self, atlas: Atlas, order: RestoreBackup) -> RestoreJob:
        for job in atlas.restore_jobs():
            if self._is_of(job, order) and not (job.failed or job.cancelled or job.expired):
                return job
        return atlas.restore(order.into, snapshot_id=_snapshot_id(order), moment=order.point_in_time)

    @staticmethod
    def _is_of(job: RestoreJob, order: RestoreBackup) -> bool:
        """Atlas knows no key of ours: it is the same into the same, and not ended before it was asked for."""
        moment = int(order.point_in_time.timestamp()) if order.point_in_time else None
        same = job.target_cluster == order.into and (job.snapshot_id, job.moment) == (_snapshot_id(order), moment)
        return same and (job.finished_at is None or job.finished_at >= order.at.replace(microsecond=0))

    def _snapshot(self, stage: Stage, reference: str) -> Snapshot:
        facts = self._facts(stage)
        prefix = f"atlas://{facts.group}/{facts.cluster}/"
        if not reference.startswith(prefix):
            raise lasting(
                f"{reference} is of another cluster than the stage's. Name one of {prefix}", type="BadReference"
            )
        return self._atlas(stage).snapshot(reference.removeprefix(prefix))

    def _backup(self, stage: Stage, snapshot: Snapshot, seconds: float | None = None) -> Backup:
        facts = self._facts(stage)
        kept = f", kept until {snapshot.expires_at:%Y-%m-%d}" if snapshot.expires_at else ""
        return Backup(
            summary=f"snapshot {snapshot.id} of {facts.cluster} is {snapshot.status}{kept}",
            reference=f"atlas://{facts.group}/{facts.cluster}/{snapshot.id}",
            provider="atlas",
            created_at=snapshot.created_at,
            consistency="point in time",
            stored_bytes=snapshot.storage_bytes,
            seconds=seconds,
            expires_at=snapshot.expires_at,
        )

    def _counted(self, stage: Stage) -> list[CollectionEntry]:
        with connect(self._resolver, stage.backup.uri or stage.database.uri) as client:
            entries = described(client, stage.database.name)
            return [entry.model_copy(update={"documents": _count(client, stage, entry)}) for entry in entries]

    def _write_down(self, stage: Stage, snapshot: Snapshot, before: list[CollectionEntry]) -> None:
        after = {entry.name: entry.documents for entry in self._counted(stage)}
        with connect(self._resolver, stage.backup.uri or stage.database.uri) as client:
            server = server_name(client.admin.command("buildInfo"))
        manifest = Manifest(
            id=snapshot.id,
            stage=stage.name,
            database=stage.database.name,
            server=server,
            started_at=snapshot.created_at,
            finished_at=datetime.now(UTC),
            consistency="point in time",
            collections=tuple(
                entry.model_copy(update={"documents_after": after.get(entry.name, entry.documents)}) for entry in before
            ),
        ).sealed()
        self._archive.root(stage).below(f"atlas-{snapshot.id}").put(MANIFEST, manifest.model_dump_json().encode())

    def _written_down(self, stage: Stage, reference: str) -> Manifest | None:
        text = self._archive.root(stage).below(f"atlas-{reference.rsplit('/', 1)[1]}").get(MANIFEST)
        try:
            return Manifest.read(text) if text is not None else None
        except Damaged:
            return None

    def _against_live(self, stage: Stage, client: Client) -> Difference:
        """Nothing was written down: what is live now may have moved on, so only what is absent or empty counts."""
        found = Difference(notes=["nothing was written down when it was taken: compared with what is live now"])
        there = {entry.name: entry for entry in described(client, stage.database.name)}
        for entry in self._counted(stage):
            restored = there.get(entry.name)
            if restored is None:
                found.differences.append(f"{entry.name} is missing")
                continue
            count = _count(client, stage, restored)
            found.collections += 1
            found.documents += count
            found.indexes += len(restored.indexes)
            if entry.documents and not count:
                found.differences.append(f"{entry.name} is empty, live has {entry.documents:,} documents")
            elif count != entry.documents:
                found.notes.append(f"{entry.name}: {count:,} documents, live has {entry.documents:,}")
        return found

    def _scratch(self, stage: Stage) -> Client:
        facts = self._facts(stage)
        if facts.scratch_cluster is None or facts.scratch_uri is None:
            raise lasting(
                f"stage {stage.name} names no scratch cluster. Set backup.atlas.scratch_cluster and scratch_uri",
                type="NoScratch",
            )
        return connect(self._resolver, facts.scratch_uri)

    def _not_live(self, stage: Stage) -> None:
        """After a restore the API may work on the scratch cluster; it must not be emptied then."""
        facts = self._facts(stage)
        if facts.scratch_uri is None:
            raise lasting("there is no backup.atlas.scratch_uri. Add it to the settings", type="NoScratch")
        api, scratch = (address_of(self._resolver.resolve(ref)) for ref in (stage.database.uri, facts.scratch_uri))
        if api.hosts == scratch.hosts and api.database == scratch.database:
            raise lasting(
                f"the API works on cluster {facts.scratch_cluster!r}: it is no scratch any more. Set another as "
                "backup.atlas.scratch_cluster",
                type="BadTarget",
            )

    def _atlas(self, stage: Stage) -> Atlas:
        facts = self._facts(stage)
        if facts not in self._clients:
            self._clients[facts] = Atlas(facts, self._http, self._resolver)
        return self._clients[facts]

    @staticmethod
    def _facts(stage: Stage) -> AtlasFacts:
        if stage.backup.atlas is None:
            raise lasting(f"stage {stage.name} has no [backup.atlas] in the settings", type="NoAtlas")
        return stage.backup.atlas


def _snapshot_id(order: RestoreBackup) -> str | None:
    return order.reference.rsplit("/", 1)[1] if order.reference else None


def _count(client: Client, stage: Stage, entry: CollectionEntry) -> int:
    """By metadata, which costs nothing: a time series and a view have none."""
    if entry.kind == "collection":
        return client[stage.database.name][entry.name].estimated_document_count()
    return live_count(client, stage.database.name, entry.name, beat) if entry.kind == "timeseries" else 0
