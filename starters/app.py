"""The ``runbooks`` command, put together."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from starters import operator_commands, run_commands
from starters.catalog import Catalog, catalog
from starters.codec_commands import codec
from starters.contacts import contacts
from starters.demo import demo
from starters.doctor import doctor
from starters.incident_commands import incident
from starters.keys import keys
from starters.problems import EXIT_CODES, Code, explained
from starters.quick import quick
from starters.sandbox_commands import sandbox
from starters.schedule_commands import schedules
from workflows.catalog import RUNBOOKS
from workflows.model import plain

_LONGEST = 4000
"""Characters of a complaint: what was typed may be huge, and is quoted."""

app = typer.Typer(
    name="runbooks",
    help="Operational runbooks: start them, watch them, answer their questions.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS: dict[str, tuple[tuple[str, Callable[..., Any]], ...]] = {
    "Runs": (
        ("catalog", catalog),
        ("start", run_commands.start),
        ("list", run_commands.list_),
        ("show", run_commands.show),
        ("report", run_commands.report),
        ("locks", run_commands.locks),
        ("examples", run_commands.examples),
        ("doctor", doctor),
        ("contacts", contacts),
    ),
    "Answer and steer": (
        ("approve", operator_commands.approve),
        ("reject", operator_commands.reject),
        ("revoke", operator_commands.revoke),
        ("pause", operator_commands.pause),
        ("resume", operator_commands.resume),
        ("abort", operator_commands.abort),
        ("note", operator_commands.note),
        ("tick", operator_commands.tick),
        ("extend", operator_commands.extend),
        ("end-wait", operator_commands.end_wait),
        ("acknowledge", operator_commands.acknowledge),
        ("hold", operator_commands.hold),
        ("release", operator_commands.release),
        ("promote", operator_commands.promote),
    ),
    "Try it": (("demo", demo),),
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands:
        app.command(_name, rich_help_panel=_panel, epilog=EXIT_CODES)(_command)
app.add_typer(incident, name="incident", rich_help_panel="Answer and steer", epilog=EXIT_CODES)
app.add_typer(keys, name="keys", rich_help_panel="Answer and steer", epilog=EXIT_CODES)
app.add_typer(codec, name="codec", rich_help_panel="Answer and steer", epilog=EXIT_CODES)
app.add_typer(quick, name="quick", rich_help_panel="Runs", epilog=EXIT_CODES)
app.add_typer(schedules, name="schedules", rich_help_panel="Runs", epilog=EXIT_CODES)
app.add_typer(sandbox, name="sandbox", rich_help_panel="Try it", epilog=EXIT_CODES)


@functools.cache
def _whole() -> TyperGroup:
    """Every command with its options: worked out once, which takes longer than most commands."""
    return typer.main.get_group(app)


def run(arguments: Sequence[str], runbooks: Catalog = RUNBOOKS) -> int:
    """One command from its arguments to its exit code; an error is one line on standard error.

    Args:
        runbooks: what can be started, listed and looked up.
    """
    try:
        code = _whole().main(args=list(arguments), prog_name="runbooks", standalone_mode=False, obj=runbooks)
        # Typer makes an exit code of Ctrl-C by itself.
        return _interrupted() if code == Code.INTERRUPTED else int(code or Code.DONE)
    except TyperException as error:
        return _complain(error.format_message(), Code.BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except Exception as error:  # the last resort: whatever it is, people read one line
        problem = explained(error)
        return _complain(str(problem), problem.code)


def _interrupted() -> int:
    return _complain("interrupted", Code.INTERRUPTED)


def _complain(message: str, code: Code) -> int:
    if message:  # without any argument the help has been printed, and there is no more to say
        print(f"runbooks: {plain(' '.join(message.split()))[:_LONGEST]}", file=sys.stderr)
    return code
