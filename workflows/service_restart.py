"""Complete service restart: the last resort, when all troubleshooting has failed."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import FailureError

from activities.api import Api, Health, HealthCheck
from activities.database import Connections, Database
from activities.deployment_models import DeployInput, Former, PointAlias
from activities.deployments import Deployments
from activities.function_capacity import FunctionCapacity, FunctionState, LimitOrder, RestartOrder
from activities.logs import LogErrors, Logs
from activities.metrics import Window
from workflows import policy
from workflows.beside import BesideHandle, start_beside
from workflows.details import length
from workflows.keeping import keepers
from workflows.model import Outcome, Phase, RunbookResult, Scalar, State, Step
from workflows.restart_judge import Judged, Rung, Verdict, judge, steps_up
from workflows.restart_steps import AFTER, BEFORE, FIRST, KEEP, RESTART, STOP, limit_in_words, rung_steps
from workflows.runbook import RunbookSpec, Undo
from workflows.scaling_model import ServiceRestartInput
from workflows.service_restart_watchdog import ServiceRestartWatchdogInput
from workflows.stakeholders import TellsStakeholders


@workflow.defn(name="ServiceRestart")
class ServiceRestart(TellsStakeholders[ServiceRestartInput]):
    """Start every execution environment of the function anew, with no traffic meanwhile. Last resort only.

    Look what is live and how much the function may take; always ask; tell stakeholders; start a watchdog; let no call
    in (reserved concurrency 0, the former value recorded as the undo before); wait 30 seconds; start the environments
    anew by changing one variable, never by emptying them; deploy what was live if it is not; let traffic back in step
    by step, each judged; verify. Abort, cancel and failure give traffic back at once, and so does the watchdog when
    this run is terminated, hangs, or takes longer than ``longest``.
    """

    spec = RunbookSpec(
        input=ServiceRestartInput,
        when="Last resort, after all troubleshooting has failed: the function hangs or holds connections.",
        steps=(*FIRST, *STOP, *RESTART, *rung_steps((2, 10, 50)), *AFTER),
        checklist=(
            ("stakeholders", "Notified stakeholders"),
            ("stopped", "Stopped accepting new requests"),
            ("cleared", "Cleared stuck connections"),
            ("redeployed", "Re-enabled and re-deployed"),
            ("up", "Verified service is up"),
            ("resumed", "Gradually resumed normal traffic"),
        ),
        gates=(
            ("approve-restart", "Always: restart the whole service? With release, limits, ladder and errors now"),
            ("keep-restart", "Only when the service is not well afterwards: keep the new environments?"),
        ),
        example={
            "stage": "production",
            "reason": "requests hang since 14:02, rollback did not help",
            "requested_by": "ann",
            "drain": "PT30S",
            "ladder": [2, 10, 50],
        },
    )

    def __init__(self) -> None:
        super().__init__()
        self._watchdog: BesideHandle | None = None
        self._ladder: tuple[int, ...] = ()
        self._before: LogErrors | None = None
        self._overtaken: str | None = None
        """Why letting in ended early: the watchdog or a person had given traffic back."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def _begin(self, inp: ServiceRestartInput) -> None:
        super()._begin(inp)
        stop = STOP if inp.stop_traffic else ()
        rungs = rung_steps(inp.ladder) if inp.stop_traffic else ()
        after = AFTER if inp.stop_traffic else AFTER[1:]
        steps = (*FIRST, *stop, *RESTART, *rungs, *after)
        self.state.steps = [Step(id=spec.id, title=spec.title, kind=spec.kind) for spec in steps]

    async def procedure(self, inp: ServiceRestartInput) -> str:
        found = await self._look()
        former = await self.look("capture", Deployments.capture, self.stage)
        database = await self.observe("database", Database.connections, self.stage)
        await self._approval(found)
        await self._tell_begin()
        if inp.stop_traffic:
            await self._start_watchdog(found)
            await self._stop_traffic(found)
        await self._restart(found, former)
        if inp.stop_traffic:
            await self._let_in(found)
            await self._give_back(found)
        verdict = await self._verify(database)
        await self._tell_end(verdict)
        every = f"every environment of {self.stage.function}"
        return f"would start {every} anew; {verdict}" if inp.dry_run else f"{every} was started anew; {verdict}"

    # --- before anything is touched -----------------------------------------------------------------------------

    async def _look(self) -> FunctionState:
        found = await self.look("settings", FunctionCapacity.capacity, self.stage)
        if found.reissue_problem:
            raise self.stop(f"its environments cannot be started anew: {found.reissue_problem}", "NotRestartable")
        if self.inp.stop_traffic and found.provisioned:
            raise self.stop(
                f"{self.stage.function} has {found.provisioned} provisioned environments, and AWS lets nobody reserve "
                "less than that: its traffic cannot be stopped. Start with stop_traffic=false, or end the provisioned "
                "concurrency first (ProvisionedConcurrency with executions=0)",
                "Provisioned",
            )
        if self.inp.stop_traffic and found.reserved == 0:
            raise self.stop(
                f"the traffic of {self.stage.function} is stopped already (reserved concurrency 0), so what to put "
                "back is not known. Find out who stopped it; give it back with ServiceRestartWatchdog or by hand",
                "StoppedAlready",
            )
        self._ladder = steps_up(self.inp.ladder, found.reserved, found.reservable)
        now = workflow.now()
        window = Window(stage=self.stage, start=now - BEFORE, end=now)
        self._before = await self.observe("errors-before", Logs.errors, window)
        self.facts |= {"version before": found.version, "limit before": limit_in_words(found.reserved)}
        return found

    def _plan(self, found: FunctionState) -> dict[str, Scalar]:
        inp = self.inp
        steps = " → ".join([*(str(step) for step in self._ladder), limit_in_words(found.reserved)])
        return {
            "stage": self.stage.name,
            "function": self.stage.function,
            "live": found.version,
            "traffic": f"stopped for at least {length(inp.drain)}" if inp.stop_traffic else "not stopped",
            "limit to put back": limit_in_words(found.reserved),
            "way back": f"{steps}, {length(inp.hold)} each" if inp.stop_traffic else "at once",
            "at the latest after": length(inp.longest) if inp.stop_traffic else None,
        }

    async def _approval(self, found: FunctionState) -> None:
        async def look_again() -> dict[str, Scalar]:
            return self._plan(await self._look())

        question = f"Restart the whole service on {self.stage.name}? Clients get errors until it is back"
        await self.gate("approve-restart", question, self._plan(found), recheck=look_again, always=True)

    # --- stop ---------------------------------------------------------------------------------------------------

    async def _start_watchdog(self, found: FunctionState) -> None:
        if self.inp.dry_run:
            return
        watched = ServiceRestartWatchdogInput(
            stage=self.inp.stage,
            reason=self.inp.reason,
            requested_by=self.inp.requested_by,
            incident=self.inp.incident,
            severity=self.inp.severity,
            restart=self.state.workflow_id,
            restart_run=workflow.info().first_execution_run_id,
            former=found.reserved,
            steps=self._ladder,
            longest=self.inp.longest,
        )
        title = "Start the watchdog that gives traffic back if this run dies"
        self._watchdog = await start_beside(self, "watchdog", "ServiceRestartWatchdog", watched, title=title)

    async def _stop_traffic(self, found: FunctionState) -> None:
        stopped = await self.change(
            "stop-traffic",
            FunctionCapacity.limit,
            self._limit_order(found, 0, strict=True),
            would=f"let no call in (reserved concurrency 0, now {limit_in_words(found.reserved)})",
            undo=Undo(
                f"give traffic back: {limit_in_words(found.reserved)}",
                FunctionCapacity.limit,
                self._limit_order(found, found.reserved),
            ),
        )
        self.check("stopped", stopped is not None, stopped.summary if stopped else "dry run")
        await self.wait("drain", self.inp.drain, "what is under way ends")

    def _limit_order(self, found: FunctionState, concurrency: int | None, *, strict: bool = False) -> LimitOrder:
        known = (found.reserved,) if strict else (0, *self._ladder, found.reserved)
        if concurrency and concurrency in self._ladder:
            # Only what this run has set itself: where the former limit is back, traffic is not taken away again.
            known = (0, *(step for step in self._ladder if step < concurrency))
        return LimitOrder(stage=self.stage, concurrency=concurrency, known=known, strict=strict)

    # --- restart ------------------------------------------------------------------------------------------------

    async def _restart(self, found: FunctionState, former: Former) -> None:
        routing = former.routing
        back = (
            Undo(
                f"point {routing.alias} at version {routing.version} again",
                Deployments.point_alias,
                PointAlias(stage=self.stage, version=routing.version, weights=routing.weights),
            )
            if routing
            else None
        )
        key = f"{self.key('restart')}/{workflow.info().first_execution_run_id}"
        restarted = await self.change(
            "restart",
            FunctionCapacity.restart,
            RestartOrder(stage=self.stage, key=key),
            policy.DEPLOY,
            would=f"start every environment of {self.stage.function} anew, with the same code (now {found.version})",
            undo=back,
        )
        self.facts["version after"] = restarted.version if restarted else None
        order = DeployInput(
            stage=self.stage,
            release=former.live.model_copy(update={"version": None}),
            deployment_id=f"{self.key('redeploy')}/{workflow.info().run_id}",
            strategy="redeploy",
        )
        if former.live.release is None:
            self._skip("redeploy", "the live release has no name, so it cannot be deployed; its code is live again")
            self.check("redeployed", restarted is not None, "environments started anew with the code that was live")
            return
        deployed = await self.change(
            "redeploy",
            Deployments.deploy,
            order,
            policy.DEPLOY,
            would=f"deploy {former.live.name}, if it is not live",
            undo=None,
        )
        self.check("redeployed", deployed is not None, deployed.summary if deployed else "dry run")

    # --- and let it back in -------------------------------------------------------------------------------------

    async def _let_in(self, found: FunctionState) -> None:
        for number, calls in enumerate(self.inp.ladder):
            if calls not in self._ladder:
                self._skip(f"let-in-{calls}", "at or above the former limit, or more than the account has left")
                self._skip(f"hold-{calls}", "see above")
                self._skip(f"judge-{calls}", "see above")
                continue
            let_in = await self.change(
                f"let-in-{calls}",
                FunctionCapacity.limit,
                self._limit_order(found, calls),
                would=f"let {calls} calls in at once",
                undo=None,  # that of stop-traffic gives everything back
            )
            if let_in is None:
                continue
            if let_in.left and workflow.patched("traffic-that-is-back-stays"):
                self._overtaken = let_in.summary
                self.say(f"traffic is not limited again: {let_in.summary}", level="warning")
                return
            began = workflow.now()
            if number == 0:
                await self._answers()
            await self._hold(calls, began)

    async def _answers(self) -> None:
        """One good answer is asked for: with few calls let in, some of ours find no room either."""
        check = HealthCheck(
            stage=self.stage,
            consecutive=1,
            interval=self.stage.rollback.health_interval,
            patience=max(self.inp.patience, self.stage.rollback.health_interval),
        )
        health = await self.look("answers", Api.health, check, policy.WATCH)
        if not health.ok:
            raise self.stop(
                f"the new environments do not answer: {health.summary}. It is not the environments that hang. "
                "Look at the function's log, then QuickRollback",
                "DoesNotAnswer",
            )

    async def _hold(self, calls: int, began: datetime) -> None:
        """Watch one step until it is good, or its patience is over."""
        until = began + self.inp.hold + self.inp.patience
        pause = self.inp.hold
        while True:
            by_hand = await self.wait(f"hold-{calls}", pause, f"watch {calls} calls at once")
            judged = await self._judge_step(calls, began)
            self.say(f"{calls} calls at once: {judged.verdict}, {judged.reason}")
            left = until - workflow.now()
            if judged.verdict in (Verdict.GOOD, Verdict.BETTER) or by_hand:
                return
            if left <= timedelta(0):
                break
            began = workflow.now() if judged.verdict is Verdict.BAD else began  # errors that have ended do not count
            pause = min(left, self.inp.hold)
        if judged.verdict is Verdict.BAD:
            raise self.stop(
                f"with {calls} calls at once it fails: {judged.reason}. The restart is not the cure. Look at the "
                "function's log, then QuickRollback",
                "StillFailing",
            )
        self.say(f"goes on without knowing: {judged.reason}", level="warning")

    async def _judge_step(self, calls: int, began: datetime) -> Judged:
        window = Window(stage=self.stage, start=began, end=max(workflow.now(), began + timedelta(seconds=1)))
        seen = await self.observe(f"judge-{calls}", Logs.errors, window, title=f"Judge {calls} calls at once")
        known = seen is not None and seen.complete
        rung = Rung(seen.errors, seen.requests) if seen is not None and known else Rung(None, None)
        return judge(rung, self.inp.max_error_rate, self._before.rate if self._before else None)

    async def _give_back(self, found: FunctionState) -> None:
        given = await self.change(
            "give-back",
            FunctionCapacity.limit,
            self._limit_order(found, found.reserved),
            policy.UNDO,
            would=f"give all traffic back: {limit_in_words(found.reserved)}",
            undo=None,
        )
        step = self.state.step("stop-traffic")
        took = length(workflow.now() - step.started_at) if step and step.started_at else "?"
        note = f"{given.summary}, {took} after it was stopped" if given else "dry run"
        if self._overtaken:
            note = f"not step by step: {self._overtaken}"
        self.check("resumed", given is not None and self._overtaken is None, note)

    # --- is it well? --------------------------------------------------------------------------------------------

    async def _verify(self, database: Connections | None) -> str:
        self._enter(Phase.VERIFYING)
        rules, since = self.stage.rollback, workflow.now()
        health = await self._health()
        await self.wait("watch", rules.error_window + rules.metrics_delay, "let traffic run, then count errors")
        window = Window(stage=self.stage, start=since, end=max(workflow.now(), since + timedelta(seconds=1)))
        if self.inp.dry_run:
            window = window.model_copy(update={"start": window.end - BEFORE})
        errors = await self.observe("errors-after", Logs.errors, window)
        after = await self.observe("database-after", Database.connections, self.stage)
        counts = (database.current if database else None, after.current if after else None)
        version = self.facts.get("version after")
        connections = f"; connections {counts[0]} before, {counts[1]} after" if None not in counts else ""
        self.check("cleared", bool(version), f"version {version}: no environment that ran before{connections}")
        before = self._before.rate if self._before else None
        rung = Rung(errors.errors, errors.requests) if errors and errors.complete else Rung(None, None)
        judged = judge(rung, self.inp.max_error_rate, before)
        well = health.ok and judged.verdict in (Verdict.GOOD, Verdict.FEW)
        self.check("up", health.ok, f"{health.summary}; {judged.reason}")
        found = f"{health.summary}; {judged.reason}"
        if self.inp.dry_run:
            return f"as it is now: {found}"
        if well:
            return f"verified: {found}"
        question = f"{self.stage.name} is not well after the restart. Keep the new environments? No points back"
        who = keepers(self.stage, "keep-restart", KEEP)
        await self.gate("keep-restart", question, {"problems": found}, fallback=who)
        return f"NOT well: {found}"

    async def _health(self) -> Health:
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        return await self.look("health", Api.health, check, policy.WATCH)

    # --- people, and the end ------------------------------------------------------------------------------------

    async def _tell_begin(self) -> None:
        stopped = "Traffic is stopped meanwhile." if self.inp.stop_traffic else "Traffic is not stopped."
        known, note = await self._tell_stakeholders(
            "stakeholders",
            "mail-begin",
            f"Emergency restart of {self.stage.name} begins",
            f"Reason: {self.inp.reason}\n{stopped} It comes back at the latest in {length(self.inp.longest)}.",
        )
        self.check("stakeholders", known, note)

    async def _tell_end(self, verdict: str) -> None:
        title = f"Emergency restart of {self.stage.name} is done"
        await self._tell_stakeholders("notify", "mail-end", title, verdict)

    async def closing(self, outcome: Outcome, summary: str) -> None:
        await self._dismiss_watchdog(outcome)
        begun = self.state.step("mail-begin")
        if begun and begun.state is State.DONE and outcome is not Outcome.COMPLETED:
            # Who was told that it begins waits to hear that it is over; the team's chat hears it from the frame.
            title = f"Emergency restart of {self.stage.name}: {outcome}"
            await self._mail_stakeholders("mail-close", title, summary)

    async def _dismiss_watchdog(self, outcome: Outcome) -> None:
        """Traffic is back: the watchdog may go. Where it could not be put back, the watchdog goes on trying."""
        if self._watchdog is None or self.state.left_undone:
            return
        try:
            await self._watchdog.signal("stand_down", {"by": self.state.runbook, "reason": f"ended: {outcome}"})
        except FailureError:
            self.say("the watchdog had ended before this run", level="warning")

    def _skip(self, step_id: str, why: str) -> None:
        if step := self.state.step(step_id):
            step.state, step.summary = State.SKIPPED, why
