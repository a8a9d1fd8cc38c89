"""The rotation log in S3, beside a real Temporal server: what holds a rotation up, and until when."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from temporalio.client import Client
from temporalio.testing import ActivityEnvironment

from activities.rotation_log import RotationLog
from activities.rotation_models import PairQuery, RotationEntry
from tests.activities.site import Site

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def entry(run: str, secret: str = "production/ApiKeys", started: datetime = NOW) -> RotationEntry:
    return RotationEntry(
        pair="public-api",
        secret=secret,
        stage="production",
        runbook="ApiKeyRotation",
        run=run,
        started_at=started,
        overlap_until=started + 30 * DAY,
    )


async def test_what_holds_a_rotation_up_is_told_with_its_end(new_site: Callable[[], Site], client: Client) -> None:
    log, run = RotationLog(new_site().records, client), ActivityEnvironment().run
    asked = PairQuery(entry=entry("mine"), overlap=14 * DAY)
    assert not (await run(log.pair, asked)).blocked
    done = entry("other", "production/Partners", NOW - 10 * DAY).model_copy(update={"status": "completed"})
    log.enter(done)
    found = await run(log.pair, asked)
    assert (found.blocked, found.until) == (True, NOW + 4 * DAY)
    goes_on = await client.start_workflow("Nobody", id=f"rotation-{uuid.uuid4()}", task_queue=f"none-{uuid.uuid4()}")
    log.enter(entry(goes_on.id, started=NOW - 9 * DAY))
    found = await run(log.pair, asked)
    assert (found.blocked, found.until) == (True, NOW + 21 * DAY)
    await goes_on.terminate()
    assert (await run(log.pair, asked)).until == NOW + 4 * DAY, "its entry is open, but nothing of it runs"
