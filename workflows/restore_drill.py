"""Prove that a backup can be restored, and how long it takes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow

from activities.backup_models import (
    Backup,
    BackupOf,
    Compare,
    Comparison,
    DropRestored,
    FindBackup,
    RestoreBackup,
    Restored,
)
from activities.backups import Backups
from workflows import policy
from workflows.backup_models import RestoreDrillInput
from workflows.details import length
from workflows.model import Kind, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec, Undo

NO_SCRATCH = "there is no scratch cluster. Set backup.atlas.scratch_cluster and scratch_uri"


@workflow.defn(name="RestoreDrill")
class RestoreDrill(Runbook[RestoreDrillInput]):
    """Restore a backup into a scratch place, compare everything, report the time, and drop it again.

    The real database is only read. The scratch is dropped whatever happens. A backup that is damaged, or that does not
    come back as it was, fails the drill.
    """

    spec = RunbookSpec(
        input=RestoreDrillInput,
        when="Quarterly, after a migration, after a change of the settings: a backup that nobody restored is none.",
        steps=(
            StepSpec(id="find", title="Find the backup and its age", kind=Kind.LOOK),
            StepSpec(id="verify", title="Verify that it is unaltered", kind=Kind.LOOK),
            StepSpec(id="targets", title="Look where it can be restored to", kind=Kind.LOOK),
            StepSpec(id="restore", title="Restore into the scratch", kind=Kind.CHANGE, undo="the scratch is dropped"),
            StepSpec(id="compare", title="Compare counts, indexes and checksums", kind=Kind.LOOK),
            StepSpec(id="drop", title="Drop the scratch", kind=Kind.CHANGE, undo="nothing: the scratch holds a copy"),
        ),
        checklist=(
            ("recent", "Backup age (daily backups)"),
            ("unaltered", "Backup verified"),
            ("restored", "Backup restored"),
            ("identical", "Counts, indexes and checksums are those of the backup"),
            ("in-time", "Restored within the expected time (document: 30-60 minutes)"),
            ("dropped", "Scratch dropped"),
        ),
        gates=(),
        example={"stage": "production", "reason": "quarterly restore drill", "requested_by": "ann"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: RestoreDrillInput) -> str:
        backup = await self._find(inp)
        await self._verify(backup)
        place = FindBackup(stage=self.stage, at=workflow.now(), reference=backup.reference)
        into = (await self.look("targets", Backups.targets, place)).scratch
        if into is None:
            raise self.stop(NO_SCRATCH, "NoScratch")
        self.facts["into"] = into
        restored = await self._restore(backup, into)
        if restored is None:
            return f"would restore {backup.reference} into a scratch, compare it and drop it"
        compared = await self._compare(backup, into)
        await self._drop(into)
        took = timedelta(seconds=restored.seconds + compared.seconds)
        self.facts |= {"restore_seconds": restored.seconds, "seconds": round(took.total_seconds(), 1)}
        self.check("in-time", took <= inp.expected, f"{length(took)}, expected {length(inp.expected)} at the most")
        if not compared.identical:
            raise self.stop(f"{backup.reference} did not come back as it was: {compared.summary}", "DrillFailed")
        return f"{backup.reference} restored and compared in {length(took)}: {compared.summary}"

    async def _find(self, inp: RestoreDrillInput) -> Backup:
        wanted = FindBackup(stage=self.stage, at=workflow.now(), reference=inp.backup)
        found = await self.look("find", Backups.latest, wanted)
        if found.backup is None:
            raise self.stop(f"there is no backup of {self.stage.name}. Run DatabaseBackup", "DrillFailed")
        age = timedelta(seconds=found.age_seconds or 0)
        self.check("recent", age <= inp.max_age, f"{length(age)} old, at the most {length(inp.max_age)} are expected")
        if age > inp.max_age and inp.backup is None:
            self.announce("old", f"The newest backup of {self.stage.name} is old", found.summary, severity="warning")
        self.facts |= {
            "backup": found.backup.reference,
            "created_at": found.backup.created_at.isoformat(),
            "age_seconds": found.age_seconds,
        }
        return found.backup

    async def _verify(self, backup: Backup) -> None:
        asked = BackupOf(stage=self.stage, reference=backup.reference)
        verified = await self.look("verify", Backups.verify, asked, policy.BACKUP)
        self.check("unaltered", verified.ok, verified.summary)
        if not verified.ok:
            self.facts |= {"identical": False, "differences": len(verified.problems)}
            raise self.stop(f"this backup cannot be restored: {verified.summary}", "DrillFailed")

    async def _restore(self, backup: Backup, into: str) -> Restored | None:
        order = RestoreBackup(
            stage=self.stage, key=self.key("restore"), at=workflow.now(), reference=backup.reference, into=into
        )
        restored = await self.change(
            "restore",
            Backups.restore,
            order,
            policy.BACKUP,
            would=f"restore {backup.reference} into {into}, compare, and drop it",
            undo=Undo(f"drop the scratch {into}", Backups.drop_scratch, DropRestored(stage=self.stage, into=into)),
        )
        if restored is not None:
            self.check("restored", True, restored.summary)
        return restored

    async def _compare(self, backup: Backup, into: str) -> Comparison:
        asked = Compare(stage=self.stage, reference=backup.reference, into=into)
        compared = await self.look("compare", Backups.compare, asked, policy.BACKUP)
        for line in (*compared.differences, *compared.notes):
            self.say(line, level="warning" if line in compared.differences else "info")
        self.check("identical", compared.identical, compared.summary)
        self.facts |= {
            "collections": compared.collections,
            "documents": compared.documents,
            "indexes": compared.indexes,
            "identical": compared.identical,
            "differences": len(compared.differences),
        }
        return compared

    async def _drop(self, into: str) -> None:
        dropped = await self.change(
            "drop",
            Backups.drop_scratch,
            DropRestored(stage=self.stage, into=into),
            policy.BACKUP,
            would=f"drop {into}",
            undo=None,
        )
        self.undone_by_design()
        self.facts["dropped"] = True
        self.check("dropped", True, dropped.summary if dropped else "")
