"""Whether the database's connections stay as they were across a change."""

from __future__ import annotations

from typing import Any

from temporalio import workflow

from activities.database import Connections, Database
from workflows.runbook import Runbook
from workflows.settling import settle

_MORE, _FEW = 1.5, 10


def connections_stable(before: Connections | None, after: Connections | None) -> tuple[bool, str]:
    """Whether the database kept answering and its connections did not run away: at most half as many again, and ten."""
    if before is None or after is None:
        return False, "the database could not be asked twice"
    if before.current is None or after.current is None:
        return True, f"answers in {after.ping_ms:.0f} ms; the server does not count its connections"
    stable = after.current <= before.current * _MORE + _FEW
    return stable, f"{before.current} connections, then {after.current}; answers in {after.ping_ms:.0f} ms"


async def settled_since(
    run: Runbook[Any], before: Connections | None, step: str, *, title: str | None = None
) -> tuple[bool, str]:
    """Look again at the connections, until they are what they were ``before`` or the stage's patience is over.

    A deployment has more for a while: the environments of the former release keep their pools until Lambda ends them.
    """

    async def look() -> Connections | None:
        return await run.observe(step, Database.connections, run.stage, title=title)

    after = await look()
    if before is not None and not connections_stable(before, after)[0] and workflow.patched("connections-settle"):

        async def settled() -> bool:
            nonlocal after
            after = await look()
            return connections_stable(before, after)[0]

        await settle(run, f"{step}-settle", "let former connections end", settled)
    return connections_stable(before, after)
