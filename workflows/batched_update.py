"""Batched update: change the documents of a collection of any size while everybody else goes on working."""

from __future__ import annotations

import json
from typing import Any

from temporalio import workflow

from activities.batch_models import CollectionCheck, JournalRequest, TrialRequest
from activities.batches import Batches
from activities.update_rules import describe_update
from workflows import gates, policy
from workflows.batch_control import Tuning, Work
from workflows.batch_driver import BatchDriver
from workflows.batched_update_model import BatchedUpdateInput, GoOn, Tune, check_limits
from workflows.model import Kind, RunbookResult, Scalar, State, StepSpec
from workflows.operator import _as_rejection, _valid, read
from workflows.runbook import RunbookSpec, Undo

MOST_PASSES = 20
"""Passes over late writers before the run says that the code which writes them has to change first."""

CHECKLIST = (
    ("tried", "The update was tried on copies first"),
    ("journal", "Former values are kept in an undo journal"),
    ("all", "Every matching document is updated"),
    ("late", "No late writer: nothing is left on two looks in a row"),
)


@workflow.defn(name="BatchedUpdate")
class BatchedUpdate(BatchDriver):
    """Update many documents of one collection, a few thousand at a time.

    Looks at the collection, tries the update on copies, asks in production, then walks ranges of ``_id`` side by side.
    Each batch repeats the filter, so that what somebody else has written meanwhile is left alone. Batches adapt to the
    time they take, wait while database or API are busy (and say why), stop for good beyond limits of their own, park
    when the window closes, and go on after a crash with the batch that was in flight. Then it looks for late writers,
    until there is nothing left twice in a row. On failure or abort the undo journal, if one is kept, puts back what
    nobody has changed since.
    """

    spec = RunbookSpec(
        input=BatchedUpdateInput,
        when="Many documents of a collection have to change: a backfill, a new default, a corrected value.",
        steps=(
            StepSpec(id="check", title="Look at the collection", kind=Kind.LOOK),
            StepSpec(id="load", title="Read the stage's load", kind=Kind.LOOK),
            StepSpec(id="approve-update", title="Approval", kind=Kind.GATE),
            StepSpec(id="try", title="Try the update on copies", kind=Kind.CHANGE, undo="the copies are dropped"),
            StepSpec(id="journal", title="Open the undo journal", kind=Kind.CHANGE, undo="former values are put back"),
            StepSpec(id="plan", title="Plan the ranges of _id", kind=Kind.LOOK),
            StepSpec(
                id="update",
                title="Update, batch after batch",
                kind=Kind.CHANGE,
                undo="by the journal; without one what is updated stays updated",
            ),
            StepSpec(id="sweep", title="Look for late writers", kind=Kind.LOOK),
        ),
        checklist=CHECKLIST,
        gates=(("approve-update", "In production, started by a person: update these documents?"),),
        example={
            "stage": "production",
            "reason": "backfill of schema 2",
            "requested_by": "ann",
            "collection": "sessions",
            "filter": {"schema": {"$exists": False}},
            "update": {"$set": {"schema": 2}},
            "journal": True,
        },
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: BatchedUpdateInput) -> str:
        if self.cursor is not None:
            carried = Work.model_validate(self.cursor)
            if self.work != carried and not workflow.patched("what is sent before a run goes on counts"):
                self.work = carried
        else:
            done = await self._prepare(inp)
            if done is not None:
                return done
        await self._update_until_nothing_is_left(inp)
        await self._let_the_journal_go(inp)
        return self._verdict(inp)

    # --- before -------------------------------------------------------------------------------------------------

    async def _prepare(self, inp: BatchedUpdateInput) -> str | None:
        """Everything before the first batch. Returns the summary when there is nothing to do beyond it."""
        check = await self.look("check", Batches.check, self.order, policy.SCAN)
        self.facts |= {"matching": check.matching, "documents": check.documents, "server": check.server}
        if check.matching == 0:
            for item in ("tried", "journal"):
                self.check(item, True, "nothing was to be done")
            self.check("all", True, check.summary)
            self.check("late", True, check.summary)
            self.facts["updated"] = 0
            return f"no document of {inp.collection} matches: nothing was to be done"
        if inp.journal and check.matching > inp.journal_limit:
            raise self.stop(
                f"{check.matching:,} documents match, and the undo journal may hold {inp.journal_limit:,}. Raise "
                "journal_limit (the journal takes about as much room as the touched fields), or set journal to false "
                "and rely on the backup",
                "JournalTooSmall",
            )
        await self.observe("load", Batches.load, self.stage)
        await self._approval(inp, check)
        self.work = Work(tuning=self._tuning(), until=inp.until, windows=list(inp.windows))
        if inp.dry_run:
            return await self._rehearse(inp, check)
        await self._try(inp)
        await self._open_journal(inp)
        return None

    async def _approval(self, inp: BatchedUpdateInput, check: CollectionCheck) -> None:
        parent = workflow.info().parent
        waived = None
        if inp.approved and parent is not None:
            waived = f"{parent.workflow_id} has asked already"
        elif not self.stage.production:
            waived = f"{self.stage.name} is not production"
        plan: dict[str, Scalar] = {
            "stage": self.stage.name,
            "collection": inp.collection,
            "filter": _text(inp.filter),
            "update": _text(inp.update),
            "documents": check.matching,
            "undo": "journal" if inp.journal else "none: what is updated stays updated",
        }
        question = f"Update {check.matching:,} documents of {inp.collection} on {self.stage.name}?"
        await self.gate("approve-update", question, plan, waived=waived)

    async def _rehearse(self, inp: BatchedUpdateInput, check: CollectionCheck) -> str:
        """The rest of a dry run: plan, and list what would be done."""
        plan = await self.look("plan", Batches.plan, self.plan_request(), policy.SCAN)
        wanted = [f"try {describe_update(inp.update)} on copies of a few documents of {inp.collection}"]
        if inp.journal:
            wanted.append(f"keep former values of {plan.documents:,} documents in an undo journal")
        wanted.append(f"update {plan.documents:,} documents of {inp.collection}: {describe_update(inp.update)}")
        for step_id, would in zip(
            ("try", "journal", "update") if inp.journal else ("try", "update"), wanted, strict=True
        ):
            self._would.append(would)
            step = self._find_step(step_id, None, Kind.CHANGE)
            step.state, step.summary = State.SKIPPED, f"would {would}"
        return f"would update {plan.documents:,} of {check.documents:,} documents of {inp.collection}"

    async def _try(self, inp: BatchedUpdateInput) -> None:
        request = TrialRequest(order=self.order, key=self.run_key)
        trial = await self.change(
            "try", Batches.try_on_copies, request, policy.SCAN, would="try the update on copies", undo=None
        )
        if trial is None or trial.leaves_filter is None:
            self.check("tried", True, "no document was left to try it on")
            return
        self.work.leaves_filter = trial.leaves_filter
        self.facts["leaves_filter"] = trial.leaves_filter
        self.check("tried", True, trial.summary)

    async def _open_journal(self, inp: BatchedUpdateInput) -> None:
        journal = self.order.journal
        if journal is None:
            self._find_step("journal", None, Kind.CHANGE).state = State.SKIPPED
            self.check("journal", False, "none was asked for: what is updated stays updated")
            return
        await self.change(
            "journal",
            Batches.open_journal,
            JournalRequest(order=self.order, keep=inp.journal_keep),
            would="open the undo journal",
            undo=Undo("put the former values back by the journal", Batches.revert, self.order),
        )
        self.facts["journal"] = journal
        self.check("journal", True, f"{journal}, kept for {inp.journal_keep.days} days after the run")

    async def _let_the_journal_go(self, inp: BatchedUpdateInput) -> None:
        """Only from now on its time counts. Where that cannot be set it stays longer, which hurts nobody."""
        if self.order.journal is None or not workflow.patched("journal-expires-after-the-run"):
            return
        keep = inp.journal_keep + (workflow.now() - self.state.started_at)  # the first entry is as old as the run
        request = JournalRequest(order=self.order, keep=keep)
        title = "Set how long the journal stays"
        await self.observe("journal-stays", Batches.close_journal, request, policy.SCAN, title=title)

    # --- the passes ---------------------------------------------------------------------------------------------

    async def _update_until_nothing_is_left(self, inp: BatchedUpdateInput) -> None:
        work = self.work
        while True:
            if not work.waiting and not await self._next_pass(inp):
                return
            await self.drive()
            if not work.leaves_filter:
                return

    async def _next_pass(self, inp: BatchedUpdateInput) -> bool:
        """Look for documents to update. False when there were none, twice in a row."""
        work = self.work
        while True:
            first = work.passes == 0
            step_id, title = ("plan", "Plan the ranges of _id") if first else ("sweep", "Look for late writers")
            patience = policy.SCAN if first else policy.WATCH
            plan = await self.look(step_id, Batches.plan, self.plan_request(), patience, title=title)
            if plan.documents:
                work.passes += 1
                if work.passes > MOST_PASSES:
                    raise self.stop(
                        f"{plan.documents:,} documents match again after {MOST_PASSES} passes: code that writes them "
                        "the old way is still live. Deploy the code first, then start this again",
                        "LateWriters",
                    )
                if not first:
                    self.say(f"late writers: {plan.documents:,} documents have come meanwhile")
                work.clean_looks = 0
                work.waiting, work.numbered = list(plan.ranges), work.numbered + len(plan.ranges)
                work.progress.total += plan.documents
                return True
            work.clean_looks += 1
            if work.clean_looks >= 2:
                return False
            await self.wait("sweep-pause", inp.sweep_pause, "Wait before the last look for late writers")

    def _verdict(self, inp: BatchedUpdateInput) -> str:
        work, progress = self.work, self.work.progress
        speed = progress.updated / progress.busy_s * work.tuning.partitions if progress.busy_s else 0
        self.facts |= {
            "updated": progress.updated,
            "batches": progress.batches,
            "passes": work.passes,
            "throttled_seconds": round(progress.throttled_s, 1),
        }
        if work.leaves_filter:
            self.check("all", True, f"{progress.updated:,} documents updated in {progress.batches:,} batches")
            self.check("late", True, "nothing matched on two looks in a row")
        else:
            self.check("all", True, f"{progress.done:,} documents were walked, {progress.updated:,} changed")
            self.check("late", False, "the filter finds updated documents too, so late ones cannot be told apart")
        about = f", about {speed:,.0f} a second" if speed else ""
        return f"{progress.updated:,} documents of {inp.collection} updated in {progress.batches:,} batches{about}"

    async def after_undo(self) -> str | None:
        """What stays: the frame knows nothing of batches that have no undo."""
        work = self.work if self.started else None
        if work is None or not work.progress.done:
            return None
        updated = f"{work.progress.updated:,} documents had been updated"
        self.facts["updated"] = work.progress.updated
        if self.order.journal is None:
            updated += " (perhaps some of the batch that failed, too)" if self.batch_failed else ""
            return f"{updated} and stay so: there was no undo journal. Started again, it goes on with the rest"
        undone = self.state.step("undo-journal")
        return f"{updated}; undone: {undone.summary}" if undone and undone.summary else None

    # --- what people send ---------------------------------------------------------------------------------------

    @workflow.update(
        description="Change batches, partitions or limits while it runs. "
        'Input: {"by": "your name", "partitions": 4, "batch": {"target_ms": 200}}'
    )
    def tune(self, *payload: Any) -> str:
        message = read(Tune, payload)
        self.work.tuning = self._after(message)
        self.work.next_size = None if message.batch else self.work.next_size
        self.interrupt()
        self.say(f"tunes: {self.work.tuning.described()}", who=message.by, source="person")
        return self.work.tuning.described()

    @tune.validator
    def _check_tune(self, *payload: Any) -> None:
        message = _valid(Tune, payload)
        with _as_rejection():
            self._after(message)

    def _after(self, message: Tune) -> Tuning:
        """The settings after this message.

        Raises:
            Refused: it changes nothing, comes too early or too late, or its limits do not fit together.
        """
        if not self.started or self.state.outcome or self._undoing or self._aborted:
            raise gates.Refused("the update is not running")
        tuned = self.work.tuning.tuned(message)
        if tuned == self.work.tuning:
            raise gates.Refused("nothing of it is new; name batch, partitions, throttle or abort")
        try:
            check_limits(tuned.throttle, tuned.abort)
        except ValueError as error:
            raise gates.Refused(str(error)) from None
        return tuned

    @workflow.signal(
        description="Work until then, also outside of the planned windows. "
        'Input: {"by": "your name", "until": "2030-01-31T05:00:00Z"}'
    )
    def go_on(self, *payload: Any) -> None:
        self._take("go_on", GoOn, payload, self._go_on)

    def _go_on(self, message: GoOn) -> None:
        if not self.started or self.state.outcome or self._undoing:
            raise gates.Refused("the update is not running")
        if message.until is not None and message.until <= workflow.now():
            raise gates.Refused("that time is over")
        self.work.until = message.until
        if message.until is None:
            self.work.windows = []
        self.interrupt()
        until = f"until {message.until:%d %b %H:%M} UTC" if message.until else "without an end"
        self.say(f"lets the update go on {until}", who=message.by, source="person")


def _text(value: Any) -> str:
    text = json.dumps(value, separators=(", ", ": "))
    return text if len(text) <= 500 else f"{text[:480]}… ({len(text)} characters)"
