"""After a migration: is everything migrated, is all data there, are query and API well, is the backup good?"""

from __future__ import annotations

from temporalio import workflow
from temporalio.exceptions import ActivityError, ChildWorkflowError

from activities.api import Api, Health, HealthCheck, SampleCall
from activities.migration_models import MigrationState
from activities.migrations import Migrations
from workflows import policy
from workflows.backup_models import RestoreDrillInput
from workflows.connections import settled_since
from workflows.migration_change import ChangeSteps
from workflows.migration_plan import count_change, performance
from workflows.model import Kind, Phase, StepSpec
from workflows.settling import settle
from workflows.steps import describe

CHECKLIST = (
    ("migrated", "All documents migrated successfully"),
    ("data", "No data loss occurred"),
    ("performance", "Query performance improved or maintained"),
    ("api", "API endpoints responding normally"),
    ("database", "Database connections stable"),
    ("backup", "Backup restored and verified (at least once)"),
)
"""The document's post-migration validation, word for word."""

VALIDATION = (
    StepSpec(id="validate-1", title="Is everything migrated? First look", kind=Kind.LOOK),
    StepSpec(id="late-writers-wait", title="Let late writers show", kind=Kind.WAIT),
    StepSpec(id="validate-2", title="Is everything migrated? Second look", kind=Kind.LOOK),
    StepSpec(id="ready", title="Verify /health/ready", kind=Kind.LOOK),
    StepSpec(id="api-after", title="Make a sample call", kind=Kind.LOOK),
    StepSpec(id="connections-after", title="Database connections after", kind=Kind.LOOK),
    StepSpec(id="drill", title="Restore the backup into a scratch and compare", kind=Kind.CHANGE, undo="it is dropped"),
)


