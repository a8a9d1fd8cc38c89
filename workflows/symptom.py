"""What the runbooks of a symptom share: look at everything side by side, rank what can help, try it, prove it.

The run does not take the stage for itself: it looks, asks and waits, often for hours, and must not be in the way of an
incident's rollback. Each remedy is a run of its own below this one and takes the stage for its own change.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar, TypeVar

from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError

from activities.charts import Chart, Line, Mark
from activities.metrics import Window
from activities.stage import GatePolicy
from workflows.details import length
from workflows.model import Kind, RunbookInput, Scalar, State
from workflows.runbook import Stopped
from workflows.steps import describe
from workflows.symptom_children import child_input
from workflows.symptom_looking import Looking
from workflows.symptom_model import SymptomInput
from workflows.symptom_readings import Headline, Readings
from workflows.symptom_recovery import Recovery, Verdict
from workflows.symptom_remedies import BY_PEOPLE, RUNBOOK_OF, Offer, Remedy, Rules, judged

I = TypeVar("I", bound=SymptomInput)  # noqa: E741

CHOICE = GatePolicy(requester_may_approve=True, time_limit=timedelta(hours=4), remind_every=timedelta(minutes=15))
"""Which remedy: who asked for the run may say so. The remedy's own run asks for the exact change."""

NOT_MENDED = "NotMended"
"""Why a run failed that has tried or offered everything that could help."""

_SHOWN = 140


