"""Alerts on disk, from the moment they are taken to the moment Temporal has them: a file each, oldest first."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from activities.incidents import OpenIncident


class Spool:
    """A folder. A file is whole or not there: it is written beside, flushed to the disk, and then renamed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._refused = folder / "refused"
        self._refused.mkdir(parents=True, exist_ok=True)

    def keep(self, problem: OpenIncident) -> Path:
        """Returns when the alert is on the disk."""
        digest = hashlib.sha256(problem.alert.encode()).hexdigest()[:16]
        path = self._folder / f"{time.time_ns():020d}-{digest}.json"
        beside = path.with_suffix(".part")
        with beside.open("w", encoding="utf-8") as file:
            file.write(problem.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def waiting(self) -> Iterator[tuple[Path, OpenIncident]]:
        """What has not been delivered, oldest first. A file that cannot be read is set aside."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield path, OpenIncident.model_validate_json(path.read_bytes())
            except ValidationError:
                self.refuse(path)

    def count(self) -> int:
        return sum(1 for _ in self._folder.glob("*.json"))

    def done(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def refuse(self, path: Path) -> None:
        """Set aside what will never be taken, for a person to look at."""
        path.rename(self._refused / path.name)
