"""After the service is restored: the record, the post-mortem, and its actions until they are done or handed on."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

from activities.charts import Chart, Mark
from activities.messages import Mail, TicketRequest
from activities.metrics import Window
from activities.notifications import Notifications
from activities.post_mortem import IncidentEntry, Meeting, PostMortem, PostMortems, Written
from activities.signs import Series, Signs
from activities.tickets import Tickets
from workflows import incident_clocks, policy
from workflows.carrying import CARRIED_TIMELINE
from workflows.details import length
from workflows.incident_recovery import Recovery
from workflows.incident_state import Action, due_reminders, score
from workflows.model import Kind, Phase, State
from workflows.policy import SHORTENED_TIMELINE
from workflows.steps import describe

_AROUND = timedelta(minutes=10)
"""What the charts show before and after the incident."""


class Afterwards(Recovery):
    """The document's steps 9 and 10, and what comes of them."""

    async def see_out(self) -> None:
        """Until nothing is left to do and the run is over, or it has broken out again: then people wait for nothing."""
        work = asyncio.create_task(self._afterwards())
        try:
            await workflow.wait_condition(lambda: work.done() or not self.book.reached("resolved"))
            if self.book.reached("resolved") or not workflow.patched("what comes during the afterwards counts"):
                await work
        except asyncio.CancelledError:
            await _stopped(work)
            raise
        await _stopped(work)
        if self.book.reached("resolved") and not self._over:
            await self.carry_on()

    async def _afterwards(self) -> None:
        if self.book.reached("resolved"):
            await self.document()
            await self.follow()

    async def document(self) -> None:
        """Once an outbreak: record, draft, ticket and invitation. None of it decides an outcome."""
        situation, book = self.situation, self.book
        resolved, episode = book.milestones["resolved"], book.episode
        if situation.written_for == episode:
            return
        self.say(f"resolved after {length(resolved - book.opened_at)}")
        await self._open_ticket()
        deadline = next((c.due for c in book.clocks if c.met_by == "post_mortem" and c.runs), None)
        if deadline is not None:
            situation.meeting_at = incident_clocks.post_mortem_slot(self.policy, resolved, deadline)
        written = await self._write(resolved)
        situation.written_for = episode
        if written is not None:
            self.check("document", True, written.documents["md"])
            await self._invite(written)
        resolution = f"Resolved after {length(resolved - book.opened_at)}: {situation.headline}"
        self.announce(f"resolved-{episode}", resolution, self._outcome())
        self.news()

    async def follow(self) -> None:
        """Until the post-mortem was held and every action is done or handed on, or the history is long."""
        situation = self.situation
        step = self._find_step("actions", None, Kind.WAIT)
        while not self._over:
            step.state, step.started_at, step.ended_at = State.WAITING, step.started_at or workflow.now(), None
            while not situation.may_close():
                if not self.book.reached("resolved"):
                    return
                self._enter(Phase.WAITING)
                for event in incident_clocks.take(self.book, self.policy, workflow.now()):
                    self._due_now(event)
                for action in due_reminders(situation, self.policy, workflow.now()):
                    self._remind(action)
                await self._ticket_actions()
                if self.history_is_long:
                    return
                moments = [incident_clocks.next_due(self.book, self.policy), situation.next_reminder()]
                due = min((moment for moment in moments if moment is not None), default=None)
                step.summary = f"open actions: {sum(action.open for action in situation.actions)}"
                self.refresh()
                if self.book.reached("resolved") and not situation.may_close():
                    await self._until_news(self._news, due, "the post-mortem and its actions")
            step.state, step.ended_at = State.DONE, workflow.now()
            held = self.book.reached("post_mortem")
            self.check("post-mortem-held", held, "held" if held else "none is due at this severity")
            done = [action for action in situation.actions if action.done_at]
            handed = len(situation.actions) - len(done)
            self.check("actions", True, f"{len(done)} done, {handed} handed on")
            await self._write(self.book.milestones["resolved"])
            self._over = situation.may_close() or not workflow.patched("what comes during the afterwards counts")

    async def carry_on(self) -> None:
        """Go on in a run with a short history; what that cuts off the timeline is kept for the documents."""

        def carried() -> dict[str, Any]:
            situation = self.situation
            situation.earlier = (situation.earlier + self.state.timeline[:-CARRIED_TIMELINE])[-SHORTENED_TIMELINE:]
            return {
                "part": "after" if self.book.reached("resolved") else "respond",
                "situation": situation.model_dump(mode="json"),
                "chosen": self._chosen,
                "asked_to_resolve": self._asked_to_resolve,
            }

        await self.continue_as_new(carried)

    # --- the documents --------------------------------------------------------------------------------------------

    async def _write(self, resolved: datetime) -> Written | None:
        """The draft from the timeline as it is now, with the charts of the metrics and the actions marked on them."""
        charts = await self._charts(resolved)
        post_mortem = PostMortem(
            entry=self._entry(resolved),
            situation=self.situation.model_dump(mode="json", exclude={"earlier", "looks"}),
            state=self.state.model_copy(update={"timeline": self.situation.earlier + self.state.timeline}).model_dump(
                mode="json"
            ),
            score=score(self.situation),
            charts=charts,
            meeting=self._meeting(resolved),
            folder=f"{self.name}-{workflow.info().first_execution_run_id[:8]}",
        )
        try:
            written: Written = await self._run_activity(
                "post-mortem", "write the post-mortem's draft", PostMortems.write, post_mortem, policy.RECORD
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self.say(f"the post-mortem could not be written: {describe(error)[0]}", level="error")
            return None
        self.situation.documents = written.documents
        step = self._find_step("post-mortem", None, Kind.TELL)
        step.state, step.started_at, step.ended_at = State.DONE, step.started_at or workflow.now(), workflow.now()
        step.summary = written.summary
        return written

    async def _charts(self, resolved: datetime) -> tuple[Chart, ...]:
        end = min(workflow.now(), resolved + _AROUND)
        window = Window(stage=self.stage, start=self.book.opened_at - _AROUND, end=max(end, resolved))
        try:
            found: Series = await self._run_activity(
                "series", "metrics over the incident", Signs.series, window, policy.OBSERVE
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            self.say(f"no charts: {describe(error)[0]}", level="warning", source="provider")
            return ()
        marks = self._marks()
        self.charts = [chart.model_copy(update={"marks": marks}) for chart in found.charts]
        return tuple(self.charts)

    def _marks(self) -> tuple[Mark, ...]:
        """What happened when, for the charts."""
        book, situation = self.book, self.situation
        marks = [Mark(at=book.opened_at, text="opened")]
        names = {"acknowledged": "acknowledged", "stable": "stable", "resolved": "resolved"}
        marks += [Mark(at=at, text=names[name]) for name, at in book.milestones.items() if name in names]
        marks += [Mark(at=t.began_at, text=t.runbook) for t in situation.tried if t.began_at is not None]
        return tuple(sorted(marks, key=lambda mark: mark.at))

    def _entry(self, resolved: datetime) -> IncidentEntry:
        book, situation = self.book, self.situation
        done = tuple(f"{t.runbook}: {t.outcome}" for t in situation.tried if t.state == "done")
        by_hand = tuple(
            f"{entry.who}: {entry.text}"
            for entry in self.state.timeline
            if entry.source == "person" and entry.level == "info" and entry.text.startswith("has worked around")
        )
        return IncidentEntry(
            id=self.state.workflow_id,
            stage=self.stage.name,
            title=situation.headline,
            severity=book.worst,
            drill=situation.drill,
            started_at=book.opened_at,
            ended_at=resolved,
            duration_s=(resolved - book.opened_at).total_seconds(),
            cause=situation.cause or self._likely_cause(),
            steps=(*done, *by_hand),
            commander=situation.roles.get("commander"),
            outbreaks=book.episode,
            missed=tuple(f"{c.severity} {c.id}: {c.title}" for c in book.clocks if c.missed_at is not None),
            ticket=situation.ticket,
        )

    def _likely_cause(self) -> str | None:
        found = self.situation.conclusion
        if found is None or not found.causes or not found.causes[0].supports:
            return None
        return f"not confirmed; most likely {found.causes[0].text}"

    def _outcome(self) -> str:
        situation = self.situation
        told = [f"Cause: {situation.cause or self._likely_cause() or 'not named yet'}", self._what_helped()]
        if situation.meeting_at is not None:
            told.append(f"Post-mortem: {situation.meeting_at:%a %d %b %H:%M} UTC")
        if "html" in situation.documents:
            told.append(f"Draft: {situation.documents['html']}")
        return "\n".join(f"- {line}" for line in told)

    # --- people ---------------------------------------------------------------------------------------------------

    def _meeting(self, resolved: datetime) -> Meeting | None:
        situation = self.situation
        if situation.meeting_at is None:
            return None
        there = (*situation.responders, *situation.roles.values())
        return Meeting(
            uid=f"{self.name}-{workflow.info().first_execution_run_id[:8]}@operational-runbooks",
            title=self._marked(f"Post-mortem: {situation.headline}"),
            starts_at=situation.meeting_at,
            text=f"{self._outcome()}\nRun: {self.state.workflow_id}",
            attendees=self.stage.channels.stakeholders,
            responders=() if situation.drill else tuple(dict.fromkeys(there)),
            sequence=self.book.episode - 1,
            stamped_at=resolved,
        )

    async def _invite(self, written: Written) -> None:
        at, channels = self.situation.meeting_at, self.stage.channels
        if at is None:
            self.check("post-mortem", True, "none is due at this severity")
            return
        when = f"{at:%a %d %b %H:%M} UTC"
        if self.situation.drill:
            self.check("post-mortem", True, f"{when}; nobody is invited to a drill's")
            return
        note = f"{when}; invitation {written.documents.get('ics', 'not written')}"
        self.check("post-mortem", False, f"{note}. NOBODY WAS INVITED: do it, then tick this")
        by_hand = f"Tell them by hand: {', '.join(written.by_hand)}" if written.by_hand else ""
        if by_hand:
            why = "[contacts] has no mail address of theirs"
            self.say(f"the post-mortem is at {when}. {by_hand}; {why}", level="warning")
        to = written.attendees or channels.stakeholders
        if not to or not channels.mail:
            where = f"[stages.{self.stage.name}.channels]"
            self.say(f"nobody was invited to the post-mortem: set stakeholders and mail in {where}", level="warning")
            return
        mail = Mail(
            channels=channels,
            key=self.key(f"invite-{self.book.episode}"),
            to=to,
            title=self._marked(f"Post-mortem {when}: {self.situation.headline}"),
            text=f"{self._outcome()}\n- {by_hand}" if by_hand else self._outcome(),
            links=self.links(),
            calendar=written.calendar,
        )
        told = await self.tell("invite", Notifications.mail, mail, would="invite to the post-mortem")
        if told is not None and told.delivered_by is not None:
            self.check("post-mortem", True, note)

    async def _open_ticket(self) -> None:
        if self.situation.ticket is not None or not self.stage.channels.ticket:
            return
        self.situation.ticket = await self._ticket(
            "ticket", f"{self.book.worst} {self.stage.name}: {self.situation.headline}", self._story(), ("incident",)
        )

    async def _ticket(self, key: str, title: str, text: str, labels: tuple[str, ...]) -> str | None:
        request = TicketRequest(
            channels=self.stage.channels,
            key=self.key(key),
            title=title[:240],
            text=text,
            labels=labels,
            links=self.links(),
        )
        made = await self.tell(key, Tickets.create, request, would=f"open a ticket: {title}", title=f"Ticket: {title}")
        return None if made is None else made.url or f"{made.system} {made.id}"

    async def _ticket_actions(self) -> None:
        """Each action is tracked where the team tracks its work, too."""
        for action in list(self.situation.actions):
            if action.ticket is None and action.open and self.stage.channels.ticket:
                text = f"{action.text}\n\nOwner: {action.owner or 'nobody yet'}, due {action.due:%Y-%m-%d}"
                action.ticket = (
                    await self._ticket(f"ticket-{action.id}", f"{action.id}: {action.text}", text, ("post-mortem",))
                    or "none took it"
                )

    def _remind(self, action: Action) -> None:
        late = length(workflow.now() - action.due)
        text = f"{action.id} is due ({late} over): {action.text}, {action.owner or 'nobody'} has it"
        self.say(f"reminder {action.reminders} of action {text}")
        self.announce(
            f"remind-{action.id}-{action.reminders}", f"Action {text}", self.situation.headline, severity="warning"
        )

    def key(self, step_id: str) -> str:
        """As of every run, but an incident's id comes again: the run's own id keeps the keys of two apart."""
        return f"{self.state.workflow_id}/{workflow.info().first_execution_run_id[:8]}/{step_id}"


async def _stopped(work: asyncio.Task[None]) -> None:
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
