"""What people and machines send to an incident, and what they see of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow

from activities.incident_policy import IncidentPolicy
from workflows import incident_clocks, search_attributes
from workflows.details import render
from workflows.diagnosis_model import Remedy
from workflows.gates import Refused
from workflows.incident_clocks import Book
from workflows.incident_model import (
    Acknowledge,
    ActionItem,
    Choose,
    Held,
    IncidentInput,
    Join,
    Mitigated,
    Resolve,
    SetCause,
    SetSeverity,
    TakeCommand,
)
from workflows.incident_state import Situation, add_action, page, worst_of
from workflows.model import Message, Tick
from workflows.operator import _as_rejection, _valid, read
from workflows.probing import Probing
from workflows.remedies import REMEDIES

M = TypeVar("M", bound=Message)


class Desk(Probing[IncidentInput]):
    """The incident's own operator surface. Each message is entered at once, and every clock is planned anew with it."""

    def __init__(self, *payload: Any) -> None:
        super().__init__(*payload)
        self.situation = Situation(headline="", stage="")
        self._news = 0
        self._early: list[Callable[[Book], None]] = []
        self._chosen: str | None = None
        self._asked_to_resolve: str | None = None
        self._over = False
        self._leaving = False
        """Whether the parts that run side by side are to end. Said as well as cancelled, because runs of before
        ``workflows/waiting.py`` replay waits that take a cancellation for nothing."""

    # --- shared by the parts --------------------------------------------------------------------------------------

    @property
    def policy(self) -> IncidentPolicy:
        return self.stage.incident_policy

    @property
    def book(self) -> Book:
        """The clocks, from the first look on."""
        if self.situation.book is None:
            raise RuntimeError("the incident has no clocks before its first look")
        return self.situation.book

    def news(self) -> None:
        """Something happened that the clocks depend on: whoever waits plans anew."""
        self._news += 1
        self.refresh()

    def say(self, text: str, *, who: str | None = None, level: str = "info", source: str = "run") -> None:
        super().say(text, who=who, level=level, source=source)
        book = self.situation.book
        if source == "person" and level == "info" and book is not None:
            incident_clocks.progress(book, workflow.now())  # whatever somebody does here is a sign of work
            self._news += 1

    def _render(self) -> None:
        super()._render()
        if hasattr(self, "stage"):
            mine = page(self.situation, self.policy, self.state.workflow_id, over=self.state.outcome is not None)
            workflow.set_current_details(f"{mine}\n\n{render(self.state)}")

    def _with_book(self, enter_it: Callable[[Book], None]) -> None:
        """Do it now, or as soon as the first look is over and there are clocks to act upon."""
        if self.situation.book is None:
            self._early.append(enter_it)
        else:
            enter_it(self.situation.book)
        self.news()

    def _running(self) -> None:
        if self._over or self.state.outcome or self._undoing or self._aborted:
            raise Refused("the incident is closing")

    @workflow.query(
        name="situation", description="The incident as it stands: severity, clocks, roles, evidence, causes, actions"
    )
    def show_situation(self, *_ignored: Any) -> Situation:
        return self.situation

    # --- response -------------------------------------------------------------------------------------------------

    @workflow.update(description='I am on it: stops the paging. Input: {"by": "your name"}')
    def acknowledge(self, *payload: Any) -> str:
        message = read(Acknowledge, payload)

        def enter_it(book: Book) -> None:
            incident_clocks.acknowledge(book, self.policy, message.by, workflow.now())

        self._with_book(enter_it)
        self.say("acknowledges: is on it" + _because(message.reason), who=message.by, source="person")
        self.situation.roles.setdefault("commander", message.by)
        self.situation.responded(message.by)
        return f"{message.by} is on it"

    @acknowledge.validator
    def _check_acknowledge(self, *payload: Any) -> None:
        _valid(Acknowledge, payload)
        with _as_rejection():
            self._unresolved("acknowledge")

    @workflow.update(description='Take a role or hand it over. Input: {"by": "your name", "to": "somebody"}')
    def command(self, *payload: Any) -> str:
        message = read(TakeCommand, payload)
        to, before = message.to or message.by, self.situation.roles.get(message.role)
        self.situation.roles[message.role] = to
        self.situation.responded(to)
        took = f"is {message.role} now" if to == message.by else f"hands {message.role} to {to}"
        self.say(f"{took}{f', after {before}' if before and before != to else ''}", who=message.by, source="person")

        def enter_it(book: Book) -> None:
            if message.role == "commander" and not book.reached("resolved"):
                incident_clocks.acknowledge(book, self.policy, to, workflow.now())

        self._with_book(enter_it)
        return f"{to} is {message.role}"

    @command.validator
    def _check_command(self, *payload: Any) -> None:
        _valid(TakeCommand, payload)
        with _as_rejection():
            self._running()

    @workflow.update(description='Another severity. Input: {"by": "your name", "severity": "P2", "reason": "why"}')
    def severity(self, *payload: Any) -> str:
        message = read(SetSeverity, payload)
        self.say(f"sets the severity to {message.severity}: {message.reason}", who=message.by, source="person")
        self._with_book(lambda book: self._become(book, message.severity))
        return f"{message.severity}; every clock is planned anew"

    @severity.validator
    def _check_severity(self, *payload: Any) -> None:
        _valid(SetSeverity, payload)
        with _as_rejection():
            self._running()

    def _become(self, book: Book, severity: Any) -> None:
        incident_clocks.set_severity(book, self.policy, severity, workflow.now())
        workflow.upsert_search_attributes([search_attributes.SEVERITY.value_set(severity)])
        self.news()

    @workflow.update(description='The root cause. Input: {"by": "your name", "cause": "what it was"}')
    def cause(self, *payload: Any) -> str:
        message = read(SetCause, payload)
        self._set_cause(message.cause, message.by)
        return "noted"

    @cause.validator
    def _check_cause(self, *payload: Any) -> None:
        _valid(SetCause, payload)
        with _as_rejection():
            self._running()

    def _set_cause(self, cause: str, by: str) -> None:
        self.situation.cause = cause
        self.say(f"names the cause: {cause}", who=by, source="person")
        self._with_book(lambda book: incident_clocks.reach(book, self.policy, "cause", workflow.now()))

    @workflow.update(description='A workaround made by hand. Input: {"by": "your name", "text": "what was done"}')
    def mitigated(self, *payload: Any) -> str:
        message = read(Mitigated, payload)
        self.say(f"has worked around it: {message.text}", who=message.by, source="person")
        self._with_book(lambda book: incident_clocks.reach(book, self.policy, "mitigated", workflow.now()))
        return "noted; watched until it is stable"

    @mitigated.validator
    def _check_mitigated(self, *payload: Any) -> None:
        _valid(Mitigated, payload)
        with _as_rejection():
            self._unresolved("mitigated")

    @workflow.update(
        description='Offer this recovery next; its gate asks. Input: {"by": "your name", "runbook": "QuickRollback"}'
    )
    def recover(self, *payload: Any) -> str:
        message = read(Choose, payload)
        self._chosen = message.runbook
        self.say(f"wants {message.runbook} next{_because(message.reason)}", who=message.by, source="person")
        self.news()
        return f"{message.runbook} is offered next: its gate asks"

    @recover.validator
    def _check_recover(self, *payload: Any) -> None:
        message = _valid(Choose, payload)
        with _as_rejection():
            self._unresolved("recover")
            if message.runbook not in REMEDIES:
                raise Refused(f"{message.runbook} is no recovery; these are: {', '.join(sorted(REMEDIES))}")
            found = self.situation.conclusion
            refused = next((r for r in found.refused if r.runbook == message.runbook), None) if found else None
            if refused is not None:
                raise Refused(f"{message.runbook} cannot help: {refused.why}")
            if self.situation.evidence is not None and self.filled(message.runbook) is None:
                raise Refused(
                    f"what {message.runbook} takes cannot be worked out from what was measured: start it by hand"
                )
            if any(tried.state == "running" for tried in self.situation.tried):
                raise Refused("a recovery runs just now: wait for it, or abort it first")

    def filled(self, runbook: str) -> Remedy | None:
        raise NotImplementedError

    @workflow.update(description='The service is restored. Input: {"by": "your name", "cause": "what it was"}')
    def resolve(self, *payload: Any) -> str:
        message = read(Resolve, payload)
        if message.cause:
            self._set_cause(message.cause, message.by)
        self._asked_to_resolve = message.by
        self.say(f"says that the service is restored{_because(message.reason)}", who=message.by, source="person")
        self.news()
        return "verified now, then resolved; see the timeline"

    @resolve.validator
    def _check_resolve(self, *payload: Any) -> None:
        _valid(Resolve, payload)
        with _as_rejection():
            self._unresolved("resolve")
            if any(tried.state == "running" for tried in self.situation.tried):
                raise Refused("a recovery runs just now: wait for it, or abort it first")

    def _unresolved(self, what: str) -> None:
        self._running()
        book = self.situation.book
        if book is not None and book.reached("resolved"):
            raise Refused(f"{what}: the incident is resolved already")

    # --- alerts ---------------------------------------------------------------------------------------------------

    @workflow.update(
        description='The same problem again. Input: {"alert": "its id", "source": "alarm", "text": "what it says"}'
    )
    def join(self, *payload: Any) -> str:
        message = read(Join, payload)
        # What arrives before the run has read its own input came with the start of the run.
        opening = not hasattr(self, "inp") or message.alert == self.inp.alert
        if self.situation.seen_alert(message.alert) or opening:
            return "opened" if opening else "joined"
        self.situation.repeats += 1
        self.say(f"again: {message.text}", who=message.source, source="provider")

        def enter_it(book: Book) -> None:
            worst = worst_of(book.severity, message.severity)
            if worst != book.severity:
                self.say(f"{message.source} makes it a {worst}", level="warning")
                self._become(book, worst)
            if book.reached("resolved"):
                self._break_out(f"{message.source}: {message.text}")

        self._with_book(enter_it)
        return "joined"

    @join.validator
    def _check_join(self, *payload: Any) -> None:
        _valid(Join, payload)
        with _as_rejection():
            self._running()

    def _break_out(self, why: str) -> None:
        """A relapse: all begins anew, and people are called again."""
        incident_clocks.relapse(self.book, self.policy, workflow.now())
        situation = self.situation
        situation.good_since, situation.bad_row, situation.was_bad = None, 0, True
        self._asked_to_resolve = None
        self.say(f"RELAPSE, outbreak {self.book.episode}: {why}", level="error")
        self.announce(f"relapse-{self.book.episode}", f"RELAPSE: {situation.headline}", why, severity="critical")
        self.news()

    # --- afterwards -----------------------------------------------------------------------------------------------

    @workflow.update(
        description='Actions. Input: {"by": "your name", "do": "add", "text": "what", "owner": "who", "due": "P7D"}'
    )
    def action(self, *payload: Any) -> str:
        message = read(ActionItem, payload)
        now = workflow.now()
        if message.do == "add":
            due = message.due or (self.policy.action_due if hasattr(self, "stage") else timedelta(weeks=2))
            made = add_action(self.situation, message.text or "", message.by, message.owner, due, now)
            self.say(
                f"adds action {made.id}: {made.text} ({made.owner or 'nobody yet'}, due {made.due:%d %b})",
                who=message.by,
                source="person",
            )
            self.news()
            return made.id
        found = next(action for action in self.situation.actions if action.id == message.id)
        if message.do == "done":
            found.done_at, found.done_by = now, message.by
            self.say(f"has done action {found.id}: {found.text}", who=message.by, source="person")
        else:
            found.handed_to = message.owner
            self.say(f"hands action {found.id} on to {message.owner}: {found.text}", who=message.by, source="person")
        self.news()
        return f"{found.id} {message.do}"

    @action.validator
    def _check_action(self, *payload: Any) -> None:
        message = _valid(ActionItem, payload)
        with _as_rejection():
            self._running()
            if message.do != "add" and not any(a.id == message.id and a.open for a in self.situation.actions):
                known = ", ".join(action.id for action in self.situation.actions if action.open) or "none"
                raise Refused(f"no open action '{message.id}'; open: {known}")

    @workflow.update(description='The post-mortem was held. Input: {"by": "your name"}')
    def post_mortem(self, *payload: Any) -> str:
        message = read(Held, payload)
        self._held(message.by, message.reason)
        return "noted; actions are tracked until they are done or handed on"

    @post_mortem.validator
    def _check_post_mortem(self, *payload: Any) -> None:
        _valid(Held, payload)
        with _as_rejection():
            self._running()
            book = self.situation.book
            if book is None or not book.reached("resolved"):
                raise Refused("the incident is not resolved yet: the post-mortem comes after")

    def _held(self, by: str, reason: str | None) -> None:
        self.say(f"the post-mortem was held{_because(reason)}", who=by, source="person")
        self._with_book(lambda book: incident_clocks.reach(book, self.policy, "post_mortem", workflow.now()))

    def _tick(self, message: Tick) -> None:
        super()._tick(message)
        book = self.situation.book
        if message.item == "post-mortem-held" and book is not None and book.reached("resolved"):
            self._held(message.by, message.reason)


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else ""
