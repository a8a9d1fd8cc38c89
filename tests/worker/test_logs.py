"""The worker's log says which run and step a line is about, and holds no secret."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.testing import ActivityEnvironment

from activities.redaction import HIDDEN, never_print, redact
from activities.settings import ConfigError
from worker.logs import JsonLines, TextLines, set_up

SECRET = "hunter2-hunter2-hunter2"


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("activities.x").makeRecord("activities.x", logging.WARNING, "f", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_a_json_line_has_its_fields() -> None:
    line = json.loads(JsonLines().format(record("look at %s", "this")))
    assert (line["level"], line["logger"], line["message"]) == ("warning", "activities.x", "look at this")
    assert line["time"].endswith("+00:00")
    assert "run_id" not in line


def test_lines_of_an_activity_name_run_and_step() -> None:
    environment = ActivityEnvironment()

    def body() -> tuple[str, str]:
        return JsonLines().format(record("slow")), TextLines().format(record("slow"))

    as_json, as_text = environment.run(body)
    line, info = json.loads(as_json), environment.info
    assert (line["run_id"], line["step"], line["attempt"]) == (info.workflow_run_id, info.activity_id, info.attempt)
    assert f"slow [workflow_id={info.workflow_id} run_id={info.workflow_run_id} step={info.activity_id}" in as_text


def test_the_lines_that_the_sdk_writes_about_a_failed_activity_do_too() -> None:
    told = {"workflow_type": "QuickRollback", "workflow_id": "w", "workflow_run_id": "r", "activity_id": "roll-back"}
    line = json.loads(JsonLines().format(record("Completing activity as failed", temporal_activity=told)))
    assert (line["runbook"], line["workflow_id"], line["run_id"], line["step"]) == (
        "QuickRollback",
        "w",
        "r",
        "roll-back",
    )


def test_no_secret_is_printed_whether_as_message_argument_or_traceback() -> None:
    never_print(SECRET)
    for formatter in (JsonLines(), TextLines()):
        made = record("with %s", SECRET)
        try:
            raise RuntimeError(f"cannot use {SECRET}")
        except RuntimeError:
            made.exc_info = sys.exc_info()
        text = formatter.format(made)
        assert SECRET not in text
        assert HIDDEN in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mongodb+srv://api:pa55word@cluster0.example.net/db", f"mongodb+srv://{HIDDEN}@cluster0.example.net/db"),
        ("Authorization: Bearer abcdefgh12345678", f"Authorization: Bearer {HIDDEN}"),
        ("'X-Api-Key': '550e8400-e29b-41d4'", f"'X-Api-Key': '{HIDDEN}'"),
        ("https://example.com/health answered 200", "https://example.com/health answered 200"),
    ],
)
def test_what_looks_like_a_credential_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown


@given(st.text(min_size=8, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_value_that_must_not_be_printed_never_is(secret: str, before: str, after: str) -> None:
    never_print(secret)
    if secret not in HIDDEN:
        assert secret not in redact(before + " " + secret + " " + after).replace(HIDDEN, "\0")


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 'text' or 'json'"):
        set_up({"RUNBOOKS_LOG": "yaml"})
