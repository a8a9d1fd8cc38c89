"""What the activities of a DatabaseCredentialRotation are asked and what they answer: user names, never a password."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field

from activities.evidence import Finding
from activities.stage import Facts, Stage
from activities.staged_secrets import Labels


class CredentialOrder(Facts):
    """Something to be done with the API's database user, within one rotation."""

    stage: Stage
    rotation: str = Field(min_length=1, description="Id of the rotation: the same id makes the same user")


class UserSeen(Finding):
    """The user that the API logs in as now."""

    user: str
    source: str = Field(description="Database in which the user is known")
    roles: tuple[str, ...] = Field(description="Each as role@database")
    also_in: tuple[str, ...] = Field((), description="Other references of the stage that name the same user")
    labels: Labels


class UserMade(Finding):
    """A new user with the old one's roles, its connection string stored and not yet used anywhere."""

    user: str
    roles: tuple[str, ...]
    version: str


class TestLogin(CredentialOrder):
    """Log in directly at the database, past the API."""

    __test__ = False  # pytest looks at names

    old: str
    as_old: bool = False
    refused: bool = Field(False, description="Whether the login has to be refused")
    patience: timedelta = Field(timedelta(minutes=2), description="How long to go on while it is not as it should be")


class LoginTested(Finding):
    ok: bool
    user: str
    outcome: Literal["let in", "refused", "lacks a role", "no answer"]


class SwitchUser(CredentialOrder):
    old: str


class UserSwitched(Finding):
    user: str = Field(description="Who the API logs in as from its next deployment on")
    changed: bool


class LoginQuery(CredentialOrder):
    """Who still logs in as the old user."""

    old: str
    since: datetime


class LoginsSeen(Finding):
    known: bool = Field(
        description="Whether silence means anything: False where the database does not tell who logs in"
    )
    old_last: datetime | None = Field(None, description="When the old user was last seen")
    old_count: int = 0
    holders: tuple[str, ...] = Field((), description="References of the stage that still name the old user")


class UserRemoved(Finding):
    existed: bool


class PutUserBack(CredentialOrder):
    """The way back inside the overlap: the old user in the secret and the deployment, the new one gone."""

    old: str
    labels: Labels
