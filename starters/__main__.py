"""Entry point of the ``runbooks`` command and of ``python -m starters``."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

gc.disable()  # while it loads: a tenth of that time, for what all stays

from starters.app import run  # noqa: E402
from starters.problems import Code  # noqa: E402

gc.freeze()
gc.enable()

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_SOON = 0.1
"""Seconds after which the interpreter is out of what threw a Ctrl-C away."""


def main() -> NoReturn:
    """Run the command of this process's arguments and leave with its exit code."""
    lose_no_interrupt()
    code: int = Code.RUN_FAILED
    try:
        said = run(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
        code = said
    finally:
        # The SDK's native runtime can crash while the interpreter is taken down under it, so however this ends
        # (a reader of a pipe that is gone, a second Ctrl-C), leave at once.
        os._exit(code)


def lose_no_interrupt() -> None:
    """Have a Ctrl-C heard that comes while Python runs a destructor, or a callback of its own.

    Nothing can be raised from these: the interpreter would report it as ignored, and the command would go on. One in
    three is lost so while programs are started with a ``preexec_fn``, in what ``logging`` does after each fork.
    """
    usual = sys.unraisablehook

    def again(ignored: UnraisableHookArgs) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            usual(ignored)
            return
        later = threading.Timer(_SOON, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        later.daemon = True
        later.start()

    sys.unraisablehook = again


if __name__ == "__main__":
    main()
