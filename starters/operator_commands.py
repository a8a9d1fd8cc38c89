"""The commands by which people answer and steer a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from starters import keys, runs
from starters.output import AsJson, Output
from starters.problems import Code, Problem
from starters.run_commands import RunId
from starters.session import Session, connected, somebody
from workflows.api_key_model import Acknowledge
from workflows.canary_model import Steer
from workflows.details import clock
from workflows.gates import Refused
from workflows.model import By, Decision, EndWait, ExtendWait, Message, Note, Revoke, Tick

Who = Annotated[str | None, typer.Option("--by", help="Who you are. Default: RUNBOOKS_USER, or your login.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why; stands on the timeline and in the report.")]
GateId = Annotated[str | None, typer.Option("--gate", help="Which gate, when several are open.")]
PlanHash = Annotated[str | None, typer.Option("--plan", help="Hash of the plan that you have read.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--key", envvar="RUNBOOKS_KEY", metavar="FILE", help="Sign with this key, where the stage asks so."),
]
WaitId = Annotated[str | None, typer.Option("--wait", help="Which wait, when there are several.")]


def _update(run: str, name: str, message: Message, as_json: bool) -> None:
    answer = connected(lambda session: runs.update(session, run, name, message))
    Output(as_json).show({"id": run, "answer": answer}, answer)


def _signal(run: str, name: str, message: Message, by: str, as_json: bool) -> None:
    async def send(session: Session) -> None:
        entry = await runs.send(session, run, name, message, by)
        said = f"{clock(entry.at)} {entry.who or ''} {entry.text}"
        Output(as_json).show({"id": run, "timeline": entry.model_dump(mode="json")}, said)

    connected(send)


def _answer(decision: Literal["approve", "reject"], help_text: str) -> Callable[..., None]:
    """The command that answers the open gate so."""

    def answer(
        run: RunId,
        gate: GateId = None,
        by: Who = None,
        reason: Reason = None,
        plan: PlanHash = None,
        key: KeyFile = None,
        as_json: AsJson = False,
    ) -> None:
        said = runs.message(Decision, decision=decision, gate=gate, by=somebody(by), reason=reason, plan_hash=plan)
        private = keys.load(key) if key else None

        async def decide(session: Session) -> str:
            if private is None:
                return await runs.update(session, run, "decide", said)
            try:
                signed = keys.signed(private, await runs.state_of(session, run), said)
            except Refused as error:
                raise Problem(f"{run} refuses: {error}", Code.CONFLICT) from None
            return await runs.update(session, run, "decide", signed)

        counted = connected(decide)
        Output(as_json).show({"id": run, "answer": counted}, counted)

    answer.__doc__ = help_text
    return answer


approve = _answer("approve", "Say yes at the open gate; tells at once whether it counted.")
reject = _answer("reject", "Say no at the open gate; tells at once whether it counted.")


def revoke(run: RunId, gate: GateId = None, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Take your approval back, until the step that it released has begun."""
    who = somebody(by)
    _signal(run, "revoke", runs.message(Revoke, by=who, gate=gate, reason=reason), who, as_json)


def pause(run: RunId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Stop before the next step."""
    who = somebody(by)
    _signal(run, "pause", runs.message(By, by=who, reason=reason), who, as_json)


def resume(run: RunId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Go on after a pause."""
    who = somebody(by)
    _signal(run, "resume", runs.message(By, by=who, reason=reason), who, as_json)


def abort(run: RunId, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """Stop, and undo what was begun."""
    who = somebody(by)
    _signal(run, "abort", runs.message(By, by=who, reason=reason), who, as_json)


def note(
    run: RunId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What you saw or did.")],
    by: Who = None,
    as_json: AsJson = False,
) -> None:
    """Put a line on the timeline."""
    who = somebody(by)
    _signal(run, "note", runs.message(Note, by=who, text=text), who, as_json)


def tick(
    run: RunId,
    item: Annotated[str, typer.Argument(metavar="ITEM", help="Id of the item, as 'runbooks catalog NAME' lists it.")],
    by: Who = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Tick an item of the checklist by hand."""
    who = somebody(by)
    _signal(run, "tick", runs.message(Tick, by=who, item=item, reason=reason), who, as_json)


def extend(
    run: RunId,
    duration: Annotated[str, typer.Option("--duration", metavar="DURATION", help="How much longer, such as PT5M.")],
    wait: WaitId = None,
    by: Who = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Make a wait longer."""
    message = runs.message(ExtendWait, by=somebody(by), wait=wait, duration=duration, reason=reason)
    _update(run, "extend_wait", message, as_json)


def end_wait(run: RunId, wait: WaitId = None, by: Who = None, reason: Reason = None, as_json: AsJson = False) -> None:
    """End a wait now."""
    _update(run, "end_wait", runs.message(EndWait, by=somebody(by), wait=wait, reason=reason), as_json)


def acknowledge(
    run: RunId,
    client: Annotated[str, typer.Option("--client", help="Name of the client, as it is registered.")],
    by: Who = None,
    reason: Reason = None,
    as_json: AsJson = False,
) -> None:
    """Say that a client uses its new key now, in a rotation of API keys."""
    who = somebody(by)
    _signal(run, "acknowledge", runs.message(Acknowledge, by=who, client=client, reason=reason), who, as_json)


Why = Annotated[str, typer.Option("--reason", help="Why; needed here, and stands on the timeline and in the report.")]


def hold(run: RunId, reason: Why, by: Who = None, as_json: AsJson = False) -> None:
    """Keep a live bake at its rung; it is judged on."""
    _update(run, "hold", runs.message(Steer, by=somebody(by), reason=reason), as_json)


def release(run: RunId, reason: Why, by: Who = None, as_json: AsJson = False) -> None:
    """End a hold."""
    _update(run, "release", runs.message(Steer, by=somebody(by), reason=reason), as_json)


def promote(run: RunId, reason: Why, by: Who = None, as_json: AsJson = False) -> None:
    """Give the version that a live bake brings back all of the traffic at once."""
    _update(run, "promote", runs.message(Steer, by=somebody(by), reason=reason), as_json)
