"""How the tests share a machine of few cores."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling

GO = {"GOMAXPROCS": "1", "GOGC": "600", "GOMEMLIMIT": "1GiB"}
"""Environment of Temporal servers: each is one of several, and its memory is there to be used."""

HOUSES = 2
"""Sandboxes for the tests of real procedures, however many processes there are: each takes half a minute of a core."""

_TOGETHER = ("activities", "sandbox")
"""Folders whose tests share one emulator of AWS."""

_FILES_WITH_A_SERVER = ("tests/workflows/test_encryption.py",)


class SharedHouses(LoadFileScheduling):
    """In half of the processes what mostly waits (for sandboxes, processes, time-outs), in the others what computes.

    Files come one after the other, in the order they are given; those of real procedures in as many processes as there
    are houses. Of what computes each test comes alone, so that no process is the last for long.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        folder = file.split("/")[1] if file.count("/") > 1 else ""
        if folder in _TOGETHER:
            return folder
        return nodeid if folder == "workflows" and file not in _FILES_WITH_A_SERVER else file

    def _assign_work_unit(self, node: Any) -> None:
        others = [units for other, units in self.assigned_work.items() if other is not node]
        houses = sum(any(map(_in_house, units)) for units in others)
        left = [unit for unit in self.workqueue if houses < HOUSES or not _in_house(unit)]
        if not left:
            node.shutdown()  # the rest is for those who have a house
            return
        unit = left[0]
        if not (_in_house(unit) and any(map(_in_house, self.assigned_work[node]))):  # a house is left for good
            waiting = sum(any(_waits(one) and not all(tests.values()) for one, tests in o.items()) for o in others)
            wanted = waiting < len(self.nodes) // 2
            unit = next((one for one in left if _waits(one) is wanted), unit)
        self.workqueue.move_to_end(unit, last=False)
        super()._assign_work_unit(node)


def _in_house(unit: str) -> bool:
    return unit.startswith("tests/runbooks/")


def _waits(unit: str) -> bool:
    return not unit.startswith(("tests/workflows/", "tests/test_"))
