"""Chat, pager and webhook: what reaches a person directly."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from sandbox.hub.exchange import Reply, Request, answer, plain, text_of
from sandbox.hub.journal import Event, Journal


class Slack:
    """Incoming webhooks: ``POST /slack/<name>``. Answers are Slack's own words in plain text."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def handle(self, request: Request) -> Reply:
        match request.route:
            case ("POST", name):
                message = request.json_object()
                if message is None:
                    return plain(400, "invalid_payload")
                if not (text_of(message.get("text")) or message.get("blocks") or message.get("attachments")):
                    return plain(400, "no_text")
                self._journal.append("slack", name, "message", message)
                return plain(200, "ok")
            case (_, _):
                return plain(405, "method_not_allowed")
        return plain(404, "no_service")


class Webhook:
    """A plain receiver: ``POST /webhook/<name>`` with one JSON object, behind a bearer token when one is configured."""

    def __init__(self, journal: Journal, token: str | None) -> None:
        self._journal = journal
        self._token = token

    def handle(self, request: Request) -> Reply:
        match request.route:
            case ("POST", name):
                given = request.authorization("Bearer") or ""
                if self._token is not None and not hmac.compare_digest(given.encode(), self._token.encode()):
                    return answer(401, {"error": "the bearer token is missing or wrong"}, WWW_Authenticate="Bearer")
                message = request.json_object()
                if message is None:
                    return answer(400, {"error": "the body is not a JSON object"})
                event = self._journal.append("webhook", name, "message", message)
                return answer(200, {"id": str(event.id), "url": f"{request.base_url}/#e{event.id}"})
            case (_, _):
                return answer(405, {"error": "only POST is taken here"})
        return answer(404, {"error": "the path is /webhook/<name>"})


@dataclass
class Alert:
    """What PagerDuty would hold for one deduplication key."""

    dedup_key: str
    summary: str
    severity: str
    status: Literal["triggered", "acknowledged", "resolved"] = "triggered"
    events: int = 1


_SEVERITIES = ("critical", "error", "warning", "info")


class PagerDuty:
    """Events API v2: ``POST /pagerduty/v2/enqueue``.

    A trigger opens an alert or joins the open one of its key; acknowledge and resolve for a key without an open alert
    are taken and change nothing, as in the real service. The routing key is kept as a fingerprint only.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._alerts: list[Alert] = []
        self._open: dict[tuple[str, str], Alert] = {}
        journal.follow(self._apply)

    @property
    def alerts(self) -> list[Alert]:
        """Oldest first."""
        return list(self._alerts)

    def handle(self, request: Request) -> Reply:
        if request.path != ("v2", "enqueue"):
            return answer(404, {"status": "not found", "message": "Not found", "errors": []})
        if request.method != "POST":
            return answer(405, {"status": "method not allowed", "message": "Method not allowed", "errors": []})
        event = request.json_object()
        if event is None:
            return self._invalid(["Invalid JSON"])
        errors = _event_errors(event)
        if errors:
            return self._invalid(errors)
        key = text_of(event.get("dedup_key")) or secrets.token_hex(16)
        routing = hashlib.sha256(event["routing_key"].encode("utf-8", "replace")).hexdigest()[:12]
        kept = {name: value for name, value in event.items() if name != "routing_key"} | {"dedup_key": key}
        self._journal.append("pagerduty", routing, event["event_action"], kept)
        return answer(202, {"status": "success", "message": "Event processed", "dedup_key": key})

    @staticmethod
    def _invalid(errors: list[str]) -> Reply:
        return answer(400, {"status": "invalid event", "message": "Event object is invalid", "errors": errors})

    def _apply(self, event: Event) -> None:
        if event.channel != "pagerduty":
            return
        key = (event.name, str(event.body["dedup_key"]))
        alert = self._open.get(key)
        if event.action == "trigger":
            payload = event.body["payload"]
            if alert is None:
                alert = Alert(key[1], payload["summary"], payload["severity"])
                self._alerts.append(alert)
                self._open[key] = alert
            else:
                alert.summary, alert.severity, alert.events = payload["summary"], payload["severity"], alert.events + 1
        elif alert is not None:
            alert.events += 1
            alert.status = "acknowledged" if event.action == "acknowledge" else "resolved"
            if alert.status == "resolved":
                del self._open[key]


def _event_errors(event: dict[str, Any]) -> list[str]:
    """What the real service refuses an event for."""
    errors = []
    routing = event.get("routing_key")
    if not isinstance(routing, str) or not routing:
        errors.append("'routing_key' is missing or blank")
    elif len(routing) != 32:
        errors.append("Length of 'routing_key' is incorrect (should be 32 characters)")
    action = event.get("event_action")
    if action not in ("trigger", "acknowledge", "resolve"):
        errors.append("'event_action' is invalid (must be one of: 'trigger', 'acknowledge' or 'resolve')")
    key = event.get("dedup_key")
    if key is not None and (not isinstance(key, str) or len(key) > 255):
        errors.append("'dedup_key' is invalid (must be a string of at most 255 characters)")
    elif action in ("acknowledge", "resolve") and not key:
        errors.append("'dedup_key' is missing or blank")
    if action == "trigger":
        payload = event.get("payload")
        if not isinstance(payload, dict):
            return [*errors, "'payload' is missing or blank"]
        for name in ("summary", "source"):
            if not isinstance(payload.get(name), str) or not payload[name].strip():
                errors.append(f"'payload.{name}' is missing or blank")
        if len(text_of(payload.get("summary"))) > 1024:
            errors.append("'payload.summary' is too long (must be at most 1024 characters)")
        if payload.get("severity") not in _SEVERITIES:
            errors.append("'payload.severity' is invalid (must be one of: 'critical', 'error', 'warning' or 'info')")
        links = event.get("links", [])
        if not isinstance(links, list) or any(not (isinstance(x, dict) and text_of(x.get("href"))) for x in links):
            errors.append("'links' is invalid (must be a list of objects with an 'href')")
    return errors
