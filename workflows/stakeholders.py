"""Telling more people than the team: its chat and, of production, those whom the settings name, by mail."""

from __future__ import annotations

from typing import TypeVar

from temporalio import workflow

from activities.messages import Announcement, Mail
from activities.notifications import Notifications
from workflows.model import RunbookInput
from workflows.runbook import Runbook

I = TypeVar("I", bound=RunbookInput)  # noqa: E741


class TellsStakeholders(Runbook[I]):
    """A runbook whose procedure says that stakeholders are notified."""

    async def _tell_stakeholders(self, chat_step: str, mail_step: str, title: str, text: str) -> tuple[bool, str]:
        """Tell the team in chat and the stakeholders by mail; where the settings name nobody the team's chat counts.

        Returns whether they know, and who told them.
        """
        message = Announcement(
            channels=self.stage.channels,
            key=self.key(chat_step),
            title=title,
            text=text,
            severity="warning",
            links=self.links(),
        )
        told = await self.tell(chat_step, Notifications.announce, message, would="tell the team in chat")
        chat = told.delivered_by if told else None
        channels = self.stage.channels
        to = channels.stakeholders if self.stage.production and channels.mail else ()
        if not to or not workflow.patched("stakeholders-are-mailed"):
            alone = "; the settings name nobody to mail" if self.stage.production and not to else ""
            return chat is not None, f"told {chat}{alone}" if chat else "nobody took it"
        by = await self._mail_stakeholders(mail_step, title, text)
        note = f"mailed {', '.join(to)} by {by}" if by else "nobody took the mail to the stakeholders"
        return by is not None, f"{note}; {f'told {chat}' if chat else 'nobody took the chat message'}"

    async def _mail_stakeholders(self, step_id: str, title: str, text: str) -> str | None:
        """Mail those whom the settings name. Returns which provider took it; None when none did."""
        to = self.stage.channels.stakeholders
        mail = Mail(
            channels=self.stage.channels, key=self.key(step_id), to=to, title=title, text=text, links=self.links()
        )
        sent = await self.tell(step_id, Notifications.mail, mail, would=f"mail {', '.join(to)}")
        return sent.delivered_by if sent else None
