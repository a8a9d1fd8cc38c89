"""Gates and waits: where a runbook asks people, and where it lets time pass that they can change."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow

from activities.stage import GatePolicy
from activities.stages import Stages
from workflows import gates, meters, policy, waiting
from workflows.details import length
from workflows.model import Gate, Kind, Phase, RunbookInput, Scalar, Signing, State, Wait
from workflows.steps import Steps

I = TypeVar("I", bound=RunbookInput)  # noqa: E741


class Asking(Steps[I]):
    """The part of the frame that waits: for an answer, or for time."""

    def __init__(self) -> None:
        super().__init__()
        self._regate: dict[str, Callable[[], Awaitable[None]]] = {}

    # --- gates --------------------------------------------------------------------------------------------------

    async def gate(
        self,
        gate_id: str,
        question: str,
        plan: dict[str, Scalar],
        *,
        recheck: Callable[[], Awaitable[dict[str, Scalar]]] | None = None,
        fallback: GatePolicy | None = None,
        waived: str | None = None,
        always: bool = False,
    ) -> Gate | None:
        """Ask people, and return when they have said yes.

        Args:
            plan: The exact facts that a yes releases.
            recheck: Looks again just before the yes takes effect; another plan is asked about again.
            fallback: Policy where the stage names none for this gate.
            waived: Why nobody has to be asked, if so.
            always: Ask at least one person, even where the stage's policy asks nobody.

        Raises:
            Stopped: of type ``Rejected`` or ``GateExpired``.
        """
        step = self._find_step(gate_id, question, Kind.GATE)
        rules = self.stage.gates.get(gate_id) or fallback or self.stage.gate(gate_id)
        if always and rules.approvals == 0:
            rules = rules.model_copy(update={"approvals": 1})
        if self.inp.dry_run or waived or rules.approvals == 0:
            why = "dry run: would ask " + question if self.inp.dry_run else waived or "the stage's policy asks nobody"
            step.state, step.summary = State.SKIPPED, why
            self.say(f"gate '{gate_id}': {why}")
            return None
        signing = None
        if self.stage.signed_approvals:
            info = workflow.info()
            keys = await self._signers(gate_id)
            before = sum(gate.asked for gate in self.state.gates if gate.id == gate_id)
            if before and not workflow.patched("a-gate-that-comes-again-is-signed-anew"):
                before = 0
            signing = Signing(
                workflow_id=info.workflow_id, run=info.first_execution_run_id, keys=keys, asked_before=before
            )
        gate = gates.open_gate(gate_id, question, dict(plan), rules, self.inp.requested_by, workflow.now(), signing)
        self.state.gates.append(gate)
        if signing is not None and (able := gates.able(gate)) < gate.needed:
            self.say(
                f"gate '{gate_id}' needs {gate.needed} signed approval(s), and {able} of those who may answer have a "
                "key: register theirs under [approvers], restart the workers and start again",
                level="error",
            )

        async def ask() -> None:
            async with self._step(gate_id, question, Kind.GATE) as step:
                step.state = State.WAITING
                await self._ask(gate, rules, recheck)
                names = ", ".join(a.by for a in gate.approvals) or "nobody in time, which counts as yes"
                step.summary = f"approved by {names} (plan {gate.plan_hash})"

        self._regate[gate_id] = ask
        await ask()
        return gate

    async def _signers(self, gate_id: str) -> dict[str, str]:
        """The keys as they are registered now: a gate of a long run may open weeks after the run's start."""
        found = await workflow.execute_activity_method(
            Stages.signers,
            activity_id=self._activity_id(f"signers-{gate_id}"),
            summary=f"whose signature counts at {gate_id}?",
            priority=self._priority(),
            **policy.LOOK,
        )
        return dict(found.keys)

    async def _ask(
        self, gate: Gate, rules: GatePolicy, recheck: Callable[[], Awaitable[dict[str, Scalar]]] | None
    ) -> None:
        while True:
            await self._await_answer(gate, rules)
            if gate.state == "rejected":
                last = gate.approvals[-1]
                raise self.stop(
                    f"{last.by} said no at '{gate.id}'" + (f": {last.reason}" if last.reason else ""), "Rejected"
                )
            if recheck is not None:
                seen = dict(await recheck())
                if gates.plan_hash(seen) != gate.plan_hash:
                    changed = "; ".join(gates.drift(gate.plan, seen))
                    keys = await self._signers(gate.id) if gate.signing else None
                    gates.ask_again(gate, seen, workflow.now(), keys)
                    self.say(f"gate '{gate.id}' is asked again, the plan has changed: {changed}", level="warning")
                    continue
            await self._unpaused()
            if gate.state == "approved":
                return

    async def _await_answer(self, gate: Gate, rules: GatePolicy) -> None:
        """Wait until the gate is decided, reminding people, at the longest until its deadline."""
        if gate.state != "open":
            return
        self._enter(Phase.APPROVAL, gate=gate.id)
        self.say(f"gate '{gate.id}' asks: {gate.question}")
        self.announce(f"gate-{gate.id}-{gate.asked}", f"Waits for you: {gate.question}", _plan_text(gate))
        reminders = 0
        while gate.state == "open":
            left = gate.deadline - workflow.now()
            try:
                await waiting.until(
                    lambda: gate.state != "open",
                    at_most=min(rules.remind_every, max(left, timedelta(seconds=1))),
                    summary=f"remind people of gate {gate.id}",
                )
            except TimeoutError:
                if workflow.now() >= gate.deadline:
                    self._expire(gate)
                else:
                    reminders += 1
                    still = f"Still waits for you, until {gate.deadline:%d %b %H:%M} UTC: {gate.question}"
                    self.announce(f"gate-{gate.id}-{gate.asked}-reminder-{reminders}", still, _plan_text(gate))
                    self.say(f"reminder {reminders} for gate '{gate.id}'")
        self._enter(Phase.LOOKING)

    def _expire(self, gate: Gate) -> None:
        waited = length(workflow.now() - gate.opened_at)
        meters.gate_expired(self.state.stage, gate.id)
        if gate.on_timeout == "reject":
            gate.state = "rejected"
            raise self.stop(f"nobody answered '{gate.id}' within {waited}, which counts as no", "GateExpired")
        gate.state = "approved"
        self.say(f"nobody answered '{gate.id}' within {waited}, which counts as yes", level="warning")

    async def _honour_gates(self) -> None:
        """Just before a change: wait while paused, ask again where an approval was taken back, then mark it begun."""
        while True:
            await self._unpaused()
            taken_back = next((gate for gate in self.state.gates if gate.state == "open"), None)
            if taken_back is None:
                break
            await self._regate[taken_back.id]()
        for gate in self.state.gates:
            if gate.state == "approved":
                gate.state = "begun"

    def _shut_gates(self) -> None:
        """The run ends, and nobody waits any more for what was asked."""
        waiting = [gate for gate in self.state.gates if gate.state == "open"]
        if waiting and workflow.patched("a-run-that-ends-shuts-its-gates"):
            for gate in waiting:
                gate.state = "rejected"

    # --- waits --------------------------------------------------------------------------------------------------

    async def wait(
        self,
        wait_id: str,
        duration: timedelta,
        title: str,
        *,
        every: timedelta | None = None,
        watch: Callable[[], Awaitable[bool]] | None = None,
    ) -> bool:
        """Wait on a durable timer that operators can extend or end. Skipped in a dry run.

        With ``watch`` it looks ``every`` so often meanwhile; True ends the wait. Returns whether a person ended it.
        """
        step = self._find_step(wait_id, title, Kind.WAIT)
        if self.inp.dry_run:
            step.state, step.summary = State.SKIPPED, f"would wait {length(duration)}"
            return False
        by_hand = False
        async with self._step(wait_id, title, Kind.WAIT) as step:
            step.state = State.WAITING
            self._enter(Phase.WAITING)
            now = workflow.now()
            wait = Wait(id=wait_id, title=title, started_at=now, until=now + duration)
            self.state.waits.append(wait)
            self.refresh()
            try:
                while (until := wait.until) > workflow.now():
                    left = until - workflow.now()
                    pause = min(left, every) if watch and every else left
                    try:
                        await waiting.until(
                            lambda until=until: wait.until != until,  # type: ignore[misc]
                            at_most=pause,
                            summary=f"{title}, until {until:%d %b %H:%M:%S} UTC",
                        )
                        by_hand = wait.until < until
                    except TimeoutError:
                        over = watch is None or await watch()
                        if wait.ended and workflow.patched("a wait that is ended during a look is ended by hand"):
                            by_hand = True
                            break
                        if over:
                            break
            finally:
                self.state.waits.remove(wait)
            step.summary = f"waited {length(workflow.now() - now)}"
        return by_hand


def _plan_text(gate: Gate) -> str:
    facts = "\n".join(f"• {key}: {value}" for key, value in gate.plan.items())
    return f"{facts}\nplan {gate.plan_hash}; {gates.missing(gate)} approval(s) needed"
