"""Encryption of everything that Temporal stores of a payload, with a keyring of the team.

AES-256-GCM. The id of the key stands in the payload's metadata and is authenticated with it. Without a keyring nothing
is encrypted, and what is encrypted already waits for a process that has its key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadCodec

from activities.keyring import OWN_ID, Keyring

ENCODING = b"binary/encrypted"
KEY_ID = "encryption-key-id"

_NONCE_BYTES = 12
_TAG_BYTES = 16
_BOUND_TO = b"operational-runbooks/1:"


class MissingKeyError(Exception):
    """A payload is encrypted with a key that this process does not have.

    It is no failure of a run: the workflow task is tried again until a worker with the key takes it.
    """

    def __init__(self, key_id: str, keyring: Keyring | None) -> None:
        has = f"its keyring has only {', '.join(key.id for key in keyring.keys)}" if keyring else "it has no keyring"
        super().__init__(
            f"this process lacks the key {key_id}, with which this history is encrypted: {has}. "
            "Add the key to what 'keys' of [encryption] in runbooks.toml names, and restart"
        )
        self.key_id = key_id


def encrypted_with(payload: Payload) -> str | None:
    """The id of the key; None when it was not encrypted by these rules."""
    key_id = payload.metadata.get(KEY_ID, b"").decode(errors="replace")
    return key_id if payload.metadata.get("encoding") == ENCODING and OWN_ID.fullmatch(key_id) else None


class EncryptionCodec(PayloadCodec):
    """Encrypts with the keyring's first key, decrypts with the one that a payload names."""

    def __init__(self, keyring: Keyring | None) -> None:
        self._keyring = keyring
        self._ciphers = {key.id: AESGCM(key.secret) for key in keyring.keys} if keyring else {}

    @property
    def key_id(self) -> str | None:
        """The key that encrypts; None while nothing is encrypted."""
        key = self._keyring.encrypts_with if self._keyring else None
        return key.id if key else None

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        if (key_id := self.key_id) is None:
            return list(payloads)
        return [self._sealed(payload, key_id) for payload in payloads]

    async def decode(self, payloads: Iterable[Payload]) -> list[Payload]:
        return [self._opened(payload) for payload in payloads]

    def _sealed(self, payload: Payload, key_id: str) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[key_id].encrypt(nonce, payload.SerializeToString(), _BOUND_TO + key_id.encode())
        return Payload(metadata={"encoding": ENCODING, KEY_ID: key_id.encode()}, data=nonce + sealed)

    def _opened(self, payload: Payload) -> Payload:
        """What was encrypted; the payload itself where it was not encrypted by these rules.

        Such a one is answered by the frame like any other that cannot be read, and by every worker alike. Which keys a
        worker happens to have must not change what a history means, so a missing key is an error instead.
        """
        key_id = encrypted_with(payload)
        if key_id is None:
            return payload
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise MissingKeyError(key_id, self._keyring)
        if len(payload.data) < _NONCE_BYTES + _TAG_BYTES:
            return payload
        nonce, sealed = payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:]
        try:
            return Payload.FromString(cipher.decrypt(nonce, sealed, _BOUND_TO + key_id.encode()))
        except (InvalidTag, DecodeError):
            return payload
