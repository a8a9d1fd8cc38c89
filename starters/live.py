"""Following a run until it ends, or until it asks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence

from rich.live import Live
from temporalio.client import WorkflowExecutionStatus

from starters.attempts import Trying, trying
from starters.output import Output
from starters.runs import NoAnswerError, described, state_of
from starters.screen import Narrator, run_view
from starters.session import Session
from workflows.model import RunState

_EVERY = 0.4
"""Seconds between two looks: quick enough to look live, one cheap query each."""


class Follower:
    """Shows one run as it goes, whatever happens to its worker meanwhile."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._narrator = Narrator(output)
        self._silent = False

    async def follow(self, session: Session, workflow_id: str, *, until_gate: bool = False) -> RunState | None:
        """Show the run until it has ended; with ``until_gate`` also when a gate is open.

        Returns:
            The last state seen; None when no worker ever answered before the end.
        """
        state: RunState | None = None
        with self._drawing() as live:
            while True:
                description = await described(session, workflow_id)
                page = session.page(workflow_id)
                note = ""
                try:
                    state = await state_of(session, workflow_id)
                    self._silent = False
                except NoAnswerError as problem:
                    note = str(problem)
                over = description.status is not WorkflowExecutionStatus.RUNNING
                self._draw(live, state, page, note, await trying(session, description))
                if over or (until_gate and state and not note and state.open_gate()):
                    return state
                await asyncio.sleep(_EVERY)

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[Live | None]:
        if not self._output.live:
            yield None
            return
        with Live(console=self._output.console, auto_refresh=False, vertical_overflow="ellipsis") as live:
            yield live

    def _draw(self, live: Live | None, state: RunState | None, page: str, note: str, failing: Sequence[Trying]) -> None:
        if live and state:
            live.update(run_view(state, page, note, failing, brief=state.outcome is None), refresh=True)
            return
        if state and not note:
            self._narrator.tell(state, failing)
        if note and not self._silent:
            self._silent = True
            self._output.line(note, "yellow")
