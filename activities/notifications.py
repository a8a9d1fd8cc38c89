"""Telling people: chat, pager and mail, each with somebody to fall back on.

An announcement never decides an outcome. When nobody took one, the activity raises an error that may pass; the policy
of the step bounds how often to come back, and the workflow notes it and goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import httpx
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.delivery import first_to_take, nobody_took
from activities.errors import lasting
from activities.messages import Announcement, Attempt, Delivery, Mail, Page, PageEnd
from activities.providers import ChatProvider, Pager, PagerDutyPager, PlainWebhook, SesMail, SlackChat
from activities.secret_refs import SecretResolver
from activities.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_ses import SESClient

P = TypeVar("P")

_MOST_ADDRESSES = 50
"""SES takes no more recipients in one mail."""


class Notifications:
    """The providers of ``settings.providers``, by the names that a stage's channels use."""

    def __init__(self, settings: Settings, resolver: SecretResolver, http: httpx.Client, ses_client: SESClient) -> None:
        providers = settings.providers
        hooks = {name: PlainWebhook(name, config, resolver, http) for name, config in providers.webhook.items()}
        slacks = {name: SlackChat(name, config, resolver, http) for name, config in providers.slack.items()}
        duties = {name: PagerDutyPager(name, config, resolver, http) for name, config in providers.pagerduty.items()}
        self._chats: Mapping[str, ChatProvider] = {**hooks, **slacks}
        self._pagers: Mapping[str, Pager] = {**hooks, **duties}
        self._mailers = {name: SesMail(name, config, ses_client) for name, config in providers.ses.items()}

    @activity.defn(name="notifications.announce")
    def announce(self, message: Announcement) -> Delivery:
        """Say something in the stage's chat; the first provider that takes it is enough.

        A stage without chat providers gets an empty delivery.

        Raises:
            ApplicationError: nobody took it (``NobodyTookIt``, may pass), with each provider's reason.
        """
        if not message.channels.chat:
            return Delivery()
        name, _, attempts = first_to_take(
            message.channels.chat,
            lambda name: _named(self._chats, name, "chat", "slack or webhook").say(message),
            f"the announcement '{message.title}'",
        )
        return Delivery(delivered_by=name, attempts=attempts)

    @activity.defn(name="notifications.page")
    def page(self, page: Page) -> Delivery:
        """Call whoever is on call, through the first pager that takes it. Repeating a key joins the open page.

        Raises:
            ApplicationError: nobody took it (``NobodyTookIt``, may pass), with each pager's reason.
        """
        if not page.channels.page:
            return Delivery()
        name, _, attempts = first_to_take(
            page.channels.page, lambda name: self._pager(name).page(page), f"the page '{page.title}'"
        )
        return Delivery(delivered_by=name, attempts=attempts)

    @activity.defn(name="notifications.resolve_page")
    def resolve_page(self, end: PageEnd) -> Delivery:
        """Close a page in every pager of the stage.

        It is enough that the pager which took the page (``delivered_by``) takes its end, or any when that is unknown.

        Raises:
            ApplicationError: the page is still open there (``NobodyTookIt``, may pass).
        """
        names = dict.fromkeys((*([end.delivered_by] if end.delivered_by else []), *end.channels.page))
        attempts: list[Attempt] = []
        for name in names:
            try:
                _, _, tried = first_to_take([name], lambda name: self._pager(name).end(end), "the end of the page")
            except ApplicationError as error:
                attempts.append(Attempt(provider=name, ok=False, detail=error.message))
            else:
                attempts.extend(tried)
        took = [attempt.provider for attempt in attempts if attempt.ok]
        wanted = end.delivered_by or (took[0] if took else None)
        if names and wanted not in took:
            raise nobody_took(f"the end of the page '{end.title}'", attempts)
        return Delivery(delivered_by=wanted, attempts=tuple(attempts))

    @activity.defn(name="notifications.mail")
    def mail(self, mail: Mail) -> Delivery:
        """Send one mail to all addresses, through the first mail provider that takes it.

        Raises:
            ApplicationError: too many addresses (lasting), or nobody took it (``NobodyTookIt``, may pass).
        """
        if not mail.to or not mail.channels.mail:
            return Delivery()
        if len(mail.to) > _MOST_ADDRESSES:
            raise lasting(
                f"could not send the mail '{mail.title}': {len(mail.to)} addresses, and SES takes at most "
                f"{_MOST_ADDRESSES} a mail. Use a mailing list",
                type="BadRequest",
            )
        name, _, attempts = first_to_take(
            mail.channels.mail,
            lambda name: _named(self._mailers, name, "mail", "ses").send(mail),
            f"the mail '{mail.title}'",
        )
        return Delivery(delivered_by=name, attempts=attempts)

    def _pager(self, name: str) -> Pager:
        return _named(self._pagers, name, "pager", "pagerduty or webhook")


def _named(providers: Mapping[str, P], name: str, kind: str, sections: str) -> P:
    try:
        return providers[name]
    except KeyError:
        raise lasting(
            f"no {kind} provider named {name} is configured: add it under providers ({sections}) in the settings, "
            "or take it out of the stage's channels",
            type="NotConfigured",
        ) from None
