"""Database migration: one change of one collection, from plan and backup over staging to production and validation."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, assert_never

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, ChildWorkflowError, is_cancelled_exception

from activities.migration_models import MigrationEntry, MigrationState
from activities.migrations import Migrations
from activities.stages import Stages
from workflows import migration_plan, policy
from workflows.backup_models import DatabaseBackupInput, DatabaseRestoreInput
from workflows.database_migration_model import AddIndex, DatabaseMigrationInput
from workflows.gates import plan_hash
from workflows.migration_change import left_behind
from workflows.migration_plan import Rehearsal
from workflows.migration_validation import CHECKLIST, VALIDATION, ValidationSteps
from workflows.model import Kind, Outcome, RunbookResult, Scalar, State, StepSpec
from workflows.runbook import RunbookSpec
from workflows.steps import describe


@workflow.defn(name="DatabaseMigration")
class DatabaseMigration(ValidationSteps):
    """Add an index, backfill a field, or update many documents, safely.

    Plan (sizes, what is to be migrated, the query's plan, redundant indexes, an estimate) and wait for the
    maintenance window; back up; make the same change on staging and validate it there, which cannot be skipped; ask
    people with plan and staging's result; change production: an index is built and verified before the code that needs
    it is deployed, an update begins when the code that works with both forms is live; validate, and restore the backup
    once to prove it. On failure or abort what can be undone is undone, by dropping the index or by the update's
    journal; for the rest a gate offers the restore of the backup.
    """

    spec = RunbookSpec(
        input=DatabaseMigrationInput,
        when="A collection needs an index, a new field on old documents, or any update of many documents.",
        steps=(
            StepSpec(id="staging-stage", title="Look up the staging stage", kind=Kind.LOOK),
            StepSpec(id="plan", title="Plan: sizes, documents to migrate, the query's plan", kind=Kind.LOOK),
            StepSpec(id="backup", title="Back the database up", kind=Kind.CHANGE, undo="the backup is kept"),
            StepSpec(
                id="rehearse", title="The same change on staging", kind=Kind.CHANGE, undo="staging keeps the change"
            ),
            StepSpec(id="approve-migration", title="Approval", kind=Kind.GATE),
            StepSpec(
                id="change",
                title="Make the change",
                kind=Kind.CHANGE,
                undo="the index is dropped; an update is put back by its journal, or a gate offers the backup",
            ),
            *VALIDATION,
        ),
        checklist=CHECKLIST,
        gates=(
            ("approve-migration", "Migrate? With plan, staging result and estimate"),
            ("deploy-code", "Index, without a named release: is the code that needs it deployed now?"),
            ("code-deployed", "Update, without a named release: is code live that works with both forms?"),
            ("late-writers", "Only when old code still writes: update what came meanwhile?"),
            ("accept-count", "Only when documents are missing: is that explained?"),
            ("keep-migration", "Only when the API is not well afterwards: keep the change?"),
            ("restore-backup", "Only when a failed change cannot be undone: restore the backup?"),
        ),
        example={
            "stage": "production",
            "reason": "the list of sessions of an owner is slow",
            "requested_by": "ann",
            "change": {
                "kind": "add_index",
                "collection": "sessions",
                "keys": {"owner": 1, "created_at": -1},
                "query": {"owner": "user-001"},
                "sort": {"created_at": -1},
            },
        },
    )

    def __init__(self) -> None:
        super().__init__()
        self._rehearsal: Rehearsal | None = None
        self._reference: str | None = None
        self._backup_at: datetime | None = None
        self._changing = False
        self._left: str | None = None

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def preflight(self, inp: DatabaseMigrationInput) -> None:
        """Phase 1, before the stage is taken from others: plan, and wait for the window."""
        await self._staging(inp)
        if inp.release:
            await self.find_release(inp.release)
        await self._plan("plan")
        if not await self.in_window("window", self._eta()):
            await self._plan("plan-again")

    async def procedure(self, inp: DatabaseMigrationInput) -> str:
        await self.before_change()
        await self._back_up("backup")
        await self._rehearse(inp)
        await self._approval()
        await self._change(inp)
        verdict = await self.validate(self.before, self._reference)
        return f"{inp.change.described()}: {verdict}"

    # --- 1: plan ------------------------------------------------------------------------------------------------

    @property
    def rehearsing(self) -> str | None:
        """The run that this one rehearses for; people are not asked then, because that run asks them."""
        parent = workflow.info().parent
        return parent.workflow_id if self.inp.approved and parent is not None else None

    async def _staging(self, inp: DatabaseMigrationInput) -> None:
        """There has to be a stage to try the change on, and it has to be another one."""
        if inp.stage == inp.staging_stage:
            if self.stage.production:
                raise self.stop(
                    f"{inp.stage} is production and cannot be its own staging. Name another stage as staging_stage",
                    "NoStaging",
                )
            return
        try:
            staging = await self.look("staging-stage", Stages.resolve, inp.staging_stage)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            raise self.stop(f"a migration needs a staging stage first: {describe(error)[0]}", "NoStaging") from None
        if staging.production or staging.database == self.stage.database:
            what = "is production too" if staging.production else f"has the same database as {inp.stage}"
            raise self.stop(f"staging_stage {inp.staging_stage} {what}. Name another one", "NoStaging")

    async def _plan(self, step_id: str) -> MigrationState:
        state = await self.look(step_id, Migrations.look, self.request(), policy.SCAN, title="Plan")
        if state.problems:
            raise self.stop("; ".join(state.problems), "CannotMigrate")
        if state.covered_by:
            raise self.stop(
                f"index {state.covered_by} serves every query that the wanted one would: it would be redundant. "
                "Nothing is to be done, or order the keys otherwise",
                "RedundantIndex",
            )
        self.journal_fits(state)
        if not hasattr(self, "before"):
            self._report(state)
            self.before = state
        else:
            self.before = migration_plan.steady(self.before, state)
        return self.before

    def _report(self, state: MigrationState) -> None:
        for name in state.makes_redundant:
            self.say(f"index {name} is redundant beside the new one: drop it when nothing names it any more")
        for name in state.unused:
            self.say(f"index {name} has not been used since the server counts: look whether it is needed")
        self.facts |= {
            "server": state.server,
            "documents_before": state.documents,
            "to_migrate": state.remaining,
            "collection_bytes": state.collection_bytes,
            "database_bytes": state.database_bytes,
            "query_before": state.cost.described(),
            "change_plan": state.change_plan,
            "redundant_indexes": ", ".join(state.makes_redundant),
            "unused_indexes": ", ".join(state.unused),
            "estimate_by_rule": migration_plan.eta_line(state, None),
        }

    def _eta(self) -> timedelta:
        """How long the window has to be. An update parks by itself, so any open window will do."""
        change = self.inp.change
        return migration_plan.estimate(self.before, self._rehearsal) if isinstance(change, AddIndex) else timedelta(0)

    # --- 2 and 3: backup and staging ----------------------------------------------------------------------------

    async def _back_up(self, step_id: str) -> None:
        if self.rehearsing:
            self.skip(step_id, "a rehearsal: staging is not backed up")
            return
        if self.inp.dry_run:
            self.would("backup", f"back {self.stage.name} up and verify the backup")
            return
        wanted = DatabaseBackupInput(**self.common(), max_age=self.inp.backup_max_age)
        result = await self.run_child(step_id, "DatabaseBackup", wanted, title="Back the database up")
        facts = result.facts
        if not facts.get("verified") or not isinstance(facts.get("backup"), str):
            raise self.stop(f"the backup is not verified: {result.summary}. Nothing is migrated without", "NoBackup")
        self._reference = str(facts["backup"])
        try:
            self._restore = DatabaseRestoreInput(**self.common(), backup=self._reference, then=self.inp.restore)
        except ValueError:
            raise self.stop(
                f"no restore can name the backup {self._reference}. Correct backup.location of the stage", "NoBackup"
            ) from None
        made = datetime.fromisoformat(str(facts["created_at"]))
        self._backup_at = made if made.tzinfo else None
        self.facts |= {"backup": self._reference, "backup_created_at": facts.get("created_at")}
        self.facts["rollback_plan"] = migration_plan.rollback_plan(self.inp, self._reference)

    async def _fresh_backup(self) -> None:
        """The yes may be a day old by the time the window opens: then the backup is made anew."""
        good_for = max(migration_plan.BACKUP_GOOD_FOR, self.inp.backup_max_age or timedelta(0))
        if self._backup_at is None or workflow.now() - self._backup_at > good_for:
            await self._back_up("backup-again")

    async def _rehearse(self, inp: DatabaseMigrationInput) -> None:
        """The same run on the staging stage, by itself: it takes that stage, changes, validates, undoes if need be."""
        if inp.stage == inp.staging_stage:
            self.skip("rehearse", "this is the staging stage")
            return
        wanted = inp.model_copy(update={"stage": inp.staging_stage, "approved": True})
        try:
            result = await self.run_child(
                "rehearse", "DatabaseMigration", wanted, title=f"On {inp.staging_stage} first"
            )
        except ChildWorkflowError as error:
            if self.stops(error):
                raise
            raise self.stop(f"on {inp.staging_stage}: {describe(error)[0]}", "StagingFailed") from None
        self._would += [f"on {inp.staging_stage}: {line}" for line in result.would_change]
        seconds, documents = result.facts.get("change_seconds"), result.facts.get("change_documents")
        self._rehearsal = Rehearsal(
            summary=result.summary,
            seconds=float(seconds) if isinstance(seconds, int | float) else None,
            documents=int(documents) if isinstance(documents, int | float) else None,
        )
        self.facts |= {"staging": result.summary, "estimate": migration_plan.eta_line(self.before, self._rehearsal)}

    # --- 4: gate ------------------------------------------------------------------------------------------------

    async def _approval(self) -> None:
        """Ask for exactly this; asked again when things have changed by the yes, or by the time the window opens."""

        def facts() -> dict[str, Scalar]:
            return migration_plan.plan_facts(self.inp, self.before, self._rehearsal, self.window_line())

        async def look_again() -> dict[str, Scalar]:
            await self._plan("plan-again")
            return facts()

        waived = f"{self.rehearsing} asks on its own stage" if self.rehearsing else None
        question = f"Migrate {self.stage.name}: {self.inp.change.described()}?"
        while True:
            approved = await self.gate("approve-migration", question, facts(), recheck=look_again, waived=waived)
            while not await self.in_window_again("window-again", self._eta()):
                seen = await look_again()
                if approved is not None and plan_hash(seen) != approved.plan_hash:
                    self.say("the plan is another than the one approved before the wait: asked again", level="warning")
                    break
            else:
                return

    # --- 5: the change ------------------------------------------------------------------------------------------

    async def _change(self, inp: DatabaseMigrationInput) -> None:
        if not self.rehearsing and not inp.dry_run:
            await self._fresh_backup()
        self._changing = True
        self.announce("begin", f"Migrating {self.stage.name}", inp.change.described())
        try:
            match inp.change.kind:
                case "add_index":
                    await self.add_index(inp.change)
                case "backfill_field" | "update_documents":
                    await self.update(inp.change)
                case _:
                    assert_never(inp.change.kind)
        except ChildWorkflowError as error:
            self._left = left_behind(error)
            if self.stops(error):
                raise
            raise self.stop(describe(error)[0], "ChangeFailed") from None

    # --- 7: when it goes wrong ----------------------------------------------------------------------------------

    async def after_undo(self) -> str | None:
        """Say what state is left; where something is, offer the backup."""
        if not self._changing:
            return None if self._rehearsal is None else f"{self.stage.name} is as it was; staging keeps the change"
        state = await self.observe("state-after", Migrations.look, self.request(), title="What state it is in")
        if state is not None:
            self.facts["state_after"] = state.summary
        note = f"State: {state.summary if state else 'not known'}"
        told, late = self._not_undone(), self.left_by_sweep
        if (told or late) and self._reference and not workflow.patched("offer-the-backup-when-the-undo-fails"):
            told, late = [], None
        left = [line for line in (self._left, late, self.changed_for_good(state)) if line]
        if self._reference is None:
            self.state.left_undone += left
        elif (left or told) and await self._offer_restore(left, told, state):
            note += f", then {self._reference} was restored"
        return note

    def _not_undone(self) -> list[str]:
        """What the undo could not put back of the database, as it stands in ``left_undone``."""
        undone = [step for step in self.state.steps if step.id.startswith(("undo-change", "undo-sweep-"))]
        return [f"{step.title}: {step.summary}" for step in undone if step.state is State.FAILED]

    async def _offer_restore(self, left: list[str], told: list[str], state: MigrationState | None) -> bool:
        """Ask, and restore after a yes. True when the backup is back, and so nothing is left any more."""
        plan: dict[str, Scalar] = {
            "left": "; ".join((*left, *told)),
            "state": state.summary if state else "not known",
            "backup": self._reference,
            "made": str(self._backup_at),
            "way": self.inp.restore,
            "lost": "every write since the backup",
            "takes": "30 to 60 minutes",
        }
        question = f"{self.stage.name} is left half migrated. Restore the backup? Every write since it is lost"
        try:
            await self.gate("restore-backup", question, plan)
            if workflow.patched("what-a-gate-released-has-begun"):
                await self._honour_gates()
            await self.run_child("restore", "DatabaseRestore", self._restore, title="Restore the backup")
        except (ActivityError, ApplicationError, ChildWorkflowError) as error:
            self.state.left_undone += [*left, f"the backup was not restored: {describe(error)[0]}"]
            return False
        self.state.left_undone = [line for line in self.state.left_undone if not line.startswith(tuple(told))]
        return True

    # --- the record ---------------------------------------------------------------------------------------------

    async def closing(self, outcome: Outcome, summary: str) -> None:
        """One entry of the migration log, however it ended. It never decides the outcome."""
        if self.inp.dry_run or not hasattr(self, "before"):
            return
        entry = MigrationEntry(
            id=self.state.workflow_id,
            stage=self.stage.name,
            kind=self.inp.change.kind,
            change=self.inp.change.model_dump(mode="json", exclude_defaults=True),
            reason=self.inp.reason,
            requested_by=self.inp.requested_by,
            outcome=outcome.value,
            summary=summary,
            began_at=self.state.started_at,
            ended_at=workflow.now(),
            facts=self.facts,
        )
        try:
            logged = await self._run_activity(
                "log", "enter it in the migration log", Migrations.log, entry, policy.RECORD
            )
            self.facts["migration_log"] = logged.location
        except ActivityError as error:
            self.say(f"not entered in the migration log: {describe(error)[0]}", level="error")
