"""The recovery options of an incident: offered one after another, each behind a gate, run as runbooks of their own."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import ValidationError
from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

from activities.deployment_models import FindTarget
from activities.deployments import Deployments
from activities.locks import LockRequest
from workflows import policy
from workflows.diagnosis_evidence import Evidence
from workflows.diagnosis_model import Conclusion, Readings, Remedy
from workflows.diagnosis_remedies import Context, remedy
from workflows.diagnosis_tree import diagnose
from workflows.incident_response import Response
from workflows.incident_state import Tried
from workflows.model import LockState, Outcome, Phase, RunbookInput, RunbookResult, Scalar
from workflows.operator import explain
from workflows.remedies import REMEDIES
from workflows.rollback_model import RollbackInput
from workflows.runbook import Stopped
from workflows.steps import describe

WINDOW = timedelta(minutes=5)
"""The document looks at the last five minutes."""

DEPLOYED_WITHIN = timedelta(hours=24)

NAMED = "named by a person"


class Recovery(Response):
    """Offers what the diagnosis names, best first; people say yes, no, or name another one."""

    # --- the diagnosis --------------------------------------------------------------------------------------------

    @property
    def context(self) -> Context:
        """What goes into the input of the runbooks that the diagnosis names."""
        severity = self.book.severity if self.situation.book else None
        return Context(self.stage.name, self.inp.reason[:300], self.name, severity, f"incident {self.name}"[:100])

    @property
    def name(self) -> str:
        """The run's id as other runbooks take it for ``incident``."""
        kept = "".join(sign if sign.isalnum() or sign in "_.-" else "-" for sign in self.state.workflow_id)
        return kept.lstrip("_.-")[:100] or "incident"

    async def look_again(self) -> Readings:
        """Diagnose anew; the evidence of the first look stays as it was frozen."""
        number = sum(step.id.startswith("again-") and step.id.endswith("-confirm") for step in self.state.steps) + 1
        seen = await self.look_everywhere(WINDOW, DEPLOYED_WITHIN, prefix=f"again-{number}-")
        readings = seen.readings()
        self.situation.conclusion = found = diagnose(readings, self.context)
        self.say(f"diagnosed again: {found.summary}")
        self.tick_seen(seen, found, f"seen at {workflow.now():%H:%M:%S} UTC, not at first: ")
        self.news()
        return readings

    def tick_seen(self, seen: Evidence, found: Conclusion, prefix: str = "") -> None:
        """Tick what this look has seen of what is still open: a later look can tell what the first could not."""
        missing = ", ".join(sorted(seen.failed))
        looked = {
            "confirm": (seen.health is not None, seen.health.summary if seen.health else "could not be asked"),
            "metrics": (seen.metrics is not None, seen.metrics.summary if seen.metrics else "could not be read"),
            "diagnostics": (not missing, f"not read: {missing}" if missing else found.summary),
        }
        for item in self.state.checklist:
            if item.id in looked and not item.done:
                done, note = looked[item.id]
                self.check(item.id, done, prefix + note if done else note)

    # --- the options ----------------------------------------------------------------------------------------------

    def next_option(self) -> Remedy | None:
        """What to offer now: what somebody named, else the best that was not tried or declined in this outbreak."""
        situation = self.situation
        if self._chosen is not None:
            return self.filled(self._chosen)
        if situation.good_since is not None or self.book.reached("mitigated") or situation.conclusion is None:
            return None
        waiting = situation.tried and situation.tried[-1].state == "done" and situation.tried[-1].helped is None
        if waiting:
            return None  # give the last one its looks first
        began = self.book.became.get("P4", self.book.opened_at)
        over = {tried.runbook for tried in situation.tried if tried.offered_at >= began and tried.state != "withdrawn"}
        fitting = (o for o in situation.conclusion.options if o.runbook in REMEDIES and o.runbook not in over)
        return next(fitting, None)

    def filled(self, runbook: str) -> Remedy | None:
        """The runbook as a person names it; None when its input cannot be worked out from what was measured."""
        evidence = self.situation.latest or self.situation.evidence
        return None if evidence is None else remedy(runbook, NAMED, self.context, evidence)

    async def offer_recoveries(self) -> None:
        """As long as the service is not good and there is something to offer."""
        while not self._leaving:
            await workflow.wait_condition(lambda: self.next_option() is not None)
            option = self.next_option()
            if option is not None:
                await self._offer(option)

    async def _offer(self, option: Remedy) -> None:
        self._chosen = None
        number = len(self.situation.tried) + 1
        tried = Tried(runbook=option.runbook, offered_at=workflow.now(), why=option.why)
        self.situation.tried.append(tried)
        gate_id = f"recover-{number}"
        try:
            given = await self._input(option)
            plan = await self._plan(option, given)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            tried.state, tried.outcome = "failed", describe(error)[0]
            self.say(f"{option.runbook} cannot be offered: {tried.outcome}", level="warning")
            return
        except ValidationError as error:  # a release, say, whose name nobody could type
            tried.state, tried.outcome = "failed", explain(error)
            self.say(f"{option.runbook} cannot be offered: {tried.outcome}", level="warning")
            return
        if not await self._agreed(gate_id, option, plan, tried):
            return
        await self._run(option, given, tried, number)

    async def _input(self, option: Remedy) -> RunbookInput:
        """The input of the child. A drill changes nothing: its recoveries run dry."""
        base = {**option.input, "dry_run": self.situation.drill or self.inp.dry_run}
        model = REMEDIES[option.runbook]
        if not issubclass(model, RollbackInput):
            return model.model_validate(base)
        wanted = FindTarget(stage=self.stage, strategy=self.stage.rollback.strategy)
        target = await self._run_activity(
            "find-target", "what would be rolled back to?", Deployments.find_target, wanted, policy.OBSERVE
        )
        exact = target.target.release or target.target.version
        self.facts |= {"rollback from": target.current.name, "rollback to": target.target.name}
        return model.model_validate(base | ({"to": exact} if exact else {}))

    async def _plan(self, option: Remedy, given: RunbookInput) -> dict[str, Scalar]:
        plan: dict[str, Scalar] = {"runbook": option.runbook, "stage": self.stage.name, "because": option.why}
        if isinstance(given, RollbackInput):
            plan |= {
                "from": self.facts.get("rollback from"),
                "to": self.facts.get("rollback to"),
                "strategy": self.stage.rollback.strategy,
            }
        own = set(option.input) - set(RunbookInput.model_fields)
        plan |= {name: str(option.input[name]) for name in sorted(own)}
        if given.dry_run:
            plan["dry run"] = True
        return plan

    async def _agreed(self, gate_id: str, option: Remedy, plan: dict[str, Scalar], tried: Tried) -> bool:
        """Ask, until people have answered or the question is no longer worth an answer."""
        question = f"Start {option.runbook} on {self.stage.name}? {option.why}"
        rules = self.stage.gates.get("recover") or self.stage.gate("recover")
        asking = asyncio.create_task(self.gate(gate_id, question, plan, fallback=rules))
        try:
            await workflow.wait_condition(lambda: asking.done() or self._pointless(option))
            if not asking.done():
                await self._withdraw(asking, gate_id, option, tried)
                return False
            asking.result()
        except Stopped as stopped:
            tried.state, tried.outcome = "declined", stopped.message
            self.say(f"{option.runbook}: {stopped.message}")
            if self._gate_shown == gate_id and workflow.patched("an-expired-question-is-no-longer-shown"):
                self._enter(Phase.WAITING)
            self.news()
            return False
        except asyncio.CancelledError:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            self._shut(gate_id)
            raise
        return True

    def _pointless(self, option: Remedy) -> bool:
        named_another = self._chosen is not None
        over = self.situation.good_since is not None and option.why != NAMED
        return named_another or over or self.book.reached("resolved")

    async def _withdraw(self, asking: asyncio.Task[object], gate_id: str, option: Remedy, tried: Tried) -> None:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        self._shut(gate_id)
        tried.state = "withdrawn"
        self.say(
            f"the question about {option.runbook} is withdrawn: {'another was named' if self._chosen else 'good again'}"
        )
        self._enter(Phase.WAITING)

    def _shut(self, gate_id: str) -> None:
        for gate in self.state.gates:
            if gate.id == gate_id and gate.state == "open":
                gate.state = "rejected"

    async def _run(self, option: Remedy, given: RunbookInput, tried: Tried, number: int) -> None:
        """Have the runbook run, under this incident's lock, and keep what came of it."""
        if not given.dry_run:
            await self._have_stage()
        await self._honour_gates()
        tried.state, tried.began_at = "running", workflow.now()
        self._enter(Phase.CHANGING)
        self.news()
        # An incident's id comes again: what the recovery below makes is told from that of another time by this.
        named = workflow.patched("a recovery is named after the run of its incident")
        run = f"-{workflow.info().first_execution_run_id[-8:]}" if named else ""  # its end: it begins with the time
        try:
            result = await self.run_child(
                f"run-recover-{number}{run}", option.runbook, given, title=f"{option.runbook}: {option.why}"
            )
        except FailureError as error:
            if self.stops(error) or (self._leaving and is_cancelled_exception(error)):
                raise
            tried.state, tried.outcome, well = "failed", describe(error)[0], False
        else:
            well = self._ran(tried, result)
        tried.ended_at = workflow.now()
        self.situation.bad_row, self.situation.good_since = 0, None  # what was seen before says nothing of it
        self.say(f"{option.runbook}: {tried.outcome}", level="info" if well else "warning")
        self.announce(f"recover-{number}", f"{option.runbook}: {'done' if well else 'failed'}", tried.outcome or "")
        self._enter(Phase.WAITING)
        self.news()

    def _ran(self, tried: Tried, result: RunbookResult) -> bool:
        well = result.outcome in (Outcome.COMPLETED, Outcome.DRY_RUN)
        tried.state = "done" if well else "failed"
        tried.outcome = result.summary
        self.check("recovery", well, f"{tried.runbook}: {result.summary}")
        return well

    # --- the stage's lock: taken for the first recovery, kept until the service is stable ---------------------------

    def _priority(self) -> Priority:
        return Priority(priority_key=1)

    def _lock_request(self) -> LockRequest:
        return super()._lock_request().model_copy(update={"ahead": True})

    async def _have_stage(self) -> None:
        if not self.state.lock.held:
            await self._take_lock(self.inp)
        self.situation.holds_stage = True

    async def give_stage_back(self) -> None:
        """Nothing is changed any more: others may go on, however long the incident's afterwards takes."""
        if self._lock_asked:
            await self._release_lock()
        self._lock_asked, self.state.lock, self.situation.holds_stage = False, LockState(), False
