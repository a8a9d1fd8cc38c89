"""Gradual rollback: the version to go back to gets its traffic step by step, and has to prove that it is the cure."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from temporalio import workflow

from activities.canary import Canary, Measure
from activities.charts import Mark
from activities.deployment_models import RollbackTarget
from activities.in_flight import InFlight, InFlightQuery, Runs
from activities.traffic import Traffic
from activities.traffic_models import Restore, Split, TrafficRouting
from activities.version_counts import VersionCounts
from workflows.canary_bake import Baking
from workflows.canary_model import (
    DEFAULT_LADDER,
    Bake,
    CanaryRollbackInput,
    limits_of,
    rung_steps,
    shift_id,
)
from workflows.details import length
from workflows.model import Kind, RunbookResult, Scalar, State, Step, StepSpec
from workflows.rollback import AFTER, BEFORE, CHECKLIST, KEEP_GATE
from workflows.runbook import RunbookSpec, Undo

MIGRATIONS = ("DatabaseMigration", "BatchedUpdate", "DatabaseRestore")
"""Runs that change the data which both versions read: between its begin and its end, old code may not understand it."""

FIRST = (
    StepSpec(id="in-flight", title="Is the stage's database being migrated?", kind=Kind.LOOK),
    StepSpec(id="identify", title="Identify what is live and the version to go back to", kind=Kind.LOOK),
    StepSpec(id="check-target", title="Verify that this version is healthy and still exists", kind=Kind.LOOK),
    StepSpec(id="routing", title="Record where the traffic goes", kind=Kind.LOOK),
    StepSpec(id="counts-before", title="Count errors of the version that is live", kind=Kind.LOOK),
    StepSpec(id="approve-rollback", title="Approval", kind=Kind.GATE),
)


@workflow.defn(name="CanaryRollback")
class CanaryRollback(Baking):
    """Put the last good release back step by step: 10 %, 50 %, 100 % of the traffic, 15 minutes each.

    Refuse while the stage's database is migrated; identify what is live and what was good before it, and record where
    the traffic goes; ask; then, rung by rung: shift, watch, and judge the version brought back against the one it
    replaces over the same minutes. Worse: the routing that was found comes back at once. No better: it is not the
    deploy, the routing comes back, and the run says so. Not enough requests: wait, then ask. At 100 % the version is
    promoted. At last verify as after a quick rollback, tell people, open a ticket. An abort restores the routing.
    """

    spec = RunbookSpec(
        input=CanaryRollbackInput,
        when="A deployment is suspected, but not proven: bring the version before it back with little at stake.",
        steps=(*FIRST, *rung_steps(DEFAULT_LADDER), *AFTER),
        checklist=CHECKLIST,
        gates=(
            (
                "across-migration",
                "Only while a migration is in flight, where the policy allows to ask: roll back then?",
            ),
            ("approve-rollback", "Roll back step by step? With from, to, ladder, routing and why"),
            ("undecided-<percent>", "Only when requests were too few: go on to the next rung?"),
            ("split-<percent>", "Only when the traffic does not split as asked: go on?"),
            ("unmeasured-<percent>", "Only when the versions cannot be measured: go on?"),
            KEEP_GATE,
        ),
        example={
            "stage": "production",
            "reason": "more 500s since the 14:02 deploy, cause not clear",
            "requested_by": "ann",
            "ladder": [10, 50, 100],
            "bake": "PT15M",
        },
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: CanaryRollbackInput) -> str:
        self._strategy, self._way = "alias", f"canary ({self.stage.traffic})"
        self._limits = limits_of(self.stage, inp)
        target = await self._identify()
        earlier = await self._count_before(target)
        target = await self._approval(target)
        self.announce("begin", f"Rolling {self.stage.name} back step by step", self._in_words(target))
        promoted_at = await self._climb(target, earlier)
        await self._enter_in_ledger(target, target.current)
        verdict = await self._verify(target, target.target.version, since=promoted_at)
        await self._tell_people(target, verdict)
        return f"{self.told(target)}; {verdict}"

    # --- before anything is touched -----------------------------------------------------------------------------

    def _begin(self, inp: CanaryRollbackInput) -> None:
        super()._begin(inp)
        steps = (*FIRST, *rung_steps(inp.ladder), *AFTER)
        self.state.steps = [Step(id=spec.id, title=spec.title, kind=spec.kind) for spec in steps]

    async def preflight(self, inp: CanaryRollbackInput) -> None:
        """A migration holds the stage, so it is looked for before queueing behind it."""
        asked = InFlightQuery(stage=self.stage.name, runbooks=MIGRATIONS)
        found = cast(InFlight | None, await self.observe("in-flight", Runs.in_flight, asked))
        if found is not None and not found.runs:
            return
        runs = ", ".join(f"{run.runbook} {run.workflow_id}" for run in found.runs) if found else None
        if runs and self.stage.canary.migration == "refuse":
            raise self.stop(
                f"{runs} is in flight on {self.stage.name}: older code may not understand the data half-way. "
                "Wait for its end, or abort it",
                "MigrationInFlight",
            )
        said = f"while {runs} is in flight" if runs else "although nobody can say whether a migration is in flight"
        plan: dict[str, Scalar] = {"stage": self.stage.name, "in flight": runs or "not known"}
        await self.gate("across-migration", f"Roll {self.stage.name} back {said}?", plan)
        self.beside_holder = runs is not None

    async def _identify(self) -> RollbackTarget:
        target = await super()._identify()
        self._routing = await self.look("routing", Traffic.routing, self.stage)
        self._check_routing(self._routing, target)
        return target

    def _check_routing(self, found: TrafficRouting, target: RollbackTarget) -> None:
        current, version = target.current.version, target.target.version
        if version is None or current is None or current != found.version:
            raise self.stop(
                f"traffic goes to version {found.version}, not to {target.current.name}: deploy or promote first, so "
                "that one version is live",
                "RoutingUnclear",
            )
        canary = found.gateway.canary if found.gateway else None
        others = set(found.alias.weights) - {version}
        if canary and found.gateway and canary.overrides.get(found.gateway.variable) != version:
            others.add("a canary of the gateway")
        if others:
            raise self.stop(
                f"the traffic of {self.stage.name} is split already: {found.described()}. End that first, or use "
                "QuickRollback",
                "TrafficBusy",
            )

    def _plan(self, target: RollbackTarget) -> dict[str, Scalar]:
        inp = self.inp
        return {
            **super()._plan(target),
            "routing": self._routing.described(),
            "ladder": " → ".join(f"{percent} %" for percent in inp.ladder),
            "bake": f"{length(inp.bake)} each, judged every {length(inp.judge_every)}",
            "once recovery is proven": inp.on_recovery.replace("_", " "),
        }

    def _in_words(self, target: RollbackTarget) -> str:
        ladder = " → ".join(f"{percent} %" for percent in self.inp.ladder)
        return f"{target.current.name} gives its traffic to {target.target.name}: {ladder}"

    async def _count_before(self, target: RollbackTarget) -> VersionCounts:
        """What the version to be replaced did lately: all there is to compare with when the first rung is 100 %."""
        version, now = target.current.version or "", workflow.now()
        asked = Measure(stage=self.stage, start=now - BEFORE, end=now, versions=(version,))
        found = await self.observe("counts-before", Canary.measure, asked)
        counts = found.counts.get(version) if found else None
        return counts or VersionCounts(version=version, invocations=0, errors=0)

    # --- the ladder ---------------------------------------------------------------------------------------------

    async def _climb(self, target: RollbackTarget, earlier: VersionCounts) -> datetime:
        """All rungs, one after the other. Returns when the restored version got all of the traffic."""
        restored, replaced = target.target.version or "", target.current.version or ""
        compared = [percent for percent in self.inp.ladder if percent < 100]
        straight = False
        at = workflow.now()
        for number, percent in enumerate(self.inp.ladder):
            if percent < 100 and straight:
                self._skip(percent)
                continue
            await self._shift(percent, target, first=number == 0)
            at = workflow.now()
            self._figures.share.append((at, percent))
            bake = Bake(
                percent=percent,
                replaced=replaced,
                restored=restored,
                began=at,
                seen_until=at,
                proof=bool(compared) and percent == compared[-1],
                earlier=earlier if percent == 100 else None,
            )
            await self._bake(bake)
            if bake.total(replaced).invocations:
                earlier = bake.total(replaced)
            if percent < 100 and (self._promoted or self._recovered(bake)):
                straight = True
                self.say(f"straight to 100 %: {'asked for by ' + self._promoted if self._promoted else 'proven'}")
        self.facts["judged"] = bake.reasons
        return at

    async def _shift(self, percent: int, target: RollbackTarget, *, first: bool) -> None:
        order = Split(
            stage=self.stage,
            before=self._routing,
            target=target.target.version or "",
            target_code=target.target.code_sha256,
            percent=percent,
        )
        back = Restore(stage=self.stage, before=self._routing, target=order.target)
        name = target.target.name
        await self.change(
            shift_id(percent),
            Traffic.promote if percent == 100 else Traffic.shift,
            order,
            would=f"promote {name}" if percent == 100 else f"give {percent} % of the traffic to {name}",
            undo=Undo(f"restore the routing: {self._routing.described()}", Traffic.restore, back) if first else None,
        )
        self._figures.marks.append(Mark(at=workflow.now(), text=f"{percent} %"))

    def _skip(self, percent: int) -> None:
        for name in (shift_id(percent), f"bake-{percent}", f"judge-{percent}"):
            if step := self.state.step(name):
                step.state, step.summary = State.SKIPPED, "straight to 100 %"

    async def _undo_all(self) -> None:
        await super()._undo_all()
        first = self.state.step(shift_id(self.inp.ladder[0]))
        if first and first.state is State.UNDONE:
            for percent in self.inp.ladder:
                step = self.state.step(shift_id(percent))
                if step and step.state is State.DONE:
                    step.state = State.UNDONE
        if self._figures.share:
            self._figures.share.append((workflow.now(), 0))
            self.charts = self._figures.charts()
