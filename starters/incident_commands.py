"""``runbooks incident``: open one, say that you are on it, steer it, and close what comes of it."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

import typer

from activities.incident_policy import SeverityName
from activities.incidents import OpenIncident, open_incident
from starters import operator_commands, runs
from starters.operator_commands import Reason, Who
from starters.output import AsJson, Output
from starters.problems import EXIT_CODES
from starters.run_commands import RunId
from starters.session import Session, connected, somebody
from workflows.incident_model import (
    Acknowledge,
    ActionItem,
    Choose,
    Held,
    Mitigated,
    Resolve,
    SetCause,
    SetSeverity,
    TakeCommand,
)
from workflows.model import Message

incident = typer.Typer(
    name="incident", help="Open an incident, acknowledge it, steer it, resolve it.", no_args_is_help=True
)


def open_(
    title: Annotated[str, typer.Argument(metavar="TITLE", help="What is wrong, in one line.")],
    stage: Annotated[str, typer.Option("--stage", help="The stage it is about.")] = "production",
    severity: Annotated[
        SeverityName | None, typer.Option("--severity", help="Worked out from the evidence when absent.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Names the problem: the same key joins the running incident.")
    ] = None,
    drill: Annotated[bool, typer.Option("--drill", help="A drill: pages nobody, changes nothing, is scored.")] = False,
    by: Who = None,
    as_json: AsJson = False,
) -> None:
    """Open an incident, or join the running one of the same problem."""
    who = somebody(by)
    problem = OpenIncident(
        stage=stage,
        reason=title,
        key=key or title,
        alert=f"{who.replace(' ', '-')}-{uuid.uuid4().hex[:12]}",
        source=who,
        severity=severity,
        drill=drill,
    )

    async def work(session: Session) -> None:
        opened = await open_incident(session.client, session.settings.task_queue, problem)
        page = session.page(opened.workflow_id)
        lines = (opened.summary, f"page: {page}", f"on it? runbooks incident ack {opened.workflow_id}")
        Output(as_json).show({**opened.model_dump(mode="json"), "ui": page}, *lines)

    connected(work)


def _update(run: str, name: str, message: Message, as_json: bool) -> None:
    answer = connected(lambda session: runs.update(session, run, name, message))
    Output(as_json).show({"id": run, "answer": answer}, answer)


def ack(run: RunId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """I am on it: stops the paging, until it expires without progress."""
    _update(run, "acknowledge", runs.message(Acknowledge, by=somebody(by), reason=reason), as_json)


def command(
    run: RunId,
    to: Annotated[str | None, typer.Option("--to", help="Who gets it. Default: you.")] = None,
    role: Annotated[str, typer.Option("--role", help="commander, scribe, liaison or any other.")] = "commander",
    by: Who = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Take command, or hand a role over."""
    _update(run, "command", runs.message(TakeCommand, by=somebody(by), to=to, role=role, reason=reason), as_json)


def severity(
    run: RunId,
    level: Annotated[SeverityName, typer.Argument(metavar="P1|P2|P3|P4")],
    reason: Annotated[str, typer.Option("--reason", help="Why; needed here.")],
    by: Who = None,
    as_json: AsJson = False,
) -> None:
    """Change the severity; every clock is planned anew at once."""
    _update(run, "severity", runs.message(SetSeverity, by=somebody(by), severity=level, reason=reason), as_json)


def cause(
    run: RunId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What it was, in one line.")],
    by: Who = None,
    as_json: AsJson = False,
) -> None:
    """Name the root cause."""
    _update(run, "cause", runs.message(SetCause, by=somebody(by), cause=text), as_json)


def mitigated(
    run: RunId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What was done by hand.")],
    by: Who = None,
    as_json: AsJson = False,
) -> None:
    """Say that a workaround was made by hand."""
    _update(run, "mitigated", runs.message(Mitigated, by=somebody(by), text=text), as_json)


def recover(
    run: RunId,
    runbook: Annotated[str, typer.Argument(metavar="RUNBOOK", help="Such as QuickRollback.")],
    by: Who = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Have this recovery offered next; its gate asks."""
    _update(run, "recover", runs.message(Choose, by=somebody(by), runbook=runbook, reason=reason), as_json)


def resolve(
    run: RunId,
    cause: Annotated[str | None, typer.Option("--cause", help="The root cause, if it is known.")] = None,
    by: Who = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Say that the service is restored; it is verified, then resolved."""
    _update(run, "resolve", runs.message(Resolve, by=somebody(by), cause=cause, reason=reason), as_json)


def action(
    run: RunId,
    do: Annotated[Literal["add", "done", "hand-on"], typer.Argument(metavar="add|done|hand-on")],
    what: Annotated[str, typer.Argument(metavar="TEXT|ID", help="What has to be done; for done and hand-on its id.")],
    owner: Annotated[str | None, typer.Option("--owner", help="Who does it, or to whom it is handed on.")] = None,
    due: Annotated[str | None, typer.Option("--due", metavar="DURATION", help="From now, such as P7D.")] = None,
    by: Who = None,
    as_json: AsJson = False,
) -> None:
    """Add an action of the post-mortem, report it done, or hand it on."""
    given = {"text": what} if do == "add" else {"id": what}
    message = runs.message(ActionItem, by=somebody(by), do=do, owner=owner, due=due, **given)
    _update(run, "action", message, as_json)


def held(run: RunId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Say that the post-mortem was held."""
    _update(run, "post_mortem", runs.message(Held, by=somebody(by), reason=reason), as_json)


_COMMANDS = (
    ("open", open_),
    ("ack", ack),
    ("note", operator_commands.note),
    ("severity", severity),
    ("command", command),
    ("cause", cause),
    ("recover", recover),
    ("mitigated", mitigated),
    ("resolve", resolve),
    ("action", action),
    ("held", held),
)
for _name, _command in _COMMANDS:
    incident.command(_name, epilog=EXIT_CODES)(_command)
