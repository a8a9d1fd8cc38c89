"""Which runbooks begin by themselves, on which stages and when: the schedules, as code.

Pure: from the settings and the catalog to the schedules that there should be. ``starters/schedules.py`` makes it so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from pydantic import ValidationError
from temporalio.client import (
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleCalendarSpec,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleState,
)
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from activities.schedules import PREFIX, runs_of, schedule_id
from activities.settings import Settings
from activities.stage import Stage
from starters.catalog import Catalog
from starters.problems import Code, Problem
from workflows import search_attributes
from workflows.details import escape
from workflows.operator import explain

DAY = timedelta(days=1)

PLAN = "runbooks-plan"
"""Memo of the runs that a schedule starts: which form of the plan they were started by."""

_JITTER = timedelta(minutes=20)
"""So that several stages and teams do not begin at the same second."""


@dataclass(frozen=True)
class Cadence:
    """How often a runbook begins by itself, and why."""

    runbook: str
    words: str
    """When, for people; ``{day}`` is the day of the month."""
    why: str
    catch_up: timedelta
    """A start that was missed while Temporal was away is made up for this long."""
    every: timedelta | None = None
    months: tuple[int, ...] = ()
    day: int | None = None
    hour: int = 9
    production_later: timedelta = timedelta(0)
    """Production comes this much after the other stages."""
    only_production: bool = False
    renewed: bool = False
    """Each run sets the date of the next one, under the same id; the cadence holds for the first."""
    rotates: Literal["api_keys", "database", "signing"] | None = None
    """Only on stages whose settings name this rotated secret."""
    backed_up_by: Literal["archive", "atlas"] | None = None
    """Only on stages whose backups this provider makes."""
    input: Mapping[str, Any] = field(default_factory=dict)
    rehearsed_with: Mapping[str, Any] = field(default_factory=dict)
    """Also given to the run on a stage that is rotated before a production stage."""


CADENCES = (
    Cadence(
        "ApiKeyRotation",
        "every 90 days",
        "the document: API keys every 90 days",
        every=90 * DAY,
        production_later=7 * DAY,
        renewed=True,
        rotates="api_keys",
        catch_up=14 * DAY,
        # Over before production's turn a week later, which takes it for its rehearsal, and could not rotate there anew.
        rehearsed_with={"grace": "P5D", "extension": "P1D"},
    ),
    Cadence(
        "DatabaseCredentialRotation",
        "on the {day}th of February and August",
        "the document: MongoDB credentials every 6 months",
        months=(2, 8),
        day=15,
        production_later=7 * DAY,
        renewed=True,
        rotates="database",
        catch_up=14 * DAY,
    ),
    Cadence(
        "SigningSecretRotation",
        "on the {day}th of May and November",
        "the document gives no time: as often as the database's credentials, and not beside them",
        months=(5, 11),
        day=15,
        production_later=7 * DAY,
        renewed=True,
        rotates="signing",
        catch_up=14 * DAY,
    ),
    Cadence(
        "RestoreDrill",
        "on the {day}th of January, April, July and October",
        "the document: always test backup restores (quarterly)",
        months=(1, 4, 7, 10),
        day=10,
        only_production=True,
        catch_up=7 * DAY,
    ),
    Cadence(
        "DatabaseBackup",
        "daily",
        "the document: daily automated backups; an archive is made by nobody else",
        # Before BackupCheck looks for it. No clock of the world is put forward over this hour, and none repeats it.
        hour=4,
        backed_up_by="archive",  # Atlas takes its snapshots by the cluster's own policy
        catch_up=timedelta(hours=12),
    ),
    Cadence(
        "BackupCheck",
        "daily",
        "the document: daily automated backups; a backup that nobody looks at is missed for months",
        hour=7,
        catch_up=timedelta(hours=12),
    ),
    Cadence(
        "Rehearsal",
        "on the {day}th of each month",
        "would every runbook work today? credentials, targets, previous artifact, newest backup, pager",
        months=tuple(range(1, 13)),
        day=6,
        production_later=DAY,
        catch_up=7 * DAY,
    ),
)
"""A runbook that is not in the catalog has no schedule."""


@dataclass(frozen=True)
class Planned:
    """One schedule that there should be."""

    id: str
    cadence: Cadence
    stage: str
    note: str
    schedule: Schedule
    mark: str
    """Names exactly this form of it."""


def plan(settings: Settings, catalog: Catalog) -> list[Planned]:
    """The schedules that there should be for these stages and runbooks.

    Raises:
        Problem: a runbook would not take the input of its schedule.
    """
    known = {runbook.__name__: runbook for runbook in catalog}
    return [
        _planned(settings, cadence, stage, known[cadence.runbook].spec.input)
        for cadence in CADENCES
        if cadence.runbook in known
        for stage in settings.stages.values()
        if stage.production or not cadence.only_production
        if cadence.rotates is None or getattr(stage.rotation, cadence.rotates) is not None
        if cadence.backed_up_by in (None, stage.backup.provider)
    ]


def _planned(settings: Settings, cadence: Cadence, stage: Stage, model: Any) -> Planned:
    name = schedule_id(cadence.runbook, stage.name)
    words = cadence.words.format(day=_day(cadence, stage))
    given = {
        "stage": stage.name,
        "reason": f"scheduled {words}",
        "requested_by": f"schedule {name}",
        **cadence.input,
        **(cadence.rehearsed_with if _is_rehearsed(settings, stage) else {}),
    }
    try:
        model.model_validate(given)
    except ValidationError as error:
        raise Problem(
            f"{cadence.runbook} does not take the input of its schedule: {explain(error)}", Code.BAD_INPUT
        ) from None
    spec, note = _spec(cadence, stage), f"{cadence.runbook} on {stage.name}, {words}: {cadence.why}"
    policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=cadence.catch_up)
    mark = _mark(given, note, settings.task_queue, spec, policy)
    action = ScheduleActionStartWorkflow(
        cadence.runbook,
        given,
        id=runs_of(name),
        task_queue=settings.task_queue,
        memo={PLAN: mark},
        typed_search_attributes=TypedSearchAttributes([SearchAttributePair(search_attributes.STAGE, stage.name)]),
        static_summary=escape(f"{cadence.runbook} on {stage.name}, {words}"),
    )
    schedule = Schedule(action=action, spec=spec, policy=policy, state=ScheduleState(note=note))
    return Planned(id=name, cadence=cadence, stage=stage.name, note=note, schedule=schedule, mark=mark)


def _is_rehearsed(settings: Settings, stage: Stage) -> bool:
    return any(one.production and one.rotation.rehearse_on == stage.name for one in settings.stages.values())


def _day(cadence: Cadence, stage: Stage) -> int | None:
    """Day of the month; production is later than the others."""
    earlier = 0 if stage.production else cadence.production_later.days
    return cadence.day - earlier if cadence.day else None


def _spec(cadence: Cadence, stage: Stage) -> ScheduleSpec:
    """When, by the clock of the stage's own time zone where it has one."""
    zone = stage.maintenance.time_zone if stage.maintenance else "UTC"
    if cadence.every is not None:
        # Counted from 1970, so that applying it again moves nothing. The others come first, production after them.
        later = cadence.production_later if stage.production else timedelta(0)
        offset = later + timedelta(hours=cadence.hour)
        return ScheduleSpec(intervals=[ScheduleIntervalSpec(every=cadence.every, offset=offset)], jitter=_JITTER)
    day = _day(cadence, stage)
    days = [ScheduleRange(day)] if day else [ScheduleRange(1, 31)]
    months = [ScheduleRange(month) for month in cadence.months] or [ScheduleRange(1, 12)]
    calendar = ScheduleCalendarSpec(hour=[ScheduleRange(cadence.hour)], day_of_month=days, month=months)
    return ScheduleSpec(calendars=[calendar], time_zone_name=zone, jitter=_JITTER)


def _mark(*parts: Any) -> str:
    text = json.dumps([repr(part) if not isinstance(part, dict | str) else part for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def leftovers(planned: Sequence[Planned], found: Sequence[str]) -> list[str]:
    """Schedules of this product that are there and that the plan does not know: of a stage that is gone, say."""
    wanted = {one.id for one in planned}
    return [name for name in found if name.startswith(PREFIX) and name not in wanted]
