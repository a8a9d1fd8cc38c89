"""What must never be printed: values of secrets that this process has held, and passwords within addresses.

Nothing of the product logs a secret. This is the net below that: a library's debug line, a traceback, an address quoted
by a driver. The values are kept in memory only, as they are anyway while they are used.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict

HIDDEN = "[secret]"

_SHORTEST = 8
"""Shorter values are not looked for: they would hide ordinary words."""

_MOST = 500
"""Values kept; the ones seen longest ago go first."""

_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)[^\s/@:]*:[^\s/@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic|x-api-key)(['\"]?\s*[:=]?\s*['\"]?)([\w.~+/=-]{8,})")

_lock = threading.Lock()
_values: OrderedDict[str, None] = OrderedDict()


def never_print(value: str) -> None:
    """Have :func:`redact` hide this value from now on."""
    if len(value) < _SHORTEST:
        return
    with _lock:
        _values[value] = None
        _values.move_to_end(value)
        while len(_values) > _MOST:
            _values.popitem(last=False)


def redact(text: str) -> str:
    """The text without any value that was given to :func:`never_print`, and without what looks like a credential."""
    with _lock:
        held = [value for value in _values if value in text]
    for value in sorted(held, key=len, reverse=True):  # one secret can be part of another
        text = text.replace(value, HIDDEN)
    text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _BEARER.sub(rf"\1\2{HIDDEN}", text)
