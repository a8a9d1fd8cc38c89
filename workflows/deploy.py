"""Deploying one release, watched: it stays only when the service is well with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import Field
from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.api import Api, Health, HealthCheck
from activities.logs import LogErrors, Logs
from activities.messages import Announcement
from activities.metrics import ErrorRate, Metrics, Window
from activities.notifications import Notifications
from activities.stage import GatePolicy
from workflows import policy
from workflows.keeping import keepers
from workflows.migration_code import CodeSteps
from workflows.model import Kind, Name, Phase, RunbookInput, RunbookResult, Scalar, State, StepSpec
from workflows.runbook import RunbookSpec
from workflows.steps import describe

KEEP = GatePolicy(time_limit=timedelta(hours=1), on_timeout="reject")
"""Where the service is not well with the new release: unanswered, what was live before comes back."""

_MOMENT = timedelta(seconds=1)


class DeployInput(RunbookInput):
    release: Name = Field(description="Commit, label or saved build to deploy", examples=["4f2a9c1"])


@workflow.defn(name="Deploy")
class Deploy(CodeSteps[DeployInput]):
    """Deploy a release that exists, and keep it only when the service is well with it.

    Find the release and what is live; ask; deploy it by the stage's engine; enter it in the deploy ledger; verify
    health, a sample call, and the errors of some minutes. Not healthy: what was live before is deployed again. Too many
    errors, or none could be measured: people are asked whether to keep it.
    """

    spec = RunbookSpec(
        input=DeployInput,
        when="A release is to go live: what 'sst deploy --stage ...' was typed for.",
        steps=(
            StepSpec(id="release", title="Find the release, and what is live", kind=Kind.LOOK),
            StepSpec(id="check-release", title="Verify that it can be deployed", kind=Kind.LOOK),
            StepSpec(id="approve-deploy", title="Approval", kind=Kind.GATE),
            StepSpec(id="live", title="Record what code is live", kind=Kind.LOOK),
            StepSpec(id="deploy", title="Deploy", kind=Kind.CHANGE, undo="what was live before is deployed again"),
            StepSpec(id="ledger", title="Enter it in the deploy ledger", kind=Kind.CHANGE, undo="a later entry"),
            StepSpec(id="health", title="Verify /health", kind=Kind.LOOK),
            StepSpec(id="sample", title="Make a sample call", kind=Kind.LOOK),
            StepSpec(id="watch", title="Let traffic run on the new release", kind=Kind.WAIT),
            StepSpec(id="errors-metrics", title="Error rate since, from CloudWatch metrics", kind=Kind.LOOK),
            StepSpec(id="errors-logs", title="Error rate since, from the logs", kind=Kind.LOOK),
            StepSpec(id="notify", title="Notify the team", kind=Kind.TELL),
        ),
        checklist=(
            ("deployed", "Deployed, and the release that was asked for is live"),
            ("api", "API is responding normally"),
            ("errors", "Errors are below the limit with it"),
        ),
        gates=(
            ("approve-deploy", "Deploy? With what is live and what is to be"),
            ("keep-deploy", "Only when it is not well afterwards: keep it?"),
        ),
        example={"stage": "staging", "reason": "release of the week", "release": "good", "requested_by": "ann"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: DeployInput) -> str:
        plan = await self._plan(inp)
        if not plan:
            return f"{inp.release} is live on {inp.stage} already: nothing to deploy"
        former = plan["live"]
        await self.gate(
            "approve-deploy", f"Deploy {inp.release} to {inp.stage}?", plan, recheck=lambda: self._plan(inp)
        )
        await self.bring_live(inp.release, why="as asked for")
        if inp.dry_run:
            return f"would deploy {inp.release} in place of {former}"
        await self._verify(inp)
        await self._tell(inp, str(former))
        return f"{inp.release} is live on {inp.stage}, before it {former}"

    async def _plan(self, inp: DeployInput) -> dict[str, Scalar]:
        """What is live and what is to be, looked at now; nothing when that is the same."""
        try:
            found = await self.find_usable(inp.release)
        except ActivityError as error:
            message, kind = describe(error)
            if kind != "AlreadyLive":
                raise
            step = self._find_step("release", None, Kind.LOOK)
            step.state, step.summary = State.DONE, message
            for item in ("deployed", "api", "errors"):
                self.check(item, item == "deployed", message if item == "deployed" else "nothing was deployed")
            return {}
        return {
            "stage": inp.stage,
            "live": found.current.name,
            "release": found.target.name,
            "code": found.target.code_sha256,
            "template": found.target.template_sha256,
        }

    async def _verify(self, inp: DeployInput) -> None:
        self._enter(Phase.VERIFYING)
        began, rules = workflow.now(), self.stage.rollback
        health = await self._health()
        self.check("deployed", health.ok, f"live since {began:%H:%M:%S} UTC; {health.summary}")
        if not health.ok:
            raise self.stop(f"not healthy with {inp.release}: {health.summary}", "Unhealthy")
        sample = await self.observe("sample", Api.sample_calls, self.stage)
        self.check("api", sample is not None and sample.ok, sample.summary if sample else "no sample call")
        await self.wait("watch", rules.error_window + rules.metrics_delay, "let traffic run, then measure errors")
        end = max(workflow.now() - rules.metrics_delay, began + _MOMENT)
        window = Window(stage=self.stage, start=began, end=end)
        metrics = await self.observe("errors-metrics", Metrics.error_rate, window)
        logs = await self.observe("errors-logs", Logs.errors, window)
        problem = self._errors(metrics, logs)
        if problem is not None:
            question = f"{inp.stage} is not well with {inp.release}. Keep it? No deploys what was live before"
            who = keepers(self.stage, "keep-deploy", KEEP)
            await self.gate("keep-deploy", question, {"problem": problem}, fallback=who)

    def _errors(self, metrics: ErrorRate | None, logs: LogErrors | None) -> str | None:
        """What is wrong with the errors; not being able to measure them is wrong too."""
        limit = self.stage.rollback.error_rate_below
        rates = [found.rate for found in (metrics, logs) if found is not None and found.rate is not None]
        note = "; ".join(found.summary for found in (metrics, logs) if found is not None) or "nothing could be read"
        well = bool(rates) and max(rates) < limit
        self.check("errors", well, note)
        if well:
            return None
        return f"errors at {max(rates):.2%}, the limit is {limit:.2%}" if rates else f"not measured: {note}"

    async def _health(self) -> Health:
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        return await self.look("health", Api.health, check, policy.WATCH)

    async def _tell(self, inp: DeployInput, former: str) -> None:
        message = Announcement(
            channels=self.stage.channels,
            key=self.key("notify"),
            title=f"{inp.release} is live on {inp.stage}",
            text=f"before: {former}\nReason: {inp.reason}",
            links=self.links(),
        )
        await self.tell("notify", Notifications.announce, message, would="tell the team in chat")
