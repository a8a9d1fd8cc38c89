"""Times of the week, as policies give them: when a stage may be migrated, when people are at work."""

from __future__ import annotations

from datetime import date, time
from typing import Literal

from pydantic import Field, field_validator

from activities.facts import Facts
from activities.time_zones import zone


class MaintenanceWindow(Facts):
    """A time of the week in which a stage may be migrated."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = Field(
        min_length=1, description="Days on which it opens"
    )
    opens: time = Field(description="When it opens, by the clock of the policy's time zone, such as 22:00")
    closes: time = Field(description="When it closes; at or before 'opens' means on the next day")

    @field_validator("opens", "closes")
    @classmethod
    def _by_the_clock(cls, value: time) -> time:
        if value.tzinfo is not None:
            raise ValueError("give the time without an offset: the policy's time_zone holds")
        return value


class MaintenancePolicy(Facts):
    """When a stage may be migrated: low-traffic times. The rules that read it are in ``workflows/maintenance.py``."""

    time_zone: str = Field("UTC", pattern=r"^[A-Za-z][\w+/-]*$", description="IANA name, such as Europe/Berlin")
    windows: tuple[MaintenanceWindow, ...] = Field(min_length=1)
    holidays: tuple[date, ...] = Field((), description="Days on which no window opens, because nobody is there")

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        zone(value)
        return value
