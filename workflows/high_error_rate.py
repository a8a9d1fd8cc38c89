"""Too many errors: which, on which routes, of whom, since when, and what can help."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

from temporalio import workflow

from activities.incidents import Incidents, Opened, OpenIncident
from activities.messages import TicketRequest
from activities.metrics import Window
from activities.symptom_logs import SymptomLogs
from activities.symptom_metrics import SymptomMetrics
from activities.symptom_models import ErrorMinutes, Points, Requests, RequestsAsked
from activities.tickets import Tickets
from workflows import policy, waiting
from workflows.client_rate_limit_model import ClientRateLimitInput
from workflows.details import length
from workflows.model import Kind, RunbookInput, RunbookResult, State, StepSpec
from workflows.performance_degradation import AFTER, GATES
from workflows.runbook import RunbookSpec
from workflows.steps import Stopped
from workflows.symptom import NOT_MENDED, Symptom
from workflows.symptom_errors import crowd, described_routes, lasting_window, picture, sustained, without_clients, worst
from workflows.symptom_looking import DIAGNOSTICS
from workflows.symptom_model import HighErrorRateInput
from workflows.symptom_readings import Headline, Readings, take_apart
from workflows.symptom_remedies import Offer, Remedy, Rules, memory_share

_OFTEN = 30
"""Looks for an escalation once a minute; after so many, every fifth."""


@workflow.defn(name="HighErrorRate")
class HighErrorRate(Symptom[HighErrorRateInput]):
    """Find out which requests fail and why, and mend it.

    Errors by status, by route, by client and by kind; 4xx apart from 5xx. 500: the exceptions, and whether they began
    with the last deployment. 504: which routes time out, and whether slow queries are behind it; a longer time-out of
    the function alone cures none. 429: one client, or a general spike. 404: routes that answered before and are gone,
    or clients that call what never was. More than 5 % for ten minutes opens an incident, whatever else happens here.
    Ends when the same measurement is back under 1 % for a whole window.
    """

    remedies = (
        Remedy.ROLL_BACK,
        Remedy.ADD_INDEX,
        Remedy.LIMIT_CLIENT,
        Remedy.THROTTLE_LIMIT,
        Remedy.CONNECTION_POOL,
        Remedy.MORE_MEMORY,
        Remedy.TIMEOUT,
        Remedy.ASYNC_JOBS,
        Remedy.DATABASE_TIER,
        Remedy.NETWORK,
        Remedy.CONTACT_CLIENTS,
        Remedy.FIX_CODE,
    )
    spec = RunbookSpec(
        input=HighErrorRateInput,
        when="More than 1 % of requests fail. Above 5 % for ten minutes it opens an incident by itself.",
        steps=(
            *DIAGNOSTICS,
            StepSpec(id="sustained", title="Errors of the last minutes, for an incident", kind=Kind.LOOK),
            StepSpec(id="incident", title="Open an incident", kind=Kind.TELL),
            *AFTER,
            StepSpec(id="ticket", title="Create a ticket for further investigation", kind=Kind.TELL),
        ),
        checklist=(
            ("type", "Identified primary error type (4xx vs 5xx)"),
            ("root-cause", "Root cause identified"),
            ("fix", "Fix implemented and deployed"),
            ("rate", "Error rate dropped below 1%"),
            ("others", "Verified other metrics are normal"),
            ("ticket", "Created ticket for further investigation (if needed)"),
        ),
        gates=GATES,
        example={"stage": "production", "reason": "3 % of requests fail since 14:00", "requested_by": "ann"},
        locks=False,
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: HighErrorRateInput) -> str:
        self._escalation: asyncio.Task[None] | None = None
        self._baseline: Requests | None = None
        self._limited: set[str] = set()
        try:
            return await super().procedure(inp)
        except Stopped as error:
            if error.type == NOT_MENDED and self._undecided and workflow.patched("see out whether it is an incident"):
                await self._see_out()
            raise
        finally:
            await self._end_escalation()

    @property
    def _undecided(self) -> bool:
        """Whether the time is not full yet after which it would be an incident."""
        return self._escalation is not None and not self._escalation.done()

    async def _see_out(self) -> None:
        """Nothing has helped, and soon nobody looks any more: give the errors the time that makes them an incident."""
        limit = self.inp.escalate_after + self.inp.look_every
        self.say(f"looks for up to {length(limit)} whether it becomes an incident", level="warning")
        with contextlib.suppress(TimeoutError):
            await waiting.until(lambda: not self._undecided, at_most=limit, summary="until it is an incident or not")

    async def _end_escalation(self) -> None:
        if self._escalation is None:
            return
        self._escalation.cancel()
        await asyncio.gather(self._escalation, return_exceptions=True)
        step = self._find_step("sustained", None, Kind.LOOK)
        if step.state is State.FAILED:  # cut off because the run is over, which is no failure
            step.state = State.DONE

    def rules(self) -> Rules:
        return Rules(error_share=self.inp.above, slow_ms=self.inp.slow_query.total_seconds() * 1000)

    # --- what is measured ---------------------------------------------------------------------------------------

    def headline(self, seen: Readings) -> Headline:
        if self._baseline is None:
            self._baseline = seen.earlier
        return self._rate(seen)

    async def measure(self, step_id: str, window: Window, title: str | None = None) -> Headline:
        errors, requests = await asyncio.gather(
            self.observe(step_id, SymptomMetrics.error_minutes, window, title=title),
            self.observe(f"{step_id}-requests", SymptomLogs.requests, RequestsAsked(window=window)),
        )
        return self._rate(Readings(window=window.length, errors=errors, requests=requests))

    def _rate(self, seen: Readings) -> Headline:
        """The worst of 5xx, 429 and 404.

        A 404 counts as far as there are more of them than before the trouble; a 429 of a client that was limited on
        purpose does not count.
        """
        if self._limited:
            seen = replace(seen, requests=without_clients(seen.requests, self._limited), gateway=None)
        found = picture(replace(seen, earlier=self._baseline), self.inp.above)
        missed = found.missed if self._baseline is not None else None
        value = worst(found.failed, found.limited, missed)
        if value is None:
            return Headline(None, self.inp.above, "error rate not measured")
        parts = (("5xx", found.failed), ("429", found.limited), ("404", missed))
        shown = ", ".join(f"{share:.2%} {name}" for name, share in parts if share)
        return Headline(value, self.inp.above, f"{shown or 'no errors'} (limit {self.inp.above:.0%})")

    def applied(self, offer: Offer, child: RunbookInput | None) -> None:
        if isinstance(child, ClientRateLimitInput):
            self._limited.add(child.client)

    def points(self, seen: Readings) -> tuple[str, str, Points]:
        minutes = seen.errors.minutes if seen.errors else ()
        return "failed requests", "", tuple((one.at, one.failed / one.requests) for one in minutes)

    # --- more than 5 % for ten minutes --------------------------------------------------------------------------

    async def found(self, seen: Readings, headline: Headline) -> None:
        """From now on, whatever people decide and however long they take, somebody looks whether it is an incident."""
        if self.inp.incident is not None:
            self.say(f"belongs to incident {self.inp.incident}: opens none of its own")
            return
        if self.inp.dry_run:
            rule = f"{self.inp.escalate_above:.0%} for {length(self.inp.escalate_after)}"
            self._would.append(f"open an incident if more than {rule} fail")
            return
        self._escalation = asyncio.create_task(self._escalate(), name="escalation")

    async def _escalate(self) -> None:
        looks = 0
        while True:
            end = self._until()
            window = lasting_window(self.stage, end, self.inp.escalate_after)
            errors = await self.observe("sustained", SymptomMetrics.error_minutes, window)
            if sustained(errors, self.inp.escalate_above, self.inp.escalate_after, end):
                await self._open_incident(errors)
                return
            looks += 1
            pause = self.inp.look_every * (1 if looks < _OFTEN else 5)
            await workflow.sleep(pause, summary="until errors are looked at again, for an incident")

    async def _open_incident(self, errors: ErrorMinutes | None) -> None:
        rate = f"{errors.rate:.0%}" if errors is not None and errors.rate is not None else "too many"
        reason = f"{rate} of requests fail on {self.inp.stage}, for {length(self.inp.escalate_after)} or more"
        problem = OpenIncident(
            stage=self.inp.stage,
            reason=reason,
            key="error-rate",
            alert=self.key("incident").replace(" ", "-"),
            source="HighErrorRate",
            detected_at=workflow.now(),
        )
        opened = cast("Opened | None", await self.observe("incident", Incidents.open, problem, policy.CHANGE))
        if opened is not None:
            self.facts["incident"] = opened.workflow_id
            self.say(f"escalated: {opened.summary}", level="warning")
        else:
            self.announce("incident", f"Open an incident by hand: {reason}", "it could not be opened", severity="error")

    # --- what it says -------------------------------------------------------------------------------------------

    def diagnosed(self, seen: Readings, offers: Sequence[Offer]) -> str:
        found = picture(seen, self.inp.above)
        self.check("type", found.primary != "unknown", found.described())
        for name, text in self._branches(seen).items():
            self.facts[name] = text
        best = next((one for one in offers if one.fits), None)
        well = self.headline(seen).well
        cause = f"{best.remedy}: {best.why}" if best and not well else "none of the known causes was found"
        text = f"{found.described()}. {cause}"
        named = best is not None and (best.remedy is not Remedy.FIX_CODE or bool(seen.kinds and seen.kinds.kinds))
        unnamed = "; no kind of error was found that says why" if best and not named and not well else ""
        self.check("root-cause", named or bool(well), f"{text}{unnamed}")
        return text

    def _branches(self, seen: Readings) -> dict[str, str]:
        """The document's branches for the codes that there are, one line each."""
        found = picture(seen, self.inp.above)
        lines: dict[str, str] = {}
        statuses = {
            **(seen.gateway.statuses if seen.gateway else {}),
            **(seen.requests.statuses if seen.requests else {}),
        }
        if any(status in statuses for status in ("500", "502", "503")) and seen.kinds is not None:
            lines["500"] = seen.kinds.summary
        if "504" in statuses or (seen.reports is not None and seen.reports.timeouts):
            lines["504"] = f"slowest or timed out: {described_routes(found.slowest)}"
        if "429" in statuses:
            lines["429"] = crowd(seen.requests, seen.earlier).why
        if "404" in statuses:
            gone, unknown = described_routes(found.gone), described_routes(found.unknown)
            lines["404"] = f"answered before and are gone: {gone}; never answered: {unknown}"
        refused = {status: n for status, n in statuses.items() if status.startswith("4") and status not in lines}
        if refused:
            shown = ", ".join(f"{status}: {n}" for status, n in sorted(refused.items()))
            lines["4xx"] = f"{shown}; the clients' matter: watched, nothing is done"
        return lines

    def measured_after(self, mended: bool, note: str, after: Readings | None) -> None:
        done = self.facts.get("mended_by")
        self.check("fix", done is not None, f"{done}" if done else "nothing was changed, or nothing helped")
        self.check("rate", mended, note)
        if after is not None:
            self.check("others", *_others(after))
        else:
            self.check("others", False, "not looked at again")
        self.check("ticket", False, "tick 'ticket' when there is one, or none is needed")

    async def concluded(self, summary: str) -> None:
        request = TicketRequest(
            channels=self.stage.channels,
            key=self.key("ticket"),
            title=f"Investigate: errors on {self.stage.name}",
            text=f"{summary}\n{self.facts.get('cause', '')}",
            labels=("errors",),
            links=self.links(),
        )
        ticket = await self.tell("ticket", Tickets.create, request, would="create a ticket")
        self.check("ticket", ticket is not None, f"{ticket.url or ticket.id}" if ticket else "no ticket system took it")


def _others(after: Readings) -> tuple[bool, str]:
    """Whether latency, memory, throttles and the database are in order too."""
    apart, share = take_apart(after), memory_share(after)
    problems = list(apart.problems)
    if apart.total_ms is None or apart.total_ms > _SLOW_MS:
        problems.append(apart.described())
    if share is None or share > Rules().memory_share:
        problems.append("memory not known" if share is None else f"memory {share:.0%}")
    if after.throttles:
        problems.append(f"{after.throttles} calls throttled")
    if after.connections is None:
        problems.append("the database did not answer")
    return not problems, "; ".join(problems) or f"{apart.described()}; memory {share or 0:.0%}; no throttles"


_SLOW_MS = timedelta(seconds=2).total_seconds() * 1000
