"""What can go wrong at the command line, and the exit code that says so."""

from __future__ import annotations

from enum import IntEnum

import botocore.exceptions
from pydantic_core import PydanticSerializationError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.settings import ConfigError
from workflows.codec import MissingKeyError
from workflows.connection import ConnectionProblem


class Code(IntEnum):
    """Exit codes of every command."""

    DONE = 0
    RUN_FAILED = 1
    BAD_INPUT = 2
    CONFLICT = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done · 1 the run failed, or was rejected, aborted or cancelled · 2 wrong usage or input · "
    "3 not found, or in conflict with what there is · 4 Temporal, a worker, the settings or the sandbox cannot be used"
)


class Problem(Exception):
    """The command ends here; the message is one readable line that says what to do."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


def explained(error: Exception) -> Problem:
    """Any error as a problem of one line."""
    match error:
        case Problem():
            return error
        case ConfigError() | ConnectionProblem() | MissingKeyError():
            return Problem(str(error), Code.UNREACHABLE)
        case RPCError():
            return _rpc(error)
        case ApplicationError():
            return Problem(error.message, Code.UNREACHABLE)
        case botocore.exceptions.BotoCoreError() | botocore.exceptions.ClientError():
            return Problem(f"AWS cannot be used: {error}", Code.UNREACHABLE)
        case PydanticSerializationError() | UnicodeEncodeError():
            return Problem("what was typed holds bytes that are no text in UTF-8. Type it again", Code.BAD_INPUT)
        case OSError():
            name = f" {error.filename}" if error.filename else ""
            return Problem(f"{error.strerror or type(error).__name__}{name}", Code.BAD_INPUT)
        case _:
            return Problem(f"unexpected {type(error).__name__}: {error}", Code.RUN_FAILED)


def _rpc(error: RPCError) -> Problem:
    match error.status:
        case RPCStatusCode.NOT_FOUND | RPCStatusCode.ALREADY_EXISTS:
            return Problem(error.message, Code.CONFLICT)
        case RPCStatusCode.INVALID_ARGUMENT:
            return Problem(f"Temporal refused: {error.message}", Code.BAD_INPUT)
        case _:
            return Problem(f"Temporal answered {error.status.name}: {error.message}", Code.UNREACHABLE)
