"""What an error line of a function's log speaks of, by the words that runtimes and drivers use."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from activities.facts import Facts

LogKind = Literal["timeout", "database", "credential", "validation", "memory", "startup", "code"]


class LogCounts(Facts):
    """Error lines by what they speak of. A line counts once."""

    timeout: int = 0
    database: int = 0
    credential: int = 0
    validation: int = 0
    memory: int = 0
    startup: int = 0
    code: int = Field(0, description="Exceptions of the application itself")

    @property
    def total(self) -> int:
        return self.timeout + self.database + self.credential + self.validation + self.memory + self.startup + self.code


_KINDS: tuple[tuple[LogKind, re.Pattern[str]], ...] = (
    # In this order: a refused login is the secret's, a time-out while the database is asked is the database's.
    (
        "startup",
        re.compile(r"(?i)ImportModuleError|ImportError|ModuleNotFound|Runtime\.Handler|INIT_REPORT.*error|during init"),
    ),
    ("memory", re.compile(r"(?i)signal: killed|out of memory|OutOfMemory|MemoryError|heap out of memory|OOM")),
    (
        "credential",
        re.compile(
            r"(?i)authentication failed|AuthenticationFailed|AccessDenied|bad auth|not authorized|InvalidClientToken"
            r"|ExpiredToken|ParameterNotFound|ResourceNotFoundException.*secret|DecryptionFailure|\"?code\"?:? ?18\b"
            r"|database error (?:13|18)\b"
        ),
    ),
    (
        "database",
        re.compile(
            r"(?i)mongo|ServerSelection|NetworkTimeout|AutoReconnect|WaitQueue|connection pool|ECONNREFUSED|NotPrimary"
            r"|database (?:is down|error)|topology"
        ),
    ),
    ("timeout", re.compile(r"(?i)Task timed out|timed out|TimeoutError|ETIMEDOUT|deadline exceeded")),
    (
        "validation",
        re.compile(r"(?i)validation|BadRequest|must be a|should not exist|is required|invalid (?:body|value)"),
    ),
)


def kind_of(line: str) -> LogKind:
    """The first kind whose words are in the line; an exception of the application when none is."""
    return next((kind for kind, words in _KINDS if words.search(line)), "code")
