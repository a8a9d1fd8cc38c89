"""What every rollback of a deployment shares: target, approval, ledger, the proof that it helped, telling people."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow

from activities.api import Api, Health, HealthCheck
from activities.database import Database
from activities.deployment_models import CheckTarget, FindTarget, RollbackTarget
from activities.deployments import Deployments
from activities.logs import LogErrors, Logs
from activities.messages import TicketRequest
from activities.metrics import ErrorRate, Metrics, Window
from activities.releases import LedgerEntry, ReleaseFacts, Strategy
from activities.stacks import Stacks, StackStatus
from activities.stage import GatePolicy
from activities.tickets import Tickets
from workflows import policy
from workflows.connections import settled_since
from workflows.keeping import keepers
from workflows.model import Kind, Phase, Scalar, StepSpec
from workflows.rollback_model import RollbackInput
from workflows.runbook import Undo
from workflows.stakeholders import TellsStakeholders

CHECKLIST = (
    ("api", "Verified API is responding normally"),
    ("errors", "Checked Lambda error logs (should be < 0.1%)"),
    ("database", "Confirmed database connections are stable"),
    ("metrics", "Validated metrics in CloudWatch"),
    ("stakeholders", "Notified stakeholders"),
    ("ticket", "Created incident ticket for investigation"),
    ("post-mortem", "Scheduled post-mortem (if needed)"),
)
"""The document's post-rollback checklist, word for word."""

KEEP = GatePolicy(time_limit=timedelta(hours=1), on_timeout="approve")
"""Where the service is not well after the rollback: unanswered, what was broken before does not come back."""

AFTER = (
    StepSpec(id="ledger", title="Enter it in the deploy ledger", kind=Kind.CHANGE, undo="a later entry corrects it"),
    StepSpec(id="database", title="Database connections", kind=Kind.LOOK),
    StepSpec(id="health", title="Verify /health", kind=Kind.LOOK),
    StepSpec(id="stack", title="Verify the stack's status", kind=Kind.LOOK),
    StepSpec(id="sample", title="Make a sample call", kind=Kind.LOOK),
    StepSpec(id="watch", title="Let traffic run on the restored release", kind=Kind.WAIT),
    StepSpec(id="errors-metrics", title="Error rate since, from CloudWatch metrics", kind=Kind.LOOK),
    StepSpec(id="errors-logs", title="Error rate since, from the logs", kind=Kind.LOOK),
    StepSpec(id="database-after", title="Database connections after", kind=Kind.LOOK),
    StepSpec(id="notify", title="Notify the team", kind=Kind.TELL),
    StepSpec(id="stakeholders", title="Mail the stakeholders, of production", kind=Kind.TELL),
    StepSpec(id="ticket", title="Create the incident ticket", kind=Kind.TELL),
)
"""What follows when the restored release has the traffic."""

KEEP_GATE = ("keep-rollback", "Only when the service is not well afterwards: keep the restored release?")


I = TypeVar("I", bound=RollbackInput)  # noqa: E741


