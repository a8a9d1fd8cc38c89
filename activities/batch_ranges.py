"""Stretches of ``_id``: how they are cut, and how they are asked for. Pure functions, no I/O.

MongoDB orders ``_id`` values of all types, but a comparison such as ``$gt`` only finds values of the same kind of type.
So a range never spans two kinds, and its open ends are bounded by the kind itself.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import bson
from bson.codec_options import CodecOptions
from temporalio.exceptions import ApplicationError

from activities.batch_models import IdRange
from activities.errors import lasting
from activities.update_rules import decode, encode

MOST_CUTS = 2000
"""Boundaries kept while planning; beyond that every other one is dropped, so that memory stays flat."""

MOST_BYTES = 400_000
"""Size of a plan that a history takes without harm; bigger ``_id`` values are cut less finely."""

_KINDS = {
    0x08: "bool",
    **dict.fromkeys((0x01, 0x10, 0x12, 0x13), "number"),  # double, int, long, decimal
    0x02: "string",
    0x07: "objectId",
    0x05: "binData",
    0x09: "date",
    0x11: "timestamp",
    0x0A: "null",
    0xFF: "minKey",
    0x7F: "maxKey",
    0x03: "object",
}
"""The kind that a value is compared within, by the name that ``$type`` knows; by its type's byte in BSON."""

_LENGTH, _TYPE = struct.Struct("<i"), 4
"""A document in BSON begins with its length, and then comes the type of its first field."""


def documents_in(answer: bytes) -> Iterator[bytes]:
    """The documents of a raw answer, each still in BSON: of thousands, only those at a boundary are decoded."""
    begin = 0
    while begin < len(answer):
        end = begin + _LENGTH.unpack_from(answer, begin)[0]
        yield answer[begin:end]
        begin = end


def id_of(document: bytes, options: CodecOptions[Any]) -> Any:
    """The ``_id`` of a document in BSON."""
    return bson.decode(document, options)["_id"]


def kind_of(document: bytes) -> str:
    """The kind of ``_id`` of a document in BSON that begins with it, as one that was read by ``_id`` alone."""
    try:
        return _KINDS[document[_TYPE]]
    except KeyError:
        raise _strange(f"BSON type {document[_TYPE]}") from None


def _strange(kind: str) -> ApplicationError:
    return lasting(f"an _id of {kind} cannot be cut into ranges. Update these documents by hand", type="StrangeId")


BY_TYPE: dict[str, Any] = {"$group": {"_id": {"$type": "$_id"}, "documents": {"$sum": 1}}}
"""Aggregation stage: how many documents have an ``_id`` of each type."""

_NUMBERS = ("int", "long", "double", "decimal")


def whole_kinds(counted: Mapping[str, int], size: int, first_number: int = 0) -> tuple[IdRange, ...] | None:
    """A range for each kind, of documents counted by type; None when one of them has more than ``size``."""
    kinds: Counter[str] = Counter()
    for name, documents in counted.items():
        kinds["number" if name in _NUMBERS else name] += documents
    if strange := kinds.keys() - set(_KINDS.values()):
        raise _strange(f"type {min(strange)}")
    if max(kinds.values(), default=0) > size:
        return None
    return tuple(
        IdRange(number=number, kind=kind, documents=documents)
        for number, (kind, documents) in enumerate(sorted(kinds.items()), first_number)
    )


def selector(kind: str, after: Any, upto: Any) -> Any:
    """The condition on ``_id`` for a stretch of BSON values; None stands for an open end."""
    if kind in ("null", "minKey", "maxKey"):  # kinds with one value
        return {"$type": kind}
    bounds = {"$gt": after, "$lte": upto}
    return {name: value for name, value in bounds.items() if value is not None} or {"$type": kind}


def within(id_condition: Any, query: dict[str, Any]) -> dict[str, Any]:
    """Both conditions; the query may have one on ``_id`` of its own."""
    if "_id" in query:
        return {"$and": [{"_id": id_condition}, query]}
    return {"_id": id_condition, **query}


def bounds(stretch: IdRange) -> tuple[Any, Any]:
    """The BSON values of a range's ends."""
    return decode(stretch.after), decode(stretch.upto)


class Cutter:
    """Takes documents of ``_id`` alone in its order and cuts them into ranges, with flat memory and in one pass."""

    def __init__(self, options: CodecOptions[Any], stride: int = 100) -> None:
        self._options = options
        self._stride = stride
        self._cuts: list[tuple[str, Any, int]] = []  # last _id of a stretch, and how many documents it has
        self._kind = ""
        self._last = b""
        self._pending = 0
        self.documents = 0

    def take(self, document: bytes) -> None:
        kind = kind_of(document)
        if self._pending and (kind != self._kind or self._pending >= self._stride):
            self._cut()
        self._kind, self._last = kind, document
        self._pending += 1
        self.documents += 1

    def _cut(self) -> None:
        self._cuts.append((self._kind, id_of(self._last, self._options), self._pending))
        self._pending = 0
        if len(self._cuts) > MOST_CUTS:
            self._stride *= 2
            self._cuts = list(_merged(self._cuts, self._stride))

    def ranges(self, size: int, at_least: int, first_number: int = 0) -> tuple[IdRange, ...]:
        """The ranges, of about ``size`` documents each or fewer, so that there are ``at_least`` that many."""
        if self._pending:
            self._cut()
        wanted = max(1, min(size, -(-self.documents // max(1, at_least))))
        while True:
            made = _ranges(list(_merged(self._cuts, wanted)), first_number)
            if sum(len(stretch.model_dump_json()) for stretch in made) <= MOST_BYTES or wanted > self.documents:
                return made
            wanted *= 2


def _merged(cuts: Iterable[tuple[str, Any, int]], size: int) -> Iterable[tuple[str, Any, int]]:
    """Neighbouring stretches of the same kind put together until they have ``size`` documents."""
    kind, last, count = "", None, 0
    for next_kind, next_last, more in cuts:
        if count and (next_kind != kind or count + more > size):
            yield kind, last, count
            count = 0
        kind, last, count = next_kind, next_last, count + more
    if count:
        yield kind, last, count


def _ranges(cuts: list[tuple[str, Any, int]], first_number: int) -> tuple[IdRange, ...]:
    made = []
    for index, (kind, last, count) in enumerate(cuts):
        first_of_kind = index == 0 or cuts[index - 1][0] != kind
        last_of_kind = index == len(cuts) - 1 or cuts[index + 1][0] != kind
        made.append(
            IdRange(
                number=first_number + index,
                kind=kind,
                after=None if first_of_kind else encode(cuts[index - 1][1]),
                upto=None if last_of_kind else encode(last),
                documents=count,
            )
        )
    return tuple(made)
