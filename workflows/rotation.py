"""What every rotation of a secret has: another stage first, its pair at rest, the rotation log, the next one scheduled.

The stage is not kept from others during the overlap of old and new, which lasts for days: it is given back, and taken
again for what changes it.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, TypeVar, cast

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.deployment_models import DeployAgain
from activities.deployments import Deployments
from activities.rotation_log import RotationLog
from activities.rotation_models import LastQuery, PairFound, PairQuery, RotationEntry
from activities.schedules import NextRun, Schedules, runs_of, schedule_id
from activities.stage import RotatedSecret, Stage
from activities.stages import Stages
from workflows import policy
from workflows.details import length
from workflows.model import Kind, LockState, Outcome, Phase, State, StepSpec
from workflows.rotation_model import RotationInput
from workflows.rotation_rules import next_rotation, next_try
from workflows.runbook import Runbook
from workflows.steps import describe

CHECKLIST = (
    ("generated", "New secret generated with strong randomness"),
    ("staged", "Staged deployment with backward compatibility"),
    ("non-production", "New secret tested in non-production first"),
    ("production", "Deployed to production successfully"),
    ("clients", "All clients verified with new secret"),
    ("disabled", "Old secret disabled after grace period"),
    ("log", "Documented in rotation log"),
    ("next", "Next rotation date scheduled (calendar reminder)"),
)

FIRST = (
    StepSpec(
        id="non-production",
        title="Rotate the non-production stage first",
        kind=Kind.CHANGE,
        undo="its own run undoes it",
    ),
    StepSpec(id="open", title="Open the entry in the rotation log", kind=Kind.CHANGE, undo="the entry is closed"),
    StepSpec(id="pair", title="See that no other rotation of the pair is under way", kind=Kind.LOOK),
)

LAST = (
    StepSpec(id="next", title="Schedule the next rotation", kind=Kind.CHANGE, undo="nothing: the schedule stays"),
    StepSpec(id="log", title="Close the entry in the rotation log", kind=Kind.CHANGE, undo="nothing"),
)


FAILED_AGAIN = timedelta(days=1)
"""A scheduled rotation that fails before its new secret is the one in use is overdue: it begins anew so much later."""

ENDED_AGAIN = timedelta(days=14)
"""The same where people ended it. Not a week: there production's turn comes, after the stage that is rotated first."""

I = TypeVar("I", bound=RotationInput)  # noqa: E741


