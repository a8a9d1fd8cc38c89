"""What an incident takes and what people send to it. Plain data.

Other runbooks and machines open an incident through the activity ``incidents.open`` of
:mod:`activities.incidents`, which joins the running incident of the same problem instead of opening a second one.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from activities.incident_policy import SeverityName
from workflows.model import By, Line, Message, Name, Person, RunbookInput

AlertId = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


class IncidentInput(RunbookInput):
    """Input of the runbook ``Incident``. ``severity`` is worked out from the evidence when it is absent."""

    title: Line | None = Field(None, description="What is wrong, for headlines; the reason when absent")
    key: Name | None = Field(None, description="Names the problem: a repeat of the same one joins this incident")
    alert: AlertId | None = Field(None, description="Id of the alert that opened it; a repeat of it changes nothing")
    detected_by: Line | None = Field(None, description="What noticed it, such as the name of an alarm")
    detected_at: AwareDatetime | None = Field(None, description="When it was noticed; now when absent")
    commander: Person | None = Field(None, description="Who commands from the start")
    drill: bool = Field(False, description="A drill: marked, told to the drill's channel only, changes nothing, scored")

    @property
    def headline(self) -> str:
        return self.title or self.reason


class Join(Message):
    """Update ``join``: an alert of the same problem, or news of it from a machine."""

    alert: AlertId = Field(description="Id of this alert: sent twice it counts once")
    source: Line = Field(description="What noticed it")
    text: Line = Field(description="What it says")
    severity: SeverityName | None = Field(None, description="Only ever makes the incident worse")


class Acknowledge(By):
    """Update ``acknowledge``: I am on it. Stops the paging until it expires without progress."""


class TakeCommand(By):
    """Update ``command``: take a role, or hand it to somebody."""

    to: Person | None = Field(None, description="Who gets the role; the sender when absent")
    role: Name = Field("commander", description="commander, scribe, liaison or any other")


class SetSeverity(By):
    severity: SeverityName
    reason: Line


class SetCause(By):
    cause: Line = Field(description="The root cause, in one line")


class Mitigated(By):
    text: Line = Field(description="What was done by hand")


class Choose(By):
    """Update ``recover``: offer this recovery option next; its gate asks people."""

    runbook: Name


class Resolve(By):
    """Update ``resolve``: the service is restored."""

    cause: Line | None = None


class ActionItem(By):
    """Update ``action``: add one, report it done, or hand it on."""

    do: Literal["add", "done", "hand-on"] = "add"
    id: Name | None = Field(None, description="Of the action; given when it is added")
    text: Line | None = Field(None, description="What has to be done")
    owner: Person | None = Field(None, description="Who does it, or to whom it is handed on")
    due: timedelta | None = Field(None, gt=timedelta(0), le=timedelta(days=180), description="From now, such as P7D")

    @model_validator(mode="after")
    def _fits(self) -> ActionItem:
        if self.do == "add" and not self.text:
            raise ValueError("an action needs a text")
        if self.do != "add" and not self.id:
            raise ValueError("name the action by its id")
        if self.do == "hand-on" and not self.owner:
            raise ValueError("say to whom it is handed on, as owner")
        return self


class Held(By):
    """Update ``post_mortem``: it was held; its actions are tracked from here on."""
