"""Taking secrets out of text that is shown to people: samples of logs and the output of commands.

A net, not a licence: what is known to be secret is never put into such text in the first place.
"""

from __future__ import annotations

import re

MASK = "***"

_NAMED = re.compile(
    r"""(?ix)
    (?P<name>["']? [\w-]*
        (?: api[_-]?key | secret | passw(?:or)?d | passphrase | token | authorization | credential | cookie
          | private[_-]?key )
    [\w-]* ["']? \s* [:=] \s*)
    (?: "(?:[^"\\]|\\.)*" | '[^']*' | (?:bearer|basic)\s+\S+ | [^\s,;}&]+ )
    """
)
_PATTERNS = (
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),  # user:password@ of a URI
    re.compile(r"(?i)(?<=bearer )[\w.~+/-]+=*"),
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"),  # JSON web token
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"),  # AWS access key id
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
)
_UUID = re.compile(r"(?i)(?P<before>request_?id[\"']?\s*[:=]?\s*[\"']?)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""The API's keys are UUIDs; those that are said to be request ids stay, because they find a request in the logs."""


def scrub(text: str) -> str:
    """The text with everything masked that looks like a secret."""
    text = _NAMED.sub(lambda found: found["name"] + MASK, text)
    for pattern in _PATTERNS:
        text = pattern.sub(MASK, text)
    return _UUID.sub(lambda found: found[0] if found["before"] else MASK, text)
