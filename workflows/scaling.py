"""What every change of capacity shares: confirm, staging first with a load test, ask, change, measure, end in time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from temporalio import workflow

from activities.config_files import ConfigAt, ConfigFiles, Proposal
from activities.database import Connections, Database
from activities.function_capacity import FunctionCapacity, FunctionState, Setting
from activities.metrics import ErrorRate, Latency, Metrics, Window
from activities.stage import Stage
from activities.stages import Stages
from activities.symptom_logs import SymptomLogs
from activities.symptom_models import Reports
from workflows.capacity import Assessed
from workflows.details import length
from workflows.gates import Refused
from workflows.load_verdict import Change, Compared, Failed, compare, compare_failed, compare_tests, judged
from workflows.model import By, Kind, Name, RunbookResult, Scalar, State
from workflows.operator import _as_rejection, _valid, read
from workflows.runbook import Runbook, Undo
from workflows.scaling_model import LoadTestInput, ScalingInput

I = TypeVar("I", bound=ScalingInput)  # noqa: E741

NOT_MERGED = "nobody sent the merged commit in time. Merge the diff and start again with it as 'commit'"


class Merged(By):
    commit: Name


@dataclass
class Seen:
    """A stage as it does, before or after."""

    state: FunctionState
    reports: Reports | None = None
    latency: Latency | None = None
    database: Connections | None = None
    errors: ErrorRate | None = None


class Scaling(Runbook[I]):
    """The procedure; a runbook says which setting, how it is assessed, and by which figure it has helped."""

    figure: ClassVar[str]
    """What is compared before and after, for people."""
    unit: ClassVar[str] = "ms"
    """Of that figure."""

    def __init__(self) -> None:
        super().__init__()
        self._commit: str | None = None
        self._tier: str | None = None
        self._proposal: Proposal | None = None
        self._staged: RunbookResult | None = None
        self._loads: dict[str, RunbookResult] = {}
        self._seen: Seen
        self._assessed: Assessed

    # --- what a runbook says ------------------------------------------------------------------------------------

    @abstractmethod
    def wanted(self) -> Setting:
        """The setting that is asked for."""

    @abstractmethod
    def former(self, found: FunctionState) -> Setting:
        """The same figures as they are now."""

    @abstractmethod
    def assess(self, seen: Seen, tier: str | None) -> Assessed:
        """Need, capacity, cost, and why it would make things worse if it would."""

    @abstractmethod
    def measure(self, seen: Seen) -> float | None:
        """The figure that should become less; None where it could not be measured."""

    # --- before the stage is waited for -------------------------------------------------------------------------

    @property
    def rehearsal(self) -> bool:
        """Whether this is the run on staging."""
        return self.inp.stage == self.inp.staging

    async def preflight(self, inp: I) -> None:
        """Confirm the need, refuse what makes things worse, and wait for the merge. Days can pass here."""
        if self.rehearsal and self.stage.production:
            raise self.stop(f"{inp.stage} is production and cannot be its own staging. Name another one", "NoStaging")
        self._seen = await self._see("")
        self._tier = await self._cluster_tier()
        self._assess()
        await self._propose()
        if inp.way == "merge":
            self._commit = await self._merged_commit()
        else:
            self._skip("merge", "made directly; recorded as drift")

    async def _see(self, suffix: str, since: datetime | None = None) -> Seen:
        """Everything side by side, over the window or ``since``."""
        end = workflow.now()
        window = Window(stage=self.stage, start=since or end - self.inp.window, end=end)
        whole = window.model_copy(update={"start": window.start.replace(second=0, microsecond=0)})
        titles = {
            "reports": "Memory, durations and cold starts",
            "latency": "Latency",
            "database": "Database connections",
            "errors": "Errors",
        }
        when = "after" if suffix else "before"
        state = await self.look(
            f"settings{suffix}", FunctionCapacity.capacity, self.stage, title=f"The function {when}"
        )
        asked = {name: f"{title} {when}" for name, title in titles.items()}
        reports = await self.observe(f"reports{suffix}", SymptomLogs.reports, window, title=asked["reports"])
        latency = await self.observe(f"latency{suffix}", Metrics.latency, whole, title=asked["latency"])
        database = await self.observe(f"database{suffix}", Database.connections, self.stage, title=asked["database"])
        errors = None
        if workflow.patched("errors-are-compared"):
            errors = await self.observe(f"errors{suffix}", Metrics.error_rate, window, title=asked["errors"])
        return Seen(state, reports, latency, database, errors)

    async def _cluster_tier(self) -> str | None:
        """Only where it decides something."""
        self._skip("tier", "decides nothing here")
        return None

    def _assess(self) -> None:
        found = self._seen.state
        if self.inp.way == "direct" and found.reissue_problem:
            raise self.stop(f"it cannot be changed directly: {found.reissue_problem}", "NotChangeable")
        self._assessed = self.assess(self._seen, self._tier)
        self.facts |= {
            "from": self.former(found).described(),
            "to": self.wanted().described(),
            "need": self._assessed.need,
            "capacity": self._assessed.capacity,
            "cost": self._assessed.cost,
        }
        self.say(f"need: {self._assessed.need}")
        self.say(f"capacity: {self._assessed.capacity}")
        self.say(f"cost: {self._assessed.cost}")
        if self._assessed.refused:
            raise self.stop(f"refused: {self._assessed.refused}", "WouldBeWorse")
        self.check("cost", self._assessed.priced, self._assessed.cost)
        self.check("headroom", self._assessed.headroom, self._assessed.capacity)

    async def _propose(self) -> None:
        at = ConfigAt(stage=self.stage, setting=self.wanted(), release=self._seen.state.release)
        self._proposal = await self.observe("proposal", ConfigFiles.propose, at)
        if self._proposal and self._proposal.diff:
            self.facts["diff"] = self._proposal.diff
            self.say(f"the change as people would merge it:\n{self._proposal.diff}")

    async def _merged_commit(self) -> str | None:
        """The commit that has the change: from the input, or from the update ``merged``."""
        if self.inp.dry_run:
            self._skip("merge", "would wait for the merged commit")
            return None
        deadline = workflow.now() + self.inp.merge_within
        commit = self.inp.commit
        while True:
            if commit is not None:
                at = ConfigAt(stage=self.stage, setting=self.wanted(), release=commit)
                check = await self.look("commit", ConfigFiles.propose, at, title=f"Has {commit[:12]} the change?")
                if check.has_it:
                    return commit
                self.say(f"{commit} does not have it: {check.summary}", level="warning")
                if commit == self.inp.commit:
                    raise self.stop(f"{commit} does not have the change: {check.summary}", "NotInCommit")
            self._commit = None
            if (left := deadline - workflow.now()) <= timedelta(0):
                raise self.stop(NOT_MERGED, "NotMerged")
            path = self._proposal.path if self._proposal else "the file"
            self.announce("merge", f"Waits for a commit: {path}", (self._proposal and self._proposal.diff) or "")
            await self.wait("merge", left, f"the change of {path} is merged: send update 'merged' with the commit")
            commit = self._commit
            if commit is None:
                raise self.stop(NOT_MERGED, "NotMerged")

    @workflow.update(description='The change is merged. Input: {"by": "your name", "commit": "1a2b3c4"}')
    def merged(self, *payload: Any) -> str:
        message = read(Merged, payload)
        self._commit = message.commit
        self.say(f"has merged it as {message.commit}", who=message.by, source="person")
        for wait in self.state.waits:
            if wait.id == "merge":
                wait.until = workflow.now()
        return f"{message.commit} is looked at, then deployed to {self.inp.staging} first"

    @merged.validator
    def _check_merged(self, *payload: Any) -> None:
        _valid(Merged, payload)
        with _as_rejection():
            if not any(wait.id == "merge" for wait in self.state.waits):
                raise Refused("the run does not wait for a merge now")

    # --- the procedure ------------------------------------------------------------------------------------------

    async def procedure(self, inp: I) -> str:
        await self._rehearse(inp)
        await self._approval()
        return await self.make()

    @abstractmethod
    async def make(self) -> str:
        """Make the change and everything after it."""

    async def _rehearse(self, inp: I) -> None:
        """The same run on staging, by itself; or, on staging, the load test before."""
        if self.rehearsal:
            self._skip("staging-stage", "this is the staging stage")
            self._skip("rehearse", "this is the staging stage")
            await self.load("load-before")
            return
        for step in ("load-before", "load-after"):
            self._skip(step, "on staging only")
        staging = await self.look("staging-stage", Stages.resolve, inp.staging)
        if staging.production or staging.function == self.stage.function:
            raise self.stop(f"staging {inp.staging} is production too, or the same function. Name another", "NoStaging")
        update = {"stage": inp.staging, "commit": self._commit, "dry_run": inp.dry_run}
        child = type(inp).model_validate({**inp.model_dump(), **update})
        self._staged = await self.run_child(
            "rehearse", self.state.runbook, child, undo=lambda result: self.way_back(staging, result)
        )
        self.charts += self._staged.charts
        tested = next((item for item in self._staged.checklist if item.id == "load-test"), None)
        self.check("load-test", bool(tested and tested.done), (tested and tested.note) or "no load test was made")
        self.check("staging", not inp.dry_run, f"{self._staged.summary}" if not inp.dry_run else "dry run")

    @abstractmethod
    def way_back(self, stage: Stage, result: RunbookResult) -> Undo | None:
        """The undo of a change that another run has made on ``stage``."""

    async def load(self, step: str) -> None:
        """One load test of this stage, as a run of its own."""
        test = LoadTestInput.model_validate(
            {
                **self.inp.load.model_dump(),
                "stage": self.inp.stage,
                "reason": self.inp.reason,
                "requested_by": self.inp.requested_by,
                "dry_run": self.inp.dry_run,
            }
        )
        self._loads[step] = done = await self.run_child(step, "LoadTest", test)
        when = "before" if step == _LOADS[0] else "after"
        for chart in done.charts:
            title = chart.title.replace("Load test", f"Load test of {self.inp.stage} {when} the change")
            self.charts.append(chart.model_copy(update={"title": title}))
        self.charts_above = list(self.charts)

    def load_facts(self) -> tuple[Mapping[str, object], Mapping[str, object]]:
        """What the load tests have found, before and after."""
        before, after = (self._loads[step].facts if step in self._loads else {} for step in _LOADS)
        return before, after

    async def _approval(self) -> None:
        async def look_again() -> dict[str, Scalar]:
            self._seen.state = await self.look("settings", FunctionCapacity.capacity, self.stage)
            self._assess()
            return self._plan()

        wanted = self.wanted().described()
        question = f"Give {self.stage.function} {wanted}? Now {self.former(self._seen.state).described()}"
        parent = workflow.info().parent
        waived = None
        if self.rehearsal and parent is not None and not self.inp.dry_run:
            waived = f"the rehearsal of {parent.workflow_id}, which asks for {wanted} on production"
        self.check("rollback-plan", True, self.rollback_plan())
        await self.gate("approve-scaling", question, self._plan(), recheck=look_again, waived=waived)

    def _plan(self) -> dict[str, Scalar]:
        inp, assessed = self.inp, self._assessed
        ends = f"after {length(inp.expires_after)}, by itself" if inp.expires_after else "it stays"
        staged = self._staged
        return {
            "stage": self.stage.name,
            "from": self.former(self._seen.state).described(),
            "to": self.wanted().described(),
            "how": f"deploy {self._commit}" if self._commit else "directly, beside the repository (drift)",
            "need": assessed.need,
            "staging": staged.summary if staged else "this is staging",
            "capacity": assessed.capacity,
            "cost": self.cost(),
            "way back": self.rollback_plan(),
            "ends": ends,
        }

    def cost(self) -> str:
        return self._assessed.cost

    def staging_ratio(self) -> float | None:
        """How much longer or shorter staging's calls took with the change."""
        figures = self._staged.facts if self._staged else {}
        before, after = figures.get("figure before"), figures.get("figure after")
        if isinstance(before, int | float) and isinstance(after, int | float) and before:
            return after / before
        return None

    def rollback_plan(self) -> str:
        back = "the release that was live is deployed again" if self._commit else "the former setting is put back"
        return f"abort this run, or afterwards start it with the former figure: {back}"

    def verdict(self, before: Seen, after: Seen) -> Compared:
        """Whether it has helped: on staging by the load test, elsewhere by what traffic has seen."""
        found = compare_tests(*self.load_facts()) if self.rehearsal else Compared(Change.UNKNOWN, "")
        if found.change is Change.UNKNOWN:
            found = compare(self.measure(before), self.measure(after), self.unit)
        return found

    def failed_compared(self, before: Seen, after: Seen) -> Compared:
        """The share of failed calls: on staging of the load test, elsewhere of the traffic."""
        if self.rehearsal:
            first, second = (Failed.of_test(facts) for facts in self.load_facts())
        else:
            first, second = (Failed.of_metrics(seen.errors) for seen in (before, after))
        return compare_failed(first, second)

    def weighed(self, before: Seen, after: Seen) -> Compared:
        """The verdict with the errors seen beside it."""
        found = self.verdict(before, after)
        beside = judged(found, self.failed_compared(before, after), self.figure)
        return beside if workflow.patched("errors-are-compared") else found

    def _skip(self, step_id: str, why: str) -> None:
        step = self._find_step(step_id, None, Kind.LOOK)
        step.state, step.summary = State.SKIPPED, why


_LOADS = ("load-before", "load-after")
