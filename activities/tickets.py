"""Tickets: the incident, the post-mortem and what follows from it, where the team tracks its work."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

import httpx
from temporalio import activity

from activities import settings
from activities.delivery import call, first_to_take, object_of, unexpected
from activities.errors import lasting
from activities.messages import TicketRef, TicketRequest
from activities.providers import bearer, one_line, shortened, with_links
from activities.secret_refs import SecretResolver, fingerprint

_TITLE_LIMIT = 250
"""Characters; Jira refuses a summary of more than 255 and GitHub a title of more than 256."""


class TicketSystem(Protocol):
    def create(self, ticket: TicketRequest) -> TicketRef:
        """The ticket of this key, made when there is none yet. Raises a classified ``ApplicationError``."""


def marker(key: str) -> str:
    """The line in a ticket's body by which it is found again."""
    return f"Runbook key: {one_line(key)}"


def body(ticket: TicketRequest) -> str:
    return f"{with_links(ticket.text, ticket.links)}\n\n{marker(ticket.key)}\n"


class GitHubTickets:
    """GitHub Issues. Found again by the marker line among the 100 newest issues, open or closed.

    The list is used and not the search, whose index lags behind by seconds to minutes.
    """

    def __init__(self, name: str, config: settings.GitHubIssues, resolver: SecretResolver, http: httpx.Client) -> None:
        self._name, self._config, self._resolver, self._http = name, config, resolver, http

    def create(self, ticket: TicketRequest) -> TicketRef:
        headers = bearer(self._resolver, self._config.token) | {"Accept": "application/vnd.github+json"}
        url = f"{self._config.url.rstrip('/')}/repos/{self._config.repository}/issues"
        doing = f"look for the ticket in GitHub ({self._name})"
        newest = {"state": "all", "sort": "created", "direction": "desc", "per_page": "100"}
        response = call(self._http, "GET", url, doing, params=newest, headers=headers)
        for issue in _list_of(response, doing):
            if marker(ticket.key) in str(issue.get("body") or "").splitlines():
                return self._ref(issue)
        doing = f"create a ticket in GitHub ({self._name})"
        sent = {
            "title": shortened(one_line(ticket.title), _TITLE_LIMIT),
            "body": body(ticket),
            "labels": list(ticket.labels),
        }
        response = call(self._http, "POST", url, doing, json=sent, headers=headers)
        made = object_of(response, doing)
        if "number" not in made:
            raise unexpected(response, doing)
        return self._ref(made)

    def _ref(self, issue: dict[str, object]) -> TicketRef:
        return TicketRef(system=self._name, id=str(issue["number"]), url=str(issue.get("html_url") or "") or None)


class JiraTickets:
    """Jira Cloud, REST API 2 (plain-text descriptions). Found again by a label made from the key.

    Jira's search may lag a few seconds behind; a try repeated at once after a lost answer can make a second ticket.
    """

    def __init__(self, name: str, config: settings.Jira, resolver: SecretResolver, http: httpx.Client) -> None:
        self._name, self._config, self._resolver, self._http = name, config, resolver, http

    def create(self, ticket: TicketRequest) -> TicketRef:
        auth = (self._config.user, self._resolver.resolve(self._config.token))
        label = f"runbook-{fingerprint(ticket.key)}"
        url = f"{self._config.url.rstrip('/')}/rest/api/2"
        doing = f"look for the ticket in Jira ({self._name})"
        query = {"jql": f'project = "{self._config.project}" AND labels = "{label}"', "fields": "summary"}
        response = call(self._http, "GET", f"{url}/search/jql", doing, params=query, auth=auth)
        found = object_of(response, doing).get("issues")
        if not isinstance(found, list):
            raise unexpected(response, doing)
        if found:
            return self._ref(str(found[0]["key"]))
        doing = f"create a ticket in Jira ({self._name})"
        fields = {
            "project": {"key": self._config.project},
            "issuetype": {"name": self._config.issue_type},
            "summary": shortened(one_line(ticket.title), _TITLE_LIMIT),
            "description": jira_markup(body(ticket)),
            "labels": [label, *(re.sub(r"\s+", "-", text) for text in ticket.labels)],
        }
        response = call(self._http, "POST", f"{url}/issue", doing, json={"fields": fields}, auth=auth)
        made = object_of(response, doing)
        if "key" not in made:
            raise unexpected(response, doing)
        return self._ref(str(made["key"]))

    def _ref(self, key: str) -> TicketRef:
        return TicketRef(system=self._name, id=key, url=f"{self._config.url.rstrip('/')}/browse/{key}")


