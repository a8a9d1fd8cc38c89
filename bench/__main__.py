"""All benchmarks, or the named, each written to its section of ``docs/benchmarks.md``: ``python -m bench canary``."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import time
from types import ModuleType

from bench import canary, diagnosis, migration, overhead, sandbox, waiting, workers
from bench.page import PAGE, Section, with_section

BENCHMARKS = (sandbox, overhead, waiting, canary, diagnosis, migration, workers)


class _Both(io.StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)


def measured(benchmark: ModuleType) -> Section:
    began, said = time.monotonic(), _Both()
    with contextlib.redirect_stdout(said):
        benchmark.main()
    name = benchmark.__name__.rpartition(".")[2]
    return Section(name, inspect.getdoc(benchmark) or "", said.getvalue(), time.monotonic() - began)


def main(names: list[str]) -> int:
    known = [benchmark.__name__.rpartition(".")[2] for benchmark in BENCHMARKS]
    if unknown := set(names) - set(known):
        print(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for one, name in zip(BENCHMARKS, known, strict=True):
        if not names or name in names:
            PAGE.write_text(with_section(PAGE.read_text(), measured(one), known))
    print(f"written to {PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
