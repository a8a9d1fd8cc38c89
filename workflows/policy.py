"""Every time-out and retry of the product, each with its reason. Workflows name a preset; none sets a number inline."""

from __future__ import annotations

from datetime import timedelta
from typing import TypedDict

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType


class ActivityOptions(TypedDict, total=False):
    """The subset of activity options that a preset may set."""

    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy
    cancellation_type: ActivityCancellationType


_STEADY = RetryPolicy(
    initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(seconds=20)
)
"""Quick at first because most faults are short, never slower than 20 s because somebody is waiting in an outage."""

LOOK: ActivityOptions = {
    # One read of an outside system. Ten minutes of trying outlasts a failover; a longer outage is the operator's news.
    "start_to_close_timeout": timedelta(seconds=30),
    "schedule_to_close_timeout": timedelta(minutes=10),
    "retry_policy": _STEADY,
}

OBSERVE: ActivityOptions = {
    # A look that the run can do without: two minutes, then it is reported as not known and the run goes on.
    "start_to_close_timeout": timedelta(seconds=30),
    "schedule_to_close_timeout": timedelta(minutes=2),
    "retry_policy": _STEADY,
}

PROBE: ActivityOptions = {
    # One source of the first look at an incident. Who is to be called must not wait for it: twelve seconds, then it is
    # reported as not read. The second try is for a worker that died with the first one.
    "start_to_close_timeout": timedelta(seconds=8),
    "schedule_to_close_timeout": timedelta(seconds=12),
    "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=0.5), maximum_attempts=2),
}

SEARCH: ActivityOptions = {
    # A search of a log: minutes for a month of it, with heartbeats. Given up after half an hour: what it would have
    # told is then not known, and the run says so.
    "start_to_close_timeout": timedelta(minutes=15),
    "schedule_to_close_timeout": timedelta(minutes=30),
    "heartbeat_timeout": timedelta(minutes=1),
    "retry_policy": _STEADY,
}

SCAN: ActivityOptions = {
    # A look at a whole collection before anything is changed: a count, an explain, a pass over every _id. One try takes
    # as long as the collection is large, and heartbeats. Forty tries that fail are ten to thirty minutes: a wrong
    # password, or a database that is away, is then the operator's news. So is one that takes queries and never answers.
    "start_to_close_timeout": timedelta(hours=2),
    "schedule_to_close_timeout": timedelta(hours=4),
    "heartbeat_timeout": timedelta(seconds=30),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2,
        maximum_interval=timedelta(seconds=20),
        maximum_attempts=40,
    ),
}

WATCH: ActivityOptions = {
    # A look that polls until something holds. Its patience is in its input; the heartbeat finds a dead worker. Also the
    # looks of a migration that has changed documents: an hour without the database must not undo a day's work.
    "start_to_close_timeout": timedelta(hours=2),
    "heartbeat_timeout": timedelta(seconds=30),
    "retry_policy": _STEADY,
}

CHANGE: ActivityOptions = {
    # One quick change (an alias, a setting). If cancelled, wait for its outcome: undo must know what happened.
    "start_to_close_timeout": timedelta(minutes=1),
    "schedule_to_close_timeout": timedelta(minutes=15),
    "retry_policy": _STEADY,
    "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
}

DEPLOY: ActivityOptions = {
    # A deployment takes minutes and heartbeats while it waits. Ending a hung command takes half a minute without one.
    "start_to_close_timeout": timedelta(minutes=45),
    "schedule_to_close_timeout": timedelta(hours=2),
    "heartbeat_timeout": timedelta(seconds=45),
    "retry_policy": _STEADY,
    "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
}

BUILD: ActivityOptions = {
    # A large index takes hours on the server. A dead worker is noticed within 30 s, and the next attempt waits on.
    "start_to_close_timeout": timedelta(hours=24),
    "heartbeat_timeout": timedelta(seconds=30),
    "retry_policy": _STEADY,
    "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
}

BACKUP: ActivityOptions = {
    # A backup or restore takes minutes to hours. It heartbeats at every batch and goes on by collection, so that a dead
    # worker costs 45 s and one collection. If cancelled it stops at the next batch.
    "start_to_close_timeout": timedelta(hours=24),
    "heartbeat_timeout": timedelta(seconds=45),
    "retry_policy": _STEADY,
    "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
}

