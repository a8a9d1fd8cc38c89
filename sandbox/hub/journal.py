"""What arrived, in order. Everything the hub knows is folded from this journal, so a restart loses nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """One accepted request. ``body`` holds no header and no credential."""

    id: int
    received_at: str
    channel: str
    name: str
    action: str
    body: Json = field(default_factory=dict)

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.received_at)

    def is_for(self, target: str) -> bool:
        """Whether ``target`` (``"slack"`` or ``"slack/ops"``) means this event."""
        return target in (self.channel, f"{self.channel}/{self.name}")


class Journal:
    """Append-only list of events, kept as JSON lines when ``path`` is given.

    A line that was cut off by a crash is left out and the rest is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._readers: list[Callable[[Event], None]] = []
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8")
            for line in text.splitlines():
                try:
                    self._events.append(Event(**json.loads(line)))
                except (ValueError, TypeError):
                    continue
            if text and not text.endswith("\n"):
                path.write_text(text + "\n", encoding="utf-8")

    def follow(self, reader: Callable[[Event], None]) -> None:
        """Hand ``reader`` every event there is, and each later one as it is appended."""
        with self._lock:
            for event in self._events:
                reader(event)
            self._readers.append(reader)

    def append(self, channel: str, name: str, action: str, body: Json) -> Event:
        with self._lock:
            number = self._events[-1].id + 1 if self._events else 1
            event = Event(number, datetime.now(UTC).isoformat(), channel, name, action, body)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(event)) + "\n")
            self._events.append(event)
            for reader in self._readers:
                reader(event)
            return event

    def events(self, target: str | None = None) -> list[Event]:
        """Oldest first; ``target`` picks a channel or one name in it."""
        with self._lock:
            return [event for event in self._events if target is None or event.is_for(target)]
