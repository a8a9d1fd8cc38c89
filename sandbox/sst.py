"""A stand-in for the ``sst`` command: ``python -m sandbox.sst``, with the real one's arguments, exit codes and quirks.

What it mimics was measured on sst 4.17.1, 3.19.3 and 2.49.8. It deploys a checkout of the State Tracking API through
CloudFormation, for every major version: the real v3 and v4 have an engine of their own. Of the flags and commands only
those listed in the usage exist; all others behave like the real one's unknown flags and commands.

Environment:
    SST_STANDIN_MAJOR: which generation to be, 2, 3 or 4 (default 4).
    SST_STANDIN_REQUEST_TOKEN: ``ClientRequestToken`` of the stack operation.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from sandbox.api.stack import APP, secret_parameter

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient

    from sandbox.api.deploy import Outcome

VERSIONS = {"2": "2.49.8", "3": "3.19.3", "4": "4.17.1"}
CONFIG = Path("sst.config.ts")
LOCKED = "A concurrent update was detected on the app. Run `sst unlock` to remove the lock and try again."
USAGE = """Usage: sst [command] [flags]

Commands:
  sst deploy                     Deploy your application
  sst secret set <name> [value]  Set a secret
  sst secret remove <name>       Remove a secret
  sst secret list                List all secrets
  sst version                    Print the version of the CLI

Flags:
  --stage <string>   The stage to deploy to
  --verbose          Enable verbose logging
  --print-logs       Print logs to stderr
  --help             Get help with a command
"""
USAGE_V2 = """sst [command]

Commands:
  sst deploy                      Deploy your app to AWS
  sst secrets set <name> <value>  Set the value of a secret
  sst secrets remove <name>       Remove a secret
  sst secrets list [format]       Fetch all the secrets
  sst version                     Print SST and CDK version

Options:
  --stage    The stage to use, defaults to personal stage  [string]
  --help     Show help  [boolean]
  --version  Show version number  [boolean]
"""


class UsageError(Exception):
    """The command line is not understood."""


class SstError(Exception):
    """The command failed; the message is what ``sst`` prints."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


