"""Rehearsal against the real house: it finds what would not work, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sandbox.state import Vault
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, failure, finished, progress
from workflows.model import Outcome


async def test_it_tries_runbooks_and_changes_nothing(site: Site) -> None:
    before, told = site.snapshot(), len(site.received("slack"))
    handle = await site.start("Rehearsal", reason="monthly rehearsal", only=["QuickRollback", "DatabaseBackup"])
    result = await finished(handle, 120)
    assert (result.outcome, result.facts["would_work"]) == (Outcome.COMPLETED, 2), result
    assert all(item.done for item in result.checklist), result.checklist
    assert "from broken" not in str(result.would_change)
    assert site.snapshot() == before
    assert len(site.received("slack")) == told
    quick = (await progress(handle)).step("quick-rollback")
    assert quick is not None
    assert "back to good" in str(quick.summary) or "→ good" in str(quick.summary)
    await keep(handle, "Rehearsal", "all-would-work")


async def test_a_pager_that_refuses_is_found(site: Site) -> None:
    site.house.fault("pagerduty", "http", status=400)
    try:
        handle = await site.start("Rehearsal", reason="monthly rehearsal", only=["DatabaseBackup"])
        error = await failure(handle, 120)
    finally:
        site.house.mend("pagerduty")
    assert error.type == "NotReady"
    assert "pagerduty (" in error.message
    assert "HTTP 400" in error.message
    await keep(handle, "Rehearsal", "pager-refuses")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


async def test_the_log_of_a_worker_that_has_read_every_secret_holds_none(site: Site, worker: WorkerProcess) -> None:
    handle = await site.start("Rehearsal", reason="the log", only=["DatabaseBackup"])
    await finished(handle, 120)
    secrets = [value for value in strings(Vault.open(site.house.layout.vault).model_dump()) if len(value) > 7]
    assert len(secrets) > 8
    said = worker.log()
    assert [value[:3] for value in secrets if value in said] == []
