"""The daily look at the backups: is there a whole one, young enough, undamaged, and can a moment be restored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import Field
from temporalio import workflow

from activities.backup_models import BackupOf, FindBackup, FoundBackup
from activities.backups import Backups
from workflows import policy
from workflows.details import length
from workflows.model import Kind, RunbookInput, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec


class BackupCheckInput(RunbookInput):
    max_age: timedelta = Field(
        timedelta(hours=26),
        gt=timedelta(0),
        le=timedelta(days=90),
        description="The newest whole backup may be this old: a day, and time to make it",
    )
    restore_window: timedelta | None = Field(
        None,
        gt=timedelta(0),
        le=timedelta(days=365),
        description="How far back any moment has to be restorable; absent: 30 days by Atlas, nothing by archives",
    )
    verify: bool = Field(True, description="Whether the newest one is read back (archive), or its state asked (Atlas)")


ATLAS_WINDOW = timedelta(days=30)
"""The document: point-in-time restore of 30 days on Atlas."""

_SLACK = timedelta(hours=1)


@workflow.defn(name="BackupCheck")
class BackupCheck(Runbook[BackupCheckInput]):
    """See that the data could be brought back today.

    The newest whole backup is there, young enough and undamaged; any moment of the last 30 days can be restored, where
    the provider can do that. Whatever does not hold fails the run and is told. Nothing is changed.
    """

    spec = RunbookSpec(
        input=BackupCheckInput,
        when="Daily, by a schedule.",
        steps=(
            StepSpec(id="latest", title="Look at the newest backup", kind=Kind.LOOK),
            StepSpec(id="verify", title="Verify it", kind=Kind.LOOK),
        ),
        checklist=(
            ("backup", "Daily automated backups: the newest is there and young enough"),
            ("undamaged", "The newest backup can be read"),
            ("point-in-time", "Point-in-time restore is available"),
        ),
        gates=(),
        example={"stage": "production", "reason": "daily backup check", "requested_by": "the schedule"},
        changes=False,
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: BackupCheckInput) -> str:
        now = workflow.now()
        found = await self.look("latest", Backups.latest, FindBackup(stage=self.stage, at=now))
        problems = [*self._age(found), *self._window(found)]
        if found.backup is not None and inp.verify:
            asked = BackupOf(stage=self.stage, reference=found.backup.reference)
            verified = await self.look("verify", Backups.verify, asked, policy.BACKUP)
            self.check("undamaged", verified.ok, verified.summary)
            problems += [] if verified.ok else [f"the newest backup is damaged: {verified.summary}"]
        if problems:
            raise self.stop("; ".join(problems), "NotProtected")
        return found.summary

    def _age(self, found: FoundBackup) -> list[str]:
        if found.backup is None or found.age_seconds is None:
            self.check("backup", False, found.summary)
            return [f"there is no whole backup of {self.stage.name}: run DatabaseBackup"]
        age, limit = timedelta(seconds=found.age_seconds), self.inp.max_age
        self.facts |= {"backup": found.backup.reference, "age_seconds": found.age_seconds}
        self.check("backup", age <= limit, f"{length(age)} old")
        return [] if age <= limit else [f"the newest backup is {length(age)} old, the limit is {length(limit)}"]

    def _window(self, found: FoundBackup) -> list[str]:
        wanted = self.inp.restore_window or (ATLAS_WINDOW if self.stage.backup.provider == "atlas" else None)
        if wanted is None:
            self.check("point-in-time", False, "archives know no point in time; restore_window asks for it")
            return []
        if found.restore_from is None:
            self.check("point-in-time", False, "off, or not known to the provider")
            return [f"no moment can be restored, {length(wanted)} are wanted: switch continuous backup on"]
        back = workflow.now() - found.restore_from
        self.facts["restore_window_days"] = round(back / timedelta(days=1), 1)
        self.check("point-in-time", back + _SLACK >= wanted, f"{length(back)} back")
        short = back + _SLACK < wanted
        return [f"only {length(back)} back can be restored, {length(wanted)} are wanted"] if short else []
