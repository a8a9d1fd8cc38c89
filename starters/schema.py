"""A runbook's input for people: its fields in words, what is wrong with one that was typed, and how it is read."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_json

from starters.problems import Code, Problem
from workflows.model import RunbookInput


class InputField(BaseModel):
    """One field of an input, as a row of a table."""

    name: str
    takes: str
    required: bool
    default: Any = None
    description: str = ""


def fields(model: type[BaseModel]) -> list[InputField]:
    """The fields of an input in the order of the model, the required ones first."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    rows = [
        InputField(
            name=name,
            takes=takes(part, schema.get("$defs", {})),
            required=name in required,
            default=part.get("default"),
            description=part.get("description", ""),
        )
        for name, part in schema["properties"].items()
    ]
    return sorted(rows, key=lambda row: not row.required)


def takes(part: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a part of a JSON schema takes, in words: ``whole number 0..9``, ``duration such as PT15M``."""
    if "$ref" in part:
        return takes(definitions[part["$ref"].rpartition("/")[2]], definitions)
    if choices := part.get("anyOf") or part.get("oneOf"):
        return " or ".join(dict.fromkeys(takes(c, definitions) for c in choices if c.get("type") != "null"))
    if "enum" in part:
        return " | ".join(str(value) for value in part["enum"])
    if "const" in part:
        return str(part["const"])
    match part.get("type"):
        case "string":
            return _text(part)
        case "integer":
            return "whole number" + _bounds(part)
        case "number":
            return "number" + _bounds(part)
        case "boolean":
            return "true | false"
        case "array":
            return f"list of {takes(part.get('items', {}), definitions)}"
        case "object" if "properties" in part:
            inner = ", ".join(f"{name}: {takes(value, definitions)}" for name, value in part["properties"].items())
            return f"object with {inner}"
        case "object":
            return "object"
        case _:
            return "any JSON"


def _text(part: Mapping[str, Any]) -> str:
    match part.get("format"):
        case "duration":
            return "duration such as PT15M"
        case "date-time":
            return "time such as 2026-01-31T14:02:00Z"
        case _:
            return f"text, at most {part['maxLength']} characters" if "maxLength" in part else "text"


def _bounds(part: Mapping[str, Any]) -> str:
    low, high = part.get("minimum"), part.get("maximum")
    above, below = part.get("exclusiveMinimum"), part.get("exclusiveMaximum")
    words = [f" {low}..{high}"] if low is not None and high is not None else []
    if not words:
        words += [f" from {low}"] if low is not None else []
        words += [f" up to {high}"] if high is not None else []
    words += [f" above {above}"] if above is not None else []
    words += [f" below {below}"] if below is not None else []
    return "".join(words)


# --- what was typed --------------------------------------------------------------------------------------------------


def typed(text: str | None, assignments: Sequence[str]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """The input as typed: one JSON object (as text, ``@file`` or ``-`` for standard input), then ``--set`` on top.

    Returns:
        The input, and the raw text of each assignment by its path: a value that reads as a number may be meant as text.

    Raises:
        Problem: it is no JSON object, or an assignment is none.
    """
    whole = _document(text) if text is not None else {}
    raw: dict[tuple[str, ...], str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            raise Problem(f"--set takes key=value or key.key=value, not {key!r}", Code.BAD_INPUT)
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = value
        _put(whole, path, parsed)
        raw[path] = value
    return whole, raw


def _document(text: str) -> dict[str, Any]:
    source = "--input"
    if text == "-":
        source, text = "standard input", sys.stdin.read()
    elif text.startswith("@"):
        source = text[1:]
        try:
            text = Path(source).read_text()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise Problem(f"--input: {source} cannot be read: {why}", Code.BAD_INPUT) from None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(f"{source} is no JSON: {error}", Code.BAD_INPUT) from None
    if not isinstance(document, dict):
        raise Problem(f"{source} takes one JSON object, not a {type(document).__name__}", Code.BAD_INPUT)
    return document


def _put(whole: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    here = whole
    for key in path[:-1]:
        inner = here.setdefault(key, {})
        if not isinstance(inner, dict):
            raise Problem(f"--set {'.'.join(path)}: {key} is no object", Code.BAD_INPUT)
        here = inner
    here[path[-1]] = value


def validated(
    model: type[RunbookInput], given: dict[str, Any], raw: Mapping[tuple[str, ...], str] | None = None
) -> RunbookInput:
    """The input by the runbook's own model, as the run itself will read it.

    Raises:
        Problem: it does not fit; the message names each field and what it takes.
    """
    try:
        return model.model_validate_json(to_json(given))
    except ValidationError as error:
        texts = [e["loc"] for e in error.errors() if e["type"] == "string_type" and e["loc"] in (raw or {})]
        if raw and texts:
            # 'to=12' names version 12 and 'to=12e4567' a commit: both are numbers to JSON and texts to the model.
            for path in texts:
                key = tuple(str(part) for part in path)
                _put(given, key, raw[key])
            return validated(model, given)
        raise Problem(
            "; ".join(_complaint(model, e) for e in error.errors(include_url=False)), Code.BAD_INPUT
        ) from None


def _complaint(model: type[BaseModel], error: ErrorDetails) -> str:
    """One finding without the value, which may be a secret typed by mistake."""
    known = {field.name: field for field in fields(model)}
    top = str(error["loc"][0]) if error["loc"] else ""
    where = ".".join(str(part) for part in error["loc"]) or "input"
    if error["type"] == "extra_forbidden" and len(error["loc"]) == 1:
        close = difflib.get_close_matches(top, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(known)}"
        return f"{where}: there is no such field; {hint}"
    message = "is required" if error["type"] == "missing" else re.sub(r"^Value error, ", "", error["msg"])
    if top not in known:
        return f"{where}: {message}"
    about = f" ({known[top].description})" if known[top].description else ""
    return f"{where}: {message}. {top} takes {known[top].takes}{about}"
