"""Payload conversion that no typing error can wedge.

By default, input that cannot be decoded makes a workflow task fail for ever (start, signal without a validator) or is
dropped with a log line that only the worker's owner sees (signal). Here a payload for a handler without type hints
always decodes: to its JSON value, or to :class:`Undecodable`, which the frame answers with a readable refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import DataConverter
from temporalio.exceptions import FailureError


@dataclass(frozen=True)
class Undecodable:
    """A payload that is no JSON; ``reason`` says what it was, never what it held."""

    reason: str


class TolerantPayloadConverter(PydanticPayloadConverter):
    """Pydantic's converter, except that an undecodable payload without a type hint becomes a value."""

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        if type_hints is not None:
            return super().from_payloads(payloads, type_hints)
        values: list[Any] = []
        for payload in payloads:
            try:
                values += super().from_payloads([payload])
            except FailureError:
                raise
            except Exception as error:
                encoding = payload.metadata.get("encoding", b"none").decode(errors="replace")
                values.append(Undecodable(f"not readable as {encoding} ({type(error).__name__})"))
        return values


data_converter = DataConverter(payload_converter_class=TolerantPayloadConverter)
