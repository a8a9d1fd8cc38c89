"""The code side of a migration: a named release is deployed, or people say that it is live."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.deployment_models import CheckTarget, DeployInput, FindTarget, Former, RollbackTarget
from activities.deployments import Deployments
from activities.releases import LedgerEntry, ReleaseFacts, same_release
from workflows import policy
from workflows.model import RunbookInput, Scalar
from workflows.runbook import Runbook, Undo
from workflows.steps import describe

I = TypeVar("I", bound=RunbookInput)  # noqa: E741


class CodeSteps(Runbook[I]):
    """Steps that bring a release live, and back."""

    def __init__(self) -> None:
        super().__init__()
        self._former: Former | None = None
        self._release: ReleaseFacts | None = None

    async def find_release(self, wanted: str) -> None:
        """Find the named release before anything is begun, so that a wrong name costs nothing."""
        if self.inp.dry_run:
            return
        self._former = await self.look("live", Deployments.capture, self.stage, title="Record what code is live")
        if is_named(self._former.live, wanted):
            return
        await self.find_usable(wanted)

    async def find_usable(self, wanted: str) -> RollbackTarget:
        """Find the named release among what can be deployed."""
        search = FindTarget(stage=self.stage, strategy="redeploy", to=wanted)
        found = await self.look("release", Deployments.find_target, search, title=f"Find release {wanted}")
        asked = CheckTarget(stage=self.stage, strategy="redeploy", target=found.target)
        check = await self.look(
            "check-release", Deployments.check_target, asked, title="Verify that it can be deployed"
        )
        if not check.ok:
            raise self.stop(f"{wanted} cannot be deployed: {'; '.join(check.problems)}", "ReleaseUnusable")
        self._release = found.target
        return found

    async def bring_live(self, wanted: str, *, why: str) -> None:
        """Deploy the release, unless it is live; its undo deploys what was live before."""
        if not self.inp.dry_run:
            self._former = await self.look("live", Deployments.capture, self.stage, title="Record what code is live")
            if is_named(self._former.live, wanted):
                self.say(f"{why}: {self._former.live.name} is live already")
                self.facts["code"] = f"{self._former.live.name} was live"
                return
        release = self._release or ReleaseFacts(release=wanted)
        former = self._former.live if self._former else ReleaseFacts()
        await self.change(
            "deploy",
            Deployments.deploy,
            self._order(release, "deploy"),
            policy.DEPLOY,
            would=f"deploy {wanted} to {self.stage.name}, unless it is live",
            undo=Undo(f"deploy {former.name} again", Deployments.deploy, self._order(former, "undo-deploy")),
            title=f"Deploy {wanted}: {why}",
        )
        self.facts["code"] = f"{wanted} deployed"
        now = workflow.now()
        await self.change(
            "ledger",
            Deployments.record,
            self._entry(release, now),
            would=f"enter {wanted} in the deploy ledger",
            undo=Undo(
                f"enter in the deploy ledger that {former.name} is live again",
                Deployments.record,
                self._entry(former, now + timedelta(seconds=1), kind="rollback", replaced=release.release),
            ),
            title="Enter it in the deploy ledger",
        )

    async def ask_for_code(self, gate_id: str, question: str, plan: dict[str, Scalar], waived: str | None) -> None:
        """Without a named release people deploy, or know that it is deployed: their yes is the evidence."""
        gate = await self.gate(gate_id, question, plan, waived=waived)
        if gate is not None:
            names = ", ".join(approval.by for approval in gate.approvals) or "nobody in time"
            self.facts["code"] = f"confirmed by {names}"

    async def live_name(self) -> str | None:
        """What is live, for people who are asked about it; None when that is not known."""
        if self.inp.dry_run:
            return None
        try:
            former = await self.look("live", Deployments.capture, self.stage, title="Record what code is live")
        except ActivityError as error:
            self.say(f"what code is live is not known: {describe(error)[0]}", level="warning")
            return None
        return former.live.name

    def _order(self, release: ReleaseFacts, step: str) -> DeployInput:
        run_id = workflow.info().run_id
        return DeployInput(stage=self.stage, release=release, deployment_id=f"{self.key(step)}/{run_id}")

    def _entry(self, release: ReleaseFacts, at: datetime, **more: Any) -> LedgerEntry:
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


def is_named(live: ReleaseFacts, wanted: str) -> bool:
    """Whether what is live is the release of that name."""
    return same_release(live.release, wanted) or wanted in (live.label, live.version)
