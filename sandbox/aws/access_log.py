"""The access log of an API Gateway stage: one line a request, in the format that the stage's settings give."""

from __future__ import annotations

import re
import time
import uuid
from typing import Any

from sandbox.aws import logs

_VARIABLE = re.compile(r"\$context\.([A-Za-z.]+)")
_STREAM = "access"


def write(settings: dict[str, Any], context: dict[str, Any]) -> None:
    """Add the line of one request; nothing where the stage has no access log. What is not known is ``-``."""
    destination, line_format = settings.get("destinationArn"), settings.get("format")
    if not destination or not line_format:
        return
    known = {"requestId": str(uuid.uuid4()), "identity.sourceIp": "127.0.0.1", **context}
    line = _VARIABLE.sub(lambda found: str(known.get(found[1], "-")), line_format)
    group = destination.split(":log-group:", 1)[-1].removesuffix(":*")
    logs.write(group, _STREAM, [{"timestamp": int(time.time() * 1000), "message": line}])
