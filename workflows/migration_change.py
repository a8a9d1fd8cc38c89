"""The change itself: an index before the code that needs it, an update after the code that works with both forms."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ChildWorkflowError

from activities.api import Api, SampleCall
from activities.batch_models import UpdateOrder
from activities.database import Connections, Database
from activities.indexes import Indexes
from activities.migration_models import IndexOrder, LookRequest, MigrationState
from activities.migrations import Migrations
from workflows import policy, waiting
from workflows.batched_update_model import BatchedUpdateInput
from workflows.database_migration_model import AddIndex, BackfillField, DatabaseMigrationInput, UpdateDocuments
from workflows.details import length
from workflows.migration_window import WindowSteps
from workflows.model import Kind, RunbookResult, Scalar, State
from workflows.runbook import Undo

JOURNAL_HOLDS = int(BatchedUpdateInput.model_fields["journal_limit"].default)


class ChangeSteps(WindowSteps[DatabaseMigrationInput]):
    """Steps that change the stage."""

    before: MigrationState
    """How things were when people were asked."""

    def __init__(self) -> None:
        super().__init__()
        self.connections_before: Connections | None = None
        self.sample_before: SampleCall | None = None
        self.leaves_filter = True
        """Whether an updated document no longer matches the filter, as the update itself found out."""
        self.left_by_sweep: str | None = None
        """What a failed update of late writers could not put back."""
        self._sweeps = 0
        self._update_begun = False

    @property
    def rehearsing(self) -> str | None:
        """The run that this one rehearses for."""
        raise NotImplementedError

    # --- what all of it shares ----------------------------------------------------------------------------------

    def request(self) -> LookRequest:
        change = self.inp.change
        return LookRequest(
            stage=self.stage,
            collection=change.collection,
            query=change.measured(),
            filter=None if isinstance(change, AddIndex) else change.filter,
            index=change.index() if isinstance(change, AddIndex) else None,
            touches=self.inp.touches(),
        )

    def common(self) -> dict[str, Any]:
        """What every run below this one is told."""
        shared = ("stage", "reason", "requested_by", "incident", "severity")
        return {name: getattr(self.inp, name) for name in shared}

    def skip(self, step_id: str, why: str) -> None:
        step = self._find_step(step_id, None, Kind.CHANGE)
        step.state, step.summary = State.SKIPPED, why
        self.say(f"{step.title}: {why}")

    def would(self, step_id: str, what: str) -> None:
        """In a dry run: list a run below this one instead of starting it."""
        self._would.append(what)
        self.skip(step_id, f"would {what}")

    def journal_fits(self, state: MigrationState) -> None:
        """Refuse before anything is begun what the journal would refuse in the middle."""
        if self.inp.change.kind != "add_index" and self.inp.journal and (state.remaining or 0) > JOURNAL_HOLDS:
            raise self.stop(
                f"{state.remaining} documents are too many for an undo journal ({JOURNAL_HOLDS} at most). Split the "
                'update by its filter, or say "journal": false and rely on the backup',
                "TooManyForJournal",
            )

    async def before_change(self) -> None:
        """What is compared with afterwards."""
        self.connections_before = await self.observe("connections-before", Database.connections, self.stage)
        self.sample_before = await self.observe("api-before", Api.sample_calls, self.stage)

    def _measured(self, began: timedelta | float, documents: int) -> None:
        seconds = began.total_seconds() if isinstance(began, timedelta) else began
        self.facts |= {"change_seconds": round(seconds, 1), "change_documents": documents}

    # --- an index -----------------------------------------------------------------------------------------------

    async def add_index(self, change: AddIndex) -> None:
        order = IndexOrder(stage=self.stage, collection=change.collection, index=change.index())
        if self.before.index_ready:
            self.skip("change", f"index {order.index.name} is there already")
        else:
            await self._build(order, change.described())
        await self._verify_index(order)
        why = "the code that needs the index"
        if self.inp.release:
            await self.bring_live(self.inp.release, why=why)
            return
        plan: dict[str, Scalar] = {
            "index": order.index.name,
            "query now": self.facts.get("query_after"),
            "live code": None if self.rehearsing else await self.live_name(),
        }
        question = f"Index {order.index.name} is ready. Deploy {why} to {self.stage.name} now. Is it live?"
        await self.ask_for_code("deploy-code", question, plan, self._nobody_asked())

    def _nobody_asked(self) -> str | None:
        return "a rehearsal of the database's side: no release is named" if self.rehearsing else None

    async def _build(self, order: IndexOrder, would: str) -> None:
        """Build it; while that takes its time, the page says how far it is."""

        async def build() -> None:
            built = await self.change(
                "change",
                Indexes.build,
                order,
                policy.BUILD,
                would=would,
                undo=Undo(f"drop index {order.index.name}", Indexes.drop, order),
                title=f"Build index {order.index.name}",
            )
            if built is not None:
                self._measured(built.seconds, self.before.documents)

        building = asyncio.create_task(build())
        pause, longest = policy.BUILD_LOOKS
        try:
            while not building.done():
                try:
                    await waiting.until(building.done, at_most=pause, summary="look how far it is")
                except TimeoutError:
                    await self.observe("index-progress", Indexes.progress, order, title="How far the build is")
                    pause = min(pause * 2, longest)
        finally:
            if not building.done():
                building.cancel()
            await building

    async def _verify_index(self, order: IndexOrder) -> None:
        """The query in question has to use it, or it was built for nothing."""
        if self.inp.dry_run:
            return
        after = await self.look("verify-index", Migrations.look, self.request(), policy.WATCH, title="Verify the index")
        self.facts["query_after"] = after.cost.described()
        if not after.index_ready:
            raise self.stop(f"index {order.index.name} is not there after all: somebody dropped it", "IndexGone")
        if after.cost.plan is None:
            self.say("whether the query uses the index is not known: the server does not say", level="warning")
        elif order.index.name not in (after.cost.index or "").split(", "):
            raise self.stop(
                f"the query does not use index {order.index.name}: {after.cost.described()}. Order its keys by "
                "equality, sort, range, or correct the query",
                "IndexNotUsed",
            )

    # --- an update ----------------------------------------------------------------------------------------------

    async def update(self, change: BackfillField | UpdateDocuments) -> None:
        why = "code that works with and without the change"
        if self.inp.release:
            await self.bring_live(self.inp.release, why=why)
        else:
            plan: dict[str, Scalar] = {
                "change": change.described(),
                "live code": None if self.rehearsing else await self.live_name(),
            }
            question = f"Is {why} live on {self.stage.name}?"
            await self.ask_for_code("code-deployed", question, plan, self._nobody_asked())
        await self.run_update("change", change)

    async def run_update(self, step_id: str, change: BackfillField | UpdateDocuments) -> None:
        """Update in batches. What it changed is undone by its journal, should this run fail later."""
        if self.inp.dry_run:
            self.would(step_id, f"{change.described()}, {self.before.remaining} documents")
            return
        await self._honour_gates()
        until, windows = self.open_windows()
        wanted = BatchedUpdateInput(
            **self.common(),
            collection=change.collection,
            filter=change.filter,
            update=change.update,
            all_documents=change.all_documents,
            journal=self.inp.journal,
            throttle=self.inp.throttle,
            abort=self.inp.abort,
            until=until,
            windows=windows,
            sweep_pause=min(self.inp.late_writers, timedelta(minutes=1)),
            approved=True,
        )
        began = workflow.now()

        self._update_begun = True
        result = await self.run_child(
            step_id,
            "BatchedUpdate",
            wanted,
            title=f"Update {change.collection} in batches",
            undo=lambda result: self._by_journal(change, result),
        )
        self.leaves_filter = result.facts.get("leaves_filter") is not False
        took, updated = workflow.now() - began, result.facts.get("updated")
        documents = int(updated) if isinstance(updated, int | float) else self.before.remaining or 0
        if step_id == "change":
            self._measured(took, documents)
        self.say(f"{documents} documents updated in {length(took)}")

    def _by_journal(self, change: BackfillField | UpdateDocuments, result: RunbookResult) -> Undo | None:
        journal = result.facts.get("journal")
        if not isinstance(journal, str):
            return None
        order = UpdateOrder(
            stage=self.stage, collection=change.collection, filter=change.filter, update=change.update, journal=journal
        )
        return Undo("put the former values back by the journal", "batches.revert", order)

    def _countable(self) -> bool:
        """Whether a migrated document no longer matches the filter."""
        change = self.inp.change
        return not (isinstance(change, UpdateDocuments) and change.all_documents) and self.leaves_filter

    async def sweep(self) -> None:
        """Update what late writers left, as a run of its own."""
        change = self.inp.change
        if not isinstance(change, AddIndex):
            self._sweeps += 1
            try:
                await self.run_update(f"sweep-{self._sweeps}", change)
            except ChildWorkflowError as error:
                self.left_by_sweep = left_behind(error)
                raise

    def changed_for_good(self, state: MigrationState | None) -> str | None:
        """What stays although the run failed, because it has no undo; judged by what is left to migrate now."""
        if self.inp.journal or not self._update_begun:
            return None
        if state is not None and self._countable() and (state.remaining or 0) >= (self.before.remaining or 0):
            return None
        return f"{self.inp.change.described()}: what was updated stays, there is no journal"


def left_behind(error: ChildWorkflowError) -> str | None:
    """What a failed child says that it could not put back."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.details:
        result = RunbookResult.model_validate(cause.details[0])
        return "; ".join(result.left_undone) or None
    return None
