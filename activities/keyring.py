"""The keys that encrypt what stands in histories: one encrypts, all of them decrypt.

A keyring is text, one key a line: its id, a blank, and 32 bytes in base64; ``#`` begins a comment. The first key
encrypts. An id ends with a fingerprint of its key, so that no two keys can ever go by one name.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.redaction import never_print
from activities.secret_refs import SecretResolver
from activities.settings import ConfigError, Settings

KEY_BYTES = 32

OWN_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,60}-[0-9a-f]{12}", re.ASCII)
"""What the id of a key looks like. Payloads under other ids come from elsewhere, and no keyring will ever fit them."""

_HEADER = "# Keys of the runbooks' histories: the first encrypts, all decrypt. What a lost key encrypted is lost.\n"


@dataclass(frozen=True)
class Key:
    id: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, label: str) -> Key:
        secret = secrets.token_bytes(KEY_BYTES)
        return cls(f"{label}-{_fingerprint(secret)}", secret)

    def line(self) -> str:
        return f"{self.id} {base64.b64encode(self.secret).decode()}"


@dataclass(frozen=True)
class Keyring:
    """At least one key; the first is the one that encrypts, unless all of them only decrypt."""

    keys: tuple[Key, ...]
    decrypt_only: bool = False

    @property
    def encrypts_with(self) -> Key | None:
        return None if self.decrypt_only else self.keys[0]

    @classmethod
    def of(cls, text: str) -> Keyring:
        """Read a keyring.

        Raises:
            ValueError: it is none. The message names the line and never holds a key.
        """
        keys = [_key(number, line) for number, line in enumerate(text.splitlines(), 1) if _holds_key(line)]
        if not keys:
            raise ValueError("there is no key in it")
        if len({key.id for key in keys}) < len(keys):
            raise ValueError("a key stands in it twice")
        return cls(tuple(keys))

    def text(self) -> str:
        return _HEADER + "".join(f"{key.line()}\n" for key in self.keys)

    def with_key(self, key: Key) -> Keyring:
        """With one more key that only decrypts: every process has to know a key before any encrypts with it."""
        return Keyring((*self.keys, key))

    def encrypting_with(self, key_id: str) -> Keyring:
        """With ``key_id`` as the key that encrypts.

        Raises:
            KeyError: it is not there.
        """
        chosen = next((key for key in self.keys if key.id == key_id), None)
        if chosen is None:
            raise KeyError(key_id)
        return Keyring((chosen, *(key for key in self.keys if key is not chosen)))


def _holds_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _key(number: int, line: str) -> Key:
    parts = line.split()
    if len(parts) != 2 or not OWN_ID.fullmatch(parts[0]):
        raise ValueError(f"line {number} is not the id of a key and the key")
    try:
        secret = base64.b64decode(parts[1], validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ValueError(f"line {number} does not hold {KEY_BYTES} bytes in base64")
    if not parts[0].endswith(f"-{_fingerprint(secret)}"):
        raise ValueError(f"line {number} has a key that is not the one its id names")
    never_print(parts[1])
    return Key(parts[0], secret)


def _fingerprint(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()[:12]


def private(path: Path) -> None:
    """Refuse a file that others can read.

    Raises:
        ConfigError: they can, or there is none.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"the keys of histories, {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"others can read the keys of histories. Run: chmod 600 {path}")


def read_keyring(settings: Settings) -> Keyring | None:
    """The keyring that the settings name; None where histories are not encrypted.

    Raises:
        ConfigError: it cannot be read or is none.
    """
    if settings.encryption is None:
        return None
    ref = settings.encryption.keys
    kind, _, place = ref.partition(":")
    if kind == "file":
        private(Path(place))
    aws = Aws(settings)
    try:
        keyring = Keyring.of(SecretResolver(aws.ssm, aws.secretsmanager).resolve(ref))
    except ApplicationError as error:
        raise ConfigError(f"encryption.keys: {error.message}") from None
    except ValueError as error:
        raise ConfigError(f"encryption.keys: {ref} is no keyring: {error}. Make one: runbooks codec new FILE") from None
    return Keyring(keyring.keys, settings.encryption.decrypt_only)
