"""The format of an archive: a manifest, and for each collection a gzip file of BSON documents one after another.

The manifest is written last and holds its own checksum: a folder without one is an unfinished archive. Each collection
has two checksums: ``sha256`` of its file as it lies there, which finds damage; and ``content``, the sum of the SHA-256
of each document modulo 2^256, which does not depend on the order of the documents and so tells whether a restored
collection holds exactly what was dumped.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO, Literal

from bson import json_util
from pydantic import Field, ValidationError

from activities.stage import Facts

MANIFEST = "manifest.json"
FORMAT = 1
LARGEST = 16 * 1024 * 1024 + 16 * 1024
"""No document of MongoDB is larger: 16 MiB, and 16 KiB that the server allows itself."""
RESTORING = "__restoring"
"""Collections that begin so are the restore's own, and part of no archive."""
POINT_IN_TIME = "point in time"
_UNVERSIONED = ("v", "ns", "background", "2dsphereIndexVersion", "textIndexVersion")
"""What a server adds to the description of an index by its own version."""
_MODULUS = 1 << 256

Kind = Literal["collection", "view", "timeseries"]


class Damaged(Exception):
    """The archive is not what was written. The message says what and where."""


class CollectionEntry(Facts):
    """One collection or view in an archive."""

    name: str
    kind: Kind
    options: dict[str, Any] = Field(description="As listCollections gave them, in canonical Extended JSON")
    indexes: tuple[dict[str, Any], ...] = Field((), description="As listIndexes gave them, without the one on _id")
    file: str | None = Field(None, description="Absent for a view, and where the provider keeps the documents")
    documents: int = Field(0, ge=0)
    documents_after: int | None = Field(None, description="Count after the snapshot, where two counts surround it")
    bytes: int = Field(0, ge=0, description="Bytes of BSON")
    stored_bytes: int = Field(0, ge=0, description="Length of the file")
    sha256: str | None = Field(None, description="Of the file")
    content: str | None = Field(None, description="Sum of the SHA-256 of each document, modulo 2^256, in hexadecimal")

    @property
    def expires(self) -> bool:
        """Whether the server deletes documents of this collection by itself, some time after they were restored."""
        return "expireAfterSeconds" in self.options or any("expireAfterSeconds" in index for index in self.indexes)


class Manifest(Facts):
    """What an archive holds."""

    format: int = FORMAT
    id: str
    stage: str
    database: str
    server: str
    started_at: datetime
    finished_at: datetime
    consistency: str
    whole: bool = Field(True, description="False when only some collections were asked for")
    safety: bool = Field(False, description="Of what a restore was about to replace; never counts as the newest")
    notes: tuple[str, ...] = ()
    collections: tuple[CollectionEntry, ...]
    checksum: str = Field("", description="SHA-256 of this manifest with an empty checksum")

    def sealed(self) -> Manifest:
        return self.model_copy(update={"checksum": self._digest()})

    def _digest(self) -> str:
        plain = self.model_copy(update={"checksum": ""}).model_dump(mode="json")
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def documents(self) -> int:
        return sum(entry.documents for entry in self.collections)

    @property
    def size(self) -> int:
        """Bytes of BSON."""
        return sum(entry.bytes for entry in self.collections)

    @property
    def stored_bytes(self) -> int:
        return sum(entry.stored_bytes for entry in self.collections)

    @staticmethod
    def read(text: bytes) -> Manifest:
        """The manifest of these bytes.

        Raises:
            Damaged: it is no manifest, a later format, or was altered.
        """
        try:
            found = Manifest.model_validate_json(text)
        except ValidationError:
            raise Damaged(f"{MANIFEST} cannot be read") from None
        if found.format != FORMAT:
            raise Damaged(f"{MANIFEST} is of format {found.format}, this version reads format {FORMAT}")
        if found.checksum != found._digest():
            raise Damaged(f"{MANIFEST} was altered: its checksum does not fit")
        return found


class Content:
    """Counts documents and sums them up, in whatever order they come."""

    def __init__(self) -> None:
        self.documents = 0
        self.bytes = 0
        self._sum = 0

    def add(self, document: bytes) -> None:
        self.documents += 1
        self.bytes += len(document)
        self._sum += int.from_bytes(hashlib.sha256(document).digest(), "big")

    def digest(self) -> str:
        return f"{self._sum % _MODULUS:064x}"


def split(batch: bytes) -> Iterator[bytes]:
    """The documents of a raw batch of a cursor."""
    at = 0
    while at < len(batch):
        (length,) = struct.unpack_from("<i", batch, at)
        yield batch[at : at + length]
        at += length


def documents(stream: BinaryIO) -> Iterator[bytes]:
    """The documents of an (uncompressed) stream, one at a time.

    Raises:
        Damaged: it ends within a document, or a length cannot be.
    """
    while head := stream.read(4):
        length = struct.unpack("<i", head)[0] if len(head) == 4 else 0
        if not 5 <= length <= LARGEST:
            raise Damaged("it ends within a document" if len(head) < 4 else f"a document of {length} bytes cannot be")
        rest = stream.read(length - 4)
        if len(rest) != length - 4:
            raise Damaged("it ends within a document")
        yield head + rest


def to_json(value: Any) -> Any:
    """BSON values as plain JSON that loses no type."""
    return json.loads(json_util.dumps(value, json_options=json_util.CANONICAL_JSON_OPTIONS))


def from_json(value: Any) -> Any:
    return json_util.loads(json.dumps(value), json_options=json_util.CANONICAL_JSON_OPTIONS)


def normal_index(index: dict[str, Any]) -> str:
    """The description of an index in a form that can be compared between servers. The order of its keys counts."""
    kept = {name: _plain(value) for name, value in index.items() if name not in _UNVERSIONED and value is not False}
    kept["key"] = list(_plain(index.get("key", {})).items())
    return json.dumps(kept, sort_keys=True)


def normal_options(options: dict[str, Any]) -> str:
    kept = {name: _plain(value) for name, value in options.items() if value is not False}
    collation = kept.get("collation")
    if isinstance(collation, dict):  # the server completes it, with its own version
        kept["collation"] = {name: collation.get(name) for name in ("locale", "strength", "caseLevel") if collation}
    return json.dumps(kept, sort_keys=True)


def _plain(value: Any) -> Any:
    """Numbers alone: whether a server keeps 1 as int, long or double is its own affair."""
    if isinstance(value, dict):
        if len(value) == 1 and (name := next(iter(value))) in ("$numberInt", "$numberLong", "$numberDouble"):
            return float(value[name])
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