class Rotation(Runbook[I]):
    """The parts of a rotation that do not depend on what is rotated."""

    kind: ClassVar[Literal["api_keys", "database", "signing"]]
    every: ClassVar[timedelta]
    """From one rotation to the next, where the settings do not say."""

    def __init__(self, *payload: Any) -> None:
        super().__init__(*payload)
        self.entry: RotationEntry | None = None
        self.stands: str | None = None
        """What stays as it is when the run ends from here, because the way back is over."""
        self._lent = False
        self._taken_up = False
        self._in_use = False
        """Whether the new secret is the one in use from here on, however the run ends."""
        self._blocked_until: datetime | None = None

    @abstractmethod
    def overlap(self, inp: I) -> timedelta:
        """How long old and new are meant to be valid side by side."""

    @abstractmethod
    def rehearsal(self, inp: I) -> dict[str, Any]:
        """What the rotation of the non-production stage is told beside stage and reason."""

    # --- before anything ----------------------------------------------------------------------------------------

    async def preflight(self, inp: I) -> None:
        if self.cursor is None:
            self.secret_of(self.stage)
            await self._non_production(inp)

    @property
    def secret(self) -> RotatedSecret:
        return self.secret_of(self.stage)

    def secret_of(self, stage: Stage) -> RotatedSecret:
        found: RotatedSecret | None = getattr(stage.rotation, self.kind)
        if found is None:
            raise self.stop(
                f"stage {stage.name} names no rotation.{self.kind}. Add its name and store to the settings",
                "NotConfigured",
            )
        return found

    @property
    def rotation_id(self) -> str:
        """The same through all retries, resets and histories of this run, and no other run's."""
        return f"{self.state.workflow_id}/{workflow.info().first_execution_run_id}"

    async def _non_production(self, inp: I) -> None:
        first = self.stage.rotation.rehearse_on
        if not self.stage.production:
            self._skip("non-production", f"{self.stage.name} is no production")
            self.check("non-production", True, f"{self.stage.name} is no production")
            return
        if inp.emergency:
            self._skip("non-production", "an emergency does not wait for another stage")
            self.check("non-production", False, "an emergency does not wait for another stage")
            return
        if first is None or first == self.stage.name:
            raise self.stop(
                f"stage {self.stage.name} is production and names no other stage to rotate first. "
                "Set rotation.rehearse_on in the settings",
                "NoStaging",
            )
        staging = await self.look(
            "non-production-stage", Stages.resolve, first, title="Find the stage that is rotated first"
        )
        if staging.production:
            raise self.stop(f"{first} is production too. Name another stage as rotation.rehearse_on", "NoStaging")
        asked = LastQuery(secret=self.secret_of(staging), stage=first, runbook=self.state.runbook)
        last = await self.look(
            "non-production-last", RotationLog.last, asked, title=f"Was {first} rotated a short while ago?"
        )
        if last.entry and last.entry.ended_at and last.entry.ended_at > workflow.now() - inp.rehearsal_max_age:
            self._skip("non-production", last.summary)
            self.check("non-production", True, last.summary)
            return
        if inp.dry_run:
            self._would.append(f"rotate {first} first")
            self._skip("non-production", f"would rotate {first} first")
            return
        wanted = self.spec.input.model_validate(
            {
                "stage": first,
                "reason": f"before {self.stage.name}: {inp.reason}"[:500],
                "requested_by": inp.requested_by,
                "schedule_next": False,
                **self.rehearsal(inp),
            }
        )
        result = await self.run_child("non-production", self.state.runbook, wanted)
        self.check("non-production", True, f"{first}: {result.summary}")

    async def open_entry(self, inp: I, old: tuple[str, ...]) -> None:
        """Enter the rotation in the log, so that others see it, then look whether one may rotate now."""
        secret, now = self.secret, workflow.now()
        name = f"{self.stage.name}/{secret.name}"
        self.entry = RotationEntry(
            pair=secret.pair or name,
            secret=name,
            stage=self.stage.name,
            runbook=self.state.runbook,
            run=self.state.workflow_id,
            started_at=self.state.started_at,
            overlap_until=now + (timedelta(0) if inp.emergency else self.overlap(inp)),
            old=old,
            by=inp.requested_by,
            emergency=inp.emergency,
        )
        await self.change("open", RotationLog.enter, self.entry, would=f"open {name} in the rotation log", undo=None)
        # A leaked secret does not wait for its pair's overlap, but two runs never work on the same one.
        overlap = timedelta(0) if inp.emergency else self.overlap(inp)
        asked = PairQuery(entry=self.entry, overlap=overlap)
        found = cast(PairFound, await self.look("pair", RotationLog.pair, asked))
        if found.blocked:
            self._blocked_until = found.until
            raise self.stop(
                f"not now: {found.summary}. Wait for it, or end its overlap or abort it first", "PairRotates"
            )

    # --- the stage during the overlap ---------------------------------------------------------------------------

    async def lend_stage(self) -> None:
        """Let others work on the stage while this run waits for days."""
        if self.state.lock.held:
            await self._release_lock()
            self.state.lock = LockState()
            self._lent = True
            self.say(f"gives {self.stage.name} back for the overlap")

    async def have_stage_back(self) -> None:
        if self._lent:
            self._lent = False
            await self._take_lock(self.inp)

    async def _take_lock(self, inp: I) -> None:
        if self.cursor is not None and not self._taken_up:
            # A run that goes on in the middle of its overlap does not need the stage yet.
            self._taken_up = self._lent = self._lock_asked = True
            return
        await super()._take_lock(inp)

    async def _undo_all(self) -> None:
        if self._undos:
            await self.have_stage_back()
        await super()._undo_all()

    # --- steps that all have ------------------------------------------------------------------------------------

    async def deploy_again(self, step_id: str, what: str) -> None:
        """Deploy the live release once more, so that it reads its secrets anew. The undo is that of the secrets."""
        order = DeployAgain(stage=self.stage, deployment_id=f"{self.rotation_id}/{step_id}")
        await self.change(
            step_id,
            Deployments.again,
            order,
            policy.DEPLOY,
            would=f"deploy {self.stage.name} again, {what}",
            undo=None,
        )

    async def document(self, inp: I, new: tuple[str, ...], summary: str) -> str:
        """Schedule the next rotation and close the log. Returns when the next one is, for the summary."""
        now = workflow.now()
        every = self.secret.every or self.every
        at = _whole_second(next_rotation(self.state.started_at, every, now, self.overlap(inp)))
        said = "no next rotation was asked for"
        if inp.schedule_next:
            note = f"{length(every)} after the rotation that began on {self.state.started_at:%Y-%m-%d}"
            wanted = self._next_run(inp, at, f"every {length(every)}", note)
            await self.change("next", Schedules.next_run, wanted, would=f"schedule the next on {at:%F}", undo=None)
            said = f"next on {at:%Y-%m-%d}"
            self.check("next", not inp.dry_run, f"{wanted.schedule}: {at:%Y-%m-%d %H:%M} UTC, overlap SKIP")
            self.facts["next_at"] = at.isoformat()
        else:
            self._skip("next", said)
            self.check("next", False, said)
        if self.entry is not None:
            self.entry = self.entry.model_copy(
                update={
                    "status": "completed",
                    "ended_at": now,
                    "new": new,
                    "summary": summary,
                    "next_at": at if inp.schedule_next else None,
                }
            )
            entered = await self.change(
                "log", RotationLog.enter, self.entry, policy.RECORD, would="close the rotation log", undo=None
            )
            self.check("log", entered is not None, entered.location if entered else "dry run")
        return said

    def _next_run(self, inp: I, at: datetime, reason: str, note: str) -> NextRun:
        kept = inp.model_dump(mode="json", exclude_defaults=True)
        for name in ("emergency", "dry_run", "incident", "severity"):
            kept.pop(name, None)
        return NextRun(
            schedule=schedule_id(self.state.runbook, inp.stage),
            runbook=self.state.runbook,
            input={**kept, "reason": reason, "requested_by": "schedule"},
            at=at,
            note=note,
        )

    def undone_by_design(self) -> None:
        super().undone_by_design()
        self._in_use = True

    async def after_undo(self) -> str | None:
        return self.stands

    async def closing(self, outcome: Outcome, summary: str) -> None:
        """However the run ends, its schedule goes on and its entry in the log is not left open."""
        if outcome in (Outcome.COMPLETED, Outcome.DRY_RUN) or self.inp.dry_run:
            return
        next_at = await self._come_again(self.inp, outcome)
        if self.entry is None or self.entry.status == "completed":
            return
        ended = self.entry.model_copy(
            update={
                "status": "ended",
                "ended_at": workflow.now(),
                "summary": f"{outcome}: {summary}"[:2000],
                "next_at": next_at,
            }
        )
        try:
            await self._run_activity("log-ended", "close the rotation log", RotationLog.enter, ended, policy.RECORD)
        except ActivityError as error:
            self.say(f"the rotation log was not closed: {describe(error)[0]}", level="error")

    async def _come_again(self, inp: I, outcome: Outcome) -> datetime | None:
        """Set the next date of the schedule that began this run: its only one has passed, or the next is far away.

        A run that people began leaves the schedule as it is.
        """
        schedule = schedule_id(self.state.runbook, inp.stage)
        if not inp.schedule_next or not self.state.workflow_id.startswith(runs_of(schedule)):
            return None
        if not workflow.patched("a-rotation-that-ends-badly-comes-again"):
            return None
        at = self._next_date(inp, outcome)
        note = f"again, because the run of {self.state.started_at:%Y-%m-%d} ended as {outcome}"
        wanted, said = self._next_run(inp, at, inp.reason, note), f"{schedule}: {at:%Y-%m-%d %H:%M} UTC, {note}"
        step = self._find_step("next", None, Kind.CHANGE)
        try:
            await self._run_activity("next", "schedule the next rotation", Schedules.next_run, wanted, policy.CHANGE)
        except ActivityError as error:
            step.state, step.summary = State.FAILED, describe(error)[0]
            self.say(f"no next rotation is scheduled: {step.summary}. Mend: runbooks schedules apply", level="error")
            return None
        step.state, step.summary = State.DONE, said
        self.check("next", True, said)
        self.facts["next_at"] = at.isoformat()
        self.say(f"begins again on {at:%Y-%m-%d %H:%M} UTC")
        return at

    def _next_date(self, inp: I, outcome: Outcome) -> datetime:
        started, now = self.state.started_at, workflow.now()
        if self._in_use:
            return _whole_second(next_rotation(started, self.secret.every or self.every, now, self.overlap(inp)))
        pause = FAILED_AGAIN if outcome is Outcome.FAILED else ENDED_AGAIN
        return _whole_second(next_try(started, max(now, self._blocked_until or now), pause))

    def _skip(self, step_id: str, why: str) -> None:
        step = self._find_step(step_id, None, Kind.CHANGE)
        step.state, step.summary = State.SKIPPED, why
        self.say(f"{step.title}: {why}")

    def enter_verifying(self) -> None:
        self._enter(Phase.VERIFYING)


def _whole_second(at: datetime) -> datetime:
    """A calendar knows whole seconds only: the one that follows."""
    return at.replace(microsecond=0) + timedelta(seconds=1)