BATCHES: ActivityOptions = {
    # Some minutes of batches, half a second each, with a stored heartbeat after every one: ten seconds of silence are a
    # dead worker. No limit on attempts: a database that is away is waited for. Cancelled, it tells how far it came.
    # Two hours as for a scan: where few documents match, the first answer of a range is one.
    "start_to_close_timeout": timedelta(hours=2),
    "heartbeat_timeout": timedelta(seconds=10),
    "retry_policy": _STEADY,
    "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
}

MIGRATIONS = (BUILD, BACKUP, BATCHES)
"""Work of hours on a database. It has a task queue of its own, so that no number of it keeps a rollback waiting."""

LOAD: ActivityOptions = {
    # At most half an hour of requests, and their answers; it heartbeats every second. Three attempts: each sends anew.
    "start_to_close_timeout": timedelta(minutes=40),
    "heartbeat_timeout": timedelta(seconds=30),
    "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=2), maximum_attempts=3),
    "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
}

UNDO: ActivityOptions = {
    # No limit on attempts: what was begun is put back, however long the outside system is away. One attempt can be the
    # restore of a whole database; a dead worker is found by the heartbeat.
    "start_to_close_timeout": timedelta(hours=24),
    "heartbeat_timeout": timedelta(minutes=2),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(minutes=1)
    ),
}

ANNOUNCE: ActivityOptions = {
    # People are told quickly or the timeline says that they were not: an announcement never holds a recovery up.
    "start_to_close_timeout": timedelta(seconds=30),
    "schedule_to_close_timeout": timedelta(minutes=1),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2,
        maximum_interval=timedelta(seconds=10),
        maximum_attempts=3,
    ),
}

PAGE: ActivityOptions = {
    # One call, through every pager of the level in turn. Two minutes, then the next level is called without waiting.
    "start_to_close_timeout": timedelta(seconds=45),
    "schedule_to_close_timeout": timedelta(minutes=2),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1), backoff_coefficient=2, maximum_interval=timedelta(seconds=15)
    ),
}

PAGE_PAUSE = timedelta(seconds=30)
"""When no pager took a call, so much later the next level is called."""

VERIFY: ActivityOptions = {
    # Health in a row for at most a minute; the heartbeat finds a dead worker.
    "start_to_close_timeout": timedelta(minutes=2),
    "schedule_to_close_timeout": timedelta(minutes=10),
    "heartbeat_timeout": timedelta(seconds=30),
    "retry_policy": _STEADY,
}

RECORD: ActivityOptions = {
    # The record outlives the run, so it is worth an hour of trying; the run's result stands without it.
    "start_to_close_timeout": timedelta(minutes=1),
    "schedule_to_close_timeout": timedelta(hours=1),
    "retry_policy": _STEADY,
}

LOCK: ActivityOptions = {
    # A call to Temporal itself, which answers in milliseconds or is away altogether.
    "start_to_close_timeout": timedelta(seconds=15),
    "retry_policy": _STEADY,
}

LOCK_REMINDER = (timedelta(minutes=1), timedelta(minutes=15))
"""How soon a queued run asks for its lock again, should the lock's own run have been terminated by hand, and how seldom
at the most: each time is a dozen events of a history that may last for weeks."""


def lock_reminder(waited: timedelta) -> timedelta:
    """How long a run that has queued for so long waits before it asks again."""
    soon, seldom = LOCK_REMINDER
    return min(max(soon, waited / 60), seldom)


LOCK_CHECK = timedelta(seconds=30)
"""How often the lock looks whether its holder still runs, while somebody is queued."""

SHORTENED_TIMELINE = 400
"""Timeline entries kept in a run; older ones are counted, and stand in the history."""

BUILD_LOOKS = (timedelta(seconds=10), timedelta(minutes=10))
"""How soon the progress of an index build is looked at, twice as long each time, and how seldom at the most."""

WATCHDOG = timedelta(seconds=15)
"""How soon traffic comes back after a restart was terminated."""
