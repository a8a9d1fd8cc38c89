"""Messages reach somebody: through the real adapters, over HTTP, with providers that fail in every way."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import delivery
from activities.messages import Announcement, Delivery, Mail, Page, PageEnd
from activities.notifications import Notifications
from activities.providers import dedup_key, mrkdwn, slack_text
from activities.secret_refs import SecretResolver
from activities.settings import PagerDuty, Providers, Ses, Settings, Slack, Webhook
from activities.stage import Channels
from tests.running_hub import WEBHOOK_TOKEN, RunningHub, aws_client

pytest_plugins = ("tests.hub_fixture",)

M = TypeVar("M")
ROUTING_KEY = "0123456789abcdef0123456789abcdef"
SENDER = "runbooks@example.com"


@pytest.fixture
def notifications(hub: RunningHub, people_aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifications]:
    """Slack and a webhook for chat, PagerDuty and the same webhook for pages, mail through SES."""
    monkeypatch.setenv("TEST_SLACK", f"{hub.url}/slack/ops")
    monkeypatch.setenv("TEST_PAGERDUTY", ROUTING_KEY)
    monkeypatch.setenv("TEST_HOOK", WEBHOOK_TOKEN)
    monkeypatch.setenv("TEST_BAD_TOKEN", "snowman-☃-token")
    ses = aws_client("ses", people_aws)
    ses.verify_email_identity(EmailAddress=SENDER)
    hook = f"{hub.url}/webhook/spare"
    providers = Providers(
        slack={
            "slack": Slack(webhook="env:TEST_SLACK"),
            "unset": Slack(webhook="env:TEST_NOT_SET"),
        },
        pagerduty={"pagerduty": PagerDuty(routing_key="env:TEST_PAGERDUTY", url=f"{hub.url}/pagerduty/v2/enqueue")},
        webhook={
            "webhook": Webhook(url=hook, token="env:TEST_HOOK"),
            "tokenless": Webhook(url=hook),
            "snowman": Webhook(url=hook, token="env:TEST_BAD_TOKEN"),
            "mailto": Webhook(url="mailto:somebody"),
        },
        ses={"ses": Ses(sender=SENDER), "stranger": Ses(sender="nobody-verified@example.org")},
    )
    resolver = SecretResolver(aws_client("ssm", people_aws), aws_client("secretsmanager", people_aws))
    with httpx.Client(verify=False) as http:
        yield Notifications(Settings(providers=providers), resolver, http, ses)


def run(activity: Callable[[M], Delivery], message: M) -> Delivery:
    return ActivityEnvironment().run(activity, message)


def announcement(*chat: str, **fields: Any) -> Announcement:
    fields = {"key": "run-1/notify", "title": "Rolled back"} | fields
    return Announcement(channels=Channels(chat=chat or ("slack", "webhook")), **fields)


def page(*pagers: str, **fields: Any) -> Page:
    fields = {"key": "run-1/page", "title": "API down", "source": "production"} | fields
    return Page(channels=Channels(page=pagers or ("pagerduty", "webhook")), **fields)


def outcomes(result: Delivery) -> list[tuple[str, bool]]:
    return [(attempt.provider, attempt.ok) for attempt in result.attempts]


def nobody(activity: Callable[[M], Delivery], message: M) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        run(activity, message)
    error = caught.value
    assert error.type == "NobodyTookIt"
    assert not error.non_retryable
    assert "\n" not in error.message
    for secret in (ROUTING_KEY, WEBHOOK_TOKEN, "/slack/ops", "snowman-☃-token"):
        assert secret not in error.message
    return error


# -- chat


def test_announcement_reaches_slack(hub: RunningHub, notifications: Notifications) -> None:
    message = announcement(text="**v41** serves again", severity="warning", links={"Run": "http://ui/run?a=1&b=2"})
    result = run(notifications.announce, message)
    assert result.delivered_by == "slack"
    assert outcomes(result) == [("slack", True)]
    [event] = hub.received("slack/ops")
    assert event["body"] == {"text": "*⚠️ Rolled back*\n*v41* serves again\n<http://ui/run?a=1&b=2|Run>"}
    assert hub.received("webhook") == []


def test_webhook_chat_gets_the_key_and_the_message(hub: RunningHub, notifications: Notifications) -> None:
    assert run(notifications.announce, announcement("webhook", text="t")).delivered_by == "webhook"
    [event] = hub.received("webhook/spare")
    assert event["body"] == {
        "event": "announcement",
        "key": "run-1/notify",
        "title": "Rolled back",
        "text": "t",
        "severity": "info",
        "links": {},
    }


def test_passing_fault_is_tried_once_more_after_the_time_it_asks_for(
    hub: RunningHub, notifications: Notifications
) -> None:
    hub.fail("slack", "http", status=503, retry_after=1, times=1)
    begun = time.monotonic()
    assert outcomes(run(notifications.announce, announcement())) == [("slack", True)]
    assert time.monotonic() - begun >= 1
    assert len(hub.received("slack")) == 1


@pytest.mark.parametrize(
    ("mode", "options", "detail", "tries"),
    [
        ("http", {"status": 500}, "HTTP 500", 2),
        ("http", {"status": 503, "retry_after": 120}, "HTTP 503", 1),
        ("http", {"status": 429}, "HTTP 429", 2),
        ("http", {"status": 404}, "HTTP 404", 1),
        ("timeout", {}, "ReadTimeout", 2),
        ("reset", {}, "ReadError", 2),
        ("slow", {"seconds": 2}, "ReadTimeout", 2),
        ("garbage", {}, "not this service's own", 2),
    ],
)
@pytest.mark.parametrize("kind", ["chat", "page"])
def test_failing_provider_falls_over_to_the_next(
    hub: RunningHub,
    notifications: Notifications,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    mode: str,
    options: dict[str, Any],
    detail: str,
    tries: int,
) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT", 0.15)
    first = "slack" if kind == "chat" else "pagerduty"
    hub.fail(first, mode, **options)
    result = run(notifications.announce, announcement()) if kind == "chat" else run(notifications.page, page())
    assert result.delivered_by == "webhook"
    assert outcomes(result) == [(first, False), ("webhook", True)]
    assert detail in result.attempts[0].detail
    assert hub.hits(first) == tries
    assert len(hub.received("webhook/spare")) == 1


def test_one_provider_is_bounded_to_five_seconds() -> None:
    assert delivery.TIMEOUT == 5.0


def test_all_down_is_one_readable_error_that_may_pass(hub: RunningHub, notifications: Notifications) -> None:
    hub.fail("slack", "http", status=503, retry_after=60)
    hub.fail("webhook", "http", status=500)
    error = nobody(notifications.announce, announcement())
    assert error.message == (
        "nobody took the announcement 'Rolled back'. slack: could not post to Slack (slack): HTTP 503; "
        "webhook: could not post to the webhook webhook: HTTP 500. "
        "Check these providers in the settings, or tell people by another way"
    )
    assert error.next_retry_delay is not None
    assert error.next_retry_delay.total_seconds() == 60
    hub.heal("slack")
    assert run(notifications.announce, announcement()).delivered_by == "slack"


def test_misconfigured_providers_are_told_apart_and_passed_over(hub: RunningHub, notifications: Notifications) -> None:
    names = ("nowhere", "unset", "tokenless", "snowman", "mailto", "slack")
    result = run(notifications.announce, announcement(*names))
    assert result.delivered_by == "slack"
    details = {attempt.provider: attempt.detail for attempt in result.attempts}
    assert "no chat provider named nowhere is configured" in details["nowhere"]
    assert "env:TEST_NOT_SET" in details["unset"]
    assert "HTTP 401. Check the credential it uses" in details["tokenless"]
    assert "characters that HTTP does not allow" in details["snowman"]
    assert "☃" not in details["snowman"]
    assert "does not begin with http" in details["mailto"]


def test_slacks_own_reason_is_quoted(
    hub: RunningHub, notifications: Notifications, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_SLACK", f"{hub.url}/slack/revoked/path")
    error = nobody(notifications.announce, announcement("slack"))
    assert "HTTP 404: no_service" in error.message


def test_stage_without_chat_gets_an_empty_delivery(notifications: Notifications) -> None:
    silent = Announcement(channels=Channels(chat=()), key="k", title="t")
    assert run(notifications.announce, silent) == Delivery(delivered_by=None, attempts=())


def test_no_secret_is_logged(hub: RunningHub, notifications: Notifications, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    try:
        run(notifications.announce, announcement())
        run(notifications.page, page())
    finally:
        root.setLevel(before)
    assert "/slack/ops" not in caplog.text
    assert ROUTING_KEY not in caplog.text


# -- how Slack wants it written


@pytest.mark.parametrize(
    ("markdown", "slack"),
    [
        ("**bold** and [link](https://x.example/a?b=1&c=2)", "*bold* and <https://x.example/a?b=1&amp;c=2|link>"),
        ("<!channel> <@U1> a & b", "&lt;!channel&gt; &lt;@U1&gt; a &amp; b"),
        ("[<!here>](https://x.example)", "<https://x.example|&lt;!here&gt;>"),
        ("[a|b](https://x.example/a|b)", "<https://x.example/a%7Cb|a¦b>"),
        ("[x](javascript:alert)", "[x](javascript:alert)"),
        ("`**as is** <b>` **not**", "`**as is** &lt;b&gt;` *not*"),
        ("# Head\n- one\n* two", "*Head*\n• one\n• two"),
    ],
)
def test_markdown_becomes_slacks(markdown: str, slack: str) -> None:
    assert mrkdwn(markdown) == slack


def test_titles_and_links_cannot_command_slack() -> None:
    message = announcement(
        title="<!channel>\nhello", text="x" * 9000, links={"<!here>|": "https://a.example/|", "b": "<!everyone>"}
    )
    text = slack_text(message)
    title, body, links = text.split("\n")
    assert title == "*&lt;!channel&gt; hello*"
    assert len(body) == 4000
    assert links == "<https://a.example/%7C|&lt;!here&gt;¦> · b: &lt;!everyone&gt;"


def test_icon_is_not_doubled() -> None:
    declared = "🚨 INCIDENT DECLARED - P1"
    assert slack_text(announcement(title=declared, severity="critical")) == f"*{declared}*"


# -- pager


def test_page_reaches_pagerduty_once_however_often_it_is_tried(hub: RunningHub, notifications: Notifications) -> None:
    call = page(details={"error rate": "12 %"}, links={"Run": "http://ui/run"}, severity="error")
    for _ in range(3):
        assert run(notifications.page, call).delivered_by == "pagerduty"
    [alert] = hub.client.get("/_control/alerts").json()
    assert (alert["status"], alert["severity"], alert["events"]) == ("triggered", "error", 3)
    body = hub.received("pagerduty")[0]["body"]
    assert body["dedup_key"] == "run-1/page"
    assert body["payload"]["custom_details"] == {"error rate": "12 %"}
    assert body["links"] == [{"href": "http://ui/run", "text": "Run"}]


def test_long_keys_and_titles_fit_and_stay_distinct(hub: RunningHub, notifications: Notifications) -> None:
    for end in ("a", "b"):
        run(notifications.page, page("pagerduty", key="k" * 400 + end, title="t" * 2000))
    first, second = hub.client.get("/_control/alerts").json()
    assert first["dedup_key"] != second["dedup_key"]
    assert len(dedup_key("k" * 400)) == 255


def test_pagerdutys_own_reason_is_quoted(
    hub: RunningHub, notifications: Notifications, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_PAGERDUTY", "too-short")
    error = nobody(notifications.page, page("pagerduty"))
    assert "Length of 'routing_key' is incorrect" in error.message
    assert "too-short" not in error.message


def test_end_closes_the_page_in_every_pager(hub: RunningHub, notifications: Notifications) -> None:
    call = page()
    taken = run(notifications.page, call)
    end = PageEnd(channels=call.channels, key=call.key, title="Stable", delivered_by=taken.delivered_by)
    result = run(notifications.resolve_page, end)
    assert result.delivered_by == "pagerduty"
    assert outcomes(result) == [("pagerduty", True), ("webhook", True)]
    [alert] = hub.client.get("/_control/alerts").json()
    assert alert["status"] == "resolved"
    assert hub.received("webhook")[0]["body"] == {"event": "page-end", "key": "run-1/page", "title": "Stable"}


def test_end_is_not_done_while_the_pager_that_took_the_page_is_down(
    hub: RunningHub, notifications: Notifications
) -> None:
    call = page()
    run(notifications.page, call)
    hub.fail("pagerduty", "http", status=500)
    end = PageEnd(channels=call.channels, key=call.key, title="Stable", delivered_by="pagerduty")
    assert "PagerDuty (pagerduty): HTTP 500" in nobody(notifications.resolve_page, end).message
    # Taken by the webhook while PagerDuty was down: then PagerDuty does not hold it up.
    assert run(notifications.resolve_page, end.model_copy(update={"delivered_by": "webhook"})).delivered_by == "webhook"
    hub.heal("pagerduty")
    assert run(notifications.resolve_page, end).delivered_by == "pagerduty"


def test_stage_without_pagers_gets_an_empty_delivery(notifications: Notifications) -> None:
    nowhere = Channels(page=())
    assert run(notifications.page, Page(channels=nowhere, key="k", title="t", source="s")) == Delivery(
        delivered_by=None
    )
    assert run(notifications.resolve_page, PageEnd(channels=nowhere, key="k", title="t")) == Delivery(delivered_by=None)


# -- mail


def mail(*providers: str, **fields: Any) -> Mail:
    fields = {"key": "k", "to": ("lead@example.com", "cs@example.com"), "title": "Résumé", "text": "Body"} | fields
    return Mail(channels=Channels(mail=providers or ("ses",)), **fields)


def test_mail_reaches_all_addresses(people_aws: str, notifications: Notifications) -> None:
    title = f"Incident over ✓ {uuid4().hex}"
    assert run(notifications.mail, mail(title=f"{title}\nBcc: x", links={"Run": "http://ui"})).delivered_by == "ses"
    outbox = json.dumps(httpx.get(f"{people_aws}/_ministack/ses/messages", verify=False).json(), ensure_ascii=False)
    [sent] = [
        message
        for messages in json.loads(outbox)["messages"].values()
        for message in messages
        if message["Subject"].startswith(title)
    ]
    assert sent["Subject"] == f"{title} Bcc: x"
    assert sent["To"] == ["lead@example.com", "cs@example.com"]
    assert sent["Source"] == SENDER
    assert sent["BodyText"] == "Body\n\nRun: http://ui"


def test_mail_falls_over_from_a_refused_sender(notifications: Notifications) -> None:
    result = run(notifications.mail, mail("stranger", "ses"))
    assert outcomes(result) == [("stranger", False), ("ses", True)]
    assert "MessageRejected" in result.attempts[0].detail


def test_unreachable_mail_is_an_error_that_may_pass(hub: RunningHub, notifications: Notifications) -> None:
    resolver = SecretResolver(aws_client("ssm", hub.url), aws_client("secretsmanager", hub.url))
    settings = Settings(providers=Providers(ses={"ses": Ses(sender=SENDER)}))
    with httpx.Client(verify=False) as http:
        down = Notifications(settings, resolver, http, aws_client("ses", "http://127.0.0.1:9"))
        assert "AWS did not answer" in nobody(down.mail, mail()).message


def test_mail_to_nobody_and_to_too_many(notifications: Notifications) -> None:
    assert run(notifications.mail, mail(to=())) == Delivery(delivered_by=None)
    with pytest.raises(ApplicationError, match="51 addresses") as caught:
        run(notifications.mail, mail(to=tuple(f"a{n}@example.com" for n in range(51))))
    assert caught.value.non_retryable
