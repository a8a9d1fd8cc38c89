"""Run the embedded AWS until it is told to stop: ``GATEWAY_PORT=4566 python -m sandbox.aws``.

The environment decides: ``GATEWAY_PORT`` (default 4566), ``BIND_HOST`` (default 127.0.0.1, because nothing here checks
credentials) and ``MINISTACK_ACCOUNT_ID``. All state is in memory; ``POST /_ministack/reset`` clears it.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys

MINISTACK_VERSION = "1.5.33"
"""The only version whose private functions the corrections are known to fit (``tests/sandbox`` proves it)."""


def check_version() -> None:
    """Stop with one line when another ministack, or none, is installed."""
    try:
        found = importlib.metadata.version("ministack")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != MINISTACK_VERSION:
        sys.exit(
            f"sandbox.aws needs ministack {MINISTACK_VERSION} exactly and found {found}. "
            f"Install the sandbox extra again: pip install -e '.[sandbox]'"
        )


def main() -> None:
    # ministack reads these when it is imported; its own default binds every interface.
    os.environ.setdefault("BIND_HOST", "127.0.0.1")
    os.environ.setdefault("MINISTACK_ACCOUNT_ID", "123456789012")
    os.environ.setdefault("LOG_LEVEL", "WARNING")
    os.environ["IOT_MTLS_ENABLED"] = "0"  # it would listen on every interface
    os.environ["LAMBDA_WARM_TTL_SECONDS"] = "30"  # how long an environment stands idle; Lambda's ten minutes, shortened
    check_version()
    from sandbox.aws import alarms, functions, gateway, logs, metrics, notifications, secrets, stacks

    for service in (metrics, alarms, logs, functions, gateway, stacks, secrets, notifications):
        service.install()
    from ministack.app import main as serve

    serve()


if __name__ == "__main__":
    main()
