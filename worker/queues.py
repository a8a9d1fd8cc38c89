"""Which task queues a worker serves.

Runs and their steps come through one queue, the long work on databases through another. Each has slots of its own, so
that no number of migrations keeps a rollback waiting; within a queue the server hands out incident work first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from activities.settings import ConfigError, Settings

STEPS, MIGRATIONS = "runbooks", "migrations"

ACTIVITY_THREADS = 64
"""Steps in flight at once. Most of them wait for the network."""

MIGRATION_SLOTS = 16
"""Long database activities in flight at once: dumps, restores, index builds, ranges of documents."""


@dataclass(frozen=True)
class Queue:
    name: str
    slots: int


def served(settings: Settings, environment: Mapping[str, str]) -> list[Queue]:
    """The queues that this process serves: both, or the one kind that ``RUNBOOKS_SERVE`` names.

    Raises:
        ConfigError: it names something else.
    """
    every = {
        STEPS: Queue(settings.task_queue, ACTIVITY_THREADS),
        MIGRATIONS: Queue(settings.migrations_queue, MIGRATION_SLOTS),
    }
    wanted = environment.get("RUNBOOKS_SERVE")
    if not wanted:
        return list(every.values())
    if wanted not in every:
        raise ConfigError(f"RUNBOOKS_SERVE is {wanted!r}: it takes {' or '.join(map(repr, every))}; unset serves both")
    return [every[wanted]]
