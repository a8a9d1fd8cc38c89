"""The part of a batched update that keeps ranges in the air: starts, holds and collects them, and says where it is.

A range is one activity of some minutes. It is never left half known: to hold (a pause, a closed window, other settings,
a history that is long) the activities are cancelled, each commits the batch in flight and returns where it stands.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

from pydantic import ConfigDict
from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception
from temporalio.workflow import ActivityHandle

from activities.batch_models import IdRange, PlanRequest, RangeOrder, RangeResult, UpdateOrder
from activities.batches import Batches
from workflows import policy, waiting
from workflows.batch_control import Opening, Tuning, Work, opening
from workflows.batched_update_model import BatchedUpdateInput
from workflows.model import Kind, Message, Phase, State, Step
from workflows.runbook import Runbook

RANGE_DOCUMENTS = 250_000
"""Documents a range, and so an activity: minutes of work, six events of history."""


class BatchNews(Message):
    """From the activity of a range: how far it is, and why it waits if it does."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    range: int
    documents: int
    updated: int
    size: int
    why: str | None = None


class BatchDriver(Runbook[BatchedUpdateInput]):
    """Drives ``self.work`` to its end."""

    work: Work

    @workflow.init
    def __init__(self, *payload: Any) -> None:
        super().__init__(*payload)
        self._flying: dict[int, tuple[ActivityHandle[RangeResult], IdRange]] = {}
        self._interrupted = False
        self._waits_for: dict[int, str] = {}
        self.batch_failed = False
        if self.cursor is not None:
            self.work = Work.model_validate(self.cursor)

    @property
    def started(self) -> bool:
        """Whether there are settings and ranges yet."""
        return hasattr(self, "work")

    @property
    def run_key(self) -> str:
        """Names what belongs to this run in the database; the same in all its histories."""
        return workflow.info().first_execution_run_id.replace("-", "")

    @property
    def order(self) -> UpdateOrder:
        inp = self.inp
        return UpdateOrder(
            stage=self.stage,
            collection=inp.collection,
            filter=inp.filter,
            update=inp.update,
            journal=f"_runbook_journal_{self.run_key}" if inp.journal else None,
        )

    def plan_request(self) -> PlanRequest:
        return PlanRequest(
            order=self.order,
            range_documents=RANGE_DOCUMENTS,
            at_least=self.work.tuning.partitions,
            first_number=self.work.numbered,
        )

    def _tuning(self) -> Tuning:
        inp = self.inp
        return Tuning(batch=inp.batch, partitions=inp.partitions, throttle=inp.throttle, abort=inp.abort)

    def interrupt(self) -> None:
        """Have the ranges in the air come back, to go on with what has changed."""
        self._interrupted = True

    # --- the loop -----------------------------------------------------------------------------------------------

    async def drive(self) -> None:
        """Update all ranges that wait.

        Raises:
            Stopped: of type ``LoadAbort``, when load stayed beyond a limit to abort at.
        """
        await self._honour_gates()
        self._enter(Phase.CHANGING)
        async with self._step("update", None, Kind.CHANGE) as step:
            self.work.progress.restart(workflow.now())
            try:
                while self.work.waiting or self._flying:
                    await self._hold_if_needed(step)
                    self._start_ranges()
                    self._show(step)
                    await self._something_happens()
                    self._collect()
            except (FailureError, asyncio.CancelledError):
                # What is in the air has to be down before anything is undone, whoever cancels how often.
                await self._shielded(self._bring_all_down())
                raise
            finally:
                self._show(step)

    async def _hold_if_needed(self, step: Step) -> None:
        """Bring everything back where work must not go on as it is, and wait until it may."""
        if not self._must_hold():
            return
        await self._bring_back()
        if self.state.paused_by is not None:
            step.state = State.WAITING
            self._show(step, f"paused by {self.state.paused_by}")
            await self._unpaused()
        if not self._opening().is_open:
            await self._park(step)
        self._interrupted = False  # what was changed meanwhile is what it goes on with
        step.state = State.RUNNING
        if self.history_is_long and self.work.waiting:
            await self.continue_as_new(lambda: self.work.model_dump(mode="json"))
        self.work.progress.restart(workflow.now())

    def _must_hold(self) -> bool:
        paused = self.state.paused_by is not None
        return paused or self._interrupted or self.history_is_long or not self._opening().is_open

    def _start_ranges(self) -> None:
        work = self.work
        while work.waiting and len(self._flying) < work.tuning.partitions:
            stretch = work.waiting.pop(0)
            handle: ActivityHandle[RangeResult] = workflow.start_activity_method(
                Batches.update_range,
                self._range_order(stretch),
                activity_id=self._activity_id(f"range-{stretch.number}"),
                summary=f"update range {stretch.number}, about {stretch.documents:,} documents",
                priority=self._priority(),
                task_queue=self._queue(policy.BATCHES),
                **policy.BATCHES,
            )
            self._flying[stretch.number] = (handle, stretch)
            work.progress.flying[stretch.number] = 0

    def _range_order(self, stretch: IdRange) -> RangeOrder:
        tuning = self.work.tuning
        size = min(max(self.work.next_size or tuning.batch.initial, tuning.batch.min), tuning.batch.max)
        return RangeOrder(
            order=self.order,
            range=stretch,
            sizes=tuning.batch.model_copy(update={"initial": size}),
            throttle=tuning.throttle,
            abort=tuning.abort,
            news_every=max(1000, self.work.progress.total // 100),
        )

    async def _something_happens(self) -> None:
        """Until a range has come back, or all of them have to, or the window closes."""
        closes = self._opening().changes
        left = max(closes - workflow.now(), timedelta(0)) if closes else None
        try:
            await waiting.until(
                lambda: self._any_back() or self._must_hold(), at_most=left, summary="the window closes"
            )
        except TimeoutError:
            return

    def _any_back(self) -> bool:
        return any(handle.done() for handle, _ in self._flying.values())

    def _collect(self) -> None:
        """Take in what has come back. A range that is not finished waits again, first of all."""
        for number, (handle, stretch) in list(self._flying.items()):
            if handle.done():
                del self._flying[number]
                self._take_in(stretch, handle)  # raises for one that failed; the next call takes in the others

    def _take_in(self, stretch: IdRange, handle: ActivityHandle[RangeResult]) -> None:
        progress, number = self.work.progress, stretch.number
        self._no_longer_waits(number)
        try:
            result = handle.result()
        except ActivityError as error:
            progress.landed += progress.flying.pop(number, 0)
            if not is_cancelled_exception(error):
                raise
            # It had not begun, or was between two attempts, so that nobody could say how far it came. What its batches
            # have updated is safe to go over again: the trial has shown that.
            self.work.waiting.insert(0, stretch)
            return
        progress.flying.pop(number, None)
        progress.landed += result.walked
        progress.updated += result.updated
        progress.batches += result.batches
        progress.throttled_s += result.throttled_s
        progress.busy_s += result.busy_s
        self.work.next_size = result.next_size
        if not result.finished:
            self.work.waiting.insert(0, result.range)
        if result.ended == "failed":
            self.batch_failed = True
            raise self.stop(result.why or "a batch failed", result.kind or "BatchFailed")
        if result.ended == "abort":
            raise self.stop(f"load is beyond the limit to abort at: {result.why}", "LoadAbort")

    async def _bring_back(self) -> None:
        """Cancel what is in the air, and wait until each has said how far it came: within one batch's time."""
        for handle, _ in self._flying.values():
            handle.cancel()
        if self._flying:
            await workflow.wait([handle for handle, _ in self._flying.values()])
        self._collect()

    async def _bring_all_down(self) -> None:
        """As :meth:`_bring_back`, when the run is ending anyway: further failures change nothing about that."""
        while self._flying:
            with contextlib.suppress(FailureError):
                await self._bring_back()

    # --- the window ---------------------------------------------------------------------------------------------

    def _opening(self) -> Opening:
        return opening(workflow.now(), self.work.until, self.work.windows)

    async def _park(self, step: Step) -> None:
        """Wait until the window opens, or somebody lets it go on."""
        step.state = State.WAITING
        self._enter(Phase.WAITING)
        while not (now := self._opening()).is_open:
            opens = now.changes
            when = f"until {opens:%d %b %H:%M} UTC" if opens else "until somebody sends the signal go_on"
            self.say(f"the window has closed: parked {when}")
            self._show(step, f"parked {when}")
            try:
                await waiting.until(
                    lambda: self._opening().is_open,
                    at_most=opens - workflow.now() if opens else None,
                    summary="the next window opens",
                )
            except TimeoutError:
                continue
        self._enter(Phase.CHANGING)
        self.say("the window is open: goes on")

    # --- what is shown ------------------------------------------------------------------------------------------

    @workflow.signal(description="From the run's own batches, not for people")
    def batch_news(self, *payload: Any) -> None:
        self._take("batch_news", BatchNews, payload, self._batch_news)

    def _batch_news(self, news: BatchNews) -> None:
        if news.range not in self._flying:
            return  # it has come back meanwhile
        self.work.progress.flying[news.range] = news.documents
        self.work.next_size = news.size
        if news.why:
            if not self._waits_for:
                self.say(f"waits: {news.why}", level="warning")
            self._waits_for[news.range] = news.why
        else:
            self._no_longer_waits(news.range)
        if step := self.state.step("update"):
            self._show(step)

    def _no_longer_waits(self, number: int) -> None:
        if self._waits_for.pop(number, None) and not self._waits_for:
            self.say("load has fallen: goes on")

    def _show(self, step: Step, why: str | None = None) -> None:
        progress = self.work.progress
        progress.note(workflow.now())
        step.summary = progress.described(why or next(iter(self._waits_for.values()), None))
        step.evidence = {
            "done": progress.done,
            "total": progress.total,
            "updated": progress.updated,
            "batches": progress.batches,
            "partitions": len(self._flying),
            "batch_size": self.work.next_size or self.work.tuning.batch.initial,
        }
        self.refresh()

    def _percent(self) -> int:
        if not self.started or self.work.progress.total == 0:
            return super()._percent()
        return min(99, int(self.work.progress.percent))
