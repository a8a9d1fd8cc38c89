"""Switches that make a service fail the way real ones do.

``http``     answers ``status`` (with ``retry_after`` seconds as Retry-After); the request is not taken
``timeout``  takes nothing and never answers, until the caller gives up
``reset``    breaks the connection without taking the request
``slow``     *takes* the request, then answers after ``seconds``: with an impatient caller, a lost answer
``garbage``  answers 200 with something that is not JSON, as a captive proxy does; the request is not taken
"""

from __future__ import annotations

import threading
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Fault(BaseModel):
    model_config = ConfigDict(extra="forbid")

    target: str = Field(min_length=1, description="A channel ('slack') or one name in it ('slack/ops')")
    mode: Literal["http", "timeout", "reset", "slow", "garbage"]
    status: int = Field(503, ge=400, le=599)
    retry_after: int | None = Field(None, ge=0, description="Seconds")
    seconds: float = Field(5, ge=0, le=600, description="How late a slow answer is")
    times: int | None = Field(None, ge=1, description="How many requests fail; absent means until switched off")
    used: int = Field(0, ge=0, description="How many requests it has hit")


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: dict[str, Fault] = {}

    def set(self, fault: Fault) -> None:
        with self._lock:
            self._faults[fault.target] = fault

    def clear(self, target: str) -> bool:
        with self._lock:
            return self._faults.pop(target, None) is not None

    def active(self) -> list[Fault]:
        with self._lock:
            return [fault.model_copy() for fault in self._faults.values()]

    def take(self, channel: str, name: str) -> Fault | None:
        """The fault that this request meets, counted; the switch for one name goes before its channel's."""
        with self._lock:
            for target in (f"{channel}/{name}", channel):
                fault = self._faults.get(target)
                if fault is None:
                    continue
                fault.used += 1
                if fault.times is not None and fault.used >= fault.times:
                    del self._faults[target]
                return fault
            return None
