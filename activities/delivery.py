"""How a message gets to somebody: one provider after another, each for a short time, with one quick second try."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx
from temporalio.exceptions import ApplicationError

from activities.errors import from_http, lasting, passing
from activities.messages import Attempt

# httpx logs every request's URL, and the URL of a chat webhook is its password.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

TIMEOUT = 5.0
"""Seconds that one provider may take to connect, and again to answer, before the next one is asked."""

_PAUSE = 0.3
_LONGEST_PAUSE = 3.0
"""Seconds. A provider that asks for a longer pause than this is not waited for: the next one takes over."""

T = TypeVar("T")


def first_to_take(names: Sequence[str], send: Callable[[str], T], what: str) -> tuple[str, T, tuple[Attempt, ...]]:
    """Call ``send`` with each provider's name until one takes it.

    Args:
        names: providers in order of preference, at least one.
        send: hands the message over; raises an ``ApplicationError`` of :mod:`activities.errors` when that failed.
        what: what is being sent, such as ``"the announcement 'Rolled back'"``, for the error.

    Returns:
        The provider that took it, what ``send`` returned, and every provider's outcome.

    Raises:
        ApplicationError: nobody took it. It may pass, so the policy of the step decides how often to come back.
    """
    attempts: list[Attempt] = []
    hints: list[float] = []
    for name in names:
        try:
            result = _with_second_try(send, name)
        except ApplicationError as error:
            attempts.append(Attempt(provider=name, ok=False, detail=error.message))
            if error.next_retry_delay is not None:
                hints.append(error.next_retry_delay.total_seconds())
            continue
        attempts.append(Attempt(provider=name, ok=True, detail="taken"))
        return name, result, tuple(attempts)
    raise nobody_took(what, attempts, min(hints, default=None))


def nobody_took(what: str, attempts: Sequence[Attempt], retry_after: float | None = None) -> ApplicationError:
    reasons = "; ".join(f"{attempt.provider}: {attempt.detail}" for attempt in attempts if not attempt.ok)
    return passing(
        f"nobody took {what}. {reasons}. Check these providers in the settings, or tell people by another way",
        type="NobodyTookIt",
        retry_after=retry_after,
    )


def _with_second_try(send: Callable[[str], T], name: str) -> T:
    try:
        return send(name)
    except ApplicationError as error:
        pause = error.next_retry_delay.total_seconds() if error.next_retry_delay else _PAUSE
        if error.non_retryable or pause > _LONGEST_PAUSE:
            raise
    time.sleep(pause)
    return send(name)


def call(
    http: httpx.Client,
    method: str,
    url: str,
    doing: str,
    *,
    json: Any = None,
    params: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> httpx.Response:
    """One bounded request that answers 2xx.

    Raises:
        ApplicationError: classified; it may quote the service's reason but never the URL, a header or what was sent.
    """
    try:
        request = http.build_request(method, url, json=json, params=params, headers=headers, timeout=TIMEOUT)
        response = http.send(request, auth=auth)
    except httpx.UnsupportedProtocol:
        raise lasting(f"could not {doing}: its URL does not begin with http:// or https://") from None
    except httpx.HTTPError as error:
        raise from_http(error, doing) from None
    except (ValueError, httpx.InvalidURL):
        # What these say quotes what was sent.
        raise lasting(
            f"could not {doing}: its URL, credential or text has characters that HTTP does not allow", type="BadRequest"
        ) from None
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        classified = from_http(error, doing)
        reason = _reason(response)
        if reason and classified.non_retryable:
            raise lasting(f"{classified.message}: {reason}", type=classified.type or "Refused") from None
        raise classified from None
    return response


def object_of(response: httpx.Response, doing: str) -> dict[str, Any]:
    """The answer as a JSON object.

    Raises:
        ApplicationError: it is something else, as from a captive proxy. It may pass.
    """
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise unexpected(response, doing)
    return value


def unexpected(response: httpx.Response, doing: str) -> ApplicationError:
    return passing(
        f"could not {doing}: HTTP {response.status_code} with an answer that is not this service's own "
        "(a proxy in between?)",
        type="UnexpectedAnswer",
    )


def _reason(response: httpx.Response) -> str:
    """What the service says was wrong, from the shapes in use: a bare word (Slack), or the usual JSON fields."""
    if re.fullmatch(r"[a-z_]{1,60}", response.text):
        return response.text
    try:
        body = response.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    errors = body.get("errors")
    parts = [body.get("message"), *(body.get("errorMessages") or [])]
    parts += errors.values() if isinstance(errors, dict) else errors if isinstance(errors, list) else []
    return " ".join("; ".join(part for part in parts if isinstance(part, str)).split())[:300]
