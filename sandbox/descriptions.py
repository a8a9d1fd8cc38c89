"""AWS's description of its services, which botocore reads from its files for every session anew."""

from __future__ import annotations

import functools

from botocore.loaders import JSONFileLoader


def read_once() -> None:
    """From now on each file is read once a process, and once for all that are forked from it."""
    cached = functools.cache(JSONFileLoader.load_file)
    JSONFileLoader.load_file = cached  # type: ignore[method-assign]
