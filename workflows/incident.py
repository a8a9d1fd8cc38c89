"""Incident: from the alarm to the last action item, in one run."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.incident_policy import SeverityName
from workflows import incident_clocks
from workflows.diagnosis import tell
from workflows.diagnosis_model import Branch, Readings
from workflows.diagnosis_tree import diagnose
from workflows.incident_afterwards import Afterwards
from workflows.incident_model import IncidentInput
from workflows.incident_recovery import DEPLOYED_WITHIN, WINDOW
from workflows.incident_state import Situation, score
from workflows.model import Kind, Outcome, Phase, RunbookResult, State, StepSpec
from workflows.probing import PROBES
from workflows.runbook import RunbookSpec

_UNKNOWN: SeverityName = "P2"
"""Where nothing could be measured: bad enough to call somebody."""


@workflow.defn(name="Incident")
class Incident(Afterwards):
    """Something is wrong with the service: have the first fifteen minutes done in seconds, and nothing forgotten later.

    Confirm, read the metrics and gather diagnostics, all at once, and freeze what was seen before anything is changed;
    diagnose; declare and page, level after level, until somebody acknowledges; offer the recoveries, best first, each
    behind a gate and run as its own runbook; watch until the service is stable (a relapse begins anew); verify;
    resolve; write the record and the post-mortem's draft, invite to it, and track its actions until the last is done or
    handed on. Every clock of the severity runs exactly, and is planned anew whenever something happens.
    """

    spec = RunbookSpec(
        input=IncidentInput,
        when="The service is down, degraded or behaves wrongly, and people have to be called.",
        steps=(
            *PROBES,
            StepSpec(id="tree", title="Diagnose", kind=Kind.LOOK),
            StepSpec(id="declare", title="Declare the incident", kind=Kind.TELL),
            StepSpec(id="page", title="Page people until somebody acknowledges", kind=Kind.TELL),
            StepSpec(id="watch", title="Watch until the service is stable", kind=Kind.WAIT),
            StepSpec(id="verify-health", title="Verify /health", kind=Kind.LOOK),
            StepSpec(id="verify-ready", title="Verify /health/ready", kind=Kind.LOOK),
            StepSpec(id="verify-sample", title="Make a sample call", kind=Kind.LOOK),
            StepSpec(id="post-mortem", title="Write the record and the post-mortem's draft", kind=Kind.TELL),
            StepSpec(id="invite", title="Invite to the post-mortem", kind=Kind.TELL),
            StepSpec(id="actions", title="Track the post-mortem and its actions", kind=Kind.WAIT),
        ),
        checklist=(
            ("confirm", "Confirm incident"),
            ("metrics", "Check current metrics"),
            ("diagnostics", "Gather diagnostics"),
            ("declare", "Declare incident"),
            ("team", "Trigger incident response team"),
            ("recovery", "Attempt immediate recovery (if safe)"),
            ("monitor", "Monitor recovery"),
            ("verify", "Verify recovery"),
            ("document", "Document incident"),
            ("post-mortem", "Schedule post-mortem"),
            ("post-mortem-held", "Post-mortem held"),
            ("actions", "Action items done or handed on"),
        ),
        gates=(("recover", "Start this recovery? One option after another, each with its exact plan"),),
        example={
            "stage": "production",
            "reason": "all requests fail since 14:02",
            "severity": "P1",
            "requested_by": "ann",
        },
        changes=False,
    )

    @workflow.init
    def __init__(self, *payload: Any) -> None:
        super().__init__(*payload)
        if (cursor := self.cursor) is not None:
            self.situation = Situation.model_validate(cursor["situation"])
            self._chosen, self._asked_to_resolve = cursor.get("chosen"), cursor.get("asked_to_resolve")
            self._lock_asked = self.situation.holds_stage

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: IncidentInput) -> str:
        self._speak_through_the_drills_channel(inp)
        if self.cursor is None:
            await self._first_look(inp)
            if inp.dry_run:
                return f"would be a {self.book.severity}: {self._concluded()}"
        while not self._over:
            if not self.book.reached("resolved"):
                await self._respond()
            await self.give_stage_back()
            await self.see_out()
        self.facts |= score(self.situation)
        return f"{self.book.worst} resolved and closed: {self.situation.cause or self._concluded()}"

    # --- the first minutes ----------------------------------------------------------------------------------------

    async def _first_look(self, inp: IncidentInput) -> None:
        """Confirm ∥ metrics ∥ diagnostics, frozen with the time each was seen; then the diagnosis and the severity."""
        seen = await self.look_everywhere(WINDOW, DEPLOYED_WITHIN)
        readings = seen.readings()
        severity = inp.severity or self._severity_of(readings)
        started = workflow.info().workflow_start_time  # before any worker was there, perhaps
        began = min(started, self.situation.detected_at or started)
        self.situation.evidence = readings
        self.situation.book = incident_clocks.open_book(self.policy, severity, began)
        self.situation.conclusion = found = diagnose(readings, self.context)
        self.situation.was_bad = found.branch not in (Branch.HEALTHY, Branch.UNKNOWN)
        tell(self, found)
        how = "as it was opened" if inp.severity else f"{readings.failing_share or 0:.0%} of the requests fail"
        self._become(self.book, severity)
        self.say(f"{severity}: {how}", level="warning")
        self.facts |= {"severity": severity, "key": inp.key}
        self.tick_seen(seen, found)
        if inp.commander:
            self.situation.roles["commander"] = inp.commander
        early, self._early = self._early, []
        for enter_it in early:
            enter_it(self.book)

    def _severity_of(self, readings: Readings) -> SeverityName:
        share = readings.failing_share
        return _UNKNOWN if share is None else self.policy.severity_of(min(1.0, max(0.0, share)))

    # --- until it is resolved -------------------------------------------------------------------------------------

    async def _respond(self) -> None:
        """Clocks, calls, declaration, recoveries and watch side by side, until the service is stable and verified."""
        self._enter(Phase.WAITING)
        parts = [self.run_clocks(), self.end_calls_when_acknowledged(), self.watch_service(), self.offer_recoveries()]
        if not self.book.reached("declared"):
            parts.append(self.declare())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await self._until_resolved(tasks)
        except (FailureError, asyncio.CancelledError):
            await self._stopped(tasks)
            raise
        await self._stopped(tasks)
        if not self.book.reached("resolved"):
            await self.carry_on()

    async def _stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        self._leaving = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._leaving = False

    async def _until_resolved(self, tasks: list[asyncio.Task[None]]) -> None:
        """Returns when it is resolved, or when it is time to go on in a run with a short history."""
        while not self.book.reached("resolved"):
            await workflow.wait_condition(lambda: self._to_verify() or self._may_carry() or _broken(tasks) is not None)
            if (broken := _broken(tasks)) is not None:
                broken.result()
            if self._to_verify():
                await self._resolve_if_verified()
            elif self._may_carry():
                return

    def _to_verify(self) -> bool:
        stable = self.book.reached("stable") and self.situation.was_bad
        return not self.book.reached("resolved") and (self._asked_to_resolve is not None or stable)

    async def _resolve_if_verified(self) -> None:
        by, self._asked_to_resolve = self._asked_to_resolve, None
        if not await self.verify():
            why = "not verified: it goes on"
            self.say(why, level="warning")
            self.announce(f"not-verified-{self._news}", f"Not resolved, {why}", self._standing(), severity="warning")
            self.book.milestones.pop("stable", None)
            self.situation.good_since = None
            self.news()
            return
        if self.book.reached("resolved"):
            return
        incident_clocks.reach(self.book, self.policy, "resolved", workflow.now())
        self._end_calls("resolved")
        self.say(f"resolved{f' as {by} said' if by else ', stable and verified'}")
        watch = self._find_step("watch", None, Kind.WAIT)
        watch.state, watch.ended_at = State.DONE, workflow.now()
        self.news()

    def _may_carry(self) -> bool:
        """Whether the history is long and nothing is open that a new run could not take up."""
        busy = any(tried.state in ("offered", "running") for tried in self.situation.tried)
        return self.history_is_long and not busy and self.state.open_gate() is None

    # --- beginning, ending, going on ------------------------------------------------------------------------------

    def _begin(self, inp: IncidentInput) -> None:
        super()._begin(inp)
        self.situation.headline, self.situation.stage = inp.headline, inp.stage
        self.situation.drill, self.situation.detected_by = inp.drill, inp.detected_by
        self.situation.detected_at = inp.detected_at
        if inp.alert:
            self.situation.seen_alert(inp.alert)
        if inp.drill:
            self.say("this is a DRILL: nothing is changed, nobody is paged")

    def _speak_through_the_drills_channel(self, inp: IncidentInput) -> None:
        if not inp.drill:
            return
        channels = self.stage.channels
        quiet = {"chat": self.policy.drill or channels.chat, "page": (), "mail": (), "ticket": (), "stakeholders": ()}
        self.stage = self.stage.model_copy(update={"channels": channels.model_copy(update=quiet)})

    def _concluded(self) -> str:
        found = self.situation.conclusion
        return found.summary if found else self.situation.headline

    async def closing(self, outcome: Outcome, summary: str) -> None:
        """However it ends, no page stays open, nor one that is just being sent."""
        self._over = True
        if self.situation.book is not None:
            self._end_calls(f"the incident has ended: {summary}"[:200])


def _broken(tasks: list[asyncio.Task[None]]) -> asyncio.Task[None] | None:
    """A part that has failed: it is raised, never lost."""
    return next((task for task in tasks if task.done() and not task.cancelled() and task.exception()), None)
