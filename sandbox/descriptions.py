"""AWS's description of its services, which botocore reads from its files for every session anew."""

from __future__ import annotations

import functools

from botocore.loaders import JSONFileLoader


def read_once() -> None:
    """From now on each file is read once a process, and once for all that are forked from it."""
    read = functools.cache(JSONFileLoader().load_file)  # each session has a loader of its own
    JSONFileLoader.load_file = lambda self, file_path: read(file_path)  # type: ignore[method-assign]
