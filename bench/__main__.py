"""Run every benchmark: ``python -m bench``, or those named: ``python -m bench canary``."""

from __future__ import annotations

import sys

from bench import canary, migration, overhead, waiting, workers

BENCHMARKS = (overhead, waiting, canary, migration, workers)


def main(names: list[str]) -> None:
    for benchmark in BENCHMARKS:
        if not names or benchmark.__name__.rpartition(".")[2] in names:
            benchmark.main()


if __name__ == "__main__":
    main(sys.argv[1:])
