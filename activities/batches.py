"""Updating the documents of a collection of any size, in batches that let everybody else work."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities import batch_journal
from activities.batch_collection import check_collection
from activities.batch_journal import Document, Documents
from activities.batch_models import (
    CollectionCheck,
    Ended,
    IdRange,
    JournalRequest,
    Load,
    Plan,
    PlanRequest,
    RangeOrder,
    RangeResult,
    Reverted,
    Trial,
    TrialRequest,
    UpdateOrder,
)
from activities.batch_pacing import LoadJudge, Verdict
from activities.batch_ranges import BY_TYPE, Cutter, documents_in, whole_kinds
from activities.batch_trial import try_update
from activities.batch_walk import BY_ID, RangeWalk, answers
from activities.database_load import LoadReader
from activities.errors import classified, lasting, passing
from activities.evidence import Finding
from activities.heart import Heart, tell_run
from activities.metrics import Metrics
from activities.mongo_clients import MongoClients
from activities.progress import earlier
from activities.secret_refs import SecretResolver
from activities.stage import Stage
from activities.update_rules import WHOLE, decode, touched_fields

P = ParamSpec("P")
T = TypeVar("T")

LOOK_AGAIN = 1.0
"""Seconds between two looks at load that is beyond its limit."""

STILL_ALIVE = 3.0
"""Seconds after which a long batch says that the worker lives."""

THREADS = 32
"""Batches in flight at once, over all runs of a worker."""

NEWS_PAUSE = 1.0
"""Seconds at least between two reports of one range to its run's page."""


