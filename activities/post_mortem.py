"""What an incident leaves behind: the post-mortem's draft, the entry in the incident log, the invitation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import icalendar
from pydantic import AwareDatetime, Field
from temporalio import activity

from activities.charts import Chart, draw
from activities.contacts import Contacts
from activities.errors import classified
from activities.evidence import Finding
from activities.facts import Facts
from activities.reports import environment

if TYPE_CHECKING:
    from activities.records import Records

CALENDAR = "text/calendar; charset=utf-8; method=REQUEST"
_TYPES = {"md": "text/markdown; charset=utf-8", "html": "text/html; charset=utf-8"}
_LENGTH = timedelta(hours=1)


class Meeting(Facts):
    """The post-mortem as an event of a calendar."""

    uid: str = Field(description="Stays when the meeting is moved, so that calendars move it too")
    title: str
    starts_at: AwareDatetime
    text: str
    attendees: tuple[str, ...] = Field((), description="Mail addresses")
    responders: tuple[str, ...] = Field((), description="Names of who worked on it; the directory has their addresses")
    organizer: str | None = None
    sequence: int = 0
    stamped_at: AwareDatetime


class IncidentEntry(Facts):
    """An incident in the incident log: small, for counting and for looking up."""

    id: str
    stage: str
    title: str
    severity: str
    drill: bool = False
    started_at: AwareDatetime
    ended_at: AwareDatetime
    duration_s: float
    cause: str | None = None
    steps: tuple[str, ...] = Field((), description="What was done to resolve it")
    commander: str | None = None
    outbreaks: int = 1
    missed: tuple[str, ...] = Field((), description="Clocks that were missed")
    ticket: str | None = None


class PostMortem(Facts):
    """All that the draft is written from. ``situation`` and ``state`` are the JSON of what the run's queries answer."""

    entry: IncidentEntry
    situation: dict[str, Any]
    state: dict[str, Any]
    score: dict[str, str] = Field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    meeting: Meeting | None = None
    folder: str = Field(description="Names this incident's run in the records store")


class Written(Finding):
    documents: dict[str, str] = Field(default_factory=dict, description="Where each lies, by its kind")
    calendar: str | None = Field(None, description="The invitation, to be mailed")
    attendees: tuple[str, ...] = Field((), description="Mail addresses that the invitation names")
    by_hand: tuple[str, ...] = Field((), description="Names of responders without one: somebody has to tell them")


def addressed(meeting: Meeting, contacts: Contacts) -> tuple[Meeting, tuple[str, ...]]:
    """The meeting with the addresses of its responders, and the names of those who have none."""
    found = {name: contacts.mail_of(name) for name in meeting.responders}
    by_hand = tuple(name for name, mail in found.items() if mail is None)
    attendees = tuple(dict.fromkeys((*meeting.attendees, *(mail for mail in found.values() if mail is not None))))
    text = f"{meeting.text}\nTo be told by hand: {', '.join(by_hand)}" if by_hand else meeting.text
    return meeting.model_copy(update={"attendees": attendees, "text": text}), by_hand


def invitation(meeting: Meeting, method: Literal["REQUEST", "PUBLISH"] = "REQUEST") -> bytes:
    """The meeting as an iCalendar object (RFC 5545)."""
    calendar = icalendar.Calendar()
    calendar.add("prodid", "-//operational-runbooks//incidents//EN")
    calendar.add("version", "2.0")
    calendar.add("method", method)
    event = icalendar.Event()
    event.add("uid", meeting.uid)
    event.add("sequence", meeting.sequence)
    event.add("dtstamp", meeting.stamped_at.astimezone(UTC))
    event.add("dtstart", meeting.starts_at.astimezone(UTC))
    event.add("dtend", (meeting.starts_at + _LENGTH).astimezone(UTC))
    event.add("summary", meeting.title)
    event.add("description", meeting.text)
    if meeting.organizer:
        event.add("organizer", icalendar.vCalAddress(f"mailto:{meeting.organizer}"))
    for address in meeting.attendees:
        event.add("attendee", icalendar.vCalAddress(f"mailto:{address}"), parameters={"RSVP": "TRUE"})
    calendar.add_component(event)
    return bytes(calendar.to_ical())


def render(post_mortem: PostMortem) -> dict[str, str]:
    """The draft as Markdown and as HTML."""
    drawn = {chart.title: svg for chart in post_mortem.charts if (svg := draw(chart)) is not None}
    values = {
        "entry": post_mortem.entry.model_dump(mode="json"),
        "situation": post_mortem.situation,
        "run": post_mortem.state,
        "score": post_mortem.score,
        "charts": drawn,
        "meeting": post_mortem.meeting.starts_at.isoformat() if post_mortem.meeting else None,
        "duration": _duration(post_mortem.entry.duration_s),
    }
    found = environment()
    return {ending: found.get_template(f"post_mortem.{ending}.j2").render(values) for ending in _TYPES}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class PostMortems:
    def __init__(self, records: Records, contacts: Contacts) -> None:
        self._records, self._contacts = records, contacts

    @activity.defn(name="post_mortem.write")
    @classified("write the post-mortem")
    def write(self, post_mortem: PostMortem) -> Written:
        """Write the draft, the incident log's entry and the invitation. Writing again overwrites the same objects."""
        entry = post_mortem.entry
        prefix = f"incidents/{entry.stage}/{post_mortem.folder}"
        documents = {
            ending: self._records.store(f"{prefix}/post-mortem.{ending}", text.encode(), _TYPES[ending])
            for ending, text in render(post_mortem).items()
        }
        calendar: str | None = None
        attendees: tuple[str, ...] = ()
        by_hand: tuple[str, ...] = ()
        if post_mortem.meeting is not None:
            meeting, by_hand = addressed(post_mortem.meeting, self._contacts)
            attendees, content = meeting.attendees, invitation(meeting)
            documents["ics"] = self._records.store(f"{prefix}/post-mortem.ics", content, CALENDAR)
            calendar = content.decode()
        documents["log"] = self._records.store_json(log_key(entry, post_mortem.folder), entry)
        return Written(
            summary=f"written: {documents['md']}",
            documents=documents,
            calendar=calendar,
            attendees=attendees,
            by_hand=by_hand,
        )


def log_key(entry: IncidentEntry, folder: str) -> str:
    """Where the entry stands in the incident log, in the order in which the incidents began."""
    began: datetime = entry.started_at.astimezone(UTC)
    return f"incident-log/{entry.stage}/{began:%Y%m%dT%H%M%S}-{folder}.json"
