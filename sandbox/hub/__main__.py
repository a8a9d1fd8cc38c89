"""``python -m sandbox.hub --port N [--state FILE] [--atlas-step SECONDS]``.

Credentials that the hub checks come by environment, never by argument: ``HUB_WEBHOOK_TOKEN`` (bearer token of the plain
webhooks) and ``HUB_ATLAS_SECRET`` (client secret and private key for Atlas). Absent, anything non-empty will do.
``HUB_MONGODB_URI``, of somebody who may make users, names the database behind Atlas; absent, there is none.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

from sandbox.hub.cluster import Cluster
from sandbox.hub.server import Hub, HubServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sandbox.hub", description="What people would have received.")
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1; 0 picks a free one")
    parser.add_argument("--state", type=Path, help="JSON-lines file that keeps what arrived across restarts")
    parser.add_argument("--atlas-step", type=float, default=1.0, help="seconds in each state of a snapshot (default 1)")
    options = parser.parse_args()
    try:
        hub = Hub(
            options.state,
            webhook_token=os.environ.get("HUB_WEBHOOK_TOKEN") or None,
            atlas_secret=os.environ.get("HUB_ATLAS_SECRET") or None,
            atlas_step=timedelta(seconds=options.atlas_step),
            atlas_cluster=Cluster(uri) if (uri := os.environ.get("HUB_MONGODB_URI")) else None,
        )
        server = HubServer(hub, options.port)
    except (OSError, OverflowError) as error:
        print(f"the hub cannot start: {error}", file=sys.stderr)
        return 1
    for name in (signal.SIGTERM, signal.SIGINT):
        # From another thread: shutdown waits for the loop that this handler interrupts.
        signal.signal(name, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
