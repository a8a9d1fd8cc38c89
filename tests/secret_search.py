"""Looking for known secrets: in bytes, in the forms that they take on their way, and on command lines."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

_SHORTEST = 8
_PART = 12
"""Characters at either end that count as the secret, too: whoever cuts it has printed half of it."""

_YOUNG = 20
"""Looks at a process, twenty a second, until it is taken for one that has settled."""


def forms(secret: str) -> set[bytes]:
    """What to look for: the secret, its ends, and it as base64, hex and within a URL."""
    assert len(secret) >= _SHORTEST, "too short to be told from other text"
    plain = secret.encode()
    found = {plain, plain.hex().encode(), plain.hex().upper().encode(), quote(secret, safe="").encode()}
    found |= {quote_plus(secret).encode(), secret[:_PART].encode(), secret[-_PART:].encode()}
    for before in range(3):
        # Within other bytes base64 depends on how many come before; only the letters of whole groups are certain.
        padded = b"\0" * before + plain
        padded = padded[: len(padded) - len(padded) % 3]
        certain = slice((0, 2, 3)[before], None)
        found |= {base64.b64encode(padded)[certain], base64.urlsafe_b64encode(padded)[certain]}
    return found


def found(secrets: Mapping[str, str], places: Mapping[str, bytes]) -> dict[str, set[str]]:
    """The names of the secrets that stand in the places, by place. Never the secrets themselves."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    seen = {
        place: {name for name, shapes in wanted.items() if any(shape in content for shape in shapes)}
        for place, content in places.items()
    }
    return {place: names for place, names in seen.items() if names}


def read(kind: str, files: Iterable[Path]) -> dict[str, bytes]:
    """The bytes of every file, below folders too."""
    every = [inner for file in files for inner in ([file] if file.is_file() else sorted(file.rglob("*")))]
    return {f"{kind}: {file}": file.read_bytes() for file in every if file.is_file()}


class CommandLines:
    """Every command line that any process of this machine has while it watches."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> CommandLines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def text(self) -> bytes:
        return b"\n".join(sorted(self._seen))

    async def saw(self, word: str) -> bool:
        return word.encode() in self.text()

    def _watch(self) -> None:
        """A process gets its command line within moments of its start; later on it is looked at now and then."""
        looks: dict[str, int] = {}
        while not self._stop.wait(0.05):
            looks = {process: looks.get(process, -1) + 1 for process in os.listdir("/proc") if process.isdigit()}
            for process in (one for one, before in looks.items() if before < _YOUNG or before % _YOUNG == 0):
                try:
                    with open(f"/proc/{process}/cmdline", "rb") as line:
                        self._seen.add(line.read())
                except OSError:
                    continue
