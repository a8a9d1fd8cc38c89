"""Quick rollback: something is critically broken after a deployment and has to be reverted now."""

from __future__ import annotations

from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.deployment_models import Deployed, DeployInput, Former, PointAlias, RollbackTarget
from activities.deployments import Deployments
from activities.metrics import Metrics
from activities.releases import ReleaseFacts
from workflows import policy
from workflows.model import Kind, RunbookResult, State, StepSpec
from workflows.rollback import AFTER, BEFORE, CHECKLIST, KEEP_GATE, Rollback
from workflows.rollback_model import QuickRollbackInput
from workflows.runbook import RunbookSpec, Undo
from workflows.steps import describe


@workflow.defn(name="QuickRollback")
class QuickRollback(Rollback[QuickRollbackInput]):
    """Put the last good release back.

    Identify what is live and what was good before it; verify that this still exists unaltered; ask (unless the stage's
    policy waives it for an ongoing incident); roll back by the stage's strategy; verify health, stack, error rate and
    database; tell people; open a ticket. An abort after the change puts back what was live, except for a stack whose
    roll-back was continued: that has no way back, and the run says so.
    """

    spec = RunbookSpec(
        input=QuickRollbackInput,
        when="Something is critically broken after a deployment and you need to revert immediately.",
        steps=(
            StepSpec(id="identify", title="Identify what is live and the release to go back to", kind=Kind.LOOK),
            StepSpec(id="check-target", title="Verify that this release is healthy and still exists", kind=Kind.LOOK),
            StepSpec(id="errors-before", title="Measure the error rate before", kind=Kind.LOOK),
            StepSpec(id="approve-rollback", title="Approval", kind=Kind.GATE),
            StepSpec(id="capture", title="Record exactly what is live", kind=Kind.LOOK),
            StepSpec(
                id="roll-back", title="Roll back", kind=Kind.CHANGE, undo="what was live before is deployed again"
            ),
            *AFTER,
        ),
        checklist=CHECKLIST,
        gates=(
            ("approve-rollback", "Roll back? With from, to, strategy and why"),
            KEEP_GATE,
        ),
        example={"stage": "production", "reason": "500s since the 14:02 deploy", "requested_by": "ann"},
    )

    def __init__(self) -> None:
        super().__init__()
        self._refused = False
        """Whether CloudFormation had nothing to continue."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: QuickRollbackInput) -> str:
        self._strategy = self._way = inp.strategy or self.stage.rollback.strategy
        target = await self._identify()
        await self.observe("errors-before", Metrics.error_rate, self._window(BEFORE))
        target = await self._approval(target)
        version = await self._roll_back(target)
        verdict = await self._verify(target, version)
        await self._tell_people(target, verdict)
        return f"{self.told(target)}; {verdict}"

    # --- the change ---------------------------------------------------------------------------------------------

    async def _roll_back(self, target: RollbackTarget) -> str | None:
        """Make the change. Returns the version of the function that serves since, where that is known."""
        version = None
        if self.inp.dry_run:
            former = Former(summary="dry run", live=target.current)
        else:
            former = await self.look("capture", Deployments.capture, self.stage)
        would = f"bring {self.stage.name} from {target.current.name} back to {target.target.name} by {self._strategy}"
        self.announce("begin", f"Rolling {self.stage.name} back", would)
        match self._strategy:
            case "alias":
                version = await self._repoint(target, former, would)
            case "cloudformation":
                await self._continue_rollback(would)
            case "redeploy" | "command":
                deployed = await self._redeploy(target, former, would)
                version = deployed.version if deployed else None
        await self._enter_in_ledger(target, former.live)
        return version

    async def _continue_rollback(self, would: str) -> None:
        try:
            await self.change(
                "roll-back",
                Deployments.continue_rollback,
                self.stage,
                policy.DEPLOY,
                would=would,
                undo=None,  # the stack was half-way; CloudFormation knows no way back to half-way
            )
        except ActivityError as error:
            self._refused = describe(error)[1] == "NothingToContinue"
            raise

    async def after_undo(self) -> str | None:
        """A roll-back of the stack that was continued stays as it is."""
        step = self.state.step("roll-back")
        if step is None or step.started_at is None or not self.no_way_back or self._refused:
            return None
        done = "is complete" if step.state is State.DONE else "was begun, and may have changed the stack or still go on"
        self.state.left_undone.append(
            f"the roll-back of {self.stage.stack} {done}; CloudFormation knows no way back. "
            "Look at the stack, then deploy the release that you want"
        )
        return None

    async def _redeploy(self, target: RollbackTarget, former: Former, would: str) -> Deployed | None:
        return await self.change(
            "roll-back",
            Deployments.deploy,
            self._order(target.target, "roll-back"),
            policy.DEPLOY,
            would=would,
            undo=Undo(
                f"deploy {former.live.name} again", Deployments.deploy, self._order(former.live, "undo-roll-back")
            ),
        )

    def _order(self, release: ReleaseFacts, step: str) -> DeployInput:
        return DeployInput(
            stage=self.stage,
            release=release,
            deployment_id=f"{self.key(step)}/{workflow.info().run_id}",
            strategy=self._strategy,
        )

    async def _repoint(self, target: RollbackTarget, former: Former, would: str) -> str | None:
        if former.routing is None and not self.inp.dry_run:
            raise self.stop(
                f"{self.stage.function} has no alias {self.stage.alias}. Use strategy 'redeploy'", "NoAlias"
            )
        version = target.target.version or ""
        back = former.routing
        await self.change(
            "roll-back",
            Deployments.point_alias,
            PointAlias(stage=self.stage, version=version, expect_version=back.version if back else None),
            would=would,
            undo=Undo(
                f"point {self.stage.alias} at version {back.version} again",
                Deployments.point_alias,
                PointAlias(stage=self.stage, version=back.version, weights=back.weights),
            )
            if back
            else None,
        )
        return target.target.version
