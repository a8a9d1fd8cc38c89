"""Several workers side by side, killed at random, on a server that keeps its data and is killed as well.

Each run asks once, is answered once, changes two things and continues as new between them; most of them queue for a
stage that another has. The ledger that they change takes a change once for each key, and writes down every attempt.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from sandbox.ports import any_free
from tests.worker.fleet import STAGES, killed_at_random

RUNS, WORKERS, EVERY, SERVER_KILLS = 40, 4, 2.0, 3


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        books = asyncio.run(
            killed_at_random(
                Path(folder),
                any_free(),
                runs=RUNS,
                workers=WORKERS,
                every=EVERY,
                server_kills=SERVER_KILLS,
                seed=1,
                patience=1200,
            )
        )
    print(
        f"Workers killed at random: {RUNS} runs on {STAGES} stages, {WORKERS} workers, one killed every {EVERY:.0f} s"
    )
    print(f"  {books.worker_kills} workers and the server {books.server_kills} times killed in {books.seconds:.0f} s")
    print(f"  runs that ended: {dict(books.ended)}; lost: {books.lost}   (promised: 0)")
    print(f"  changes: {len(books.effects)} of {2 * RUNS} made, by {books.attempts} attempts; doubled: {books.doubled}")
    print(f"  stages that two runs changed at once: {len(books.overlaps)}   (promised: 0)")


if __name__ == "__main__":
    main()