class Symptom(Looking[I]):
    remedies: ClassVar[tuple[Remedy, ...]]
    """What may help, in the document's order."""

    @abstractmethod
    def rules(self) -> Rules:
        """The thresholds of this run."""

    @abstractmethod
    def headline(self, seen: Readings) -> Headline:
        """Whether the symptom is there, from all that was looked at."""

    @abstractmethod
    def diagnosed(self, seen: Readings, offers: Sequence[Offer]) -> str:
        """Tick what the diagnosis answers; returns the cause in one line."""

    @abstractmethod
    def measured_after(self, mended: bool, note: str, after: Readings | None) -> None:
        """Tick what only the time after a remedy answers."""

    async def found(self, seen: Readings, headline: Headline) -> None:
        """The symptom is there: what belongs at the beginning of working on it."""

    def applied(self, offer: Offer, child: RunbookInput | None) -> None:
        """A remedy was applied: what has to be known of it when it is measured again."""

    async def concluded(self, summary: str) -> None:
        """Mended or given up: what belongs at the end of having worked on it."""

    async def preflight(self, inp: I) -> None:
        if inp.remedy is not None and inp.remedy not in self.remedies:
            known = ", ".join(self.remedies)
            raise self.stop(f"{inp.remedy} is no remedy of {self.state.runbook}; these are: {known}", "BadInput")

    # --- the procedure ------------------------------------------------------------------------------------------

    async def procedure(self, inp: I) -> str:
        self._marks: list[Mark] = []
        seen = await self._diagnose()
        before = self.headline(seen)
        self.facts |= {"before": before.text, "window": length(inp.window)}
        offers = self._judge(seen)
        if before.well is None and inp.dry_run and seen.answered:
            return f"every source answered, and there was no traffic to measure: {before.text}"
        if before.well is None:
            raise self.stop(f"whether the symptom is there could not be measured: {before.text}", "NotMeasured")
        if before.well:
            self.measured_after(True, before.text, None)
            self._draw()
            return f"the symptom is not there: {before.text}"
        await self.found(seen, before)
        if inp.dry_run:
            return self._would_offer(seen, offers, before)
        tried: set[Remedy] = set()
        while offer := self._next(offers, tried):
            tried.add(offer.remedy)
            if not await self._apply(offer, seen, offers, before):
                continue
            applied = workflow.now()
            verdict = await self._watch(offer.remedy)
            well_since = self._until() - inp.stable_for
            seen = await self._diagnose(since=max(applied, well_since) if verdict == "mended" else applied)
            after = self.headline(seen)
            self.facts["after"] = after.text
            if verdict == "mended":
                return await self._mended(offer, before, after, seen)
            self.say(
                f"{offer.remedy}: {_SAID[verdict]} within {length(inp.patience)} ({after.text}); the next is offered",
                level="warning",
            )
            offers = self._judge(seen)
        self.measured_after(False, str(self.facts.get("after", before.text)), seen)
        self._draw()
        given_up = self._given_up(offers, tried, before)
        await self.concluded(given_up)
        raise self.stop(given_up, NOT_MENDED)

    async def _mended(self, offer: Offer, before: Headline, after: Headline, seen: Readings) -> str:
        self.facts["mended_by"] = offer.remedy.value
        summary = f"{before.text} before, {after.text} after {offer.remedy}"
        self.measured_after(True, f"well for {length(self.inp.stable_for)}: {after.text}", seen)
        self._draw()
        self.announce("mended", f"{self.state.runbook} on {self.inp.stage}: mended", summary)
        await self.concluded(summary)
        return summary

    def _given_up(self, offers: Sequence[Offer], tried: set[Remedy], before: Headline) -> str:
        left = [f"{one.remedy} ({one.why})" for one in offers if one.fits is None and one.remedy not in tried]
        done = ", ".join(sorted(tried)) or "nothing"
        more = f". Could not be judged: {'; '.join(left)}" if left else ""
        return f"not mended: {self.facts.get('after', before.text)}; tried or refused: {done}; nothing else fits{more}"

    # --- judging ----------------------------------------------------------------------------------------------

    def _judge(self, seen: Readings) -> list[Offer]:
        """Rank the remedies, say what cannot help and why, and tick what the diagnosis answers."""
        offers = judged(self.remedies, seen, self.rules())
        cause = self.diagnosed(seen, offers)
        self.facts["cause"] = cause
        self.say(f"cause: {cause}")
        wanted = self.inp.remedy
        for offer in offers:
            if offer.fits is False:
                asked = offer.remedy is wanted
                level = "warning" if asked else "info"
                self.say(f"{'REFUSED' if asked else 'cannot help'}: {offer.remedy}, {offer.why}", level=level)
                self.facts[f"refused {offer.remedy}"] = offer.why
            else:
                level = "warning" if offer.fits is None and offer.remedy is wanted else "info"
                self.say(f"{'may help' if offer.fits else 'not known'}: {offer.remedy}, {offer.why}", level=level)
                self.facts.pop(f"refused {offer.remedy}", None)
        return offers

    def _next(self, offers: Sequence[Offer], tried: set[Remedy]) -> Offer | None:
        """The one that was asked for, if it can help; else the strongest. One that is not known is never applied."""
        fitting = [one for one in offers if one.fits and one.remedy not in tried]
        return next((one for one in fitting if one.remedy is self.inp.remedy), fitting[0] if fitting else None)

    def _would_offer(self, seen: Readings, offers: Sequence[Offer], before: Headline) -> str:
        for offer in offers:
            if offer.fits:
                child = child_input(offer.remedy, seen, self.inp, offer.why)
                by = f"{RUNBOOK_OF[offer.remedy]}" if child is not None else "people"
                self._would.append(f"offer {offer.remedy} by {by}: {offer.why}")
        self._draw()
        return f"{before.text}; {self.facts['cause']}"

    # --- a remedy -----------------------------------------------------------------------------------------------

    async def _apply(self, offer: Offer, seen: Readings, offers: Sequence[Offer], now: Headline) -> bool:
        """Ask, then have it done by its runbook or by people. False when people said no, or it failed."""
        child = child_input(offer.remedy, seen, self.inp, f"{self.state.runbook}: {offer.why}")
        try:
            await self.gate(
                f"apply-{offer.remedy}",
                self._question(offer, child),
                self._plan(offer, child, offers, now),
                fallback=CHOICE if child is not None else None,
            )
            if workflow.patched("what-a-gate-released-has-begun"):
                await self._honour_gates()
        except Stopped as stopped:
            if stopped.type != "Rejected":
                raise
            self.say(f"{offer.remedy} was refused by people: {stopped.message}", level="warning")
            return False
        self._marks.append(Mark(at=workflow.now(), text=offer.remedy.value))
        if child is None:
            step = self._find_step(f"by-hand-{offer.remedy}", f"By people: {offer.remedy}", Kind.CHANGE)
            step.state, step.summary = State.DONE, f"said to be done: {self._by_hand(offer)}"
            self.applied(offer, None)
            return True
        if not await self._run_remedy(offer, child):
            return False
        self.applied(offer, child)
        return True

    async def _run_remedy(self, offer: Offer, child: RunbookInput) -> bool:
        runbook = RUNBOOK_OF[offer.remedy]
        self.announce(f"run-{offer.remedy}", f"{self.state.runbook}: {offer.remedy} by {runbook}", offer.why)
        try:
            result = await self.run_child(f"run-{offer.remedy}", runbook, child, title=f"{runbook} for this symptom")
        except FailureError as error:
            if self.stops(error):
                raise
            message, kind = describe(error)
            if kind == "LeftUndone":
                raise self.stop(f"{runbook} left something undone: {message}", "LeftUndone") from None
            cause = getattr(error, "cause", None)
            if isinstance(cause, ApplicationError) and cause.type == "Aborted":
                self.say(f"{runbook} was aborted by people", level="warning")
            self.say(f"{offer.remedy} was not made: {message}", level="warning")
            self.facts[f"failed {offer.remedy}"] = message
            return False
        self.facts[f"did {offer.remedy}"] = result.summary
        return True

    def _question(self, offer: Offer, child: RunbookInput | None) -> str:
        if child is not None:
            return f"Run {RUNBOOK_OF[offer.remedy]} for this ({offer.remedy})? No offers the next"
        return f"{self._by_hand(offer)}, then say yes. No offers the next"

    def _by_hand(self, offer: Offer) -> str:
        """What people do: the remedy's own text, or what the runbook could not be started for."""
        text = BY_PEOPLE.get(offer.remedy) or f"do by hand what {RUNBOOK_OF.get(offer.remedy, offer.remedy)} would do"
        return text[0].upper() + text[1:]

    def _plan(
        self, offer: Offer, child: RunbookInput | None, offers: Sequence[Offer], now: Headline
    ) -> dict[str, Scalar]:
        plan: dict[str, Scalar] = {
            "stage": self.inp.stage,
            "remedy": offer.remedy.value,
            "because": offer.why,
            "measured": now.text,
            "by": RUNBOOK_OF[offer.remedy] if child is not None else "people",
        }
        if child is not None:
            # What was chosen is shown, also where it is the default.
            chosen = workflow.patched("plan-shows-what-was-chosen")
            own = child.model_dump(
                mode="json", exclude=set(RunbookInput.model_fields), exclude_defaults=not chosen, exclude_unset=chosen
            )
            plan |= {f"its {name}": str(value) for name, value in own.items()}
        plan["then"] = (
            f"measured every {length(self.inp.look_every)}, mended when well for {length(self.inp.stable_for)}"
        )
        refused = [f"{one.remedy} ({_cut(one.why)})" for one in offers if one.fits is False]
        others = [f"{one.remedy} ({_cut(one.why)})" for one in offers if one.fits and one.remedy is not offer.remedy]
        plan["could help too"] = "; ".join(others) or None
        plan["cannot help"] = "; ".join(refused) or None
        return plan

    # --- did it help? -------------------------------------------------------------------------------------------

    async def _watch(self, remedy: Remedy) -> Verdict:
        """The same measurement, slice by slice, until it was well for a whole window."""
        recovery = Recovery(workflow.now(), self.inp.stable_for, self.inp.patience)
        verdict: Verdict = "watching"
        by_minutes = self.inp.look_every >= _MINUTE  # as the points of metrics are
        start = _minute(recovery.began + _MINUTE) if by_minutes else recovery.began

        async def look() -> bool:
            nonlocal start, verdict
            end = _minute(self._until()) if by_minutes else self._until()
            if end - start < _SLICE:
                return False
            slice_ = Window(stage=self.stage, start=start, end=end)
            found = await self.measure("recovery", slice_, "Measure again")
            if found.value is not None:
                self._series[end] = found.value
            verdict = recovery.see(start, end, found.well)
            self.facts["recovery"] = f"{found.text}; well for {length(recovery.good)}"
            start = end
            return verdict != "watching"

        longest = self.inp.patience + self.inp.stable_for + self.stage.rollback.metrics_delay
        every = max(self.inp.look_every, longest / _LOOKS)
        if every > self.inp.look_every:
            self.say(f"measures every {length(every)}: a watch of up to {length(longest)} has no room for more")
        by_hand = await self.wait(f"watch-{remedy}", longest, f"watch whether {remedy} helped", every=every, watch=look)
        if verdict != "watching":
            return verdict
        if by_hand and recovery.last:
            self.say("a person ended the watch while it was well", level="warning")
            return "mended"
        return "not_known" if recovery.last is None else "not_mended"

    def _draw(self) -> None:
        title, unit, _ = self.points(Readings(window=self.inp.window))
        points = tuple(sorted(self._series.items()))
        if points:
            line = Line(name="measured", points=points)
            self.charts.append(Chart(title=title, unit=unit, lines=(line,), marks=tuple(self._marks)))


_LOOKS = 500
"""Looks of one watch at the most: a dozen events each, and the server ends a run at 50,000."""

_SLICE = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)

_SAID: dict[Verdict, str] = {
    "mended": "it helped",
    "watching": "it is not known to have helped",
    "not_mended": "it did not help",
    "not_known": "nothing could be measured",
}


def _minute(moment: datetime) -> datetime:
    return moment.replace(second=0, microsecond=0)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def verdict_of(offers: Sequence[Offer], remedy: Remedy) -> str:
    """What was said of one remedy."""
    return next((one.why for one in offers if one.remedy is remedy), "not looked at")
