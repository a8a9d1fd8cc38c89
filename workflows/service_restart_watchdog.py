"""Sees to it that a restart's traffic comes back when the restart itself cannot."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from pydantic import Field
from temporalio import workflow

from activities.function_capacity import FunctionCapacity, LimitOrder
from activities.locks import Locks, RunRef
from activities.messages import Announcement
from activities.notifications import Notifications
from workflows import policy
from workflows.model import By, Kind, RunbookInput, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec


class ServiceRestartWatchdogInput(RunbookInput):
    restart: str = Field(description="Workflow id of the restart that is watched", max_length=500)
    restart_run: str = Field(description="Id of its first run", max_length=100)
    former: int | None = Field(None, ge=0, description="Reserved concurrency to put back; absent means none")
    steps: tuple[int, ...] = Field((), description="Limits besides 0 that the restart may have left behind")
    longest: timedelta = Field(
        timedelta(minutes=30), gt=timedelta(0), description="Traffic is given back after this long in any case"
    )


@workflow.defn(name="ServiceRestartWatchdog")
class ServiceRestartWatchdog(Runbook[ServiceRestartWatchdogInput]):
    """Give traffic back when a ServiceRestart was terminated, hangs, or takes too long.

    A restart starts this before it stops traffic, and stands it down when traffic is back. It is a run of its own, so
    that ending the restart in whatever way does not end it. It looks whether the restart still runs; when it does not,
    or when the longest time is over, it puts the former limit back, and tells people. A limit that somebody else has
    set meanwhile is left alone.
    """

    spec = RunbookSpec(
        input=ServiceRestartWatchdogInput,
        when="Started by ServiceRestart. By hand: a restart was terminated and its traffic is still stopped.",
        steps=(
            StepSpec(id="watch", title="Wait until the restart has given traffic back", kind=Kind.WAIT),
            StepSpec(
                id="give-back",
                title="Give traffic back",
                kind=Kind.CHANGE,
                undo="nothing: this is the undo of the restart",
            ),
            StepSpec(id="notify", title="Tell the team", kind=Kind.TELL),
        ),
        checklist=(),
        gates=(),
        example={
            "stage": "production",
            "reason": "the restart was terminated",
            "restart": "ServiceRestart-production-1",
            "restart_run": "01890000-0000-7000-8000-000000000000",
        },
        changes=False,  # the stage is the restart's; and where that has died, nobody must be waited for
    )

    def __init__(self) -> None:
        super().__init__()
        self._stood_down: By | None = None

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ServiceRestartWatchdogInput) -> str:
        why = await self._watch(inp)
        if self._stood_down is not None:
            return f"{inp.restart} has given traffic back itself"
        self.say(f"{why}: traffic is given back", level="warning")
        order = LimitOrder(stage=self.stage, concurrency=inp.former, known=(0, *inp.steps, inp.former))
        given = await self.change(
            "give-back",
            FunctionCapacity.limit,
            order,
            policy.UNDO,
            would=f"give the traffic of {self.stage.name} back",
            undo=None,
        )
        if given is None or not given.changed:
            return f"{why}; {given.summary if given else 'nothing was changed'}"
        await self._tell_people(inp, why, given.summary)
        return f"{why}: {given.summary}"

    async def _watch(self, inp: ServiceRestartWatchdogInput) -> str:
        """Wait, and say why the waiting is over."""
        why = "the longest time is over"
        restart = RunRef(workflow_id=inp.restart, run_id=inp.restart_run)

        async def over() -> bool:
            nonlocal why
            asked = self.observe("alive", Locks.is_running, restart, policy.LOCK, title="Does the restart still run?")
            runs = cast(bool | None, await asked)
            if runs is False:
                why = f"{inp.restart} has ended without giving traffic back"
            return runs is False

        if self._stood_down is None:
            by_hand = await self.wait(
                "watch", inp.longest, f"until {inp.restart} has given traffic back", every=policy.WATCHDOG, watch=over
            )
            if by_hand and self._stood_down is None:
                why = "somebody ended the wait"
        return why

    async def _tell_people(self, inp: ServiceRestartWatchdogInput, why: str, done: str) -> None:
        message = Announcement(
            channels=self.stage.channels,
            key=self.key("notify"),
            title=f"The watchdog gave the traffic of {self.stage.name} back",
            text=f"{why}.\n{done}.\nLook at {inp.restart}: what it had begun besides was not undone.",
            severity="critical",
            links=self.links(),
        )
        await self.tell("notify", Notifications.announce, message, would="tell the team in chat")

    @workflow.signal(description='From the restart, when traffic is back. Input: {"by": "your name"}')
    def stand_down(self, *payload: Any) -> None:
        self._take("stand_down", By, payload, self._stand_down)

    def _stand_down(self, message: By) -> None:
        self._stood_down = message
        self.say("stood down: traffic is back", who=message.by)
        for wait in self.state.waits:
            wait.until = workflow.now()
