"""Limits of single clients, in the parameter where the API reads them. A client is named by the id of its key."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError
from temporalio import activity

from activities.errors import classified, lasting
from activities.evidence import Finding
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_ssm import SSMClient

ClientId = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{6,16}$")]
"""Id or fingerprint of a key. Nothing that could be a key itself: those are longer."""


class ClientLimit(Facts):
    per_minute: int = Field(ge=1, le=1_000_000, description="Requests a minute that are answered")
    until: AwareDatetime | None = Field(None, description="When the API no longer heeds it; absent means never")

    def described(self) -> str:
        until = f" until {self.until:%Y-%m-%d %H:%M} UTC" if self.until else ""
        return f"{self.per_minute} requests a minute{until}"


class LimitAsked(Facts):
    stage: Stage
    client: ClientId


class LimitFound(Finding):
    """The limit of one client, if it has one."""

    limit: ClientLimit | None = None
    others: int = Field(0, description="Other clients that have one")


class SetLimit(Facts):
    """Exactly this limit for a client, or none."""

    stage: Stage
    client: ClientId
    limit: ClientLimit | None = None


class ClientLimits:
    def __init__(self, ssm: SSMClient) -> None:
        self._ssm = ssm

    @activity.defn(name="limits.look")
    @classified("read the limits of clients")
    def look(self, asked: LimitAsked) -> LimitFound:
        """The client's limit as the API reads it.

        Raises:
            NoLimits: the stage names no parameter for limits.
            BadLimits: what stands there is not what the API reads.
        """
        found = self._read(_parameter(asked.stage))
        limit = found.pop(asked.client, None)
        state = limit.described() if limit else "no limit of its own"
        return LimitFound(summary=f"client {asked.client}: {state}", limit=limit, others=len(found))

    @activity.defn(name="limits.set")
    @classified("set the limit of a client")
    def set(self, order: SetLimit) -> LimitFound:
        """Set or remove one client's limit; those of others stay. Limits that have run out are dropped with it."""
        parameter = _parameter(order.stage)
        found, now = self._read(parameter), datetime.now(UTC)
        kept = {name: one for name, one in found.items() if one.until is None or one.until > now}
        kept.pop(order.client, None)
        others = len(kept)
        if order.limit is not None:
            kept[order.client] = order.limit
        if kept != found:
            text = json.dumps({name: _plain(one) for name, one in sorted(kept.items())})
            self._ssm.put_parameter(Name=parameter, Value=text, Type="String", Overwrite=True)
        state = order.limit.described() if order.limit else "no limit of its own"
        return LimitFound(summary=f"client {order.client}: {state}", limit=order.limit, others=others)

    def _read(self, parameter: str) -> dict[str, ClientLimit]:
        try:
            value = self._ssm.get_parameter(Name=parameter)["Parameter"]["Value"]
        except self._ssm.exceptions.ParameterNotFound:
            return {}
        try:
            rows: dict[str, Any] = json.loads(value)
            return {name: ClientLimit.model_validate(row) for name, row in rows.items()}
        except (ValueError, AttributeError, ValidationError):
            raise lasting(
                f"parameter {parameter} does not hold limits by client. Look at it, and correct it by hand",
                type="BadLimits",
            ) from None


def _parameter(stage: Stage) -> str:
    if stage.limits_parameter is None:
        raise lasting(
            f"stage {stage.name} names no limits_parameter: its API cannot be told to limit one client. "
            "Limit it at the gateway (usage plan) or the firewall",
            type="NoLimits",
        )
    return stage.limits_parameter


def _plain(limit: ClientLimit) -> dict[str, Any]:
    """As the API reads it: times as ISO 8601 in UTC, which compare as texts."""
    until = limit.until.astimezone(UTC).isoformat() if limit.until else None
    return {"per_minute": limit.per_minute, "until": until}
