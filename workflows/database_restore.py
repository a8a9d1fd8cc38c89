"""Restore a backup: first beside the real database, compared; then, when asked for, in its place."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Literal

from temporalio import workflow

from activities.api import Api, HealthCheck
from activities.backup_models import (
    Backup,
    BackupOf,
    Compare,
    Comparison,
    CreateBackup,
    DropRestored,
    FindBackup,
    PutBack,
    RestoreBackup,
    Restored,
    Targets,
)
from activities.backups import Backups
from activities.connection_string import AddressOf, ConnectionString, Repoint
from activities.database import Connections, Database
from activities.stage import GatePolicy
from workflows import policy
from workflows.backup_models import DatabaseRestoreInput
from workflows.connections import settled_since
from workflows.keeping import keepers
from workflows.model import Kind, Phase, RunbookResult, Scalar, StepSpec
from workflows.restore_rules import SAFETY_GOOD_FOR, TAKES, insisting, plan_of
from workflows.rollback_model import RollbackInput
from workflows.runbook import Runbook, RunbookSpec, Undo

NO_SCRATCH = "there is no scratch cluster. Set backup.atlas.scratch_cluster and scratch_uri"
KEEP = GatePolicy(time_limit=timedelta(hours=1), on_timeout="approve")
"""Where the service is not well after the restore: unanswered, the restored data stays."""


@workflow.defn(name="DatabaseRestore")
class DatabaseRestore(Runbook[DatabaseRestoreInput]):
    """Bring a backup back.

    Find and verify it; ask; back up what is there now; restore beside the real database and compare; then keep it
    there, or ask once more and replace the real contents or repoint the API's connection string; revert the deployment
    when asked; verify the service. A failure or abort puts back what was there before.
    """

    spec = RunbookSpec(
        input=DatabaseRestoreInput,
        when="Data was lost or spoiled and cannot be mended in place. Takes 30 to 60 minutes and loses later writes.",
        steps=(
            StepSpec(id="find", title="Find the backup", kind=Kind.LOOK),
            StepSpec(id="targets", title="Look at the database and where to restore to", kind=Kind.LOOK),
            StepSpec(id="verify", title="Verify the backup", kind=Kind.LOOK),
            StepSpec(id="database", title="Database connections", kind=Kind.LOOK),
            StepSpec(id="approve-restore", title="Approval", kind=Kind.GATE),
            StepSpec(
                id="safety", title="Back up what is there now", kind=Kind.CHANGE, undo="an unfinished one is deleted"
            ),
            StepSpec(
                id="restore",
                title="Restore beside the real database",
                kind=Kind.CHANGE,
                undo="what was restored is dropped",
            ),
            StepSpec(id="compare", title="Compare counts, indexes and checksums", kind=Kind.LOOK),
            StepSpec(id="approve-finish", title="Approval of the loss of later writes", kind=Kind.GATE),
            StepSpec(
                id="finish",
                title="Replace the real contents, or repoint the connection string",
                kind=Kind.CHANGE,
                undo="the safety backup is restored, or the connection string points where it did",
            ),
            StepSpec(id="revert", title="Revert the deployment", kind=Kind.CHANGE, undo="it is a run of its own"),
            StepSpec(id="health", title="Verify /health/ready", kind=Kind.LOOK),
            StepSpec(id="database-after", title="Database connections after", kind=Kind.LOOK),
            StepSpec(id="drop", title="Drop the scratch", kind=Kind.CHANGE, undo="nothing: it is a copy"),
        ),
        checklist=(
            ("verified", "Backup verified"),
            ("safety", "What was there before is backed up"),
            ("compared", "Restored data compared with the backup"),
            ("ready", "/health/ready answers"),
            ("connections", "Confirmed database connections are stable"),
            ("settings", "Settings and code name the database that is live now"),
            ("stakeholders", "Users told which writes are lost"),
        ),
        gates=(
            ("approve-restore", "Restore? With backup, time, target and what will be lost"),
            ("approve-finish", "It came back as it was. Now lose all later writes?"),
            ("keep-restored", "Only when the service is not well afterwards: keep the restored data?"),
        ),
        example={
            "stage": "production",
            "reason": "the cleanup of 14:02 deleted live sessions",
            "requested_by": "ann",
            "then": "replace",
        },
    )

    def __init__(self) -> None:
        super().__init__()
        self._spent = 0.0
        self._final = False
        self._safe_at: datetime | None = None
        self._a_no = ""
        """What a no would do, once the real contents are replaced or the connection string is repointed."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: DatabaseRestoreInput) -> str:
        self.stage = insisting(self.stage)
        backup, targets = await self._find(inp)
        into = self._into(inp, targets)
        before = await self.observe("database", Database.connections, self.stage)
        await self._approve_restore(backup, targets, into)
        safety = await self._safety(backup)
        if not await self._restore_beside(backup, into):
            return f"would restore {self._named(backup)}"
        if inp.then == "keep":
            self.undone_by_design()
            self.check("settings", True, "the real database was not touched")
            self.check("stakeholders", True, "no write is lost")
            return f"{self._named(backup)} is in {into}, as it was; {targets.real} was not touched"
        await self._approve_finish(backup, targets, into, safety)
        if inp.then == "replace":
            await self._replace(backup, targets, safety)
        else:
            await self._repoint(into, targets)
        if inp.revert_deployment:
            await self._revert(inp)
        verdict = await self._verify(before)
        await self._clean_up(inp, into)
        self.facts["seconds"] = round(self._spent, 1)
        return f"{self._named(backup)} is live by '{inp.then}'; {verdict}"

    # --- what to restore ----------------------------------------------------------------------------------------

    async def _find(self, inp: DatabaseRestoreInput) -> tuple[Backup | None, Targets]:
        provider: Literal["atlas"] | None = "atlas" if inp.point_in_time else None
        wanted = FindBackup(stage=self.stage, at=workflow.now(), reference=inp.backup, provider=provider)
        found = await self.look("find", Backups.latest, wanted)
        targets = await self.look("targets", Backups.targets, wanted)
        self.facts["then"] = inp.then
        if inp.point_in_time is not None:
            since = found.restore_from
            if since is None or not since <= inp.point_in_time <= workflow.now():
                window = f"from {since:%Y-%m-%d %H:%M} UTC on" if since else "no moment: continuous backup is off"
                raise self.stop(f"point_in_time: Atlas can restore {window}", "BadInput")
            self.facts["created_at"] = inp.point_in_time.isoformat()
            self.check("verified", True, "a moment within the window that Atlas keeps")
            return None, targets
        if found.backup is None:
            raise self.stop(f"there is no backup of {self.stage.name}. Nothing can be restored", "NoBackup")
        backup = found.backup
        self.facts |= {"backup": backup.reference, "created_at": backup.created_at.isoformat()}
        if inp.then == "repoint" and not backup.whole:
            raise self.stop("this backup holds only some collections: then 'repoint' would lose the others", "BadInput")
        asked = BackupOf(stage=self.stage, reference=backup.reference)
        verified = await self.look("verify", Backups.verify, asked, policy.BACKUP)
        self.check("verified", verified.ok, verified.summary)
        if not verified.ok:
            raise self.stop(f"this backup cannot be restored: {verified.summary}. Name another", "DamagedBackup")
        return backup, targets

    def _into(self, inp: DatabaseRestoreInput, targets: Targets) -> str:
        into = inp.into or (targets.scratch if inp.then == "replace" else targets.restored)
        if into is None:
            raise self.stop(NO_SCRATCH, "NoScratch")
        self.facts["into"] = into
        return into

    # --- asking -------------------------------------------------------------------------------------------------

    def _plan(self, backup: Backup | None, targets: Targets, into: str) -> dict[str, Scalar]:
        return plan_of(self.inp, self._named(backup), str(self.facts["created_at"]), targets.real, into)

    async def _approve_restore(self, backup: Backup | None, targets: Targets, into: str) -> None:
        waived = None
        if self.inp.then == "keep" and not self.stage.production:
            waived = "nothing real is touched, and it is not production"
        question = f"Restore {self._named(backup)} of {self.stage.name} (then: {self.inp.then})? It takes {TAKES}"
        await self.gate("approve-restore", question, self._plan(backup, targets, into), waived=waived)

    async def _approve_finish(self, backup: Backup | None, targets: Targets, into: str, safety: Backup | None) -> None:
        plan = self._plan(backup, targets, into) | {
            "restored documents": self.facts.get("documents"),
            "as in the backup": self.facts.get("identical"),
            "safety backup": safety.reference if safety else None,
        }
        question = (
            f"It came back as it was. Now {self.inp.then}, and lose every write after {self.facts['created_at']}?"
        )
        await self.gate("approve-finish", question, plan)

    # --- restoring beside ---------------------------------------------------------------------------------------

    async def _safety(self, backup: Backup | None, step_id: str = "safety") -> Backup | None:
        """A backup of what is there now, however spoiled: it is what an undo brings back."""
        if self.inp.then == "keep":
            self.check("safety", True, "not needed: nothing real is touched")
            return None
        provider = backup.provider if backup else "atlas"
        self._safe_at = now = workflow.now()
        order = CreateBackup(stage=self.stage, key=self.key(step_id), at=now, provider=provider, safety=True)
        safety = await self.change(
            step_id,
            Backups.create,
            order,
            policy.BACKUP,
            would=f"back up what {self.stage.database.name} holds now",
            undo=Undo("delete what is unfinished of the safety backup", Backups.discard, order),
        )
        if safety is not None:
            self.facts["safety_backup"] = safety.reference
            self._spent += safety.seconds or 0
            asked = BackupOf(stage=self.stage, reference=safety.reference)
            title = "Verify the safety backup"
            verified = await self.look("verify-safety", Backups.verify, asked, policy.BACKUP, title=title)
            self.check("safety", verified.ok, safety.summary)
            if not verified.ok:
                raise self.stop(f"the safety backup is damaged: {verified.summary}", "DamagedBackup")
        return safety

    async def _recent(self, backup: Backup | None, safety: Backup) -> Backup:
        """The safety backup, made anew when the restore beside and the yes have taken long: it is what a no brings."""
        late = self._safe_at is not None and workflow.now() - self._safe_at > SAFETY_GOOD_FOR
        if late and workflow.patched("safety-again-before-the-replacement"):
            return await self._safety(backup, "safety-again") or safety
        return safety

    async def _restore_beside(self, backup: Backup | None, into: str) -> bool:
        key = self.key("restore")
        restored: Restored | None = await self.change(
            "restore",
            Backups.restore,
            self._order(backup, into, key, replace=False),
            policy.BACKUP,
            would=f"restore {self._named(backup)} into {into}, compare it, and then {self.inp.then}",
            undo=Undo(f"drop what was restored into {into}", Backups.drop_scratch, self._drop(into, key)),
        )
        if restored is None:
            return False
        self._spent += restored.seconds
        asked = Compare(stage=self.stage, reference=backup.reference if backup else None, into=into)
        compared: Comparison = await self.look("compare", Backups.compare, asked, policy.BACKUP)
        self._spent += compared.seconds
        self.check("compared", compared.identical, compared.summary)
        self.facts |= {
            "collections": compared.collections,
            "documents": compared.documents,
            "identical": compared.identical,
            "seconds": round(self._spent, 1),
        }
        for line in (*compared.differences, *compared.notes):
            self.say(line, level="warning" if line in compared.differences else "info")
        if not compared.identical:
            said = f"it did not come back as it was: {compared.summary}. Name another backup"
            raise self.stop(said, "RestoredDiffers")
        return True

    def _order(self, backup: Backup | None, into: str, key: str, *, replace: bool) -> RestoreBackup:
        return RestoreBackup(
            stage=self.stage,
            key=key,
            at=workflow.now(),
            reference=backup.reference if backup else None,
            point_in_time=self.inp.point_in_time,
            into=into,
            replace=replace,
        )

    def _drop(self, into: str, key: str) -> DropRestored:
        return DropRestored(stage=self.stage, into=into, key=key)

    # --- in the place of the real one ---------------------------------------------------------------------------

    async def _replace(self, backup: Backup | None, targets: Targets, safety: Backup | None) -> None:
        if safety is None:
            raise self.stop("nothing is replaced without a safety backup", "NoBackup")
        safety = await self._recent(backup, safety)
        self._a_no = f"puts back what was there at {self._safe_at:%d %b %H:%M} UTC; every write since is lost"
        order = self._order(backup, targets.real, self.key("finish"), replace=True)
        back = PutBack(failed=order, safety=safety.reference, key=self.key("undo-finish"))
        self.announce("replace", f"Replacing the data of {self.stage.name}", self._named(backup), severity="warning")
        replaced = await self.change(
            "finish",
            Backups.restore,
            order,
            policy.BACKUP,
            would=f"replace the contents of {targets.real}",
            undo=Undo(f"bring back what {targets.real} held ({safety.reference})", Backups.put_back, back),
        )
        self._spent += replaced.seconds if replaced else 0
        self.check("settings", True, "the database has the name that it had")

    async def _repoint(self, into: str, targets: Targets) -> None:
        asked = AddressOf(stage=self.stage)
        now = await self.look("address", ConnectionString.address, asked, title="Where it points now")
        to = now.model_copy(update={"database": into})
        self._a_no = f"lets the API work on {targets.real} again; every write since is lost"
        is_cluster = self.stage.backup.atlas is not None and into == self.stage.backup.atlas.scratch_cluster
        if is_cluster:
            scratch = await self.look(
                "scratch-address",
                ConnectionString.address,
                AddressOf(stage=self.stage, of="scratch"),
                title="Where the restored cluster is",
            )
            to = scratch.model_copy(update={"database": now.database})
        await self.change(
            "finish",
            ConnectionString.repoint,
            Repoint(stage=self.stage, to=to, key=self.key("finish")),
            policy.DEPLOY,
            would=f"let the API work on {into}",
            undo=Undo(
                f"let the API work on {targets.real} again",
                ConnectionString.repoint,
                Repoint(stage=self.stage, to=now, key=self.key("undo-finish")),
            ),
        )
        setting = "backup.atlas.cluster and scratch_cluster" if is_cluster else "database.name"
        self.check("settings", False, f"live is {into}: correct stages.{self.stage.name}.{setting}, tick 'settings'")

    async def after_undo(self) -> str | None:
        return "The restored data stays" if self._final else None

    def _settle(self) -> None:
        """From here on the restored data stays: it is as it should be, whatever fails around it."""
        self.undone_by_design()
        self._final = True

    async def _revert(self, inp: DatabaseRestoreInput) -> None:
        self._settle()
        wanted = RollbackInput(
            stage=inp.stage,
            reason=f"the database was restored: {inp.reason}"[:500],
            requested_by=inp.requested_by,
            incident=inp.incident,
            severity=inp.severity,
            to=inp.revert_to,
        )
        result = await self.run_child("revert", "QuickRollback", wanted, title="Revert the deployment")
        self.facts["reverted"] = result.facts.get("to")

    # --- is it well? --------------------------------------------------------------------------------------------

    async def _verify(self, before: Connections | None) -> str:
        self._enter(Phase.VERIFYING)
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            path="/health/ready",
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        health = await self.look("health", Api.health, check, policy.WATCH)
        stable = await settled_since(self, before, "database-after")
        self.check("ready", health.ok, health.summary)
        self.check("connections", *stable)
        lost = f"Every write after {self.facts['created_at']} is lost"
        self.check("stakeholders", False, f"{lost}: tick 'stakeholders' when they know")
        self.announce("done", f"The data of {self.stage.name} was restored", lost, severity="warning")
        if health.ok:
            return f"verified: {health.summary}"
        if self._undos:
            question = f"{self.stage.name} is not ready after the restore. Keep the restored data? No {self._a_no}"
            who = keepers(self.stage, "keep-restored", KEEP)
            await self.gate("keep-restored", question, {"problem": health.summary}, fallback=who)
        return f"NOT verified: {health.summary}"

    async def _clean_up(self, inp: DatabaseRestoreInput, into: str) -> None:
        self._settle()
        if inp.then == "replace":
            await self.change(
                "drop",
                Backups.drop_scratch,
                self._drop(into, self.key("restore")),
                policy.BACKUP,
                would=f"drop {into}",
                undo=None,
            )

    def _named(self, backup: Backup | None) -> str:
        return backup.reference if backup else f"the moment {self.facts['created_at']}"
