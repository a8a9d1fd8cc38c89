"""Whatever a workflow is started with or told is read or refused, in words that a person can read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from temporalio.api.common.v1 import Payload

from tests.hostile import VALUES, WORDS, Sent
from workflows import model
from workflows.catalog import RUNBOOKS
from workflows.converter import TolerantPayloadConverter
from workflows.details import escape
from workflows.operator import BadMessage, read
from workflows.runbook import Runbook

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)

INPUTS = {cls.__name__: (cls.spec.input, cls.spec.example) for cls in RUNBOOKS}
MESSAGES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    kind.__name__: (kind, {"by": "bob"})
    for kind in (model.By, model.Decision, model.Answer, model.Tick, model.ExtendWait, model.EndWait)
}


def refuses(kind: type[BaseModel], value: Any) -> bool:
    """Whether it is refused, or else read; anything else would wedge a run. It comes as it does from a client."""
    payload = Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())
    try:
        read(kind, TolerantPayloadConverter().from_payloads([payload]))
    except BadMessage as refusal:
        said = str(refusal)
        assert len(said) < 2500, f"nobody reads {len(said)} characters"
        assert said == " ".join(model.plain(said).split()), repr(said)
        return True
    return False


@pytest.mark.parametrize("name", [*INPUTS, *MESSAGES])
def test_every_field_takes_or_refuses_anything(name: str, sent: Sent) -> None:
    kind, good = (INPUTS | MESSAGES)[name]
    refused = 0
    for field in [*kind.model_fields, "no_such_field"]:
        for value in (*WORDS, *VALUES):
            refused += refuses(kind, good | {field: value})
    assert refused > len(kind.model_fields) * len(VALUES) / 2
    sent("fields of messages", refused)


@given(value=JSON | st.dictionaries(st.text(max_size=12), JSON, max_size=6))
def test_any_json_is_read_or_refused(value: Any) -> None:
    for kind, _ in INPUTS.values():
        refuses(kind, value)


@given(data=st.data())
def test_an_example_with_anything_in_one_of_its_fields(data: st.DataObject) -> None:
    cls: type[Runbook[Any]] = data.draw(st.sampled_from(RUNBOOKS))
    field = data.draw(st.sampled_from(list(cls.spec.input.model_fields)))
    refuses(cls.spec.input, cls.spec.example | {field: data.draw(JSON)})


@pytest.mark.parametrize("text", WORDS)
def test_nothing_of_a_text_acts_in_markdown(text: str) -> None:
    bare = re.sub(r"\\.", "", escape(text))
    assert not set(bare) & set("`*_[]()<>#|!\n\x1b")
