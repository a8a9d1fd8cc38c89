"""How the tests share a machine of few cores."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

GO = {"GOMAXPROCS": "1", "GOGC": "300", "GOMEMLIMIT": "1GiB"}
"""Environment of Temporal servers: each is one of several, and its memory is there to be used."""

HOUSES = 2
"""Sandboxes for the tests of real procedures, however many processes there are: each takes half a minute of a core."""


class SharedHouses(LoadFileScheduling):
    """Files one after the other, as they come; those of real procedures in as many processes as there are houses."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return f"house {sum(file.encode()) % HOUSES}" if file.startswith("tests/runbooks/") else file
