"""What the activities of a rotation are asked and what they answer: ids and fingerprints, never a value."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

from pydantic import Field

from activities.evidence import Finding
from activities.stage import Facts, Role, RotatedSecret, Stage
from activities.staged_secrets import Labels

ROLES: tuple[Role, ...] = ("primary", "backup", "internal")

Fingerprint = str
"""First 12 hexadecimal digits of the SHA-256 of a secret: what the API logs, and what people are shown."""


class KeyOrder(Facts):
    """Something to be done with the API's keys, within one rotation."""

    stage: Stage
    rotation: str = Field(min_length=1, description="Id of the rotation: the same id makes the same versions")


class KeysSeen(Finding):
    """The keys that the API accepts now."""

    accepted: tuple[Fingerprint, ...]
    roles: dict[Role, Fingerprint] = Field(default_factory=dict, description="Which of them has which role, if known")
    problems: tuple[str, ...] = Field((), description="Keys that must not be used, with the reason")
    labels: tuple[Labels, ...] = Field((), description="Labels of every staged secret of the keys, as they are now")


class KeysMade(Finding):
    """Three fresh keys, stored and not yet accepted anywhere."""

    new: dict[Role, Fingerprint]
    version: str = Field(description="Id of the version of each key in Secrets Manager")


class AcceptKeys(KeyOrder):
    """Which keys the API shall accept from its next deployment on."""

    old: tuple[Fingerprint, ...] = Field(description="The keys from before the rotation")
    keep_old: bool


class KeysSet(Finding):
    accepted: tuple[Fingerprint, ...]
    foreign: tuple[Fingerprint, ...] = Field((), description="Keys that somebody added meanwhile; they stay")
    changed: bool


class VerifyKeys(KeyOrder):
    """Call the API with every key of the rotation."""

    old: tuple[Fingerprint, ...]
    old_accepted: bool = Field(description="Whether the old keys have to be accepted, or refused")
    patience: timedelta = Field(timedelta(minutes=2), description="How long to go on while an answer is not right")


class KeysVerified(Finding):
    ok: bool
    new: dict[Role, int] = Field(default_factory=dict, description="HTTP status by role")
    old: dict[Fingerprint, int] = Field(default_factory=dict, description="HTTP status by fingerprint")


class PromoteKeys(KeyOrder):
    keep_old: bool = Field(description="Whether the list with the old keys, or the one without them, is the current")


class Promoted(Finding):
    version: str


class PutKeysBack(KeyOrder):
    """The way back inside the overlap: the list, the deployment and the labels as they were."""

    labels: tuple[Labels, ...]
    old: tuple[Fingerprint, ...]
    since: datetime = Field(description="When the new keys came into being: their use since then counts")


class AcceptAgain(KeyOrder):
    """The way back while the old keys are being removed: both are accepted again."""

    old: tuple[Fingerprint, ...]


class UsageQuery(Facts):
    stage: Stage
    keys: tuple[Fingerprint, ...]
    start: datetime
    end: datetime


class KeyUse(Facts):
    key: Fingerprint
    client: str | None = None
    uses: int
    last: datetime


class KeyUsage(Finding):
    """Accepted requests by key and client."""

    uses: tuple[KeyUse, ...] = ()
    named: int = Field(0, description="Requests in that time whose log line names a key at all")
    complete: bool = Field(True, description="False when the log could not be read to its end")


SecretKind = Literal["api_keys", "database", "signing"]


class RotationEntry(Facts):
    """One rotation in the rotation log."""

    pair: str = Field(description="The secret's pair; without one, the secret itself")
    secret: str = Field(description="Stage and name, such as production/ApiKeys")
    stage: str
    runbook: str
    run: str = Field(description="Workflow id")
    status: Literal["open", "completed", "ended"] = "open"
    started_at: datetime
    overlap_until: datetime = Field(description="Until when old and new are meant to be valid side by side")
    ended_at: datetime | None = None
    old: tuple[str, ...] = Field((), description="Fingerprints, user names or key ids from before")
    new: tuple[str, ...] = ()
    summary: str = ""
    by: str | None = None
    emergency: bool = False
    next_at: datetime | None = None


class Entered(Finding):
    location: str


class PairQuery(Facts):
    entry: RotationEntry
    overlap: timedelta


class PairFound(Finding):
    """Whether another member of the pair rotates, or has just been rotated."""

    blocked: bool
    until: datetime | None = Field(None, description="When its overlap is over, as far as the log knows")


class LastQuery(Facts):
    secret: RotatedSecret
    stage: str
    runbook: str


class LastRotation(Finding):
    entry: RotationEntry | None = None
