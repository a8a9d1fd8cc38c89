"""``runbooks quick``: the document's aliases, done right.

Looking needs no Temporal, so that it works while that is down. Changing is a run like any other: with its plan, its
approvals and its undo.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import httpx
import typer
from rich.text import Text

from activities.clients import Aws, http_client
from activities.logs import LOGGED, RAISED
from activities.scrub import scrub
from activities.secret_refs import SecretResolver
from activities.settings import Settings, load_settings
from activities.stage import Stage
from starters import run_commands
from starters.output import AsJson, Output
from starters.problems import Code, Problem

quick = typer.Typer(help="Quick looks at a stage, and the quick ways to deploy and roll back.", no_args_is_help=True)

StageName = Annotated[str, typer.Argument(metavar="STAGE", help="Stage, as named in the settings.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the timeline and the record.")]
Wait = Annotated[bool, typer.Option("--wait", help="Show the run live and wait for its end.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Look at everything, change nothing.")]
Since = Annotated[str, typer.Option("--since", metavar="15m", help="How far back: a number and s, m, h or d.")]

_LENGTH = re.compile(r"(\d{1,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_POLL = 2.0
_LATE = timedelta(seconds=30)
"""Lines can arrive this late; each is shown once."""

_MOST_LINES = 5000


@quick.command("logs")
def logs(
    stage: StageName,
    since: Since = "10m",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    pattern: Annotated[str, typer.Option("--pattern", help="A CloudWatch filter pattern; case counts.")] = "",
    as_json: AsJson = False,
) -> None:
    """The function's log, newest last, without what looks like a secret."""
    _show(stage, since, (pattern,), follow, Output(as_json))


@quick.command("errors")
def errors(stage: StageName, since: Since = "15m", as_json: AsJson = False) -> None:
    """Error lines of the function's log: what the code logs as errors, and what the runtime writes where it dies."""
    _show(stage, since, (LOGGED, RAISED), False, Output(as_json))


@quick.command("status")
def status(stage: StageName, as_json: AsJson = False) -> int:
    """``/health/ready`` of the stage, with its key. Exit code 1 when it is not ready."""
    settings, found = _stage(stage)
    aws = Aws(settings)
    headers = {"X-Api-Key": SecretResolver(aws.ssm, aws.secretsmanager).resolve(found.api_key)}
    began = time.perf_counter()
    try:
        with http_client() as client:
            answer = client.get(f"{found.url}/health/ready", headers=headers)
    except httpx.TransportError as error:
        raise Problem(f"{stage} gives no answer ({type(error).__name__})", Code.RUN_FAILED) from None
    took = round((time.perf_counter() - began) * 1000, 1)
    try:
        body: Any = answer.json()
    except ValueError:
        body = scrub(answer.text)[:500]
    document = {"stage": stage, "status": answer.status_code, "ms": took, "body": body}
    line = Text(f"{stage}: HTTP {answer.status_code} in {took:.0f} ms", "green" if answer.is_success else "bold red")
    Output(as_json).show(document, line, json.dumps(body, indent=2))
    return Code.DONE if answer.status_code == 200 else Code.RUN_FAILED


@quick.command("deploy")
def deploy(
    context: typer.Context,
    stage: StageName,
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="Commit, label or saved build.")],
    reason: Reason = "deployed by hand",
    wait: Wait = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Deploy a release: runbook Deploy."""
    given = {"stage": stage, "release": release, "reason": reason}
    return run_commands.start(context, "Deploy", json.dumps(given), None, None, wait, dry_run, as_json)


@quick.command("rollback")
def rollback(
    context: typer.Context,
    stage: StageName,
    reason: Reason,
    wait: Wait = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Put the last good release back: runbook QuickRollback."""
    given = {"stage": stage, "reason": reason}
    return run_commands.start(context, "QuickRollback", json.dumps(given), None, None, wait, dry_run, as_json)


# --- logs -----------------------------------------------------------------------------------------------------------


def _stage(name: str) -> tuple[Settings, Stage]:
    settings = load_settings()
    found = settings.stages.get(name)
    if found is None:
        known = ", ".join(sorted(settings.stages)) or "none"
        raise Problem(f"there is no stage {name!r}. Stages in the settings: {known}", Code.CONFLICT)
    return settings, found


def length(text: str) -> timedelta:
    """``15m`` as a length of time.

    Raises:
        Problem: it is none.
    """
    found = _LENGTH.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise Problem(f"--since takes a number and s, m, h or d, such as 15m; got {text!r}", Code.BAD_INPUT)
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _show(stage: str, since: str, patterns: tuple[str, ...], follow: bool, output: Output) -> None:
    settings, found = _stage(stage)
    client = Aws(settings).logs
    start, seen = datetime.now(UTC) - length(since), set[str]()
    kept: list[dict[str, Any]] = []
    while True:
        try:
            lines = sorted(_lines(client, found.log_group, patterns, start), key=lambda line: line["timestamp"])
        except client.exceptions.ResourceNotFoundException:
            raise Problem(f"log group {found.log_group} does not exist (yet)", Code.CONFLICT) from None
        for line in lines:
            if line["eventId"] in seen:
                continue
            seen.add(line["eventId"])
            at = datetime.fromtimestamp(line["timestamp"] / 1000, UTC)
            text = scrub(line["message"].rstrip())
            if output.json and not follow:
                kept.append({"at": at.isoformat(), "line": text})
            elif output.json:
                sys.stdout.write(json.dumps({"at": at.isoformat(), "line": text}) + "\n")
                sys.stdout.flush()
            else:
                output.line(f"{at:%H:%M:%S} {text}")
        if not follow:
            break
        start = max(start, datetime.now(UTC) - _LATE)
        time.sleep(_POLL)
    if output.json:
        output.show(kept)
    elif not seen:
        output.line(f"no such line in {found.log_group} within {since}", "dim")


def _lines(client: Any, group: str, patterns: tuple[str, ...], start: datetime) -> Iterator[Any]:
    """Lines that fit any of the patterns."""
    found = 0
    for pattern in patterns:
        pages = client.get_paginator("filter_log_events").paginate(
            logGroupName=group, startTime=int(start.timestamp() * 1000), filterPattern=pattern
        )
        for page in pages:
            for event in page["events"]:
                found += 1
                if found > _MOST_LINES:
                    raise Problem(
                        f"more than {_MOST_LINES} lines: take a shorter --since, or --pattern", Code.BAD_INPUT
                    )
                yield event