class Secrets:
    """The secrets of one stage: SecureString parameters in SSM, which the function reads when it starts."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._ssm: SSMClient = boto3.client("ssm")

    def set(self, name: str, value: str) -> None:
        path = secret_parameter(self._stage, name)
        self._ssm.put_parameter(Name=path, Value=value, Type="SecureString", Overwrite=True)

    def remove(self, name: str) -> bool:
        """Remove a secret; false when there is none of that name."""
        try:
            self._ssm.delete_parameter(Name=secret_parameter(self._stage, name))
        except self._ssm.exceptions.ParameterNotFound:
            return False
        return True

    def list(self) -> dict[str, str]:
        folder = secret_parameter(self._stage, "x").removesuffix("x/value")
        pages = self._ssm.get_paginator("get_parameters_by_path").paginate(
            Path=folder, Recursive=True, WithDecryption=True
        )
        found = {
            p["Name"].removeprefix(folder).removesuffix("/value"): p["Value"]
            for page in pages
            for p in page["Parameters"]
        }
        return dict(sorted(found.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    major = os.environ.get("SST_STANDIN_MAJOR", "4")
    if major not in VERSIONS:
        print(f"SST_STANDIN_MAJOR must be one of {', '.join(VERSIONS)}, not {major!r}", file=sys.stderr)
        return 1
    run = _run_v2 if major == "2" else _run_modern
    try:
        return run(arguments, VERSIONS[major])
    except SstError as error:
        _status(f"✕  {error}")
    except ClientError as error:
        # The service's text is left out: it can repeat what was sent, and that can be a secret.
        _status(f"✕  Unexpected error occurred: {error.response['Error']['Code']} ({error.operation_name})")
    except BotoCoreError as error:
        _status(f"✕  Unexpected error occurred: {type(error).__name__}")
    return 1


# --- v3 and v4 -----------------------------------------------------------------------------------------------------


def _run_modern(arguments: list[str], version: str) -> int:
    try:
        options = _modern_parser().parse_args(arguments)
    except UsageError:
        print(USAGE)  # without a word about what was wrong
        return 1
    if options.help or options.command is None:
        print(USAGE)
        return 1
    if options.command == "version":
        print(f"sst {version}")
        return 0
    if not CONFIG.exists():
        raise SstError(f"Could not find {CONFIG}")
    stage = _modern_stage(options.stage)
    if options.command == "deploy":
        print(f"SST {version}  ready!\n\n➜  App:        {APP}\n   Stage:      {stage}\n\n~  Deploy\n", flush=True)
        return _deploy(stage, "|  Locked      ", lambda outcome: _modern_summary(outcome))
    secrets = Secrets(stage)
    if options.action == "set":
        return _modern_set(secrets, stage, options.name, options.value)
    if options.action == "remove":
        if not secrets.remove(options.name):
            raise SstError(f'"{options.name}" does not exist for stage "{stage}"')
        _status(f'✓  Removed "{options.name}" for stage "{stage}". Run "sst deploy" to update.')
        return 0
    found = secrets.list()
    if not found:
        raise SstError("No secrets found")
    print(f"# {APP}/{stage}")
    for name, value in found.items():
        print(f"{name}={value}")
    return 0


def _modern_parser() -> _Parser:
    anywhere = _Parser(add_help=False, allow_abbrev=False)
    for flag in ("--stage",):
        anywhere.add_argument(flag, default=argparse.SUPPRESS)
    for flag in ("--verbose", "--print-logs", "--help"):
        anywhere.add_argument(flag, action="store_true", default=argparse.SUPPRESS)
    parser = _Parser(add_help=False, allow_abbrev=False, parents=[anywhere])
    parser.set_defaults(stage=None, help=False, command=None)
    commands = parser.add_subparsers(dest="command")
    made = {name: _subcommand(commands, name, anywhere) for name in ("version", "deploy", "secret")}
    actions = made["secret"].add_subparsers(dest="action", required=True)
    setting = _subcommand(actions, "set", anywhere)
    setting.add_argument("name")
    setting.add_argument("value", nargs="?")
    _subcommand(actions, "remove", anywhere).add_argument("name")
    _subcommand(actions, "list", anywhere)
    return parser


def _subcommand(to: argparse._SubParsersAction[_Parser], name: str, parent: _Parser) -> _Parser:
    return to.add_parser(name, add_help=False, allow_abbrev=False, parents=[parent])


def _modern_stage(stage: str | None) -> str:
    # The real one falls back to a personal stage where a person can be asked. Nobody can be asked here.
    if stage is None:
        raise SstError("Could not find stage")
    return _checked_stage(stage)


def _modern_set(secrets: Secrets, stage: str, name: str, value: str | None) -> int:
    if not re.fullmatch(r"[A-Z][a-zA-Z0-9]*", name):
        raise SstError("Secret names must start with a capital letter and contain only letters and numbers")
    if value is None:
        # All of the input, lines and all; an empty input is an empty secret, and a success.
        value = input("Enter value: ") if sys.stdin.isatty() else sys.stdin.read()
    secrets.set(name, value)
    _status(f'✓  Set "{name}" for stage "{stage}". Run "sst deploy" to update.')
    return 0


def _modern_summary(outcome: Outcome) -> None:
    print(f"✓  {'Complete' if outcome.changed else 'No changes'}")
    for name, value in outcome.outputs.items():
        print(f"   {name}: {value}")


# --- v2 ------------------------------------------------------------------------------------------------------------


def _run_v2(arguments: list[str], version: str) -> int:
    if "--version" in arguments:
        print(version)
        return 0
    if "--help" in arguments or not arguments:
        print(USAGE_V2)
        return 0
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    parser.add_argument("words", nargs="*")
    try:
        options, _ignored = parser.parse_known_args(arguments)  # what it does not know, it does not mention
    except UsageError as error:
        return _usage_v2(str(error))
    match options.words:
        case ["version"]:
            print(f"SST: v{version}")
            return 0
        case ["deploy"] | ["secrets", "list"] | ["secrets", "list", "table" | "env"]:
            pass
        case ["secrets", "set", _, _] | ["secrets", "remove", _]:
            pass
        case ["secrets", "set" | "remove", *_]:
            return _usage_v2("Not enough non-option arguments")
        case _:
            return _usage_v2("Unknown command")
    if not CONFIG.exists():
        raise SstError("Could not found a configuration file. Make sure one of the following exists: sst.config.ts")
    if options.stage is None:
        print("Please enter a name you’d like to use for your personal stage. Or hit enter to use ")
        return 0  # having done nothing, when there is nobody to answer
    stage = _checked_stage(options.stage)
    if options.words == ["deploy"]:
        print(f"SST v{version}\n\n➜  App:     {APP}\n   Stage:   {stage}\n", flush=True)
        return _deploy(stage, "✖  Error: ", _summary_v2)
    return _secrets_v2(Secrets(stage), options.words[1:])


def _secrets_v2(secrets: Secrets, words: list[str]) -> int:
    match words:
        case ["set", name, value]:
            secrets.set(name, value)
            print(f'✔  Setting "{name}"')
        case ["remove", name]:
            secrets.remove(name)
        case ["list", "env"]:
            for name, value in secrets.list().items():
                print(f"{name}={value}")
        case _:
            found = {"Secrets": "Values", **secrets.list()}
            width = max(map(len, found))
            for name, value in found.items():
                print(f"│ {name:<{width}} │ {value} │")
    return 0


def _usage_v2(problem: str) -> int:
    print(f"{USAGE_V2}\n{problem}", file=sys.stderr)
    return 1


def _summary_v2(outcome: Outcome) -> None:
    print("✔  Deployed:" if outcome.changed else "✔  Deployed (no changes):")
    for name, value in outcome.outputs.items():
        print(f"   {name}: {value}")


# --- both ----------------------------------------------------------------------------------------------------------


def _deploy(stage: str, locked: str, summary: Callable[[Outcome], None]) -> int:
    # not above: a quarter of the time of all the other commands
    from sandbox.api.deploy import Deployer, DeployError, StackBusyError
    from sandbox.api.releases import ReleaseError

    token = os.environ.get("SST_STANDIN_REQUEST_TOKEN")
    try:
        outcome = Deployer().deploy(Path.cwd(), stage, lambda line: print(f"|  {line}", flush=True), token=token)
    except StackBusyError:
        raise SstError(f"{locked}{LOCKED}") from None
    except (ReleaseError, DeployError) as error:
        raise SstError(str(error)) from None
    summary(outcome)
    return 0


def _checked_stage(stage: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,29}", stage):
        raise SstError("The stage name can only contain lower-case letters, digits and hyphens, 30 at most")
    return stage


def _status(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
