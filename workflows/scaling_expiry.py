"""The end of a temporary change of capacity: it comes by itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import AwareDatetime, Field
from temporalio import workflow

from activities.alarms import AlarmSettings, Threshold, UtilisationAlarm
from activities.api import Api, HealthCheck
from activities.config_files import ConfigFiles, Drift
from activities.deployment_models import DeployInput
from activities.deployments import Deployments
from activities.function_capacity import ApplyOrder, FunctionCapacity, Setting
from activities.messages import Announcement
from activities.notifications import Notifications
from activities.releases import ReleaseFacts, same_release
from workflows import policy
from workflows.model import Kind, RunbookInput, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec, Undo


class Made(RunbookInput):
    """What a scaling run has made, with all that is needed to take it back."""

    former: Setting = Field(description="The setting before")
    applied: Setting = Field(description="The setting that was made")
    former_release: ReleaseFacts | None = Field(None, description="Release before, where a commit was deployed")
    applied_release: ReleaseFacts | None = Field(None, description="The commit that was deployed")
    alarms: tuple[Threshold, ...] = Field((), description="Alarms as they were, each only if it is as it was made")
    utilisation_alarm: bool | None = Field(None, description="Whether there is to be an alarm of provisioned use")
    drift: Drift | None = Field(None, description="What was recorded as drift, to be closed")


class ScalingExpiryInput(Made):
    of: str = Field(max_length=500, description="Workflow id of the run that made the change")
    ends_at: AwareDatetime = Field(description="When it ends")


@workflow.defn(name="ScalingExpiry")
class ScalingExpiry(Runbook[ScalingExpiryInput]):
    """End a temporary change of capacity at its time.

    It is a run of its own, so that neither the end nor the termination of the run that made the change ends it, and it
    holds the stage only for its last minute. It asks nobody: that it ends was approved with the change. Extend the wait
    to keep the change for longer, end the wait to end it now, abort to keep it for good. A setting or release that
    somebody else has put there meanwhile is left alone, and said.
    """

    spec = RunbookSpec(
        input=ScalingExpiryInput,
        when="Started by a scaling run with expires_after.",
        steps=(
            StepSpec(id="until", title="Wait until the change ends", kind=Kind.WAIT),
            StepSpec(id="capture", title="Record exactly what is live", kind=Kind.LOOK),
            StepSpec(
                id="put-back", title="Put the former setting back", kind=Kind.CHANGE, undo="the change is made anew"
            ),
            StepSpec(id="health", title="Verify /health", kind=Kind.LOOK),
            StepSpec(id="notify", title="Tell the team", kind=Kind.TELL),
        ),
        checklist=(("ended", "The temporary change has ended"), ("alarms", "Monitoring alerts put back")),
        gates=(),
        example={
            "stage": "production",
            "reason": "the campaign is over",
            "of": "ProvisionedConcurrency-production-1",
            "ends_at": "2030-01-01T08:00:00Z",
            "former": {"provisioned": 0},
            "applied": {"provisioned": 5},
        },
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def preflight(self, inp: ScalingExpiryInput) -> None:
        left = max(timedelta(0), inp.ends_at - workflow.now())
        await self.wait("until", left, f"{inp.applied.described()} ends")

    async def procedure(self, inp: ScalingExpiryInput) -> str:
        said = await (self._deploy_former(inp) if inp.applied_release else self._apply_former(inp))
        await self._alarms_back(inp)
        if inp.drift is not None:
            closed = inp.drift.model_copy(update={"state": "closed"})
            await self.change("drift", ConfigFiles.drift, closed, would="close the drift", undo=None)
        health = await self._health()
        summary = f"{said}; {health}"
        message = Announcement(
            channels=self.stage.channels,
            key=self.key("notify"),
            title=f"A temporary change of {self.stage.name} has ended",
            text=f"{inp.applied.described()}, made by {inp.of}.\n{summary}",
            links=self.links(),
        )
        await self.tell("notify", Notifications.announce, message, would="tell the team in chat")
        return summary

    async def _apply_former(self, inp: ScalingExpiryInput) -> str:
        self._not_needed("capture")
        back = await self.change(
            "put-back",
            FunctionCapacity.apply,
            ApplyOrder(stage=self.stage, setting=inp.former, only_if=inp.applied),
            policy.DEPLOY,
            would=f"put {inp.former.described()} back",
            undo=Undo(
                f"make {inp.applied.described()} anew",
                FunctionCapacity.apply,
                ApplyOrder(stage=self.stage, setting=inp.applied, only_if=inp.former),
            ),
        )
        self.check("ended", bool(back and not back.left), back.summary if back else "dry run")
        return back.summary if back else f"would put {inp.former.described()} back"

    async def _deploy_former(self, inp: ScalingExpiryInput) -> str:
        """Only where the commit of the change is still what is live: what came after it is not taken away."""
        former, applied = inp.former_release or ReleaseFacts(), inp.applied_release or ReleaseFacts()
        live = (await self.look("capture", Deployments.capture, self.stage)).live
        if not same_release(live.release, applied.release):
            said = f"{live.name} is live and no longer {applied.name}: it stays, whatever it says of the setting"
            self.say(said, level="warning")
            self.check("ended", False, said)
            return said
        done = await self.change(
            "put-back",
            Deployments.deploy,
            DeployInput(
                stage=self.stage, release=former, deployment_id=f"{self.key('put-back')}/{workflow.info().run_id}"
            ),
            policy.DEPLOY,
            would=f"deploy {former.name} again",
            undo=Undo(
                f"deploy {applied.name} anew",
                Deployments.deploy,
                DeployInput(
                    stage=self.stage, release=applied, deployment_id=f"{self.key('undo')}/{workflow.info().run_id}"
                ),
            ),
        )
        self.check("ended", done is not None, done.summary if done else "dry run")
        return done.summary if done else f"would deploy {former.name} again"

    async def _alarms_back(self, inp: ScalingExpiryInput) -> None:
        for number, alarm in enumerate(inp.alarms, start=1):
            await self.change(
                f"alarm-{number}",
                AlarmSettings.threshold,
                alarm,
                would=f"set alarm {alarm.name} back to {alarm.threshold:g}",
                undo=None,
                title=f"Alarm {alarm.name} as before",
            )
        if inp.utilisation_alarm is not None:
            order = UtilisationAlarm(stage=self.stage, present=inp.utilisation_alarm)
            would = "put the alarm of provisioned use back"
            await self.change("alarm-use", AlarmSettings.utilisation, order, would=would, undo=None, title=would)
        self.check("alarms", not inp.dry_run, f"{len(inp.alarms)} thresholds")

    async def _health(self) -> str:
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        health = await self.look("health", Api.health, check, policy.WATCH)
        if not health.ok:
            raise self.stop(f"{self.stage.name} is not well without the change: {health.summary}", "NotHealthy")
        return health.summary

    def _not_needed(self, step_id: str) -> None:
        if step := self.state.step(step_id):
            step.summary = "a setting is put back, no release"
