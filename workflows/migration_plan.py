"""What a migration will take and whether it went well: estimates, plans, verdicts. Pure functions, no clock."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, Field

from activities.migration_models import MigrationState, QueryCost
from workflows.database_migration_model import DatabaseMigrationInput
from workflows.details import length
from workflows.model import Scalar

RULE = timedelta(minutes=5)
"""The document: about five minutes a gigabyte."""

GIGABYTE = 1024**3

BACKUP_GOOD_FOR = timedelta(hours=12)
"""A backup older than this is made anew just before the change: the window may have opened a day after the yes."""

STEADY_SHARE, STEADY_DOCUMENTS = 0.2, 1000
"""Counts of a live collection move all the time. Up to this it is the same plan; beyond, people are asked again."""

SLOWER_SHARE, SLOWER_MS = 1.25, 5.0
"""A query counts as slower when it takes a quarter more, and more than the noise of a median of five."""


class Rehearsal(BaseModel):
    """What staging showed. Its own measured rate is the better estimate."""

    summary: str
    seconds: float | None = Field(None, description="How long the change itself took")
    documents: int | None = Field(None, description="Documents that it changed; of the whole collection for an index")


def by_rule(state: MigrationState) -> timedelta | None:
    """The document's estimate, from the size of the collection; None when that is not known."""
    if state.collection_bytes is None:
        return None
    return RULE * (state.collection_bytes / GIGABYTE)


def work(state: MigrationState) -> int:
    """Documents that the change has to go through."""
    return state.documents if state.remaining is None else state.remaining


def measured(state: MigrationState, rehearsal: Rehearsal | None) -> timedelta | None:
    """The estimate by the rate that staging showed; None when staging was too small or too quick to show one."""
    if rehearsal is None or not rehearsal.seconds or not rehearsal.documents:
        return None
    return timedelta(seconds=rehearsal.seconds * work(state) / rehearsal.documents)


def estimate(state: MigrationState, rehearsal: Rehearsal | None) -> timedelta:
    """What is reckoned with: the longer of the two, because a window that is too long hurts nobody."""
    known = [found for found in (by_rule(state), measured(state, rehearsal)) if found is not None]
    return max(known, default=timedelta(0))


def eta_line(state: MigrationState, rehearsal: Rehearsal | None) -> str:
    rule, rate = by_rule(state), measured(state, rehearsal)
    parts = [
        f"{length(rule)} by the rule of 5 min a GB" if rule is not None else "size not known",
        f"{length(rate)} by the rate measured on staging" if rate is not None else "no rate measured",
    ]
    return ", ".join(parts)


def steady(before: MigrationState, now: MigrationState) -> MigrationState:
    """``now``, with the counts of ``before`` where they have hardly moved."""
    kept = {}
    for name in ("documents", "remaining", "collection_bytes", "database_bytes"):
        old, new = getattr(before, name), getattr(now, name)
        slack = STEADY_DOCUMENTS if name in ("documents", "remaining") else 0
        if old is not None and new is not None and abs(new - old) <= max(slack, STEADY_SHARE * old):
            kept[name] = old
    return now.model_copy(update=kept)


def plan_facts(
    inp: DatabaseMigrationInput, state: MigrationState, rehearsal: Rehearsal | None, window: str
) -> dict[str, Scalar]:
    """Exactly what a yes releases."""
    return {
        "stage": inp.stage,
        "change": inp.change.described(),
        "documents": state.documents,
        "to migrate": state.remaining,
        "size": megabytes(state.collection_bytes),
        "estimate": eta_line(state, rehearsal),
        "query now": state.cost.plan,
        "index is there": state.index_ready,
        "redundant beside it": ", ".join(state.makes_redundant) or None,
        "code": code_line(inp),
        "undo": undo_line(inp),
        "backup": f"verified, at most {length(BACKUP_GOOD_FOR)} old when the change begins",
        "staging": rehearsal.summary if rehearsal else "this is the staging stage",
        "window": window,
    }


def code_line(inp: DatabaseMigrationInput) -> str:
    named = f"release {inp.release} is deployed" if inp.release else "people are asked"
    return f"{named} after the index is verified" if inp.change.kind == "add_index" else f"{named} before the update"


def undo_line(inp: DatabaseMigrationInput) -> str:
    if inp.change.kind == "add_index":
        return "dropIndexes; nothing is lost"
    return "by its journal of former values" if inp.journal else "only by restoring the backup (loses later writes)"


def rollback_plan(inp: DatabaseMigrationInput, backup: str | None) -> str:
    """The plan for going back, written down before anything is changed."""
    if inp.change.kind == "add_index":
        first = "the build is stopped and the index dropped with dropIndexes (Ctrl+C stops no build)."
    elif inp.journal:
        first = "it stops within a batch, and former values come back by the journal, unless somebody wrote since."
    else:
        first = "it stops within a batch. What was updated stays updated: there is no journal."
    return "\n".join(
        (
            f"1. Abort this run: {first}",
            f"2. Code that this run deployed ({inp.release or 'none'}) is replaced by what was live before.",
            f"3. Last resort: DatabaseRestore ({inp.restore}) of {backup or 'the backup of this run'}, 30 to 60 "
            "minutes; writes since the backup are lost. This run asks for it when 1 does not succeed.",
            "4. Then /health/ready has to answer, and QuickRollback reverts the code if it needs the new data.",
        )
    )


def megabytes(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1024**2:.1f} MB"


def performance(before: QueryCost, after: QueryCost) -> tuple[bool, str]:
    """Whether the query is as fast as before or faster. What could not be measured is not good.

    A slower one that examines less than half of what it did is not the change's doing: the database is busier.
    """
    note = f"before: {before.described()}; after: {after.described()}"
    if before.latency_ms is None or after.latency_ms is None:
        return before.latency_ms is None and after.latency_ms is not None, note
    slower = after.latency_ms > max(before.latency_ms * SLOWER_SHARE, before.latency_ms + SLOWER_MS)
    if slower and _less_work(before, after):
        return True, f"{note}; it examines less than half, the database is busier than before"
    return not slower, note


def _less_work(before: QueryCost, after: QueryCost) -> bool:
    if before.docs_examined is None or after.docs_examined is None:
        return False
    return after.docs_examined < before.docs_examined / 2


def count_change(before: int, after: int) -> tuple[bool, str]:
    """Whether the documents are all there. A migration deletes nothing; the application adds and deletes meanwhile."""
    if after == before:
        return True, f"{after} documents, as before"
    if after > before:
        return True, f"{after} documents, {after - before} more than before: written meanwhile"
    return False, f"{after} documents, {before - after} fewer than before"
