"""What is said to people, and what came of it. Plain data without any client, for workflows and activities alike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from activities.stage import Channels, Facts

Severity = Literal["critical", "error", "warning", "info"]


class Announcement(Facts):
    """A chat message about a run."""

    channels: Channels = Field(description="Of the stage; its chat providers are tried in order")
    key: str = Field(description="Workflow id and step: the same for every try of the same message")
    title: str = Field(description="One line of plain text")
    text: str = Field("", description="Markdown: bold, links, lists, headings and code are understood")
    severity: Severity = "info"
    links: dict[str, str] = Field(default_factory=dict, description="URL by label, such as the run and the dashboard")


class Page(Facts):
    """A call to whoever is on call. The same key joins the page that is already open."""

    channels: Channels = Field(description="Of the stage; its pagers are tried in order")
    key: str = Field(description="Deduplication key: the same for every try and every repeat of the same page")
    title: str = Field(description="One line of plain text")
    source: str = Field(description="What is affected, such as the stage or the function")
    severity: Severity = "critical"
    details: dict[str, str] = Field(default_factory=dict, description="Facts for the pager's detail view")
    links: dict[str, str] = Field(default_factory=dict, description="URL by label")


class PageEnd(Facts):
    """The end of a page. Every pager of the stage is told: a page whose answer was lost may be open in two of them."""

    channels: Channels
    key: str = Field(description="Key of the page that ends")
    title: str = Field(description="One line: how it ended")
    delivered_by: str | None = Field(None, description="Pager that took the page and so must take its end")


class Mail(Facts):
    channels: Channels = Field(description="Of the stage; its mail providers are tried in order")
    key: str = Field(description="Workflow id and step: the same for every try of the same mail")
    to: tuple[str, ...] = Field(description="Addresses, at most 50; they see one another")
    title: str = Field(description="The subject, one line")
    text: str = Field(description="Markdown, sent as plain text")
    links: dict[str, str] = Field(default_factory=dict, description="URL by label")
    calendar: str | None = Field(None, description="An invitation (iCalendar) that goes with it")


class TicketRequest(Facts):
    channels: Channels = Field(description="Of the stage; its ticket systems are tried in order")
    key: str = Field(description="Workflow id and step: finds the ticket again when a try is repeated")
    title: str = Field(description="One line of plain text")
    text: str = Field(description="Markdown")
    labels: tuple[str, ...] = Field((), description="Labels without spaces")
    links: dict[str, str] = Field(default_factory=dict, description="URL by label")


class Attempt(Facts):
    """What one provider made of it."""

    provider: str
    ok: bool
    detail: str = Field(description="One readable line, for the timeline")


class Delivery(Facts):
    """Who took a message, and who did not."""

    delivered_by: str | None = Field(None, description="Provider that took it; None when the stage names none")
    attempts: tuple[Attempt, ...] = ()


class TicketRef(Facts):
    """A ticket that exists now."""

    system: str = Field(description="Name of the provider that holds it")
    id: str
    url: str | None = Field(None, description="Where a person opens it, when the system says so")
    attempts: tuple[Attempt, ...] = ()
