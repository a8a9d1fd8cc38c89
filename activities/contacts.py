"""Who to call: people by role, and whose week it is. Plain data and a pure rule; numbers are the team's own."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

from pydantic import Field, field_validator

from activities.facts import Facts
from activities.time_zones import zone

LINKS = {
    "AWS CloudWatch Console": "https://console.aws.amazon.com/cloudwatch/",
    "MongoDB Atlas Console": "https://cloud.mongodb.com/",
    "SST Documentation": "https://docs.sst.dev/",
    "NestJS Documentation": "https://docs.nestjs.com/",
}
"""The document's useful links."""

ROLES = {
    "infrastructure_lead": "Infrastructure lead",
    "database_administrator": "Database administrator",
}
"""The document's roles, beside the one on call."""


class Contact(Facts):
    """One person, and how to reach them."""

    name: str = Field(min_length=1)
    phone: str | None = None
    mail: str | None = None
    chat: str | None = None

    def described(self) -> str:
        ways = [way for way in (self.phone, self.mail, self.chat) if way]
        return ", ".join([self.name, *ways])


class OnCall(Facts):
    """A rotation: one after another, each for as long."""

    people: tuple[Contact, ...] = Field(min_length=1)
    since: date = Field(description="First day of the first person's first turn")
    at: time = Field(time(9), description="When a turn begins, by the clock of the time zone")
    days: int = Field(7, ge=1, le=90, description="Length of a turn; the document's week")
    time_zone: str = Field("UTC", pattern=r"^[A-Za-z][\w+/-]*$")

    @field_validator("time_zone")
    @classmethod
    def _known(cls, value: str) -> str:
        zone(value)
        return value

    def turn(self, now: datetime) -> tuple[Contact, datetime]:
        """Who is on call, and until when. Before the first turn it is the first person."""
        place = zone(self.time_zone)
        local = now.astimezone(place)
        today = local.date() if local.time() >= self.at else local.date() - timedelta(days=1)
        number = max(0, (today - self.since).days // self.days)
        ends = self.since + timedelta(days=self.days * (number + 1))
        return self.people[number % len(self.people)], datetime.combine(ends, self.at, place)


class Contacts(Facts):
    """The directory of the settings: ``[contacts]``."""

    roles: dict[str, Contact] = Field(
        default_factory=dict, description="By role, such as infrastructure_lead and database_administrator"
    )
    on_call: OnCall | None = None
    links: dict[str, str] = Field(default_factory=lambda: dict(LINKS))

    def mail_of(self, name: str) -> str | None:
        """The mail address of somebody as they sign: with their name, their address, or what it has before the @."""
        people = [*self.roles.values(), *(self.on_call.people if self.on_call else ())]
        signed = name.strip().casefold()
        for person in people:
            if person.mail and signed in [as_signed.casefold() for as_signed in _names(person.name, person.mail)]:
                return person.mail
        return None


def _names(name: str, mail: str) -> tuple[str, str, str]:
    return name, mail, mail.partition("@")[0]
