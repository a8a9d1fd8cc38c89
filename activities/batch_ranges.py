"""Stretches of ``_id``: how they are cut, and how they are asked for. Pure functions, no I/O.

MongoDB orders ``_id`` values of all types, but a comparison such as ``$gt`` only finds values of the same kind of type.
So a range never spans two kinds, and its open ends are bounded by the kind itself.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from typing import Any

import bson
from bson import Binary, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp

from activities.batch_models import IdRange
from activities.errors import lasting
from activities.update_rules import decode, encode

MOST_CUTS = 2000
"""Boundaries kept while planning; beyond that every other one is dropped, so that memory stays flat."""

MOST_BYTES = 400_000
"""Size of a plan that a history takes without harm; bigger ``_id`` values are cut less finely."""

_KINDS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((bool,), "bool"),
    ((int, float, Int64, Decimal128), "number"),
    ((str,), "string"),
    ((ObjectId,), "objectId"),
    ((Binary, bytes, uuid.UUID), "binData"),
    ((datetime.datetime, bson.datetime_ms.DatetimeMS), "date"),
    ((Timestamp,), "timestamp"),
    ((type(None),), "null"),
    ((MinKey,), "minKey"),
    ((MaxKey,), "maxKey"),
    ((dict, DBRef), "object"),
)


def kind_of(value: Any) -> str:
    """The kind that this value is compared within, by the name that ``$type`` knows."""
    for types, kind in _KINDS:
        if isinstance(value, types):
            return kind
    raise lasting(
        f"an _id of type {type(value).__name__} cannot be cut into ranges. Update these documents by hand",
        type="StrangeId",
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
    """Takes ``_id`` values in their order and cuts them into ranges, with flat memory and in one pass."""

    def __init__(self, stride: int = 100) -> None:
        self._stride = stride
        self._cuts: list[tuple[str, Any, int]] = []  # last _id of a stretch, and how many documents it has
        self._kind = ""
        self._last: Any = None
        self._pending = 0
        self.documents = 0

    def take(self, value: Any) -> None:
        kind = kind_of(value)
        if self._pending and (kind != self._kind or self._pending >= self._stride):
            self._cut()
        self._kind, self._last = kind, value
        self._pending += 1
        self.documents += 1

    def _cut(self) -> None:
        self._cuts.append((self._kind, self._last, self._pending))
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
