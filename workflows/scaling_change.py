"""The second half of a scaling run: make the change, measure it, fit the alarms, see to its end, record the drift."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import ValidationError
from temporalio import workflow

from activities.alarms import Alarms, AlarmSettings, Threshold
from activities.api import Api, HealthCheck
from activities.config_files import ConfigFiles, Drift
from activities.deployment_models import Deployed, DeployInput
from activities.deployments import Deployments
from activities.function_capacity import ApplyOrder, FunctionCapacity
from activities.messages import Announcement, TicketRequest
from activities.notifications import Notifications
from activities.releases import LedgerEntry, ReleaseFacts
from activities.stage import GatePolicy, Stage
from activities.tickets import Tickets
from workflows import policy
from workflows.beside import start_beside
from workflows.capacity import threshold
from workflows.details import length
from workflows.keeping import keepers
from workflows.load_verdict import Change, Compared, Failed, compare_failed, compare_tests, judged
from workflows.model import Phase, RunbookResult
from workflows.runbook import Undo
from workflows.scaling import Scaling, Seen
from workflows.scaling_expiry import Made, ScalingExpiryInput
from workflows.scaling_model import ScalingInput

I = TypeVar("I", bound=ScalingInput)  # noqa: E741

KEEP = GatePolicy(time_limit=timedelta(hours=1), on_timeout="reject")
"""Where the change has made it worse: unanswered, it is taken back."""


class ScalingChange(Scaling[I]):
    """What follows the yes."""

    def __init__(self) -> None:
        super().__init__()
        self._made: Made

    async def make(self) -> str:
        before = self._seen
        self._made = self._plan_of_undo()
        self.announce("begin", f"Scaling {self.stage.name}", f"{self.facts['from']} → {self.facts['to']}")
        if self._commit:
            await self._deploy_commit(self._commit)
        else:
            await self._apply()
        since = workflow.now()
        await self._healthy()
        compared = await self._compare(before, since)
        await self._fit_alarms(before)
        self.facts["made"] = self._made.model_dump_json(exclude_none=True)
        await self._record_drift()
        await self._end_in_time()
        shown = f"{compared.figure or self.figure} {compared.change}: {compared.text}"
        if self.load_facts()[1].get("passed") is False:
            shown += "; the load test is NOT passed"
        summary = f"{self.facts['from']} → {self.facts['to']}; {shown}"
        if self.inp.dry_run:
            summary = f"would go from {self.facts['from']} to {self.facts['to']}"
        await self._tell_people(summary)
        return summary

    def _plan_of_undo(self) -> Made:
        return Made(
            stage=self.inp.stage,
            reason=self.inp.reason,
            requested_by=self.inp.requested_by,
            former=self.former(self._seen.state),
            applied=self.wanted(),
        )

    # --- the change ---------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        made = self._made
        self._skip("capture", "no release is deployed")
        self._skip("ledger", "no release is deployed")
        await self.change(
            "apply",
            FunctionCapacity.apply,
            ApplyOrder(stage=self.stage, setting=made.applied),
            policy.DEPLOY,
            would=f"give {self.stage.function} {made.applied.described()} (now {made.former.described()})",
            undo=Undo(
                f"put {made.former.described()} back",
                FunctionCapacity.apply,
                ApplyOrder(stage=self.stage, setting=made.former, only_if=made.applied),
            ),
        )

    async def _deploy_commit(self, commit: str) -> None:
        former = (await self.look("capture", Deployments.capture, self.stage)).live
        applied = ReleaseFacts(release=commit)
        self._made = self._made.model_copy(update={"former_release": former, "applied_release": applied})
        done = await self.change(
            "apply",
            Deployments.deploy,
            self._order(self.stage, applied, "apply"),
            policy.DEPLOY,
            would=f"deploy {commit} to {self.stage.name}",
            undo=Undo(f"deploy {former.name} again", Deployments.deploy, self._order(self.stage, former, "undo-apply")),
        )
        if done is not None:
            await self._enter_deployment(done, applied, former)

    def _order(self, stage: Stage, release: ReleaseFacts, step: str) -> DeployInput:
        run = workflow.info().run_id
        return DeployInput(stage=stage, release=release, deployment_id=f"{self.key(step)}/{run}")

    async def _enter_deployment(self, done: Deployed, applied: ReleaseFacts, former: ReleaseFacts) -> None:
        """Enter the deployment, so that a rollback knows it; its undo enters that the former release is live again."""
        known = {"version": done.version, "code_sha256": done.code_sha256, "started_at": done.started_at}

        def entry(release: ReleaseFacts, at: datetime, **more: Any) -> LedgerEntry:
            return LedgerEntry.model_validate(
                {
                    **release.model_dump(),
                    "started_at": None,
                    **more,
                    "release": release.release or release.name,
                    "app": self.stage.deploy.app,
                    "stage": self.stage.name,
                    "stack": self.stage.stack,
                    "engine": self.stage.deploy.engine,
                    "deployed_at": at,
                    "deployed_by": self.inp.requested_by or self.state.runbook,
                    "run": self.state.workflow_id,
                    "id": self.state.run_id,
                }
            )

        now = workflow.now()
        await self.change(
            "ledger",
            Deployments.record,
            entry(applied, now, **known),
            would=f"enter {applied.name} in the deploy ledger",
            undo=Undo(
                f"enter in the deploy ledger that {former.name} is live again",
                Deployments.record,
                entry(former, now + timedelta(seconds=1)),
            ),
        )

    def way_back(self, stage: Stage, result: RunbookResult) -> Undo | None:
        try:
            made = Made.model_validate_json(str(result.facts.get("made", "")))
        except ValidationError:
            return None  # a dry run has made nothing
        if made.applied_release and made.former_release:
            order = self._order(stage, made.former_release, "undo-rehearse")
            return Undo(f"deploy {made.former_release.name} to {stage.name} again", Deployments.deploy, order)
        back = ApplyOrder(stage=stage, setting=made.former, only_if=made.applied)
        return Undo(f"put {made.former.described()} back on {stage.name}", FunctionCapacity.apply, back)

    # --- has it helped? -----------------------------------------------------------------------------------------

    async def _healthy(self) -> None:
        self._enter(Phase.VERIFYING)
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        health = await self.look("health", Api.health, check, policy.WATCH)
        if not health.ok and not self.inp.dry_run:
            raise self.stop(f"{self.stage.name} is not healthy with the change: {health.summary}", "NotHealthy")

    async def _compare(self, before: Seen, since: datetime) -> Compared:
        """The same figures again, over the same length of time; worse asks whether to keep the change."""
        if self.rehearsal:
            await self.load("load-after")
            self._skip("watch", "the load test is the traffic")
        else:
            await self.wait("watch", self.inp.window, "let traffic run on the change")
        if self.inp.dry_run:
            return Compared(Change.UNKNOWN, "dry run")
        delay = self.stage.rollback.metrics_delay if not self.rehearsal else timedelta(0)
        if delay and not self.inp.dry_run:
            await self.wait("metrics-delay", delay, "the metrics arrive")
        after = await self._see("-after", since)
        found = self.weighed(before, after)
        self._seen_after = after
        for name, step in (("before", "load-before"), ("after", "load-after")):
            if step in self._loads:
                self.facts[f"load p95 {name}"] = self._loads[step].facts.get("p95_ms")
                self.facts[f"load errors {name}"] = self._loads[step].facts.get("error_rate")
        self.facts |= {"figure before": self.measure(before), "figure after": self.measure(after)}
        self.facts |= {"improved": found.change is Change.BETTER, "compared": f"{found.change}: {found.text}"}
        figure = found.figure or self.figure
        self.say(f"{figure} before and after: {found.change}, {found.text}")
        self.check("improvement", found.change is Change.BETTER, f"{figure} {found.change}: {found.text}")
        if self.rehearsal:
            self._check_load_test()
            self.check("staging", True, "this is staging")
        if found.change is Change.WORSE:
            if self.rehearsal:
                raise self.stop(f"staging does worse with it: {figure} {found.text}", "Worse")
            question = f"{self.stage.name} does worse with it ({figure} {found.text}). Keep it? No takes it back"
            who = keepers(self.stage, "keep-scaling", KEEP)
            await self.gate("keep-scaling", question, {"compared": found.text}, fallback=who)
        return found

    def _check_load_test(self) -> None:
        """Completed is one that was passed with the change, or shows it no worse than without."""
        before, after = self.load_facts()
        failed = compare_failed(Failed.of_test(before), Failed.of_test(after))
        found = judged(compare_tests(before, after), failed, self.figure)
        passed = after.get("passed") is True
        note = f"{found.figure} {found.change}: {found.text}; {'passed' if passed else 'NOT passed'} with the change"
        self.check("load-test", passed or found.change in (Change.BETTER, Change.SAME), note)

    async def _fit_alarms(self, before: Seen) -> None:
        found = await self.observe("alarms", AlarmSettings.find, self.stage)
        if self.inp.dry_run:
            return
        if found is None:
            self.check("alerts", False, "the alarms could not be read")
            return
        notes = [*await self._fit_thresholds(before, found), *await self.own_alarms()]
        self.check("alerts", True, "; ".join(notes) or f"{found.summary}; none needs another threshold")

    async def _fit_thresholds(self, before: Seen, found: Alarms) -> list[str]:
        """Alarms on durations follow a service that has become quicker."""
        notes = []
        latency = (before.latency, self._seen_after.latency)
        p95 = [one.p95_ms if one else None for one in latency]
        for number, alarm in enumerate((one for one in found.alarms if one.metric == "Duration"), start=1):
            fitted = threshold(alarm.threshold, *p95)
            if fitted is None:
                continue
            back = Threshold(name=alarm.name, threshold=alarm.threshold, only_if=fitted)
            done = await self.change(
                f"alarm-{number}",
                AlarmSettings.threshold,
                Threshold(name=alarm.name, threshold=fitted, only_if=alarm.threshold),
                would=f"set alarm {alarm.name} to {fitted:g}",
                undo=Undo(f"set alarm {alarm.name} back to {alarm.threshold:g}", AlarmSettings.threshold, back),
                title=f"Fit alarm {alarm.name}",
            )
            self._made = self._made.model_copy(update={"alarms": (*self._made.alarms, back)})
            notes.append(done.summary if done else alarm.name)
        return notes

    async def own_alarms(self) -> list[str]:
        """Alarms that come and go with the change itself. Returns what was done, in words."""
        return []

    # --- the repository, the end, and people --------------------------------------------------------------------

    async def _record_drift(self) -> None:
        """What was made beside the repository has to get into it, or the next deployment takes it away."""
        proposal = self._proposal
        if self._commit or (proposal and proposal.has_it):
            self._skip("drift", "the repository has the change")
            self._skip("ticket", "the repository has the change")
            return
        drift = Drift(
            stage=self.stage.name,
            key=self.state.workflow_id,
            path=proposal.path if proposal else "?",
            setting=self._made.applied,
            former=self._made.former,
            diff=proposal.diff if proposal else None,
            by=self.inp.requested_by,
            reason=self.inp.reason,
            at=workflow.now(),
        )
        self._made = self._made.model_copy(update={"drift": drift})
        closed = drift.model_copy(update={"state": "closed"})
        await self.change(
            "drift",
            ConfigFiles.drift,
            drift,
            would="record the drift",
            undo=Undo("close the drift", ConfigFiles.drift, closed),
        )
        if self.rehearsal or self.inp.expires_after:
            self._skip("ticket", "production asks for it" if self.rehearsal else "the change ends by itself")
            return
        request = TicketRequest(
            channels=self.stage.channels,
            key=self.key("ticket"),
            title=f"{self.stage.name}: {drift.path} has to say {drift.setting.described()}",
            text=f"Made directly; the next deployment takes it away unless it is merged:\n\n{drift.diff or drift.path}",
            labels=("drift",),
            links=self.links(),
        )
        await self.tell("ticket", Tickets.create, request, would="open a ticket for the drift")

    async def _end_in_time(self) -> None:
        if self.inp.expires_after is None:
            self._skip("expiry", "the change stays")
            return
        if self.inp.dry_run:
            self._would.append(f"end it after {length(self.inp.expires_after)}")
            self._skip("expiry", f"would end it after {length(self.inp.expires_after)}")
            return
        ends_at = workflow.now() + self.inp.expires_after
        given = {**self._made.model_dump(), "of": self.state.workflow_id, "ends_at": ends_at}
        title = f"Ends by itself at {ends_at:%Y-%m-%d %H:%M} UTC"
        ending = ScalingExpiryInput.model_validate(given)
        started = await start_beside(self, "expiry", "ScalingExpiry", ending, title=title)
        self.facts |= {"ends at": ends_at.isoformat(), "ends by": started.id}

    async def _tell_people(self, summary: str) -> None:
        message = Announcement(
            channels=self.stage.channels,
            key=self.key("notify"),
            title=f"{self.stage.name} was scaled",
            text=f"{summary}\n{self._assessed.cost}\nReason: {self.inp.reason}",
            links=self.links(),
        )
        await self.tell("notify", Notifications.announce, message, would="tell the team in chat")