class Rollback(TellsStakeholders[I]):
    """The parts of a rollback that do not depend on how traffic gets to the restored release."""

    _strategy: Strategy
    """Which kind of target is looked for."""
    _way: str
    """How it is done, in a word, for people."""

    # --- what to go back to -------------------------------------------------------------------------------------

    async def _identify(self) -> RollbackTarget:
        wanted = FindTarget(stage=self.stage, strategy=self._strategy, to=self.inp.to)
        target = await self.look("identify", Deployments.find_target, wanted)
        for note in target.notes:
            self.say(note, level="warning")
        asked = CheckTarget(stage=self.stage, strategy=self._strategy, target=target.target)
        check = await self.look("check-target", Deployments.check_target, asked)
        if not check.ok:
            why = "; ".join(check.problems)
            name = target.target.name
            raise self.stop(f"{name} cannot be gone back to: {why}. Name another release as 'to'", "TargetUnhealthy")
        self.facts |= {"from": target.current.name, "to": target.target.name, "strategy": self._way}
        return target

    def _plan(self, target: RollbackTarget) -> dict[str, Scalar]:
        return {
            "stage": self.stage.name,
            "strategy": self._way,
            "from": target.current.name,
            "to": target.target.name,
            "to release": target.target.release,
            "to version": target.target.version,
            "to code": target.target.code_sha256,
            "to template": target.target.template_sha256,
        }

    async def _approval(self, target: RollbackTarget) -> RollbackTarget:
        """Ask for exactly this rollback; when the world has moved on by the time of the yes, it is asked again."""

        async def look_again() -> dict[str, Scalar]:
            nonlocal target
            target = await self._identify()
            return self._plan(target)

        waived = None
        if self.inp.incident and self.stage.waive_gates_in_incident:
            waived = f"the stage's policy waives it for the ongoing incident {self.inp.incident}"
        question = f"Roll {self.stage.name} back from {target.current.name} to {target.target.name}?"
        await self.gate("approve-rollback", question, self._plan(target), recheck=look_again, waived=waived)
        return target

    # --- the ledger ---------------------------------------------------------------------------------------------

    @property
    def no_way_back(self) -> bool:
        """Whether what was live cannot be put back."""
        return self._strategy == "cloudformation"

    async def _enter_in_ledger(self, target: RollbackTarget, former: ReleaseFacts) -> None:
        """Enter the rollback; its undo enters that ``former`` is live again."""
        now = workflow.now()

        def entry(release: ReleaseFacts, at: datetime, **more: Any) -> LedgerEntry:
            return LedgerEntry.model_validate(
                {
                    **release.model_dump(),
                    "release": release.release or release.name,
                    "app": self.stage.deploy.app,
                    "stage": self.stage.name,
                    "stack": self.stage.stack,
                    "engine": self.stage.deploy.engine,
                    "started_at": None,
                    "deployed_at": at,
                    "deployed_by": self.inp.requested_by or self.state.runbook,
                    "run": self.state.workflow_id,
                    "id": self.state.run_id,
                    **more,
                }
            )

        replaced = target.current.release
        stays = self.no_way_back and workflow.patched("what-stays-keeps-its-entry")
        await self.change(
            "ledger",
            Deployments.record,
            entry(target.target, now, kind="rollback", replaced=replaced),
            would=f"enter the rollback to {target.target.name} in the deploy ledger",
            undo=None
            if stays
            else Undo(
                f"enter in the deploy ledger that {former.name} is live again",
                Deployments.record,
                entry(former, now + timedelta(seconds=1)),
            ),
        )

    # --- did it help? -------------------------------------------------------------------------------------------

    async def _verify(self, target: RollbackTarget, version: str | None, since: datetime | None = None) -> str:
        """All the document wants looked at. Returns the verdict; asks people when it is not a good one.

        Errors are measured ``since`` the restored release has all of the traffic; absent means since now.
        """
        self._enter(Phase.VERIFYING)
        rules, began = self.stage.rollback, since or workflow.now()
        before = await self.observe("database", Database.connections, self.stage)
        health = await self._health()
        stack = await self.observe("stack", Stacks.status, self.stage)
        sample = await self.observe("sample", Api.sample_calls, self.stage)
        sampled = sample.summary if sample else "no sample call"
        self.check("api", health.ok and sample is not None and sample.ok, f"{health.summary}; {sampled}")
        passed = workflow.now() - since if since else timedelta(0)
        await self.wait(
            "watch",
            max(timedelta(0), rules.error_window + rules.metrics_delay - passed),
            "let traffic run, then measure errors",
        )
        self._enter(Phase.VERIFYING)
        end = max(workflow.now() - rules.metrics_delay, began + _MOMENT)
        window = Window(stage=self.stage, start=began, end=end, version=version)
        if self.inp.dry_run:
            window = self._window(BEFORE)
        metrics = await self.observe("errors-metrics", Metrics.error_rate, window)
        logs = await self.observe("errors-logs", Logs.errors, window)
        stable = await settled_since(self, before, "database-after", title="Database connections after")
        limit = rules.error_rate_below
        self.check("errors", _below(logs, limit), logs.summary if logs else "the logs could not be read")
        self.check("metrics", _below(metrics, limit), metrics.summary if metrics else "the metrics could not be read")
        self.check("database", *stable)
        problems = self._problems(health, stack, [found.rate for found in (metrics, logs) if found])
        found = "; ".join(problems) or f"{health.summary}; {logs.summary if logs else 'logs not read'}"
        if self.inp.dry_run:
            return f"as it is now: {found}"
        if not problems:
            return f"verified: {found}"
        await self._ask_to_keep(target, problems)
        return f"NOT verified: {found}"

    async def _health(self) -> Health:
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        return await self.look("health", Api.health, check, policy.WATCH)

    def _problems(self, health: Health, stack: StackStatus | None, rates: list[float | None]) -> list[str]:
        """What is not as it should be. Not being able to measure is a problem of its own, not a good sign."""
        limit = self.stage.rollback.error_rate_below
        problems = [] if health.ok else [health.summary]
        if stack is not None and stack.healthy is False:
            problems.append(f"the stack is not healthy: {stack.summary}")
        measured = [rate for rate in rates if rate is not None]
        if not measured:
            problems.append("no traffic could be measured since the rollback")
        elif max(measured) >= limit:
            problems.append(f"errors are at {max(measured):.2%}, the limit is {limit:.2%}")
        return problems

    async def _ask_to_keep(self, target: RollbackTarget, problems: list[str]) -> None:
        question = f"{self.stage.name} is not well after the rollback. Keep {target.target.name}? "
        question += "No ends the run, but nothing puts back what was live" if self.no_way_back else _PUTS_BACK
        who = keepers(self.stage, "keep-rollback", KEEP)
        await self.gate("keep-rollback", question, {"problems": "; ".join(problems)}, fallback=who)

    def _window(self, length: timedelta) -> Window:
        return Window(stage=self.stage, start=workflow.now() - length, end=workflow.now())

    # --- people -------------------------------------------------------------------------------------------------

    def told(self, target: RollbackTarget) -> str:
        """From where to where, in one line."""
        there = f"{target.current.name} → {target.target.name} by {self._way}"
        return f"would go {there}" if self.inp.dry_run else there

    async def _tell_people(self, target: RollbackTarget, verdict: str) -> None:
        stage, reason = self.stage, self.inp.reason
        story = f"**{target.current.name}** → **{target.target.name}** ({self._way}).\nReason: {reason}\n{verdict}"
        title = f"{stage.name} was rolled back to {target.target.name}"
        self.check("stakeholders", *await self._tell_stakeholders("notify", "stakeholders", title, story))
        request = TicketRequest(
            channels=stage.channels,
            key=self.key("ticket"),
            title=f"Investigate: {stage.name} was rolled back from {target.current.name}",
            text=story,
            labels=("incident", "rollback"),
            links=self.links(),
        )
        ticket = await self.tell("ticket", Tickets.create, request, would="create an incident ticket")
        self.check("ticket", ticket is not None, f"{ticket.url or ticket.id}" if ticket else "no ticket system took it")
        if self.inp.incident:
            self.check("post-mortem", True, f"incident {self.inp.incident} schedules it")
        else:
            self.check("post-mortem", False, "a person decides whether one is needed: tick 'post-mortem'")


_PUTS_BACK = "No puts back what was live"
_MOMENT = timedelta(seconds=1)
BEFORE = timedelta(minutes=10)
"""The document looks at the last ten minutes."""


def _below(found: ErrorRate | LogErrors | None, limit: float) -> bool:
    return found is not None and found.rate is not None and found.rate < limit
