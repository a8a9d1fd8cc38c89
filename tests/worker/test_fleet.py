"""Workers die, the server dies: no run is lost, nothing is done twice, one run at a time on a stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.ports import any_free
from tests.worker.fleet import killed_at_random


@pytest.mark.long
async def test_workers_and_server_killed_at_random(tmp_path: Path) -> None:
    books = await killed_at_random(
        tmp_path, any_free(), runs=5, workers=3, every=2.0, server_kills=1, seed=7, patience=240
    )
    assert books.ended == {"completed": 5}
    assert (books.lost, books.doubled, books.overlaps) == (0, 0, [])
    assert books.server_kills == 1
    assert books.worker_kills >= 1
