"""``runbooks demo incident``: a dead release, from the alarm that notices it to the post-mortem and its action."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import httpx
from temporalio.service import RPCError, RPCStatusCode

from activities.clients import Aws
from activities.incident_policy import IncidentPolicy
from activities.incidents import incident_id
from activities.records import Records
from starters import reports, runs
from starters.demo_play import APPROVER, HURRY, STAGE, Play, percent
from starters.problems import Code, Problem
from starters.runs import Ended, Started
from starters.sandbox_commands import RECEIVING
from starters.session import Session, connected
from starters.worker_child import WorkerChild
from workflows.incident import Incident
from workflows.incident_model import Acknowledge, ActionItem, Held, SetCause
from workflows.incident_state import Situation
from workflows.model import By

if TYPE_CHECKING:
    from sandbox.house import House
    from sandbox.traffic import Stats, Traffic

ALARM_PATIENCE = 90.0
"""Seconds: the alarm is judged every ten, over the minute that runs."""

COMMANDER = "demo commander"

ID = incident_id(STAGE, f"state-api-{STAGE}-errors")
"""The incident of the sandbox's alarm."""


def hurried() -> str:
    """The document's policy; but what is watched for a quarter of an hour is watched for twelve seconds."""
    policy = IncidentPolicy()
    seconds = {"watch_every": timedelta(seconds=2), "stable_for": timedelta(seconds=12)}
    rules = {name: rule.model_copy(update=seconds) for name, rule in policy.severities.items()}
    return policy.model_copy(update={"severities": rules}).model_dump_json()


class Outage(Play):
    """Nobody starts it: CloudWatch notices, SNS posts, the receiver opens. People acknowledge, agree, and close."""

    runbook = Incident
    rate = 8.0
    hurry: ClassVar[dict[str, str]] = {
        **HURRY,
        **RECEIVING,
        "RUNBOOKS_STAGES__PRODUCTION__INCIDENTS": hurried(),
        # The incident's own gate shows what the rollback would do; one yes is enough.
        "RUNBOOKS_STAGES__PRODUCTION__WAIVE_GATES_IN_INCIDENT": "true",
    }

    def ports(self) -> dict[str, int]:
        """A port for the receiver that no other sandbox on this machine waits to use."""
        from sandbox.ports import Claims, next_free

        with Claims() as claims:
            return {"alerts": next_free(8095, (), claims)}

    def trouble(self, house: House, traffic: Traffic) -> Stats:
        self._aside(f"what people receive shows at {_hub(house)}")
        self._scene("deploying a release that fails on every request, and telling nobody")
        entry = house.deploy(STAGE, "crashing", crash_rate=1)
        before = self._measured(traffic, 1)
        self._aside(f"release {entry.release} is live; clients see: {percent(before)} errors", "bold red")
        return before

    def begin(self, before: Stats) -> Started:
        self._scene("waiting for the alarm: CloudWatch → SNS, signed → receiver → Incident")
        began = time.monotonic()
        found = connected(_opened)
        self._aside(f"after {time.monotonic() - began:.0f} s the alarm has opened {found.id}", "bold")
        return found

    @contextlib.contextmanager
    def meanwhile(self, _child: WorkerChild, _traffic: Traffic) -> Iterator[None]:
        """Beside the gates, which are asked about, somebody acknowledges, names the cause, and closes what is left."""
        over = threading.Event()
        team = threading.Thread(target=self._team, args=(over,), name="demo-team", daemon=True)
        team.start()
        try:
            yield
        finally:
            over.set()
            team.join()

    def _team(self, over: threading.Event) -> None:
        duties = list(_DUTIES)
        while duties and not over.wait(0.5):
            with contextlib.suppress(Problem, RPCError):  # no worker for a moment: the next look comes
                seen, (holds, name, message, said) = connected(_situation), duties[0]
                if holds(seen):
                    connected(lambda session, to=name, sent=message: runs.update(session, ID, to, sent))  # type: ignore[misc]
                    self._aside(f"{message.by} {said}", "cyan")
                    del duties[0]

    def afterwards(self, house: House, end: Ended) -> None:
        self._scene("what is left of it")
        for name, value in (end.result.facts if end.result else {}).items():
            if name.startswith("time to "):
                self._aside(f"{name}: {value}")
        hub = _hub(house)
        with httpx.Client(trust_env=False) as http:
            page, events = http.get(hub).text, http.get(f"{hub}/_control/received").json()
        self.copies = connected(_documents)
        shown = reports.DEFAULT_DIRECTORY / ID / "received.html"
        shown.write_text(re.sub(r'<meta http-equiv="refresh"[^>]*>', "", page))
        self.copies["received"] = shown
        self._aside("what people received:")
        for event in events:
            self._aside(f"  {event['received_at'][11:19]}  {event['channel']:<9}  {_said(event)}")
        self._aside(f"  all of it: {shown}", "bold")
        self._aside(f"the post-mortem's draft: {self.copies.get('post-mortem.md', 'not written')}", "bold")


