"""A backup of a stage's database, verified."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from activities.backup_models import Backup, BackupOf, CreateBackup, FindBackup, FoundBackup
from activities.backups import Backups
from workflows import policy
from workflows.backup_models import DatabaseBackupInput
from workflows.details import length
from workflows.model import Kind, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec, Undo


@workflow.defn(name="DatabaseBackup")
class DatabaseBackup(Runbook[DatabaseBackupInput]):
    """Back the database up, and read the backup back.

    Look at the newest backup there is; accept it when it is whole and recent enough; otherwise make one: a snapshot of
    Atlas, or an archive with a checksum a collection. Verify it. Nothing of the database is changed.
    """

    spec = RunbookSpec(
        input=DatabaseBackupInput,
        when="Daily, and before anything that changes data: a migration, a restore, a risky release.",
        steps=(
            StepSpec(id="latest", title="Look at the newest backup there is", kind=Kind.LOOK),
            StepSpec(id="create", title="Make a backup", kind=Kind.CHANGE, undo="an unfinished archive is deleted"),
            StepSpec(id="verify", title="Verify the backup", kind=Kind.LOOK),
        ),
        checklist=(
            ("completed", "Backup completed"),
            ("verified", "Backup verified"),
            ("drill", "A backup was restored at least once this quarter (RestoreDrill)"),
        ),
        gates=(),
        example={"stage": "production", "reason": "before the migration of tonight", "requested_by": "ann"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: DatabaseBackupInput) -> str:
        self._began = workflow.now()
        wanted = FindBackup(stage=self.stage, at=self._began, provider=inp.provider)
        found = await self.look("latest", Backups.latest, wanted, policy.LOOK)
        self.check("drill", False, "start RestoreDrill, or tick 'drill' when one was done")
        if found.restore_from:
            self.facts["restore_from"] = found.restore_from.isoformat()
        if found.backup is not None and self._is_recent(found) and await self._verified(found.backup):
            return self._done(found.backup, reused=True)
        made = await self._create(inp)
        if made is None:
            return f"would back {self.stage.name} up and verify the backup"
        self.undone_by_design()  # a finished backup does no harm and stays, whatever comes
        if not await self._verified(made):
            raise self.stop(f"{made.reference} was made, but is damaged: see step 'verify'", "DamagedBackup")
        return self._done(made, reused=False)

    def _is_recent(self, found: FoundBackup) -> bool:
        limit = self.inp.max_age
        return limit is not None and found.age_seconds is not None and found.age_seconds <= limit.total_seconds()

    async def _verified(self, backup: Backup) -> bool:
        asked = BackupOf(stage=self.stage, reference=backup.reference)
        verified = await self.look("verify", Backups.verify, asked, policy.BACKUP)
        self.check("verified", verified.ok, verified.summary)
        if not verified.ok:
            self.say(f"not accepted: {verified.summary}", level="warning")
        return verified.ok

    async def _create(self, inp: DatabaseBackupInput) -> Backup | None:
        order = CreateBackup(
            stage=self.stage,
            key=self.key("create"),
            at=self._began,
            provider=inp.provider,
            collections=inp.collections,
        )
        how = inp.provider or self.stage.backup.provider
        return await self.change(
            "create",
            Backups.create,
            order,
            policy.BACKUP,
            would=f"back {self.stage.database.name} up by {how}",
            undo=Undo("delete what is unfinished of the backup", Backups.discard, order),
        )

    def _done(self, backup: Backup, *, reused: bool) -> str:
        now = workflow.now()
        age = (now - backup.created_at).total_seconds()
        self.facts |= {
            "backup": backup.reference,
            "provider": backup.provider,
            "created_at": backup.created_at.isoformat(),
            "age_seconds": round(max(age, 0.0), 1),
            "reused": reused,
            "collections": backup.collections,
            "documents": backup.documents,
            "bytes": backup.bytes,
            "stored_bytes": backup.stored_bytes,
            "checksum": backup.checksum,
            "consistency": backup.consistency,
            "verified": True,
            "seconds": round((now - self._began).total_seconds(), 1),
        }
        self.check("completed", True, backup.summary)
        how = f"accepted, {length(now - backup.created_at)} old" if reused else "made and verified"
        return f"{backup.reference}: {how}"
