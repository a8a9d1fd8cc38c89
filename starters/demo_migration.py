"""``runbooks demo migration``: many documents updated while an application writes, a worker dies, a run is aborted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activities.batch_models import BatchSizes
from starters import runs
from starters.demo_play import APPROVER, STAGE, Play
from starters.problems import Code
from starters.runs import Ended
from starters.sandbox_commands import environment_of, opened
from starters.session import connected
from starters.worker_child import WorkerChild
from workflows.batched_update import BatchedUpdate
from workflows.batched_update_model import BatchedUpdateInput
from workflows.model import By

if TYPE_CHECKING:
    from sandbox.events import Events
    from sandbox.house import House

DOCUMENTS = 50_000

LABEL = "embedded SecantusDB, not MongoDB"


class Migration(Play):
    """A backfill that survives kill -9, then one that is aborted and put back by its journal."""

    runbook = BatchedUpdate
    rate = 0.0
    documents = DOCUMENTS

    def play(self, stack: ExitStack, root: Path) -> int:
        self._scene("starting a whole sandbox: Temporal and its UI, AWS, MongoDB, the people's tools")
        house = stack.enter_context(opened(root, self._aside))
        house.up(attached=True)
        environment = stack.enter_context(environment_of(house))
        temporary = root / "tmp"  # whatever the worker leaves goes with the rest
        temporary.mkdir()
        log = house.layout.log("worker")
        child = stack.enter_context(WorkerChild(environment | {"TMPDIR": str(temporary)}, log, self._aside))
        events = house.events(STAGE)
        stack.callback(events.close)
        events.fill(self.documents)
        self._aside(f"{self.documents:,} events without 'environment' in {STAGE}'s database ({LABEL})")
        backfill = self._backfill(house, events, child)
        aborted = self._abort(events)
        return self._end(backfill, aborted)

    # --- the two runs -------------------------------------------------------------------------------------------

    def _backfill(self, house: House, events: Events, child: WorkerChild) -> dict[str, Any]:
        self._scene("filling 'environment' in, while an application writes its own values and the worker is killed")

        def kill() -> None:
            self._aside(f"kill -9 of the worker, after {events.count(environment='production'):,} documents", "red")
            os.kill(child.pid, signal.SIGKILL)

        half_done = self._share_of(events, "production", 0.4)
        with events.writer("application") as _, _when(half_done, kill):
            end = self._run("backfill of environment", {"environment": {"$exists": False}}, "production")
        seen = {
            "migrated": events.count(environment="production"),
            "kept": events.count(environment="application"),
            "left": events.count(environment=None),
        }
        self._aside(f"{seen['migrated']:,} migrated, {seen['kept']:,} written by the application and kept,", "bold")
        self._aside(f"{seen['left']:,} left behind, {self.documents - sum(seen.values()):,} lost", "bold")
        return {**seen, "ended": end}

    def _abort(self, events: Events) -> dict[str, Any]:
        self._scene("updating them again, with a value that turns out to be wrong: abort, undone by the journal")
        before = events.count(environment="production")
        begun: list[str] = []

        def abort() -> None:
            by = By(by=APPROVER, reason="the value is wrong")
            self._aside(f"aborting after {events.count(environment='wrong'):,} documents", "red")
            connected(lambda session: runs.send(session, begun[0], "abort", by, APPROVER))

        with _when(self._share_of(events, "wrong", 0.3), abort):
            end = self._run("a wrong value", {"environment": "production"}, "wrong", begun)
        after, wrong = events.count(environment="production"), events.count(environment="wrong")
        self._aside(f"{wrong:,} still have the wrong value, {after:,} of {before:,} the former one", "bold")
        return {"wrong": wrong, "restored": after == before, "ended": end}

    @property
    def _sizes(self) -> BatchSizes:
        """Small, so that there is something to see: fifty thousand documents would be over in seconds.

        More documents are not more batches: where each batch costs a scan, as here, the demo would take for ever.
        """
        times = max(1, round(self.documents / DOCUMENTS))
        return BatchSizes(initial=300 * times, min=100 * times, max=600 * times, target_ms=250)

    def _run(self, reason: str, query: dict[str, Any], value: str, begun: list[str] | None = None) -> Ended:
        request = BatchedUpdateInput(
            stage=STAGE,
            reason=reason,
            requested_by=self.requester,
            collection="events",
            filter=query,
            update={"$set": {"environment": value}},
            batch=self._sizes,
            journal=True,
        )
        started = connected(lambda session: runs.begin(session, self.runbook, request))
        if begun is not None:
            begun.append(started.id)
        self._output.line(f"  the run in the Temporal UI: {started.ui}")
        self._watch(started.id)
        return connected(lambda session: runs.ended(session, started.id))

    def _share_of(self, events: Events, value: str, share: float) -> Callable[[], bool]:
        return lambda: events.count(environment=value) >= share * self.documents

    # --- the end ------------------------------------------------------------------------------------------------

    def _end(self, backfill: dict[str, Any], aborted: dict[str, Any]) -> int:
        right = backfill["left"] == 0 and backfill["migrated"] + backfill["kept"] == self.documents
        right = right and aborted["wrong"] == 0 and bool(aborted["restored"])
        self._scene("the end")
        for part in (backfill, aborted):
            end: Ended = part.pop("ended")
            part |= {"outcome": end.outcome, "summary": end.summary}
            self._output.line(f"  {end.outcome}: {end.summary}")
        verdict = "every document is as it should be" if right else "NOT every document is as it should be"
        self._output.line(f"  {verdict} ({LABEL})", "bold green" if right else "bold red")
        seconds = round(time.monotonic() - self._began, 1)
        if self._output.json:
            document = {"documents": self.documents, "backfill": backfill, "aborted": aborted}
            self._output.show({**document, "right": right, "seconds": seconds, "database": LABEL})
        return Code.DONE if right else Code.RUN_FAILED


@contextlib.contextmanager
def _when(holds: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Do something once, as soon as something holds, while the block lasts."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            if holds():
                act()
                return

    thread = threading.Thread(target=watch, name="demo-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
