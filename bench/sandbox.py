"""From nothing to a sandbox that is ready: Temporal with its UI, AWS, MongoDB, the hub, and two stages deployed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from sandbox.house import House

PORTS = dict.fromkeys(("temporal", "temporal-ui", "aws", "mongodb", "hub"), 0)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, House(Path(folder), say=lambda line: None) as house:
        timing = house.up(ports=PORTS)
    print("Start of the sandbox (promised: at most 15 s)")
    print("\n".join(f"  {line}" for line in timing.table().splitlines()))


if __name__ == "__main__":
    main()