class WebhookTickets:
    """Any HTTP receiver. It gets the key in the body and as ``Idempotency-Key``, and drops repeats itself.

    An answer of ``{"id": ..., "url": ...}`` becomes the reference; without one, the key is the id.
    """

    def __init__(self, name: str, config: settings.Webhook, resolver: SecretResolver, http: httpx.Client) -> None:
        self._name, self._config, self._resolver, self._http = name, config, resolver, http

    def create(self, ticket: TicketRequest) -> TicketRef:
        doing = f"create a ticket through the webhook {self._name}"
        headers = bearer(self._resolver, self._config.token) | {"Idempotency-Key": fingerprint(ticket.key)}
        sent = {"event": "ticket", **ticket.model_dump(mode="json", exclude={"channels"})}
        response = call(self._http, "POST", self._config.url, doing, json=sent, headers=headers)
        try:
            made = response.json()
        except ValueError:
            made = {}
        made = made if isinstance(made, dict) else {}
        return TicketRef(
            system=self._name, id=str(made.get("id") or ticket.key), url=str(made.get("url") or "") or None
        )


class Tickets:
    """The ticket systems of ``settings.providers``, by the names that a stage's channels use."""

    def __init__(self, settings: settings.Settings, resolver: SecretResolver, http: httpx.Client) -> None:
        providers = settings.providers
        self._systems: Mapping[str, TicketSystem] = {
            **{name: WebhookTickets(name, config, resolver, http) for name, config in providers.webhook.items()},
            **{name: JiraTickets(name, config, resolver, http) for name, config in providers.jira.items()},
            **{name: GitHubTickets(name, config, resolver, http) for name, config in providers.github.items()},
        }

    @activity.defn(name="tickets.create")
    def create(self, ticket: TicketRequest) -> TicketRef:
        """Make a ticket in the first system that takes it. Repeating a key gives the ticket that is already there.

        Raises:
            ApplicationError: the stage names no ticket system (lasting), or none took it (``NobodyTookIt``, may pass).
        """
        if not ticket.channels.ticket:
            raise lasting(
                f"could not create the ticket '{ticket.title}': the stage names no ticket system. Name one in "
                "channels.ticket",
                type="NotConfigured",
            )
        _, made, attempts = first_to_take(
            ticket.channels.ticket, lambda name: self._system(name).create(ticket), f"the ticket '{ticket.title}'"
        )
        return made.model_copy(update={"attempts": attempts})

    def _system(self, name: str) -> TicketSystem:
        if name not in self._systems:
            raise lasting(
                f"no ticket system named {name} is configured: add it under providers (github, jira or webhook) in the "
                "settings, or take it out of the stage's channels",
                type="NotConfigured",
            )
        return self._systems[name]


def jira_markup(markdown: str) -> str:
    """Markdown in Jira's wiki dialect: bold, links, headings and list items."""
    text = re.sub(r"\[([^\]\n]+)\]\((https?://[^\s()]+)\)", r"[\1|\2]", markdown)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"*\1*", text)
    text = re.sub(r"^(#{1,6}) +(.+)$", lambda found: f"h{len(found[1])}. {found[2]}", text, flags=re.MULTILINE)
    return re.sub(r"^(\s*)- +", r"\1* ", text, flags=re.MULTILINE)


def _list_of(response: httpx.Response, doing: str) -> list[dict[str, object]]:
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise unexpected(response, doing)
    return [row for row in value if isinstance(row, dict)]
