"""What the process that workers are forked from does before the first of them."""

from __future__ import annotations

from tests.chaos.worker import read_ahead

read_ahead()