class Batches:
    """Plan, try, update and undo. ``metrics`` tells the API's latency and errors; without it they are unknown."""

    def __init__(self, resolver: SecretResolver, metrics: Metrics | None) -> None:
        self._clients = MongoClients(resolver)
        self._load = LoadReader(self._clients, metrics)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="batch")

    # --- before -------------------------------------------------------------------------------------------------

    @activity.defn(name="batches.check")
    def check(self, order: UpdateOrder) -> CollectionCheck:
        """What the collection is and how many documents match; refuses what cannot be updated in batches."""

        def look() -> CollectionCheck:
            return check_collection(self._clients.database(order.stage), order)

        return self._long("look at the collection", look)

    @activity.defn(name="batches.load")
    @classified("read the stage's load")
    def load(self, stage: Stage) -> Load:
        """One reading of everything that batches are throttled by."""
        return self._load.read(stage)

    @activity.defn(name="batches.try")
    def try_on_copies(self, request: TrialRequest) -> Trial:
        """Apply the update to copies of a few documents; refuses one that must not be repeated."""
        order = request.order

        def attempt() -> Trial:
            return try_update(self._clients.database(order.stage), order, request.key, request.documents)

        return self._long("try the update on copies", attempt)

    @activity.defn(name="batches.plan")
    def plan(self, request: PlanRequest) -> Plan:
        """Cut the matching documents into ranges, in one pass over ``_id`` with flat memory."""
        return self._long("plan the ranges of _id", lambda: self._cut(request))

    def _cut(self, request: PlanRequest) -> Plan:
        order = request.order
        collection = self._clients.database(order.stage).get_collection(order.collection)
        query = decode(order.filter)
        ranges = _uncut(collection, query, request) if request.at_least == 1 else None
        if ranges is None:
            cutter = Cutter(collection.codec_options)
            for answer in answers(collection, query, BY_ID, 10_000):
                for document in documents_in(answer):
                    cutter.take(document)
            ranges = cutter.ranges(request.range_documents, request.at_least, request.first_number)
        documents = sum(stretch.documents for stretch in ranges)
        kinds = sorted({stretch.kind for stretch in ranges})
        summary = f"{documents:,} documents in {len(ranges)} ranges of _id ({', '.join(kinds) or 'none'})"
        return Plan(summary=summary, documents=documents, ranges=ranges)

    def _long(self, doing: str, work: Callable[[], T]) -> T:
        """Something that takes as long as the collection is large; says meanwhile that the worker lives."""
        running = self._threads.submit(copy_context().run, classified(doing)(work))
        while not running.done():
            activity.heartbeat({"phase": doing})
            _unless_stopping(doing)
            wait([running], timeout=STILL_ALIVE)
        return running.result()

    # --- the update itself --------------------------------------------------------------------------------------

    @activity.defn(name="batches.update_range")
    async def update_range(self, order: RangeOrder) -> RangeResult:
        """Update one range, batch after batch; go on from the last committed batch of an earlier attempt.

        Cancelled, it commits the batch in flight and returns how far it came. The cursor is stored with Temporal after
        each batch and before the next one, so that a killed worker repeats at most one.
        """
        attempt = _Attempt(self, order)
        walking = asyncio.ensure_future(attempt.run())
        while True:
            try:
                return await asyncio.shield(walking)
            except asyncio.CancelledError:
                if walking.done():
                    raise
                attempt.asked_to_stop = True

    async def in_thread(self, doing: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Blocking work of this class on its own threads, its errors classified."""
        call = functools.partial(classified(doing)(work), *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, call)

    def walk(self, order: RangeOrder, cursor: dict[str, Any]) -> RangeWalk:
        return RangeWalk(self._clients.database(order.order.stage), order, cursor)

    def read_load(self, stage: Stage) -> Load:
        return self._load.read(stage)

    # --- the journal --------------------------------------------------------------------------------------------

    @activity.defn(name="batches.open_journal")
    @classified("open the undo journal")
    def open_journal(self, request: JournalRequest) -> Finding:
        """Make the journal's collection. Its entries stay until :meth:`close_journal` says how long."""
        batch_journal.open_journal(self._journal(request.order))
        return Finding(summary=f"undo journal {request.order.journal}, kept for {request.keep.days} days after the run")

    @activity.defn(name="batches.close_journal")
    def close_journal(self, request: JournalRequest) -> Finding:
        """After a success: entries go by themselves so long after they were written. Builds an index over them."""
        journal = self._journal(request.order)
        self._long("set how long the journal stays", lambda: batch_journal.close_journal(journal, request.keep))
        return Finding(summary=f"entries of {journal.name} go {request.keep.days} days after they were written")

    def _journal(self, order: UpdateOrder) -> Documents:
        return self._clients.database(order.stage).get_collection(order.journal or "")

    @activity.defn(name="batches.revert")
    @classified("undo the update by its journal")
    def revert(self, order: UpdateOrder) -> Reverted:
        """Put former values back where documents still carry what the update wrote. Safe to repeat.

        The journal is dropped when nothing was left alone; otherwise it stays, with the entries of those documents.

        Raises:
            JournalExpired: entries had gone by then. What the others tell of is put back.
        """
        db = self._clients.database(order.stage)
        collection, journal = db.get_collection(order.collection), self._journal(order)
        whole = touched_fields(order.update) == (WHOLE,)
        reverted = int(earlier().get("reverted", 0))
        while (done := batch_journal.revert_some(collection, journal, whole)) is not None:
            reverted += done[0]
            activity.heartbeat({"phase": "undoing", "reverted": reverted})
            _unless_stopping("undoing")
        if not batch_journal.is_whole(journal):
            raise lasting(
                f"{reverted:,} documents put back, but the oldest entries of {journal.name} had expired: theirs "
                "stay updated. Correct them by hand, or restore the backup",
                type="JournalExpired",
            )
        kept = batch_journal.left_alone(journal)
        if kept == 0:
            db.drop_collection(journal.name)
        others = f"; {kept:,} left alone, because they have changed since (entries in {journal.name})" if kept else ""
        return Reverted(summary=f"{reverted:,} documents put back{others}", reverted=reverted, kept=kept)


def _uncut(collection: Documents, query: Document, request: PlanRequest) -> tuple[IdRange, ...] | None:
    """Ranges that need no cut, where that is enough: to count is several times cheaper than to read every ``_id``."""
    found = collection.aggregate([{"$match": query}, BY_TYPE])
    counted = {str(group["_id"]): int(group["documents"]) for group in found}
    return whole_kinds(counted, request.range_documents, request.first_number)


def _unless_stopping(phase: str) -> None:
    if activity.is_worker_shutdown():
        raise passing(f"the worker stopped during: {phase}. The next attempt goes on", type="WorkerStopping")


class _Attempt:
    """One attempt at a range: batches in turn with looks at the load, heartbeats and news for the run's page."""

    def __init__(self, batches: Batches, order: RangeOrder) -> None:
        self._batches, self._order = batches, order
        self.asked_to_stop = False
        self._heart = Heart()
        self._cursor = earlier()
        self._throttled_s = float(self._cursor.get("throttled_s", 0))
        self._judge = LoadJudge(order.throttle, order.abort)
        self._told = (0, "", 0.0)  # documents, why, when
        self._why = ""

    async def run(self) -> RangeResult:
        self._walk = walk = await self._batches.in_thread(
            "open the collection", self._batches.walk, self._order, self._cursor
        )
        began = time.monotonic()
        self._told = (walk.walked, "", began)
        try:
            while not walk.finished:
                await self._beat()
                if self.asked_to_stop:
                    return self._result("asked")
                if time.monotonic() - began > self._order.longest.total_seconds():
                    return self._result("time")
                _unless_stopping("updating")
                verdict = await self._look_at_load()
                if verdict.word == "abort":
                    return self._result("abort", verdict.why)
                if verdict.word == "go":
                    before = walk.walked
                    try:
                        await self._with_pulse(self._batches.in_thread("update a batch", walk.batch))
                    except ApplicationError as error:
                        if not error.non_retryable:
                            raise
                        # As a result, so that the run knows how far this range came.
                        return self._result("failed", error.message, error.type)
                    self._count(walk.walked - before)
                    await self._news()
                else:
                    await self._wait(verdict.why)
            return self._result("finished")
        finally:
            walk.close()

    async def _look_at_load(self) -> Verdict:
        reading = self._batches.in_thread("read the load", self._batches.read_load, self._order.order.stage)
        return self._judge.see(await self._with_pulse(reading))

    async def _wait(self, why: str) -> None:
        self._why = why
        await self._news(why)
        await asyncio.sleep(LOOK_AGAIN)
        self._throttled_s += LOOK_AGAIN

    def _count(self, documents: int) -> None:
        """For the team's dashboards: their rate is how fast the migration goes."""
        labels = {"stage": self._order.order.stage.name}
        meter = activity.metric_meter()
        meter.create_counter("runbooks_batch_documents", "Documents that batches went through").add(documents, labels)
        meter.create_counter("runbooks_batches", "Batches that were committed").add(1, labels)

    async def _with_pulse(self, work: Awaitable[T]) -> T:
        """Wait for a batch or a reading, and say meanwhile that the worker lives."""
        task = asyncio.ensure_future(work)
        while not task.done():
            done, _ = await asyncio.wait({task}, timeout=STILL_ALIVE)
            if not done:
                await self._beat()
        return task.result()

    async def _beat(self) -> None:
        details = {**self._walk.cursor, "throttled_s": round(self._throttled_s, 1)}
        if self._why:
            details["waits"] = self._why
        if await self._heart.beat(details):
            self.asked_to_stop = True

    async def _news(self, why: str = "") -> None:
        """Tell the run's page: after so many documents, and when waiting begins or ends."""
        walked, before, at = self._told
        self._why = why
        due = self._walk.walked - walked >= self._order.news_every or why[:20] != before[:20]
        if due and time.monotonic() - at >= NEWS_PAUSE:
            self._told = (self._walk.walked, why, time.monotonic())
            await tell_run(
                "batch_news",
                {
                    "range": self._order.range.number,
                    "documents": self._walk.walked,
                    "updated": self._walk.updated,
                    "size": self._walk.size,
                    "why": why or None,
                },
            )

    def _result(self, ended: Ended, why: str | None = None, kind: str | None = None) -> RangeResult:
        walk = self._walk
        speed = f", {walk.walked / walk.busy_s:,.0f} a second" if walk.busy_s and walk.walked else ""
        return RangeResult(
            summary=f"{walk.updated:,} of {walk.walked:,} documents changed in {walk.batches} batches{speed}",
            range=walk.left(),
            finished=walk.finished,
            walked=walk.walked,
            updated=walk.updated,
            batches=walk.batches,
            next_size=walk.size,
            busy_s=round(walk.busy_s, 3),
            throttled_s=round(self._throttled_s, 1),
            ended=ended,
            why=why,
            kind=kind,
        )