def _written(seen: Situation) -> bool:
    return seen.book is not None and seen.book.reached("resolved") and "html" in seen.documents


_DUTIES: tuple[tuple[Callable[[Situation], bool], str, By, str], ...] = (
    (
        lambda seen: seen.book is not None and seen.book.reached("alerted"),
        "acknowledge",
        Acknowledge(by=COMMANDER),
        "acknowledges the page",
    ),
    (
        lambda seen: any(tried.state == "done" for tried in seen.tried),
        "cause",
        SetCause(by=COMMANDER, cause="a release that fails on every request"),
        "names the cause",
    ),
    (
        _written,
        "action",
        ActionItem(by=COMMANDER, text="deploy behind a canary", owner=APPROVER),
        "adds an action: deploy behind a canary. In real life it is tracked for weeks, with reminders",
    ),
    (_written, "action", ActionItem(by=APPROVER, do="done", id="A1"), "has done it"),
    (_written, "post_mortem", Held(by=COMMANDER), "says that the post-mortem was held"),
)
"""What a team does of its own accord, one after the other, each as soon as the incident is so far."""


def _hub(house: House) -> str:
    return next(f"http://127.0.0.1:{part.ports['hub']}" for part in house.status() if part.name == "hub")


async def _opened(session: Session) -> Started:
    """The run as soon as the alarm has opened it.

    Raises:
        Problem: it did not, for a minute and a half.
    """
    deadline = asyncio.get_running_loop().time() + ALARM_PATIENCE
    while True:
        try:
            found = await session.handle(ID).describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
        else:
            page = session.page(ID, found.run_id)
            return Started(id=ID, run_id=found.run_id, runbook=Incident.__name__, ui=page, input={})
        if asyncio.get_running_loop().time() > deadline:
            raise Problem(f"the alarm has opened nothing within {ALARM_PATIENCE:.0f} s", Code.RUN_FAILED)
        await asyncio.sleep(0.3)


async def _situation(session: Session) -> Situation:
    return Situation.model_validate(await session.handle(ID).query("situation", rpc_timeout=runs.ANSWER))


async def _documents(session: Session) -> dict[str, Path]:
    """Copies of the post-mortem and its invitation, which are gone with the sandbox."""
    seen = await _situation(session)
    records = Records(Aws(session.settings).s3, session.settings)
    folder = reports.DEFAULT_DIRECTORY / ID
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for kind in ("md", "html", "ics"):
        content = records.fetch(seen.documents[kind]) if kind in seen.documents else None
        if content is not None:
            files[f"post-mortem.{kind}"] = folder / f"post-mortem.{kind}"
            files[f"post-mortem.{kind}"].write_bytes(content)
    return files


def _said(event: dict[str, Any]) -> str:
    """One line of what was received."""
    body = event["body"]
    match event["channel"], event["action"]:
        case "slack", _:
            return str(body.get("text", "")).partition("\n")[0].replace("*", "")
        case "pagerduty", "trigger":
            return f"PAGE {body['payload']['summary']}"
        case "pagerduty", action:
            return f"page: {action}"
        case _:
            return str(body.get("title") or event["action"])