class ValidationSteps(ChangeSteps):
    """Steps that prove the change, each tied to an item of the checklist."""

    async def validate(self, before: MigrationState, backup: str | None) -> str:
        """All of it. Returns the verdict in one line; asks people where something is not as it should be."""
        self._enter(Phase.VERIFYING)
        after = await self._nothing_left()
        if not self.inp.dry_run:
            await self._performance(before, after)
            await self._all_there(before, after)
        await self._api_well()
        proven = await self._drill(backup)
        if self.inp.dry_run:
            return "nothing was changed"
        self.facts["documents_after"] = after.documents
        left = f"{after.remaining} left" if after.remaining is not None else f"query now {self.facts['query_after']}"
        return f"{left}, {after.documents} documents{proven}"

    # --- the data -----------------------------------------------------------------------------------------------

    async def _nothing_left(self) -> MigrationState:
        """Two looks in a row without a document left, because old code may write some after the first."""
        while True:
            first = await self._look("validate-1")
            if not self._done(first):
                await self._late(first)
                continue
            if first.remaining is None or not self._countable():
                break
            await self.wait("late-writers-wait", self.inp.late_writers, "Let late writers show")
            self._enter(Phase.VERIFYING)
            second = await self._look("validate-2")
            if self._done(second):
                first = second
                break
            await self._late(second)
        note = f"none left on two looks {self.inp.late_writers.total_seconds():g} s apart"
        if not self._countable():
            note = "every document was walked once; the filter matches them still, so that none can be counted as left"
        if first.remaining is None:
            note = "the index is there and holds every document"
        if not self.inp.dry_run:
            self.check("migrated", True, note)
        return first

    async def _look(self, step_id: str) -> MigrationState:
        patience = policy.SCAN if self.inp.dry_run else policy.WATCH
        return await self.look(step_id, Migrations.look, self.request(), patience)

    def _done(self, state: MigrationState) -> bool:
        return self.inp.dry_run or not self._countable() or not state.remaining

    async def _late(self, state: MigrationState) -> None:
        """Documents came since: people decide, because code that still writes the old form will go on doing so."""
        self.say(f"{state.remaining} documents are left to migrate: something still writes them", level="warning")
        plan = {"left": state.remaining, "cause": "code that writes the old form is still live, or has just gone"}
        question = f"{state.remaining} documents came in the old form. Update them too? No stops and undoes"
        waived = f"a rehearsal for {self.rehearsing}" if self.rehearsing and self._sweeps < 1 else None
        await self.gate("late-writers", question, {k: v for k, v in plan.items() if k != "left"}, waived=waived)
        await self.sweep()

    async def _all_there(self, before: MigrationState, after: MigrationState) -> None:
        there, note = count_change(before.documents, after.documents)
        if not there:
            self.say(note, level="warning")
            question = f"{note}. A migration deletes none: is that explained? No stops and undoes"
            waived = f"a rehearsal for {self.rehearsing}" if self.rehearsing else None
            gate = await self.gate("accept-count", question, {"count": note}, waived=waived)
            if gate is not None:
                last = gate.approvals[-1] if gate.approvals else None
                who = f"{last.by}: {last.reason or 'no reason given'}" if last else "nobody objected"
                there, note = True, f"{note}; explained by {who}"
        self.check("data", there, note)

    async def _performance(self, before: MigrationState, after: MigrationState) -> None:
        """A query that is slower once may have met a busy minute of the database: it is timed again."""
        cost = after.cost
        if not performance(before.cost, cost)[0] and workflow.patched("time-the-query-again"):

            async def as_fast() -> bool:
                nonlocal cost
                again = self.request().model_copy(update={"filter": None})  # what is left has been counted
                look = await self.look("query-after", Migrations.look, again, policy.WATCH, title="Time it again")
                cost = look.cost
                return performance(before.cost, cost)[0]

            await settle(self, "query-settle", "let the query's time settle", as_fast)
        good, note = performance(before.cost, cost)
        self.facts["query_after"] = cost.described()
        self.check("performance", good, note)
        if not good:
            self.say(f"the query is not faster: {note}", level="warning")

    # --- the service --------------------------------------------------------------------------------------------

    async def _api_well(self) -> None:
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            path="/health/ready",
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        health = await self.look("ready", Api.health, check, policy.WATCH)
        sample = await self.observe("api-after", Api.sample_calls, self.stage)
        stable = await settled_since(self, self.connections_before, "connections-after")
        if self.inp.dry_run:
            return
        well, note = _api(health, sample, self.sample_before)
        self.check("api", well, note)
        self.check("database", *stable)
        was_well = self.sample_before is None or self.sample_before.ok
        if not well and self.rehearsing:
            raise self.stop(f"{self.stage.name} is not well after the migration: {note}", "NotWell")
        if not well and was_well:
            question = f"{self.stage.name} is not well after the migration. Keep the change? No undoes it"
            await self.gate("keep-migration", question, {"problem": note})
        elif not well:
            self.say(f"the API is not well, as before the migration: {note}", level="warning")

    # --- the backup ---------------------------------------------------------------------------------------------

    async def _drill(self, backup: str | None) -> str:
        """A backup that cannot be restored is no reason to undo a good migration, and never a quiet one."""
        if self.rehearsing:
            self.skip("drill", "a rehearsal")
            return ""
        if self.inp.dry_run:
            self.would("drill", "restore the backup into a scratch, compare it and drop it")
            return ""
        wanted = RestoreDrillInput(**self.common(), backup=backup)
        try:
            result = await self.run_child("drill", "RestoreDrill", wanted)
        except (ActivityError, ChildWorkflowError) as error:
            if self.stops(error):
                raise
            why = describe(error)[0]
            self.check("backup", False, why)
            self.announce("drill", f"The backup of {self.stage.name} could not be restored", why, severity="error")
            return f"; THE BACKUP COULD NOT BE RESTORED: {why}"
        self.facts["restore_seconds"] = result.facts.get("restore_seconds")
        identical = result.facts.get("identical") is True
        self.check("backup", identical, result.summary)
        return "" if identical else f"; the backup is not proven: {result.summary}"


def _api(health: Health, sample: SampleCall | None, before: SampleCall | None) -> tuple[bool, str]:
    was = f", {before.latency_ms:.0f} ms before" if before is not None and before.ok else ""
    sampled = f"{sample.summary}{was}" if sample is not None else "no sample call"
    return health.ok and sample is not None and sample.ok, f"{health.summary}; {sampled}"
