"""The live part of an incident: the clocks, calling people, telling people, and watching the service."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception

from activities.api import Api, Health, HealthCheck, SampleCall
from activities.messages import Announcement, Delivery, Mail, Page, PageEnd
from activities.notifications import Notifications
from activities.pulse import Pulse, Pulses, TakePulse
from workflows import incident_clocks, meters, policy, waiting
from workflows.details import length
from workflows.diagnosis_model import Branch, Readings
from workflows.incident_clocks import Event
from workflows.incident_desk import Desk
from workflows.incident_state import Call
from workflows.incident_watch import (
    HELPS_WITHIN,
    Turn,
    Verdict,
    judge,
    still_unexplained,
    turn,
    uncured,
    unexplained,
    unread,
)
from workflows.model import Kind, Phase, State
from workflows.steps import describe

_SLOWER_AFTER = 30
"""Looks after which the watch takes twice the time between two, so that a long incident does not fill its history."""

_MOST_BETWEEN = timedelta(minutes=15)


class Response(Desk):
    """Clocks, calls, messages and the watch. All of it goes on while a recovery is asked about or runs."""

    # --- the clocks -----------------------------------------------------------------------------------------------

    async def run_clocks(self) -> None:
        """Act on whatever is due, and sleep exactly until the next thing is, or until there is news."""
        while not self._leaving:
            for event in incident_clocks.take(self.book, self.policy, workflow.now()):
                self._due_now(event)
            self._check_team()
            due, seen = incident_clocks.next_due(self.book, self.policy), self._news
            await self._until_news(seen, due, "the next clock of the incident")

    async def _until_news(self, seen: int, due: datetime | None, what: str) -> None:
        left = None if due is None else max(timedelta(milliseconds=1), due - workflow.now())
        try:
            await waiting.until(
                lambda: self._news != seen,
                at_most=left,
                summary=f"{what}, {due:%d %b %H:%M:%S} UTC" if due else None,
            )
        except TimeoutError:
            return

    def _due_now(self, event: Event) -> None:
        book = self.book
        match event.kind:
            case "page":
                self._background.append(asyncio.create_task(self._call(event)))
            case "missed" if event.clock is not None:
                text = (
                    f"MISSED {event.clock.severity} {event.clock.id}: {event.clock.title}, due {event.clock.due:%H:%M}"
                )
                self.say(text, level="error")
                meters.clock_missed(self.state.stage, event.clock.severity, event.clock.id)
                self.announce(f"missed-{event.clock.key}", text, self.situation.headline, severity="error")
            case "ack_expired":
                text = "the acknowledgement has expired without progress: people are called again"
                self.say(text, level="warning")
                self.announce(f"ack-expired-{book.pages}", text, self.situation.headline, severity="warning")
                self._called_again()
            case "update":
                self.announce(f"update-{event.number}", f"Update {event.number}: {self._standing()}", self._story())
                self.say(f"status update {event.number}")

    # --- calling people -------------------------------------------------------------------------------------------

    async def _call(self, event: Event) -> None:
        """Page one level. Whatever comes of it goes on the timeline; nobody having taken it calls the next at once."""
        situation, who = self.situation, event.level.who if event.level else "on-call engineer"
        step_id, key = f"page-{event.number}", self.key(f"page-{event.number}")
        why = f"{event.clock.title}: missed. " if event.clock else ""
        if situation.drill:
            await self._announce(step_id, f"would page {who}", self._message(step_id, f"Would page {who}", why))
            self._alerted(f"would page {who} (drill)")
            return
        channels = self.stage.channels
        if event.level is not None and event.level.page:
            channels = channels.model_copy(update={"page": event.level.page})
        page = Page(
            channels=channels,
            key=key,
            title=f"{self.book.severity} {self.stage.name}: {situation.headline}"[:500],
            source=self.stage.function,
            severity="critical" if self.book.severity in ("P1", "P2") else "error",
            details=self._details() | {"called": f"{who}, round {event.round}" if event.round else who},
            links=self.links(),
        )
        try:
            delivery = await self._run_activity(step_id, f"page {who}", Notifications.page, page, policy.PAGE)
        except ActivityError as error:
            self.say(f"NOBODY COULD BE PAGED ({who}): {describe(error)[0]}", level="error", source="provider")
            incident_clocks.nobody_took_it(self.book, workflow.now(), policy.PAGE_PAUSE)
            self.news()
            return
        self._taken(delivery, who, key)

    def _taken(self, delivery: Delivery, who: str, key: str) -> None:
        for attempt in delivery.attempts:
            if not attempt.ok:
                self.say(
                    f"{attempt.provider} did not take the page: {attempt.detail}", level="warning", source="provider"
                )
        if delivery.delivered_by is None:
            self.say(f"{self.stage.name} names no pager: nobody was paged", level="warning")
            self.announce(f"no-pager-{self.book.pages}", f"Nobody to page: {who} is needed", self._story())
            return
        self.situation.calls.append(Call(key=key, who=who, taken_by=delivery.delivered_by))
        self._alerted(f"paged {who} through {delivery.delivered_by}")
        if self.book.reached("acknowledged") or self.book.reached("resolved") or self._over:
            self._end_calls("somebody is on it")  # it was on its way when the answer came

    def _alerted(self, text: str) -> None:
        self.say(text, source="provider")
        incident_clocks.reach(self.book, self.policy, "alerted", workflow.now())
        step = self._find_step("page", None, Kind.TELL)
        step.state, step.started_at, step.summary = State.WAITING, step.started_at or workflow.now(), text
        self._check_team()
        self.news()

    def _check_team(self) -> None:
        """The document's step 5: somebody was paged or is on it, and the others whom the severity names were told."""
        others, step = ", ".join(self.policy.rule(self.book.severity).notify), self.state.step("notify")
        there = self.book.reached("alerted")
        told = not others or self.situation.drill or (step is not None and step.state is State.DONE)
        notes = ["somebody was called or is on it" if there else "nobody was called yet"]
        if others:
            notes.append(f"{'told' if told else 'not told'}: {others}")
        self.check("team", there and told, "; ".join(notes))

    def _called_again(self) -> None:
        step = self._find_step("page", None, Kind.TELL)
        step.state, step.ended_at = State.WAITING, None

    async def end_calls_when_acknowledged(self) -> None:
        """As soon as somebody is on it, nobody is kept awake by a page that is still open."""
        while not self._leaving:
            await workflow.wait_condition(lambda: self.book.reached("acknowledged") and bool(self.situation.calls))
            self._end_calls(f"{self.book.responder} is on it")

    def _end_calls(self, how: str) -> None:
        calls, self.situation.calls = self.situation.calls, []
        for call in calls:
            self._background.append(asyncio.create_task(self._end_call(call.key, call.taken_by, how)))
        if calls:
            step = self._find_step("page", None, Kind.TELL)
            step.state, step.ended_at, step.summary = State.DONE, workflow.now(), how

    async def _end_call(self, key: str, taken_by: str | None, how: str) -> None:
        end = PageEnd(channels=self.stage.channels, key=key, title=how, delivered_by=taken_by)
        try:
            await self._run_activity(
                f"end-{key.rpartition('/')[2]}", f"end the page: {how}", Notifications.resolve_page, end, policy.PAGE
            )
        except ActivityError as error:
            self.say(f"a page could not be ended: {describe(error)[0]}", level="warning", source="provider")

    # --- telling people -------------------------------------------------------------------------------------------

    async def declare(self) -> None:
        """The document's declaration, filled in; then those who are told beside the channel. At night a P4 waits."""
        book, rule = self.book, self.policy.rule(self.book.severity)
        if rule.business_hours and not self.situation.drill:
            opens = incident_clocks.in_business_hours(self.policy, workflow.now())
            while not self._leaving and opens > workflow.now() and self.policy.rule(book.severity).business_hours:
                await self._until_news(self._news, opens, "tell people when they are at work")
        title = f"INCIDENT DECLARED - {book.severity}"
        message = self._message("declare", title, self._declaration(), "critical")
        told = await self.tell("declare", Notifications.announce, message, would="declare the incident in the channel")
        incident_clocks.reach(book, self.policy, "declared", workflow.now())
        self.news()
        self.check(
            "declare", bool(told and told.delivered_by), f"told {told.delivered_by}" if told else "nobody took it"
        )
        others, to = ", ".join(self.policy.rule(book.severity).notify), self._others_by_mail
        if others and to:
            mail = Mail(
                channels=self.stage.channels,
                key=self.key("notify"),
                to=to,
                title=title,
                text=self._declaration(),
                links=self.links(),
            )
            await self.tell("notify", Notifications.mail, mail, would=f"tell {others}", title=f"Tell {others}")
        elif others and not self.situation.drill:
            where = f"[stages.{self.stage.name}.channels]"
            self.say(f"not told: {others}. Tell them by hand; set stakeholders and mail in {where}", level="warning")
        self._check_team()

    @property
    def _others_by_mail(self) -> tuple[str, ...]:
        """Addresses of those who are told beside the channel; none where no mail can be sent."""
        channels = self.stage.channels
        return channels.stakeholders if channels.mail else ()

    def _message(self, key: str, title: str, text: str, severity: Any = "info") -> Announcement:
        return Announcement(
            channels=self.stage.channels,
            key=self.key(key),
            title=self._marked(title),
            text=text,
            severity=severity,
            links=self.links(),
        )

    def announce(self, key: str, title: str, text: str, *, severity: Any = "info") -> None:
        """Tell the channel in the background; a drill says that it is one."""
        super().announce(key, self._marked(title), text, severity=severity)

    def _marked(self, title: str) -> str:
        return f"DRILL: {title}" if self.situation.drill and not title.startswith("DRILL") else title

    def _declaration(self) -> str:
        situation, found = self.situation, self.situation.conclusion
        down = found is not None and found.branch is Branch.NOT_RESPONDING
        detected = situation.detected_at or self.book.opened_at
        by = f" by {situation.detected_by}" if situation.detected_by else ""
        told = self.policy.rule(self.book.severity).notify
        lines = [
            f"**Service:** {self.policy.service} ({self.stage.name})",
            f"**Status:** {'DOWN' if down else 'DEGRADED'}",
            f"**Detection:** {detected:%Y-%m-%d %H:%M:%S} UTC{by}",
            f"**Impact:** {'; '.join(found.symptoms) if found else self.policy.rule(self.book.severity).impact}",
            f"**Commander:** {situation.roles.get('commander', 'nobody yet')}",
            f"**What is wrong:** {situation.headline}",
        ]
        if found is not None and found.causes and found.causes[0].supports:
            lines.append(f"**Most likely:** {found.causes[0].text} ({'; '.join(found.causes[0].supports)})")
        if told:
            how = "Mail goes to" if self._others_by_mail else "Would be told" if situation.drill else "Tell by hand"
            lines.append(f"**{how}:** {', '.join(told)}")
        lines.append(f"Acknowledge: `runbooks incident ack {self.state.workflow_id}`")
        return "\n".join(lines)

    def _standing(self) -> str:
        book, looks = self.book, self.situation.looks
        state = "watched" if book.reached("mitigated") else "being worked on" if book.responder else "NOT acknowledged"
        return f"{book.severity} on {self.stage.name} is {state}" + (f", last seen: {looks[-1].text}" if looks else "")

    def _story(self) -> str:
        last = [f"{entry.at:%H:%M} {entry.who or ''} {entry.text}" for entry in self.state.timeline[-6:]]
        return f"{self.situation.headline}\n" + "\n".join(f"- {line}" for line in last)

    def _details(self) -> dict[str, str]:
        found = self.situation.conclusion
        details = {"incident": self.state.workflow_id, "stage": self.stage.name, "severity": self.book.severity}
        if found is not None:
            details |= {
                "diagnosis": found.summary,
                "next": found.next.runbook if found.next else "a person has to look",
            }
        return details

    # --- the watch ------------------------------------------------------------------------------------------------

    async def watch_service(self) -> None:
        """Look again and again until it is over: stable for a window, a relapse, or a remedy that did not help."""
        looked = 0
        while not self._leaving:
            looked += 1
            rule = self.policy.rule(self.book.severity)
            pause = rule.watch_every * 2 ** (looked // _SLOWER_AFTER)
            await workflow.sleep(min(pause, max(_MOST_BETWEEN, rule.watch_every)), summary="look at the service again")
            verdict = judge(await self._pulse())
            what = turn(self.situation, verdict, rule.stable_for, workflow.now())
            step = self._find_step("watch", None, Kind.WAIT)
            step.state, step.started_at = State.WAITING, step.started_at or workflow.now()
            step.summary = verdict.text
            self.refresh()
            if what is not Turn.NONE:
                looked = 0
                await self._turned(what, verdict.text, rule.stable_for)
            elif self._anew(verdict):
                self.situation.latest = await self.look_again()

    def _anew(self, verdict: Verdict) -> bool:
        """Whether to diagnose anew. Each patch is of a reason that runs of before did not know."""
        seen = self.situation
        return (
            (unexplained(seen, verdict) and workflow.patched("explain what turned out bad"))
            or (still_unexplained(seen, verdict) and workflow.patched("explain it at every eighth look"))
            or (unread(seen, verdict) and workflow.patched("read again what could not be read"))
            or (uncured(seen, verdict) and workflow.patched("diagnose anew what nothing cures"))
        )

    async def _pulse(self) -> Pulse | None:
        now = workflow.now()
        since = max(now - timedelta(minutes=5), self._changed_at or now - timedelta(minutes=5))
        asked = TakePulse(stage=self.stage, now=now, since=since)
        try:
            found: Pulse = await self._run_activity("look", "look at the service", Pulses.take, asked, policy.PROBE)
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            return None
        return found

    @property
    def _changed_at(self) -> datetime | None:
        """When something was last changed: metrics from before say nothing of it."""
        return max((t.ended_at for t in self.situation.tried if t.ended_at), default=None)

    async def _turned(self, what: Turn, text: str, stable_for: timedelta) -> None:
        match what:
            case Turn.RECOVERED:
                self.say(f"the service is good again; watched for {length(stable_for)}: {text}")
                if self.situation.was_bad:
                    incident_clocks.reach(self.book, self.policy, "mitigated", workflow.now())
                    self.check("recovery", True, self._what_helped())
                self.news()
            case Turn.STABLE:
                self.say(f"stable: good for {length(stable_for)}")
                incident_clocks.reach(self.book, self.policy, "stable", workflow.now())
                self.check("monitor", True, f"good for {length(stable_for)}")
                if self.situation.was_bad and self._told_now():
                    self.announce(f"stable-{self.book.episode}", "Stable", self._standing())
                self.news()
            case Turn.RELAPSED:
                self._break_out(text)
            case Turn.DID_NOT_HELP:
                self.say(f"{self._last_tried()} did not help: after {HELPS_WITHIN} looks still {text}", level="warning")
                await self.look_again()
            case Turn.NONE:
                return

    def _told_now(self) -> bool:
        """Whether people are told at this hour: of what is mild only while they are at work."""
        mild, now = self.policy.rule(self.book.severity).business_hours, workflow.now()
        return not mild or incident_clocks.in_business_hours(self.policy, now) == now

    async def look_again(self) -> Readings:
        """A second diagnosis: what was frozen at first stays as it is."""
        raise NotImplementedError

    def _last_tried(self) -> str:
        return self.situation.tried[-1].runbook if self.situation.tried else "nothing"

    def _what_helped(self) -> str:
        done = [tried for tried in self.situation.tried if tried.state == "done"]
        return f"{done[-1].runbook}: {done[-1].outcome}" if done else "the service is good again"

    async def verify(self) -> bool:
        """The document's step 8: both health checks in a row, and a sample call."""
        self._enter(Phase.VERIFYING)
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=timedelta(minutes=1),
        )
        try:
            looks: list[Health | SampleCall] = [await self.look("verify-health", Api.health, check, policy.VERIFY)]
            if looks[0].ok and workflow.patched("verify /health/ready too"):
                check = check.model_copy(update={"path": "/health/ready"})
                looks.append(await self.look("verify-ready", Api.health, check, policy.VERIFY))
            looks.append(await self.look("verify-sample", Api.sample_calls, self.stage, policy.OBSERVE))
        except FailureError as error:
            if is_cancelled_exception(error):
                raise
            self.say(f"could not be verified: {describe(error)[0]}", level="warning")
            return False
        ok = all(look.ok for look in looks)
        self.check("verify", ok, "; ".join(look.summary for look in looks))
        return ok
