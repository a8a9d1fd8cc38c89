"""The chat systems, pagers and mailers that a message can go through, and how each wants it written."""

from __future__ import annotations

import re
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any, Protocol

import botocore.exceptions
import httpx

from activities import settings
from activities.delivery import call, object_of, unexpected
from activities.errors import from_aws
from activities.messages import Announcement, Mail, Page, PageEnd
from activities.secret_refs import SecretResolver, fingerprint
from activities.stage import SecretRef

if TYPE_CHECKING:
    from mypy_boto3_ses import SESClient

_ICONS = {"critical": "🚨", "error": "🔴", "warning": "⚠️", "info": ""}


class ChatProvider(Protocol):
    def say(self, message: Announcement) -> None:
        """Hand the message over. Raises a classified ``ApplicationError`` when it was not taken."""


class Pager(Protocol):
    def page(self, page: Page) -> None:
        """Call people, or join the open page of the same key. Raises a classified ``ApplicationError``."""

    def end(self, end: PageEnd) -> None:
        """Close the page of this key; no such page is not an error. Raises a classified ``ApplicationError``."""


class SlackChat:
    """A Slack incoming webhook. Slack cannot tell a repeated message, so a try whose answer was lost shows twice."""

    def __init__(self, name: str, config: settings.Slack, resolver: SecretResolver, http: httpx.Client) -> None:
        self._name, self._config, self._resolver, self._http = name, config, resolver, http

    def say(self, message: Announcement) -> None:
        doing = f"post to Slack ({self._name})"
        body = {"text": slack_text(message)}
        if self._config.channel:
            body["channel"] = self._config.channel
        url = self._resolver.resolve(self._config.webhook)
        response = call(self._http, "POST", url, doing, json=body)
        if response.text != "ok":
            raise unexpected(response, doing)


class PagerDutyPager:
    """PagerDuty, Events API v2. The key is its ``dedup_key``: a repeated trigger joins the open alert."""

    def __init__(self, name: str, config: settings.PagerDuty, resolver: SecretResolver, http: httpx.Client) -> None:
        self._name, self._config, self._resolver, self._http = name, config, resolver, http

    def page(self, page: Page) -> None:
        self._enqueue(
            f"page through PagerDuty ({self._name})",
            page.key,
            event_action="trigger",
            payload={
                "summary": shortened(one_line(page.title), 1024),
                "source": page.source,
                "severity": page.severity,
                "custom_details": page.details,
            },
            links=[{"href": url, "text": label} for label, url in page.links.items()],
        )

    def end(self, end: PageEnd) -> None:
        self._enqueue(f"end the page in PagerDuty ({self._name})", end.key, event_action="resolve")

    def _enqueue(self, doing: str, key: str, **event: Any) -> None:
        event["routing_key"] = self._resolver.resolve(self._config.routing_key)
        event["dedup_key"] = dedup_key(key)
        response = call(self._http, "POST", self._config.url, doing, json=event)
        if object_of(response, doing).get("status") != "success":
            raise unexpected(response, doing)


class PlainWebhook:
    """Any HTTP receiver that takes one JSON object: as chat and as pager. Every 2xx answer counts as taken.

    The object says what it is in ``event`` (``announcement``, ``page`` or ``page-end``) and carries the ``key``, so
    that the receiver can drop a repeat.
    """

    def __init__(self, name: str, config: settings.Webhook, resolver: SecretResolver, http: httpx.Client) -> None:
        self._name, self._config, self._resolver, self._http = name, config, resolver, http

    def say(self, message: Announcement) -> None:
        self._post("announcement", message.model_dump(exclude={"channels"}))

    def page(self, page: Page) -> None:
        self._post("page", page.model_dump(exclude={"channels"}))

    def end(self, end: PageEnd) -> None:
        self._post("page-end", end.model_dump(include={"key", "title"}))

    def _post(self, event: str, body: dict[str, Any]) -> None:
        doing = f"post to the webhook {self._name}"
        headers = bearer(self._resolver, self._config.token)
        call(self._http, "POST", self._config.url, doing, json={"event": event, **body}, headers=headers)


class SesMail:
    """Amazon SES. It cannot tell a repeated mail, so a try whose answer was lost arrives twice."""

    def __init__(self, name: str, config: settings.Ses, ses_client: SESClient) -> None:
        self._name, self._config, self._client = name, config, ses_client

    def send(self, mail: Mail) -> None:
        try:
            if mail.calendar is not None:
                self._client.send_raw_email(
                    Source=self._config.sender,
                    Destinations=list(mail.to),
                    RawMessage={"Data": with_invitation(mail, self._config.sender)},
                )
                return
            self._client.send_email(
                Source=self._config.sender,
                Destination={"ToAddresses": list(mail.to)},
                Message={
                    "Subject": {"Data": one_line(mail.title), "Charset": "UTF-8"},
                    "Body": {"Text": {"Data": with_links(mail.text, mail.links), "Charset": "UTF-8"}},
                },
            )
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise from_aws(error, f"send mail through SES ({self._name})") from None


def with_invitation(mail: Mail, sender: str) -> bytes:
    """The mail as MIME with the invitation as an alternative part, which calendars recognise and answer."""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = one_line(mail.title), sender, ", ".join(mail.to)
    message.set_content(with_links(mail.text, mail.links))
    message.add_alternative(mail.calendar, subtype="calendar", params={"method": "REQUEST"})
    return bytes(message)


def bearer(resolver: SecretResolver, token: SecretRef | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {resolver.resolve(token)}"}


def dedup_key(key: str) -> str:
    """The key within PagerDuty's 255 characters, still distinct."""
    return key if len(key) <= 255 else f"{key[:242]}-{fingerprint(key)}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def with_links(text: str, links: dict[str, str]) -> str:
    """Markdown followed by one line a link, readable as plain text too."""
    return "\n\n".join(part for part in (text, "\n".join(f"{label}: {url}" for label, url in links.items())) if part)


_CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.DOTALL)
_LINK = re.compile(r"\[([^\]\n]+)\]\((https?://[^\s()]+)\)")


def slack_text(message: Announcement) -> str:
    """The announcement in Slack's mark-up: icon and bold title, text, links. At most some 4,000 characters of text."""
    title = one_line(message.title)
    icon = _ICONS[message.severity]
    if icon and not title.startswith(icon):
        title = f"{icon} {title}"
    links = " · ".join(_slack_link(url, _escaped(label)) for label, url in message.links.items())
    return "\n".join(part for part in (f"*{_escaped(title)}*", mrkdwn(shortened(message.text, 4000)), links) if part)


def mrkdwn(markdown: str) -> str:
    """Markdown in Slack's dialect. Everything that Slack would take for a command, such as ``<!channel>``, is text."""
    parts = _CODE.split(markdown)
    return "".join(_escaped(part) if index % 2 else _prose(part) for index, part in enumerate(parts))


def _prose(text: str) -> str:
    text = _escaped(text)
    text = _LINK.sub(lambda found: _slack_link(found[2], found[1]), text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"*\1*", text)
    text = re.sub(r"^#{1,6} +(.+?) *#*$", r"*\1*", text, flags=re.MULTILINE)
    return re.sub(r"^(\s*)[-*] +", r"\1• ", text, flags=re.MULTILINE)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _slack_link(url: str, escaped_label: str) -> str:
    """A link, or only text when the URL is not one that a browser opens."""
    if not re.fullmatch(r"https?://[^\s<>]+", url):
        return f"{escaped_label}: {_escaped(url)}"
    return f"<{url.replace('|', '%7C')}|{escaped_label.replace('|', '¦')}>"
