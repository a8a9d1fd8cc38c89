"""Load testing before scaling: how a stage does under many requests at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from temporalio import workflow

from activities.database import Connections, Database
from activities.load import Load
from activities.load_models import LoadOrder, LoadReport
from activities.logs import Logs
from activities.metrics import Metrics, Window
from workflows import policy
from workflows.load_verdict import charts, problems, thinned
from workflows.model import Kind, Phase, RunbookResult, StepSpec
from workflows.runbook import Runbook, RunbookSpec
from workflows.scaling_model import LoadTestInput


@workflow.defn(name="LoadTest")
class LoadTest(Runbook[LoadTestInput]):
    """Send many requests to a stage, and say what its clients would see.

    The document's ``ab -n 1000 -c 100`` by default. Only reads are sent, to this machine or to hosts that the settings
    name. Production is refused unless people allow it at a gate. Percentiles, answers by status, the function's own
    durations and the database's connections, before and after; a chart. Passed or not is a fact of the result: that a
    stage does not hold is a finding, no failure of the run.
    """

    spec = RunbookSpec(
        input=LoadTestInput,
        when="Before scaling, and whenever you want to know how much a stage takes. Always staging first.",
        steps=(
            StepSpec(id="load-production", title="Approval, on production only", kind=Kind.GATE),
            StepSpec(id="database", title="Database connections before", kind=Kind.LOOK),
            StepSpec(
                id="load", title="Send the requests", kind=Kind.CHANGE, undo="nothing: only reads are sent; it stops"
            ),
            StepSpec(id="metrics-delay", title="Let the metrics arrive", kind=Kind.WAIT),
            StepSpec(id="durations", title="The function's own durations", kind=Kind.LOOK),
            StepSpec(id="errors", title="Errors in the function's log", kind=Kind.LOOK),
            StepSpec(id="database-after", title="Database connections after", kind=Kind.LOOK),
        ),
        checklist=(
            ("load", "Load test completed"),
            ("metrics", "Metrics checked"),
            ("passed", "The stage holds the load"),
        ),
        gates=(("load-production", "Only on production, always there: load it? With how much"),),
        example={
            "stage": "staging",
            "reason": "does it hold the spring campaign?",
            "requests": 1000,
            "concurrency": 100,
            "path": "/sessions",
        },
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: LoadTestInput) -> str:
        plan = inp.plan()
        await self._approval(inp)
        before = await self.observe("database", Database.connections, self.stage)
        order = LoadOrder(stage=self.stage, plan=plan, production_allowed=self.stage.production)
        would = f"send {plan.described()} to {self.stage.name}"
        sent = await self.change("load", Load.run, order, policy.LOAD, would=would, undo=None)
        found = cast(LoadReport | None, sent)
        if found is None:
            return f"would send {plan.described()}"
        self.check("load", not found.cut_short, found.summary)
        await self._measure(found, before)
        return self._judge_load(inp, found)

    async def _approval(self, inp: LoadTestInput) -> None:
        if not self.stage.production:
            step = self.state.step("load-production")
            if step:
                step.summary = "not production"
            return
        question = f"Load {self.stage.name} itself? Its clients will feel it"
        await self.gate("load-production", question, {"load": inp.plan().described()}, always=True)

    async def _measure(self, found: LoadReport, before: Connections | None) -> None:
        """The document's step 3: the function's own figures over the time of the test."""
        self._enter(Phase.VERIFYING)
        await self.wait("metrics-delay", self.stage.rollback.metrics_delay, "the metrics arrive")
        end = max(found.ended_at, found.began_at + timedelta(seconds=1))
        window = Window(stage=self.stage, start=found.began_at, end=end)
        whole = window.model_copy(update={"start": window.start.replace(second=0, microsecond=0)})
        durations = await self.observe("durations", Metrics.latency, whole)
        errors = await self.observe("errors", Logs.errors, window)
        after = await self.observe("database-after", Database.connections, self.stage)
        read = durations is not None and durations.samples is not None
        note = durations.summary if durations else "the durations could not be read"
        self.check("metrics", read, f"{note}; {errors.summary}" if errors else note)
        self.facts |= {
            "function_p95_ms": durations.p95_ms if durations else None,
            "connections_before": before.current if before else None,
            "connections_after": after.current if after else None,
        }

    def _judge_load(self, inp: LoadTestInput, found: LoadReport) -> str:
        said = problems(found, inp.max_error_rate, inp.max_p95_ms)
        self.check("passed", not said, "; ".join(said) or found.summary)
        self.charts += charts(found)
        self.charts_above = [thinned(chart) for chart in self.charts]
        self.facts |= {
            "passed": not said,
            "requests": found.sent,
            "error_rate": found.error_rate,
            "throughput": found.throughput,
            "p50_ms": found.p50_ms,
            "p95_ms": found.p95_ms,
            "p95_low_ms": found.p95_low_ms,
            "p95_high_ms": found.p95_high_ms,
            "p99_ms": found.p99_ms,
        }
        return f"NOT passed: {'; '.join(said)} ({found.summary})" if said else f"passed: {found.summary}"
