"""What the activities of a SigningSecretRotation are asked and what they answer: ids of keys, never a key or token.

A key's id is the fingerprint of its secret, unless the API's own keyring names it otherwise.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from activities.evidence import Finding
from activities.stage import Facts, Stage
from activities.staged_secrets import Labels

KeyId = str

Slots = Literal["accepted", "signs", "alone"]
"""How far the new key is: accepted beside the one that signs; signs, the old one accepted; the only one."""


class SigningOrder(Facts):
    """Something to be done with the signing secret, within one rotation."""

    stage: Stage
    rotation: str = Field(min_length=1, description="Id of the rotation: the same id makes the same versions")


class KeyringSeen(Finding):
    """The signing secret as it is set now."""

    signs: KeyId
    accepted: tuple[KeyId, ...]
    slots: bool = Field(description="Whether it is a keyring already, or one bare secret")
    problems: tuple[str, ...] = Field((), description="Keys that must not be used, with the reason")
    labels: Labels


class SigningKeyMade(Finding):
    """A fresh key, stored and not yet accepted anywhere."""

    new: KeyId
    version: str


class SetSlots(SigningOrder):
    """What the API shall read from its next deployment on."""

    to: Slots
    old: tuple[KeyId, ...] = Field(description="The keys from before the rotation")
    new: KeyId


class SlotsSet(Finding):
    signs: KeyId
    accepted: tuple[KeyId, ...]
    foreign: tuple[KeyId, ...] = Field((), description="Keys that somebody added meanwhile; they stay")
    changed: bool


class ProbeTokens(SigningOrder):
    """Call the stage's own endpoint with real tokens: one of each key, one of nobody's, and one that the API issues."""

    accepted: tuple[KeyId, ...] = Field(description="Keys whose tokens have to be let in")
    refused: tuple[KeyId, ...] = Field((), description="Keys whose tokens have to be refused, though they are not old")
    signs: KeyId | None = Field(None, description="The key that has to sign what the API issues; None: any")


class TokensProbed(Finding):
    ok: bool
    accepted: dict[KeyId, int] = Field(default_factory=dict, description="HTTP status by key")
    refused: dict[KeyId, int] = Field(default_factory=dict)
    stranger: int = Field(description="HTTP status of a token that a key of nobody's signed")
    issued_by: KeyId | None = Field(None, description="The key that signed the API's own token, if it is known")
    issued: int = Field(0, description="HTTP status of the API's own token where it is checked")
    life_seconds: float | None = Field(None, description="Life of the API's own token")


class PutSigningBack(SigningOrder):
    """The way back to the old secret."""

    labels: Labels
    old: tuple[KeyId, ...]


class PutBack(Finding):
    accepted: tuple[KeyId, ...]
    signs: KeyId
    changed: bool


class AcceptOldAgain(SigningOrder):
    """The way back while the old key is being removed: its tokens are let in again."""

    old: tuple[KeyId, ...]
    new: KeyId
