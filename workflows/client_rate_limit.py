"""Limiting one client that hammers the API, for a while."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow

from activities.client_limits import ClientLimit, ClientLimits, LimitAsked, LimitFound, SetLimit
from activities.metrics import Window
from activities.symptom_logs import SymptomLogs
from activities.symptom_models import ClientCount, Requests, RequestsAsked
from workflows import policy
from workflows.client_rate_limit_model import ClientRateLimitInput
from workflows.details import length
from workflows.model import Kind, RunbookResult, Scalar, StepSpec
from workflows.runbook import Runbook, RunbookSpec, Undo
from workflows.symptom_errors import share_of


@workflow.defn(name="ClientRateLimit")
class ClientRateLimit(Runbook[ClientRateLimitInput]):
    """Answer one client no more than so many requests a minute.

    Look at its limit now, and at what it sends; a limit above that is refused, because it would change nothing; ask;
    set it, for a time that the API itself heeds; see that this client is limited and the others are served. An abort
    puts back what was there.
    """

    spec = RunbookSpec(
        input=ClientRateLimitInput,
        when="One client hammers the API, and the others suffer from it.",
        steps=(
            StepSpec(id="limit-now", title="Look at the client's limit", kind=Kind.LOOK),
            StepSpec(id="requests-before", title="Count requests by client", kind=Kind.LOOK),
            StepSpec(id="approve-limit", title="Approval", kind=Kind.GATE),
            StepSpec(id="limit", title="Limit the client", kind=Kind.CHANGE, undo="its former limit, or none, is set"),
            StepSpec(id="let-it-work", title="Let traffic run under the limit", kind=Kind.WAIT),
            StepSpec(id="requests-after", title="Count requests by client again", kind=Kind.LOOK),
        ),
        checklist=(
            ("limited", "The client is limited"),
            ("others", "Other clients are served"),
            ("contacted", "Contacted them to fix their usage pattern"),
        ),
        gates=(("approve-limit", "Limit this client? With what it sends and what it may send"),),
        example={"stage": "production", "reason": "429s for everybody since 14:02", "client": "1a2b3c4d"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    async def procedure(self, inp: ClientRateLimitInput) -> str:
        found = await self.look("limit-now", ClientLimits.look, LimitAsked(stage=self.stage, client=inp.client))
        now = workflow.now()
        before = await self._requests("requests-before", Window(stage=self.stage, start=now - inp.window, end=now))
        if inp.dry_run and _of(before, inp.client) is None:
            return f"client {inp.client} is not among the busiest, and would be refused: {before.summary}"
        mine = self._worth_it(before)
        await self.gate("approve-limit", f"Limit client {inp.client} on {inp.stage}?", self._plan(found, before, mine))
        await self._set(inp, found)
        if inp.dry_run:
            return f"would limit client {inp.client} to {inp.per_minute} requests a minute"
        began = workflow.now()
        delay = self.stage.rollback.metrics_delay
        await self.wait("let-it-work", inp.watch + delay, "let traffic run under the limit, then count again")
        after = await self._requests(
            "requests-after", Window(stage=self.stage, start=began, end=max(workflow.now() - delay, began + _MOMENT))
        )
        return self._conclude(before, after)

    async def _requests(self, step_id: str, window: Window) -> Requests:
        return await self.look(step_id, SymptomLogs.requests, RequestsAsked(window=window), policy.LOOK)

    def _worth_it(self, before: Requests) -> ClientCount:
        """What the client sends; a limit that it keeps already is refused."""
        mine = _of(before, self.inp.client)
        if mine is None:
            raise self.stop(
                f"client {self.inp.client} is not among the busiest of the last {length(self.inp.window)}: "
                f"{before.summary}. Correct 'client'",
                "UnknownClient",
            )
        rate = mine.requests / (self.inp.window.total_seconds() / 60)
        if rate <= self.inp.per_minute:
            raise self.stop(
                f"client {mine.client} sends {rate:.0f} requests a minute, which {self.inp.per_minute} would not limit",
                "NothingToLimit",
            )
        self.facts |= {"client": mine.client, "sent_per_minute": round(rate, 1), "per_minute": self.inp.per_minute}
        return mine

    def _plan(self, found: LimitFound, before: Requests, mine: ClientCount) -> dict[str, Scalar]:
        share = mine.requests / before.total if before.total else None
        expires = self.inp.expires_after
        return {
            "stage": self.stage.name,
            "client": mine.client,
            "limit": f"{self.inp.per_minute} requests a minute",
            "limit now": found.limit.described() if found.limit else "none",
            "share of all requests": f"{share:.0%}" if share is not None else "not known",
            "ends": f"by itself after {length(expires)}" if expires else "when it is taken away",
        }

    async def _set(self, inp: ClientRateLimitInput, found: LimitFound) -> None:
        until = workflow.now() + inp.expires_after if inp.expires_after else None
        limit = ClientLimit(per_minute=inp.per_minute, until=until)
        before = found.limit.described() if found.limit else "no limit of its own"
        await self.change(
            "limit",
            ClientLimits.set,
            SetLimit(stage=self.stage, client=inp.client, limit=limit),
            would=f"limit client {inp.client} to {limit.described()}",
            undo=Undo(
                f"give client {inp.client} {before} again",
                ClientLimits.set,
                SetLimit(stage=self.stage, client=inp.client, limit=found.limit),
            ),
        )

    def _conclude(self, before: Requests, after: Requests) -> str:
        mine = _of(after, self.inp.client)
        answered = 0 if mine is None else mine.requests - mine.limited
        limited = mine.limited if mine else 0
        self.check("limited", mine is None or limited > 0, f"{answered} answered, {limited} refused with 429")
        others_before, others_after = _others_limited(before, self.inp.client), _others_limited(after, self.inp.client)
        note = f"429 of the others: {_percent(others_before)} before, {_percent(others_after)} after"
        well = others_after is not None and others_after <= max(0.01, (others_before or 0.0) / 2)
        self.check("others", well, note)
        self.check("contacted", False, "tick 'contacted' when somebody has told them")
        self.facts |= {"answered": answered, "limited": limited, "others": note}
        until = f"; ends after {length(self.inp.expires_after)}" if self.inp.expires_after else ""
        self.announce("limited", f"Client {self.inp.client} is limited", f"{note}. Contact them{until}")
        return f"client {self.inp.client} is answered {self.inp.per_minute} requests a minute; {note}"


_MOMENT = timedelta(seconds=1)


def _of(requests: Requests, client: str) -> ClientCount | None:
    return next((one for one in requests.clients if one.client == client), None)


def _others_limited(requests: Requests, client: str) -> float | None:
    """Share of 429 in what the other clients were answered; None when there were no others."""
    mine = _of(requests, client)
    total = (requests.total or 0) - (mine.requests if mine else 0)
    if total <= 0:
        return None
    everybody = share_of(requests, 429) or 0.0
    return max(everybody * (requests.total or 0) - (mine.limited if mine else 0), 0.0) / total


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.1%}"
