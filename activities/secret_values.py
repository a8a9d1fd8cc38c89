"""What a secret has to be: made from the operating system's randomness, and never one that anybody can know."""

from __future__ import annotations

import base64
import math
import re
import secrets
import uuid
from collections import Counter
from collections.abc import Iterable

from activities.errors import lasting
from activities.secret_refs import fingerprint

_PUBLISHED = frozenset(
    {
        # The three keys that the operational document prints, and the other name spaces of RFC 4122.
        "550e8400-e29b-41d4-a716-446655440000",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "6ba7b811-9dad-11d1-80b4-00c04fd430c8",
        "6ba7b812-9dad-11d1-80b4-00c04fd430c8",
        "6ba7b814-9dad-11d1-80b4-00c04fd430c8",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "123e4567-e89b-12d3-a456-426614174000",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        # Placeholders of the document and of everybody's tutorials.
        "new-strong-password-here",
        "new-secret-from-openssl",
        "<existing-old-keys>",
        "your-256-bit-secret",
        "changeme",
        "password",
        "secret",
    }
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FEWEST_BITS = 100.0
"""Estimated from the letters themselves, which tells less than how a value was made: 20 random bytes pass."""


def new_api_key() -> str:
    """A random UUID, as the document wants it: 122 bits."""
    return str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))


def new_password() -> str:
    """256 bits, in letters that need no escaping in a connection string."""
    return secrets.token_urlsafe(32)


def new_signing_secret() -> str:
    """What ``openssl rand -base64 32`` makes."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def weakness(value: str) -> str | None:
    """Why a value must not be used as a secret, in words that do not repeat it; None when it may."""
    text = value.strip()
    if not text:
        return "it is empty"
    if text != value or any(ord(letter) < 33 for letter in value):
        return "it has white space or control characters in it"
    if text.lower() in _PUBLISHED:
        return "it is a published example that anybody knows"
    if _UUID.fullmatch(text):
        if uuid.UUID(text).version != 4:
            return "it is a UUID that was not made at random (only version 4 is)"
        if len(set(text.replace("-", ""))) < 8:
            return "it is a UUID with a pattern in it"
        return None
    bits = estimated_bits(text)
    return (
        None if bits >= _FEWEST_BITS else f"it holds about {bits:.0f} bits at most, and {_FEWEST_BITS:.0f} are needed"
    )


def estimated_bits(text: str) -> float:
    """An upper estimate: the entropy of the letters as they are distributed, times how many there are."""
    total = len(text)
    return sum(-count * math.log2(count / total) for count in Counter(text).values()) if total else 0.0


def require_strong(what: str, values: Iterable[str]) -> None:
    """
    Raises:
        WeakSecret: one of them must not be used. The message has its fingerprint only.
    """
    for value in values:
        if (why := weakness(value)) is not None:
            raise lasting(
                f"{what} {fingerprint(value)} is refused: {why}. Have a new one made at random", type="WeakSecret"
            )
