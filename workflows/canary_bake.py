"""One rung of a gradual rollback: the traffic is split, time passes, and both versions are judged again and again.

Judging never rests while traffic is split: not while people are asked, and not while an operator holds the bake.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, FailureError, is_cancelled_exception

from activities.canary import Canary, Measure
from activities.charts import Mark
from activities.version_counts import VersionCounts
from workflows import gates, policy
from workflows.canary_judge import Decision, Limits, Look, judge, settle
from workflows.canary_model import Bake, CanaryRollbackInput, Record, Steer
from workflows.details import length
from workflows.model import By, EndWait, ExtendWait, Kind, Scalar, State
from workflows.operator import BadMessage, read
from workflows.rollback import Rollback
from workflows.steps import describe

_LONGEST = 30_000
"""Events of history after which a bake is too long: the server ends a run at 50,000, and would undo nothing."""

_AT_ONCE = (Decision.WORSE, Decision.NOT_THE_DEPLOY)


class Baking(Rollback[CanaryRollbackInput]):
    """The part of a gradual rollback that watches, and what operators do to it."""

    _limits: Limits

    def __init__(self) -> None:
        super().__init__()
        self._live: Bake | None = None
        self._held: str | None = None
        self._promoted: str | None = None
        self._figures = Record()

    # --- the bake -----------------------------------------------------------------------------------------------

    async def _bake(self, bake: Bake) -> None:
        """Watch one rung until it may end. Returns when the next one may begin.

        Raises:
            Stopped: ``Worse``, ``NotTheDeploy``, or people said no. The routing then goes back.
        """
        self._live = bake
        try:
            await self._watch_it(bake)
        except (FailureError, asyncio.CancelledError):
            self._over(bake)
            raise
        self._over(bake)

    async def _watch_it(self, bake: Bake) -> None:
        percent, inp = bake.percent, self.inp
        by_hand = await self.wait(
            f"bake-{percent}",
            inp.bake,
            f"Bake at {percent} %",
            every=inp.judge_every,
            watch=lambda: self._watch(bake),
        )
        if inp.dry_run:
            return
        if by_hand:
            await self._look_and_judge(bake)
        self._act_at_once(bake)
        if not by_hand and not self._recovered(bake):
            await self._until_judged(bake)

    async def _until_judged(self, bake: Bake) -> None:
        """The time of the bake is over: wait for what the judge still needs, then ask."""
        percent, patience = bake.percent, self.inp.patience
        if bake.decision is not Decision.UNMEASURED and not bake.may_end and patience:
            needs = "the split" if bake.split().far else "enough to judge by"
            self.say(f"the bake at {percent} % is over, and waits for {needs}: {bake.split().described()}")
            by_hand = await self.wait(
                f"more-{percent}",
                patience,
                f"Wait at {percent} % for {needs}",
                every=self.inp.judge_every,
                watch=lambda: self._watch_longer(bake),
            )
            self._act_at_once(bake)
            if by_hand:
                return
        if bake.may_end:
            return
        if bake.decision is Decision.UNMEASURED:
            gate, lack = f"unmeasured-{percent}", "the versions can't be measured"
        elif bake.split().far:
            gate, lack = f"split-{percent}", f"the traffic does not split as asked, {bake.split().described()}"
        else:
            gate, lack = f"undecided-{percent}", f"after {length(patience)} more there is not enough to judge by"
        then = "keep it" if percent == 100 else "go on to the next rung"
        question = f"At {percent} % {lack}. {then.capitalize()} all the same? No puts the routing back"
        await self._gate_while_judging(bake, gate, question)

    async def _gate_while_judging(self, bake: Bake, gate_id: str, question: str) -> None:
        plan: dict[str, Scalar] = {
            "percent": bake.percent,
            "split": bake.split().described(),
            "decision": bake.decision.value,
            "reasons": bake.reasons,
        }
        asking = asyncio.create_task(self.gate(gate_id, question, plan))
        try:
            while not asking.done():
                await workflow.wait([asking], timeout=self.inp.judge_every.total_seconds())
                if not asking.done():
                    await self._look_and_judge(bake)
                    self._act_at_once(bake)
        except (FailureError, asyncio.CancelledError):
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            for gate in self.state.gates:
                if gate.id == gate_id and gate.state == "open":
                    gate.state = "rejected"
            raise
        await asking

    async def _watch(self, bake: Bake) -> bool:
        """Look while time passes; whether the bake is over before its time."""
        await self._look_and_judge(bake)
        if bake.decision in _AT_ONCE:
            return True
        self._keep_held()
        held = self._held or self.state.paused_by
        return not held and (bake.decision is Decision.UNMEASURED or self._recovered(bake))

    async def _watch_longer(self, bake: Bake) -> bool:
        over = await self._watch(bake)
        return over or (bake.may_end and not (self._held or self.state.paused_by))

    def _recovered(self, bake: Bake) -> bool:
        """Whether the replaced version is proven to be the broken one, and the operator wanted to go all the way."""
        if self.inp.on_recovery != "full_rollback" or bake.percent == 100:
            return False
        return settle(bake.judgements, self._limits, proof=True) is Decision.GO_ON and not bake.split().far

    def _act_at_once(self, bake: Bake) -> None:
        if bake.decision is Decision.WORSE:
            raise self.stop(
                f"version {bake.restored} is worse than version {bake.replaced}, which keeps the traffic: "
                f"{bake.reasons}",
                "Worse",
            )
        if bake.decision is Decision.NOT_THE_DEPLOY:
            raise self.stop(
                f"it is not the deploy: version {bake.restored} does no better than version {bake.replaced} at the "
                f"same time: {bake.reasons}. Look for the cause elsewhere (database, dependencies, traffic)",
                "NotTheDeploy",
            )

    # --- one look -----------------------------------------------------------------------------------------------

    async def _look_and_judge(self, bake: Bake) -> None:
        """Measure both versions since the last look, and judge all looks of the bake so far."""
        end = workflow.now() - self.stage.rollback.metrics_delay
        if end <= bake.seen_until:
            return
        if workflow.info().get_current_history_length() > _LONGEST:
            raise self.stop("the bake has lasted too long to go on watching it. Start again", "BakedTooLong")
        step = self._find_step(f"judge-{bake.percent}", None, Kind.LOOK)
        if step.started_at is None:
            step.state, step.started_at = State.RUNNING, workflow.now()
        versions = (bake.replaced, bake.restored)
        asked = Measure(stage=self.stage, start=bake.seen_until, end=end, versions=versions, begun=bake.began)
        look = Look(restored=None, replaced=None)
        try:
            # Not a step of its own: a paused run takes no step, but goes on judging.
            found = await self._run_activity(
                f"judge-{bake.percent}",
                f"count both versions at {bake.percent} %",
                Canary.measure,
                asked,
                policy.OBSERVE,
            )
            look = Look(restored=found.counts.get(bake.restored), replaced=found.counts.get(bake.replaced))
            problem = "; ".join(found.problems)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            problem = describe(error)[0]
        if look.restored is not None and look.replaced is not None:
            bake.seen_until = end  # else the next look covers this stretch, too
        elif problem and (not bake.judgements or bake.judgements[-1].measured):
            self.say(f"could not measure: {problem}", level="warning", source="provider")
        self._judge(bake, look)

    def _judge(self, bake: Bake, look: Look) -> None:
        was_far, before = bake.split().far, bake.decision
        bake.add(look)
        bake.judgements.append(judge(bake.looks, self._limits, earlier=bake.earlier))
        bake.decision = settle(bake.judgements, self._limits, proof=bake.proof)
        split, now = bake.split(), workflow.now()
        step = self._find_step(f"judge-{bake.percent}", None, Kind.LOOK)
        word = bake.decision.value.replace("_", " ")
        step.summary = f"{word}: {', '.join(map(_briefly, self._sides(bake)))}; {split.described()}"
        step.evidence = self._evidence(bake)
        if bake.decision is not before or len(bake.looks) == 1:
            self.say(f"at {bake.percent} %: {word}: {bake.reasons}")
            self._figures.marks.append(Mark(at=now, text=word))
        if split.far and not was_far:
            self.say(f"the traffic does not split as asked: {split.described()}", level="warning")
        self._figures.looked(now, look.replaced, look.restored)
        self.charts = self._figures.charts()
        self.refresh()

    @staticmethod
    def _sides(bake: Bake) -> tuple[VersionCounts, VersionCounts]:
        return bake.total(bake.replaced), bake.total(bake.restored)

    @staticmethod
    def _evidence(bake: Bake) -> dict[str, Scalar]:
        figures: dict[str, Scalar] = {"looks": len(bake.looks), "split": bake.split().described()}
        for side in Baking._sides(bake):
            figures[f"version {side.version}"] = f"{side.errors} errors of {side.invocations}"
        return figures | dict(bake.judgements[-1].p_values)

    def _over(self, bake: Bake) -> None:
        """The bake has ended, one way or another."""
        self._live = self._held = None
        step = self._find_step(f"judge-{bake.percent}", None, Kind.LOOK)
        if step.state is State.RUNNING:
            bad = bake.decision in _AT_ONCE
            step.state, step.ended_at = State.FAILED if bad else State.DONE, workflow.now()

    # --- operators ----------------------------------------------------------------------------------------------

    @workflow.update(
        description='Keep the live bake at its rung, judging on, until released. Input: {"by": "ann", "reason": "why"}'
    )
    def hold(self, *payload: Any) -> str:
        message = read(Steer, payload)
        self._held = message.by
        self._keep_held()
        self.say(f"holds the bake: {message.reason}", who=message.by, source="person")
        return "held until somebody releases it; a version that is worse still loses its traffic at once"

    @hold.validator
    def _check_hold(self, *payload: Any) -> None:
        _steer(payload)
        self._live_bake()
        if self._held:
            raise _refused(f"{self._held} holds it already")

    @workflow.update(description='End a hold. Input: {"by": "your name", "reason": "why it may go on"}')
    def release(self, *payload: Any) -> str:
        message = read(Steer, payload)
        self._held = None
        self.say(f"releases the bake: {message.reason}", who=message.by, source="person")
        return "released"

    @release.validator
    def _check_release(self, *payload: Any) -> None:
        _steer(payload)
        if not self._held:
            raise _refused("nobody holds it")

    @workflow.update(
        description='Give the restored version all of the traffic now. Input: {"by": "your name", "reason": "why"}'
    )
    def promote(self, *payload: Any) -> str:
        message = read(Steer, payload)
        self._promoted, self._held = message.by, None
        self.say(f"promotes at once: {message.reason}", who=message.by, source="person", level="warning")
        for wait in self.state.waits:
            wait.until, wait.ended = workflow.now(), True
        return "the restored version gets all of the traffic now, and is judged there"

    @promote.validator
    def _check_promote(self, *payload: Any) -> None:
        _steer(payload)
        bake = self._live_bake()
        if bake.percent == 100:
            raise _refused("it has all of the traffic already")
        if self._promoted:
            raise _refused(f"{self._promoted} has promoted it already")

    @workflow.update(description='Make a wait longer. Input: {"by": "your name", "reason": "why", "duration": "PT15M"}')
    def extend_wait(self, *payload: Any) -> str:  # type: ignore[override]  # its type names the class it stands in
        return str(super().extend_wait(*payload))

    @extend_wait.validator
    def _check_extend_wait(self, *payload: Any) -> None:
        super()._check_extend_wait(*payload)
        _with_reason(read(ExtendWait, payload))

    @workflow.update(description='End a wait now. Input: {"by": "your name", "reason": "why it is enough"}')
    def end_wait(self, *payload: Any) -> str:  # type: ignore[override]  # as above
        return str(super().end_wait(*payload))

    @end_wait.validator
    def _check_end_wait(self, *payload: Any) -> None:
        super()._check_end_wait(*payload)
        _with_reason(read(EndWait, payload))

    def _abort(self, message: By) -> None:
        if self._live is not None and message.reason is None:
            raise gates.Refused("say why traffic is taken back: the reason is needed while it is split")
        super()._abort(message)

    def _keep_held(self) -> None:
        """A held (or paused) bake lasts one interval longer than now, again and again."""
        if self._held or self.state.paused_by:
            for wait in self.state.waits:
                wait.until = max(wait.until, workflow.now() + 2 * self.inp.judge_every)

    def _live_bake(self) -> Bake:
        if self._live is None or not self.state.waits:
            raise _refused("no bake is live now")
        return self._live


def _briefly(side: VersionCounts) -> str:
    return f"version {side.version} {side.errors}/{side.invocations} errors"


def _steer(payload: Sequence[Any]) -> Steer:
    try:
        return read(Steer, payload)
    except BadMessage as error:
        raise ApplicationError(str(error), type="BadMessage", non_retryable=True) from None


def _with_reason(message: By) -> None:
    if message.reason is None:
        raise _refused("say why: reason is needed on a live bake")


def _refused(why: str) -> ApplicationError:
    return ApplicationError(why, type="Refused", non_retryable=True)
