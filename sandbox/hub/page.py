"""The one page a person looks at: what people received, newest first, a column a channel."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from sandbox.hub.faults import Fault
from sandbox.hub.journal import Event
from sandbox.hub.people import Alert

_CHANNELS = {
    "slack": "Slack",
    "pagerduty": "PagerDuty",
    "webhook": "Webhooks",
    "github": "GitHub Issues",
    "jira": "Jira",
    "atlas": "Atlas",
}
_PER_CHANNEL = 50
_template = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("page.html")


@dataclass(frozen=True)
class Card:
    id: int
    time: str
    name: str
    tag: str
    severity: str
    title: str
    text: Markup
    links: tuple[tuple[str, str], ...] = ()


def render(events: Sequence[Event], alerts: Sequence[Alert], faults: Sequence[Fault]) -> str:
    """The page as HTML; at most 50 cards a channel."""
    columns = []
    for channel, title in _CHANNELS.items():
        mine = [event for event in events if event.channel == channel]
        cards = [_card(event) for event in reversed(mine[-_PER_CHANNEL:])]
        columns.append({"id": channel, "title": title, "count": len(mine), "cards": cards})
    open_alerts = [alert for alert in reversed(alerts) if alert.status != "resolved"]
    return _template.render(columns=columns, alerts=open_alerts, faults=faults, total=len(events))


def _card(event: Event) -> Card:
    body = event.body
    title, text, severity = event.action, Markup(""), ""
    links: list[tuple[str, str]] = []
    match event.channel:
        case "slack":
            title, text = "", slack_html(str(body.get("text", "")))
            attachments = body.get("attachments")
            if isinstance(attachments, list):
                for part in attachments:
                    if isinstance(part, dict):
                        text += Markup("\n") + slack_html(str(part.get("text", "")))
        case "pagerduty" if event.action == "trigger":
            title, severity = body["payload"]["summary"], body["payload"]["severity"]
            text = _lines(body["payload"].get("custom_details"))
            links = [(str(link.get("text") or link["href"]), link["href"]) for link in body.get("links", [])]
        case "pagerduty":
            title = body["dedup_key"]
        case "github" | "jira":
            title = str(body.get("title") or body.get("summary") or f"#{body.get('number', '')}")
            text = _lines(body.get("body") or body.get("description") or body.get("state"))
        case _:
            text = _lines(body)
    name = "" if event.channel == "pagerduty" else event.name
    return Card(event.id, event.time.strftime("%H:%M:%S"), name, event.action, severity, title, text, _safe(links))


def _lines(value: Any) -> Markup:
    if value is None:
        return Markup("")
    return Markup("{}").format(value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False))


def _safe(links: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(link for link in links if link[1].startswith(("http://", "https://")))


_SLACK = re.compile(r"<(?P<link>https?://[^|>]+)(?:\|(?P<label>[^>]*))?>|<!(?P<shout>[^>]*)>|\*(?P<bold>[^*\n]+)\*")


def slack_html(text: str) -> Markup:
    """Slack's mark-up as it would look there: links, bold, and a broadcast such as @channel, loud."""
    parts, end = [], 0
    for found in _SLACK.finditer(text):
        parts.append(_unescaped(text[end : found.start()]))
        end = found.end()
        if found["link"]:
            label = html.unescape(found["label"] or found["link"])
            parts.append(Markup('<a href="{}">{}</a>').format(html.unescape(found["link"]), label))
        elif found["shout"] is not None:
            parts.append(Markup("<mark>@{}</mark>").format(found["shout"]))
        else:
            parts.append(Markup("<b>{}</b>").format(_unescaped(found["bold"])))
    return Markup("").join([*parts, _unescaped(text[end:])])


def _unescaped(text: str) -> Markup:
    return Markup("{}").format(html.unescape(text))
