"""``runbooks sandbox``: the stand-in for production on this machine.

The sandbox is no part of the product and perhaps not installed, so it is imported by the commands that need it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from activities.clients import Aws
from activities.functions import Functions
from activities.settings import load_settings
from starters import seeds
from starters.output import AsJson, Output
from starters.problems import Code, Problem
from starters.session import connected
from workflows.catalog import RUNBOOKS
from workflows.model import Outcome

if TYPE_CHECKING:
    from sandbox.house import House, PartStatus

sandbox = typer.Typer(help="A whole stand-in for production on this machine.", no_args_is_help=True)

Directory = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where the sandbox keeps everything.")]
StageName = Annotated[str, typer.Argument(metavar="STAGE", help="staging or production")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Repeatable.")]

DEFAULT_DIRECTORY = Path(".sandbox")
RECEIVING = {"RUNBOOKS_RECEIVER__WITH_WORKER": "true"}
"""The one worker that the sandbox itself runs also takes the alarms."""
_NOT_INSTALLED = "the sandbox is not installed. Run: pip install 'operational-runbooks[sandbox]'"


@contextmanager
def opened(directory: Path, say: Callable[[str], None]) -> Iterator[House]:
    """The sandbox in that directory. What this process brought up ends with the block.

    Raises:
        Problem: whatever the sandbox cannot do, or that it is not installed.
    """
    try:
        from sandbox.house import House, HouseError
        from sandbox.parts import NotInstalledError
        from sandbox.ports import PortTakenError
    except ImportError as error:
        raise Problem(f"{_NOT_INSTALLED} ({error})", Code.UNREACHABLE) from None
    try:
        with House(directory, say) as house:
            yield house
    except (HouseError, NotInstalledError, PortTakenError) as error:
        raise Problem(str(error), Code.UNREACHABLE) from None


@contextmanager
def environment_of(house: House) -> Iterator[dict[str, str]]:
    """Within the block this process works on the sandbox, by the same variables as the worker."""
    before, inside = dict(os.environ), house.environment()
    os.environ.clear()
    os.environ.update(inside)
    try:
        yield inside
    finally:
        os.environ.clear()
        os.environ.update(before)


def _assigned(assignments: list[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for assignment in assignments or []:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise Problem(f"--set takes key=value, not {assignment!r}", Code.BAD_INPUT)
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return values


@sandbox.command()
def up(
    worker: Annotated[bool, typer.Option("--worker", help="Run a worker, too, and stay until Ctrl-C.")] = False,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Bring the sandbox up. It stays until 'sandbox down'; with --worker until Ctrl-C."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        with output.console.status("starting the sandbox") if output.live else _nothing():
            timing = house.up(attached=worker)
        if not worker:
            output.show(*_address_book(house, timing.total))
            return
        from starters.worker_child import WorkerChild

        with (
            WorkerChild(house.environment() | RECEIVING, house.layout.log("worker"), output.line) as child,
            _seeding(directory, house.layout.log("seeds")),
        ):
            output.line(f"worker started, process {child.pid}; its log is {house.layout.log('worker')}", "green")
            output.show(*_address_book(house, timing.total))
            output.line(
                "\nWithin a minute the UI has a finished example of every runbook: 'Start workflow like this one'."
            )
            output.line("Ctrl-C stops it all.", "dim")
            house.watch()
            output.line("stopping")


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _seeding(directory: Path, log: Path) -> Iterator[None]:
    """``sandbox seed`` beside what else goes on, for as long as the block lasts."""
    with log.open("ab") as out:
        command = [sys.executable, "-m", "starters", "sandbox", "seed", "--dir", str(directory)]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)  # noqa: S603
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def _address_book(house: House, seconds: float) -> tuple[dict[str, Any], RenderableType]:
    """Where everything is, as a document and as a table with the first lines to type."""
    with environment_of(house) as environment:
        settings = load_settings()
    addresses = {
        name: f"127.0.0.1:{port}" if name in ("temporal", "mongodb") else f"http://127.0.0.1:{port}"
        for part in house.status()
        for name, port in part.ports.items()
    }
    addresses |= {f"API, {stage.name}": stage.url for stage in settings.stages.values()}
    document = {"ready_after_seconds": round(seconds, 2), "addresses": addresses, "environment": str(house.layout.env)}
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, address in addresses.items():
        table.add_row(Text(name, "dim"), Text(address))
    env = os.path.relpath(house.layout.env)
    lines = [
        f". {env}" if env.startswith("..") else f". ./{env}",
        "runbooks sandbox deploy production broken",
        "runbooks start QuickRollback --set stage=production --set reason='500s since the last deploy' --wait",
        "runbooks approve ID --by 'somebody else'",
    ]
    return document, Group(
        Text(f"\nthe sandbox is ready ({seconds:.1f} s)", "bold green"),
        table,
        Text(f"\nTemporal UI  {settings.ui.url}/namespaces/{environment['TEMPORAL_NAMESPACE']}/workflows", "bold"),
        Text("\nTry, in another terminal:"),
        *(Text(f"  {line}", no_wrap=True, overflow="ignore") for line in lines),
    )


@sandbox.command()
def seed(directory: Directory = DEFAULT_DIRECTORY, as_json: AsJson = False) -> int:
    """Leave a finished example of every runbook in the Temporal UI, and a backup of each stage. It needs a worker."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        with environment_of(house):
            settings = load_settings()
            production = settings.stages["production"]
            versions = Functions(Aws(settings).functions).published(production)
        if len(versions) < 2:
            house.deploy("production", "better")  # a rollback's example needs something to go back to
        with environment_of(house):
            outcomes = connected(lambda session: seeds.seed(session, RUNBOOKS))
    output.show(outcomes, "\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    well = all(outcome in (Outcome.COMPLETED, Outcome.DRY_RUN) for outcome in outcomes.values())
    return Code.DONE if well else Code.RUN_FAILED


@sandbox.command()
def down(directory: Directory = DEFAULT_DIRECTORY, as_json: AsJson = False) -> None:
    """Stop the sandbox and all that it started."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        stopped = house.down()
    output.show({"stopped": stopped}, f"stopped {', '.join(stopped)}" if stopped else "no sandbox was up")


@sandbox.command()
def status(directory: Directory = DEFAULT_DIRECTORY, as_json: AsJson = False) -> None:
    """How each part does, asked now."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        parts = house.status()
    output.show([_part(part) for part in parts], _part_table(parts))


def _part(part: PartStatus) -> dict[str, Any]:
    return {"name": part.name, "state": part.state, "ports": dict(part.ports), "pid": part.pid, "note": part.note}


def _part_table(parts: list[PartStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("part", "state", "ports", "process", "note"):
        table.add_column(column, header_style="dim")
    for part in parts:
        style = {"running": "green", "stopped": "dim"}.get(part.state, "red")
        ports = ", ".join(f"{name} {port}" for name, port in part.ports.items())
        table.add_row(part.name, Text(part.state, style), ports, str(part.pid or ""), Text(part.note))
    return table


@sandbox.command()
def deploy(
    stage: StageName,
    release: Annotated[str, typer.Argument(metavar="[RELEASE]", help="good, broken, slow, ...")] = "good",
    faults: Settings = None,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Deploy a release of the API to a stage; --set adds faults, such as error_rate=0.1."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        entry = house.deploy(stage, release, **_assigned(faults))
    output.show(entry, f"deployed {release} to {stage} as {entry.release}")


@sandbox.command()
def traffic(
    stage: StageName,
    rate: Annotated[float, typer.Option("--rate", help="Requests a second.")] = 10,
    seconds: Annotated[float, typer.Option("--seconds", help="For how long; Ctrl-C ends it early.")] = 60,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Drive traffic at a stage, as its clients would, one line a second."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        driven = house.traffic(stage, rate, seconds)
        try:
            while driven.running:
                time.sleep(1)
                output.line(driven.stats(last_seconds=1).line())
        except KeyboardInterrupt:
            pass
        total = driven.stop()
    output.show(
        {"sent": total.sent, "statuses": total.statuses, "error_rate": total.error_rate, "p95_ms": total.p95_ms},
        f"total {total.line()}",
    )


@sandbox.command()
def fault(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="slack, pagerduty, tickets, ... or index/STAGE")],
    mode: Annotated[str, typer.Option("--mode", help="http, timeout, reset, slow or garbage")] = "http",
    options: Settings = None,
    mend: Annotated[bool, typer.Option("--mend", help="Make it whole again.")] = False,
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: AsJson = False,
) -> None:
    """Make a service fail until it is mended; --set adds options, such as status=503."""
    output = Output(as_json)
    with opened(directory, output.line) as house:
        if mend:
            house.mend(target)
        else:
            house.fault(target, mode, **_assigned(options))
    output.show({"target": target, "failing": not mend}, f"{target} {'is whole again' if mend else 'fails now'}")
