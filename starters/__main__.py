"""Entry point of the ``runbooks`` command and of ``python -m starters``."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from starters.app import run


def main() -> NoReturn:
    """Run the command of this process's arguments and leave with its exit code."""
    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The SDK's native runtime can crash while the interpreter is taken down under it; all is said, so leave at once.
    os._exit(code)


if __name__ == "__main__":
    main()
