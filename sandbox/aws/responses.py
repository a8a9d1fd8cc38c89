"""What the replaced operations answer with: ministack's ``(status, headers, body)`` triple."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Response = tuple[int, dict[str, str], bytes]


def refused(code: str, message: str, status: int = 400) -> Response:
    """An AWS error of the JSON protocols, named in header and body as the SDKs want it."""
    headers = {"Content-Type": "application/x-amz-json-1.0", "x-amzn-errortype": code}
    return status, headers, json.dumps({"__type": code, "message": message}).encode()


def also_on_reset(module: Any, clear: Callable[[], object]) -> None:
    """Call ``clear`` whenever ministack resets ``module``, so that state kept beside it does not outlive it."""
    reset = module.reset

    def reset_both() -> None:
        reset()
        clear()

    module.reset = reset_both
