"""The base of everything that travels through a history."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Facts(BaseModel):
    """Base of every model that travels through a history: unknown fields are kept out, errors echo no input."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True, frozen=True)
