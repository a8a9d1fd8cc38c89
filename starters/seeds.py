"""One finished example a runbook, so that 'Start workflow like this one' in the Temporal UI fills the form.

Each is the example of the runbook's own page, as a dry run: it looks at everything and changes nothing. The stages get
a real backup first, because restores have nothing to show without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from starters import runs
from starters.problems import Code, Problem
from starters.session import Session
from workflows.database_backup import DatabaseBackup
from workflows.model import RunbookInput
from workflows.runbook import Runbook

WHO = "the sandbox"

_PATIENCE = 120.0
"""Seconds until an example that has not ended is told as such; a busy machine does one after another."""


async def seed(session: Session, catalog: Iterable[type[Runbook[Any]]]) -> dict[str, str]:
    """Start what is not there yet and wait for it; how each ended, by its id.

    One after another: a gradual rollback does not begin beside a migration, not even as a dry run.
    """
    found: dict[str, str] = {}
    for stage in sorted(session.settings.stages):
        # Not an example but a need of others, and the sandbox's AWS forgets everything when it ends: each time anew.
        name = runs.new_id(DatabaseBackup, stage, datetime.now(UTC))
        found[name] = await _run(session, name, DatabaseBackup, {"stage": stage, "reason": "so that there is one"})
    for runbook in catalog:
        name = f"example-{runbook.__name__}"
        found[name] = await _run(session, name, runbook, {**runbook.spec.example, "dry_run": True})
    return found


async def begin_examples(session: Session, catalog: Iterable[type[Runbook[Any]]], stage: str) -> dict[str, bool]:
    """Start the example of every runbook on that stage as a dry run; by its id, whether it had not been there before.

    Nobody waits for them: what does not work on this stage today ends as failed, and its form can be used all the same.
    """
    begun: dict[str, bool] = {}
    for runbook in catalog:
        given = {"requested_by": "an example", **runbook.spec.example, "stage": stage, "dry_run": True}
        name = f"example-{runbook.__name__}"
        begun[name] = await _begin(session, name, runbook, given)
    return begun


async def _begin(session: Session, name: str, runbook: type[Runbook[Any]], given: dict[str, Any]) -> bool:
    inp: RunbookInput = runbook.spec.input.model_validate(given)
    try:
        await runs.begin(session, runbook, inp, name)
    except Problem as problem:
        if problem.code is not Code.CONFLICT:
            raise
        return False  # it is there already
    return True


async def _run(session: Session, name: str, runbook: type[Runbook[Any]], given: dict[str, Any]) -> str:
    await _begin(session, name, runbook, {"requested_by": WHO, **given})
    try:
        ended = await asyncio.wait_for(runs.ended(session, name), _PATIENCE)
    except TimeoutError:
        return "still runs"
    return ended.outcome if ended.well else f"{ended.outcome}: {ended.summary}"
