"""What may be a secret, and what never."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError

from activities.secret_values import (
    estimated_bits,
    new_api_key,
    new_password,
    new_signing_secret,
    require_strong,
    weakness,
)


def test_what_is_made_is_strong_and_never_the_same() -> None:
    for make in (new_api_key, new_password, new_signing_secret):
        made = [make() for _ in range(50)]
        assert len(set(made)) == 50
        assert [weakness(value) for value in made] == [None] * 50
    assert {uuid.UUID(new_api_key()).version for _ in range(20)} == {4}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("550e8400-e29b-41d4-a716-446655440000", "published"),
        ("6BA7B810-9DAD-11D1-80B4-00C04FD430C8", "published"),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", "published"),
        ("00000000-0000-0000-0000-000000000000", "published"),
        ("new-strong-password-here", "published"),
        ("c232ab00-9414-11ec-b3c8-9e6bdeced846", "not made at random"),
        ("11111111-1111-4111-8111-111111111111", "pattern"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "0 bits"),
        ("correct horse battery staple", "white space"),
        ("hunter2", "bits"),
        ("6f0e2b1a-5c3d-4e8f-9a71-b2c4d6e8f013\n", "white space"),
    ],
)
def test_what_is_refused(value: str, why: str) -> None:
    assert why in (weakness(value) or "")


def test_a_refusal_names_no_value() -> None:
    with pytest.raises(ApplicationError) as refused:
        require_strong("the new value", ["hunter2-is-weak"])
    assert refused.value.type == "WeakSecret"
    assert "hunter2" not in refused.value.message


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    assert estimated_bits(text) >= 0
    found = weakness(text)
    assert found is None or len(text.strip()) < 12 or text not in found
