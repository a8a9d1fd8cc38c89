"""The rotation log: which secret was rotated when, by which run, and what must not be rotated now because of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING

from pydantic import ValidationError
from temporalio import activity
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from activities.errors import classified, passing
from activities.records import Records
from activities.rotation_models import Entered, LastQuery, LastRotation, PairFound, PairQuery, RotationEntry

if TYPE_CHECKING:
    from temporalio.client import Client

_LOOKED_AT = 50
"""Newest entries of a pair that are read."""


class RotationLog:
    def __init__(self, records: Records, client: Client) -> None:
        self._records = records
        self._client = client

    @activity.defn(name="rotation_log.enter")
    @classified("write to the rotation log")
    def enter(self, entry: RotationEntry) -> Entered:
        """Write the entry of a rotation, in place of the one that the same run wrote before."""
        location = self._records.store_json(_key(entry), entry)
        return Entered(summary=f"rotation log: {entry.secret} {entry.status}", location=location)

    @activity.defn(name="rotation_log.last")
    @classified("read the rotation log")
    def last(self, asked: LastQuery) -> LastRotation:
        """The newest completed rotation of this secret."""
        name = f"{asked.stage}/{asked.secret.name}"
        for entry in self._entries(asked.secret.pair or name):
            if entry.secret == name and entry.runbook == asked.runbook and entry.status == "completed":
                when = f"{entry.ended_at:%Y-%m-%d %H:%M}" if entry.ended_at else "?"
                return LastRotation(summary=f"{name} was last rotated on {when} UTC by {entry.run}", entry=entry)
        return LastRotation(summary=f"the rotation log knows no rotation of {name}")

    @activity.defn(name="rotation_log.pair")
    async def pair(self, asked: PairQuery) -> PairFound:
        """Whether another rotation of the pair is open, or another member's began less than an overlap ago.

        Of two that begin at the same moment each sees the other; the one that entered first goes on.
        """
        mine = asked.entry
        for other in await asyncio.to_thread(self._read, mine.pair):
            if other.run == mine.run:
                continue
            first = (other.started_at, other.run) < (mine.started_at, mine.run)
            if other.status == "open" and first and await self._runs(other.run):
                return PairFound(
                    summary=f"{other.secret} is being rotated by {other.run}, until {other.overlap_until:%Y-%m-%d}",
                    blocked=True,
                    until=other.overlap_until,
                )
            recent = other.started_at > mine.started_at - asked.overlap
            if other.status == "completed" and other.secret != mine.secret and recent:
                return PairFound(
                    summary=f"{other.secret}, of the same pair, was rotated from {other.started_at:%Y-%m-%d %H:%M} on, "
                    f"less than one overlap ago",
                    blocked=True,
                    until=other.started_at + asked.overlap,
                )
        return PairFound(summary="no other rotation of it is under way", blocked=False)

    @classified("read the rotation log")
    def _read(self, pair: str) -> list[RotationEntry]:
        return list(self._entries(pair))

    def _entries(self, pair: str) -> Iterator[RotationEntry]:
        """Newest first. One that cannot be read hides no other."""
        for number, key in enumerate(self._records.keys(f"{_folder(pair)}/")):
            if number >= _LOOKED_AT:
                return
            content = self._records.fetch(self._records.location(key))
            if content is None:
                continue
            try:
                yield RotationEntry.model_validate_json(content)
            except ValidationError:
                continue

    async def _runs(self, workflow_id: str) -> bool:
        try:
            found = await self._client.get_workflow_handle(workflow_id).describe()
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise passing(f"could not look at run {workflow_id}: {error.status.name}") from None
        return found.status == WorkflowExecutionStatus.RUNNING


def _folder(pair: str) -> str:
    return f"rotations/{re.sub(r'[^A-Za-z0-9_.-]+', '-', pair)}"


def _key(entry: RotationEntry) -> str:
    """S3 lists keys in ascending order, so the time counts down to put the newest first."""
    moment = entry.started_at.astimezone(UTC)
    countdown = 10**13 - round(moment.timestamp() * 1000)
    run = re.sub(r"[^\w.-]+", "-", entry.run)
    return f"{_folder(entry.pair)}/{countdown:013d}-{moment:%Y%m%dT%H%M%S}-{run}.json"
