"""Time zones from the ``tzdata`` package, never from the machine.

Every worker with the same lock file then knows the same rules, and a run that is replayed decides as it did before.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo


@cache
def zone(name: str) -> ZoneInfo:
    """The time zone of that IANA name.

    Raises:
        ValueError: there is none of that name.
    """
    folder, _, last = f"tzdata/zoneinfo/{name}".rpartition("/")
    try:
        with resources.files(folder.replace("/", ".")).joinpath(last).open("rb") as content:
            return ZoneInfo.from_file(content, key=name)
    except (ImportError, OSError, ValueError):
        raise ValueError(f"there is no time zone {name!r}; Europe/Berlin is one") from None
