"""Tickets are made once, in the first system that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import delivery
from activities.messages import TicketRef, TicketRequest
from activities.secret_refs import SecretResolver
from activities.settings import GitHubIssues, Jira, Providers, Settings, Webhook
from activities.stage import Channels
from activities.tickets import Tickets, jira_markup
from tests.running_hub import WEBHOOK_TOKEN, RunningHub, aws_client

pytest_plugins = ("tests.hub_fixture",)

TOKEN = "ghp_0000-not-a-real-one"
SYSTEMS = ("github", "jira", "webhook")


@pytest.fixture
def tickets(hub: RunningHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tickets]:
    monkeypatch.setenv("TEST_TRACKER", TOKEN)
    monkeypatch.setenv("TEST_HOOK", WEBHOOK_TOKEN)
    providers = Providers(
        github={"github": GitHubIssues(repository="acme/ops", token="env:TEST_TRACKER", url=f"{hub.url}/github/")},
        jira={"jira": Jira(url=f"{hub.url}/jira/", project="OPS", user="me@example.com", token="env:TEST_TRACKER")},
        webhook={"webhook": Webhook(url=f"{hub.url}/webhook/tickets", token="env:TEST_HOOK")},
    )
    # No reference in here points to AWS, so nothing is asked of these.
    resolver = SecretResolver(aws_client("ssm", hub.url), aws_client("secretsmanager", hub.url))
    with httpx.Client(verify=False) as http:
        yield Tickets(Settings(providers=providers), resolver, http)


def request(*systems: str, **fields: Any) -> TicketRequest:
    fields = {"key": "run-1/ticket", "title": "Post-mortem", "text": "**P1**", "labels": ("incident",)} | fields
    return TicketRequest(channels=Channels(ticket=systems), **fields)


def create(tickets: Tickets, ticket: TicketRequest) -> TicketRef:
    return ActivityEnvironment().run(tickets.create, ticket)


def test_github_issue_is_found_again_under_its_key(hub: RunningHub, tickets: Tickets) -> None:
    first = create(tickets, request("github", links={"Run": "http://ui"}))
    assert (first.system, first.id, first.url) == ("github", "1", f"{hub.url}/github/acme/ops/issues/1")
    assert create(tickets, request("github", title="Renamed since")) == first
    assert create(tickets, request("github", key="run-1/ticket-2")).id == "2"
    # A key that only begins the same is another key, and a closed ticket is still the ticket.
    assert create(tickets, request("github", key="run-1/tick")).id == "3"
    issues = httpx.Client(base_url=f"{hub.url}/github/repos/acme/ops/issues", headers={"Authorization": "token x"})
    issues.patch("/1", json={"state": "closed"}).raise_for_status()
    assert create(tickets, request("github")).id == "1"
    body = hub.received("github")[0]["body"]
    assert body["body"] == "**P1**\n\nRun: http://ui\n\nRunbook key: run-1/ticket\n"
    assert body["labels"] == ["incident"]
    assert len(hub.received("github")) == 4
    issues.close()


def test_jira_issue_is_found_again_under_its_key(hub: RunningHub, tickets: Tickets) -> None:
    first = create(tickets, request("jira", labels=("needs owner",)))
    assert (first.system, first.id, first.url) == ("jira", "OPS-1", f"{hub.url}/jira/browse/OPS-1")
    assert create(tickets, request("jira")) == first
    assert create(tickets, request("jira", key="other")).id == "OPS-2"
    body = hub.received("jira/OPS")[0]["body"]
    assert body["description"] == "*P1*\n\nRunbook key: run-1/ticket\n"
    assert "needs-owner" in body["labels"]
    assert body["type"] == "Task"


def test_webhook_gets_the_key_and_may_name_the_ticket(hub: RunningHub, tickets: Tickets) -> None:
    made = create(tickets, request("webhook"))
    assert (made.system, made.id, made.url) == ("webhook", "1", f"{hub.url}/#e1")
    body = hub.received("webhook/tickets")[0]["body"]
    assert (body["event"], body["key"], body["labels"]) == ("ticket", "run-1/ticket", ["incident"])


def test_webhook_that_answers_anything_else_still_took_it(hub: RunningHub, tickets: Tickets) -> None:
    hub.fail("webhook", "garbage")
    made = create(tickets, request("webhook"))
    assert (made.id, made.url) == ("run-1/ticket", None)


@pytest.mark.parametrize("system", ["github", "jira"])
def test_lost_answer_makes_no_second_ticket(
    hub: RunningHub, tickets: Tickets, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    """The tracker makes the ticket but answers too late; the second try finds it."""
    monkeypatch.setattr(delivery, "TIMEOUT", 0.15)
    taken: list[str] = []
    original = delivery.call

    def late(http: httpx.Client, method: str, *rest: Any, **named: Any) -> httpx.Response:
        if method == "POST" and not taken:
            taken.append(method)
            hub.fail(system, "slow", seconds=2, times=1)
        return original(http, method, *rest, **named)

    monkeypatch.setattr("activities.tickets.call", late)
    made = create(tickets, request(system))
    assert taken
    assert [(attempt.provider, attempt.ok) for attempt in made.attempts] == [(system, True)]
    assert len(hub.received(system)) == 1


@pytest.mark.parametrize(
    ("mode", "options", "detail"),
    [
        ("http", {"status": 503, "retry_after": 30}, "HTTP 503"),
        ("http", {"status": 403}, "HTTP 403. Check the credential it uses"),
        ("timeout", {}, "ReadTimeout"),
        ("reset", {}, "ReadError"),
        ("garbage", {}, "not this service's own"),
    ],
)
@pytest.mark.parametrize(("first", "second"), [("github", "jira"), ("jira", "github")])
def test_failing_system_falls_over_to_the_next(
    hub: RunningHub,
    tickets: Tickets,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    mode: str,
    options: dict[str, Any],
    detail: str,
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT", 0.15)
    hub.fail(first, mode, **options)
    made = create(tickets, request(first, second))
    assert made.system == second
    assert [(attempt.provider, attempt.ok) for attempt in made.attempts] == [(first, False), (second, True)]
    assert detail in made.attempts[0].detail


def test_all_down_is_one_readable_error_that_may_pass(hub: RunningHub, tickets: Tickets) -> None:
    for system in SYSTEMS:
        hub.fail(system, "http", status=502)
    with pytest.raises(ApplicationError) as caught:
        create(tickets, request(*SYSTEMS))
    error = caught.value
    assert (error.type, error.non_retryable) == ("NobodyTookIt", False)
    assert error.message.startswith("nobody took the ticket 'Post-mortem'. github: could not look for the ticket")
    assert error.message.count("HTTP 502") == 3
    assert TOKEN not in error.message


def test_refusals_quote_the_systems_reason(hub: RunningHub, tickets: Tickets) -> None:
    with pytest.raises(ApplicationError, match="You must specify a summary of the issue"):
        create(tickets, request("jira", title=" "))
    with pytest.raises(ApplicationError, match='"title" wasn\'t supplied'):
        create(tickets, request("github", title=""))


def test_no_system_is_a_lasting_error(tickets: Tickets) -> None:
    with pytest.raises(ApplicationError, match="names no ticket system") as caught:
        create(tickets, request())
    assert caught.value.non_retryable
    with pytest.raises(ApplicationError, match="no ticket system named tickets is configured"):
        create(tickets, request("tickets"))


def test_long_titles_fit(hub: RunningHub, tickets: Tickets) -> None:
    create(tickets, request("jira", title="t" * 400))
    assert len(hub.received("jira")[0]["body"]["summary"]) == 250


def test_nothing_kept_holds_a_credential(hub: RunningHub, tickets: Tickets) -> None:
    for system in SYSTEMS:
        create(tickets, request(system))
    kept = hub.client.get("/_control/received").text
    assert TOKEN not in kept
    assert WEBHOOK_TOKEN not in kept


def test_markdown_becomes_jiras() -> None:
    markdown = "## Cause\n- **slow** query\n- [run](https://ui.example/1)"
    assert jira_markup(markdown) == "h2. Cause\n* *slow* query\n* [run|https://ui.example/1]"
