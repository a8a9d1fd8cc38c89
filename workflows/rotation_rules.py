"""The decisions of a rotation, as pure functions: who is still on an old key, whom to remind, when the next one is due.

No clock and no I/O: moments come in as arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

from activities.rotation_models import KeyUse
from activities.stage import ApiClient

_DAY = timedelta(days=1)

UNKNOWN = "somebody with key {key}"
"""Stands for a client that the registry does not know."""


class ClientState(BaseModel):
    """What is known of one client since the new keys are accepted."""

    model_config = ConfigDict(frozen=True)

    name: str
    registered: bool = True
    told: str | None = Field(None, description="Where its notice was delivered; None when nobody took it")
    acknowledged_by: str | None = None
    last_old: datetime | None = Field(None, description="Last accepted request with an old key")
    last_new: datetime | None = None
    reminded: tuple[int, ...] = Field(
        (), description="Reminders that it was sent, by their seconds before the deadline"
    )


Clients = Mapping[str, ClientState]


def whose(use: KeyUse, registry: Sequence[ApiClient], owners: Mapping[str, str]) -> str:
    """Which client a use of a key belongs to.

    The name in the log line counts when the registry knows it. Otherwise the key tells, if only one client has it.

    Args:
        owners: role by fingerprint, for the keys whose role is known.
    """
    if any(client.name == use.client for client in registry):
        return str(use.client)
    having = [client.name for client in registry if client.key == owners.get(use.key)]
    if len(having) == 1 and not use.client:
        return having[0]
    return use.client or UNKNOWN.format(key=use.key)


def noted(
    clients: Clients,
    uses: Iterable[KeyUse],
    registry: Sequence[ApiClient],
    owners: Mapping[str, str],
    old: Iterable[str],
) -> dict[str, ClientState]:
    """The clients with what the log says of them. Seeing the same line twice changes nothing."""
    known, former = dict(clients), frozenset(old)
    for use in uses:
        name = whose(use, registry, owners)
        state = known.get(name) or ClientState(name=name, registered=False)
        if use.key in former:
            seen = {"last_old": max(state.last_old or use.last, use.last)}
        else:
            seen = {"last_new": max(state.last_new or use.last, use.last)}
        known[name] = state.model_copy(update=seen)
    return known


def on_old(client: ClientState, now: datetime, quiet: timedelta) -> bool:
    """Whether a client has still to change its key.

    It has when it used an old key within the last ``quiet``, or has used an old one and no new one since: a job that
    runs once a week is silent for six days and still on the old key.
    """
    if client.last_old is None:
        return False
    if client.last_old > now - quiet:
        return True
    return client.last_new is None or client.last_new < client.last_old


def stragglers(clients: Clients, now: datetime, quiet: timedelta) -> list[str]:
    """Names of the clients that have still to change, in order."""
    return sorted(name for name, client in clients.items() if on_old(client, now, quiet))


def moved(clients: Clients, now: datetime, quiet: timedelta) -> list[str]:
    """Registered clients that are known to use the new key, or say so."""
    return sorted(
        name
        for name, client in clients.items()
        if client.registered and not on_old(client, now, quiet) and (client.last_new or client.acknowledged_by)
    )


def due_reminder(
    client: ClientState, deadline: datetime, now: datetime, before: Sequence[timedelta], quiet: timedelta
) -> timedelta | None:
    """Which reminder a client is to be sent now; None when none is due or it was sent.

    When a look comes late, the reminders that were missed are not sent on top of the last one.
    """
    left = deadline - now
    due = [ahead for ahead in before if left <= ahead]
    if not due or left <= timedelta(0) or not on_old(client, now, quiet):
        return None
    nearest = min(due)
    return None if _seconds(nearest) in client.reminded else nearest


def reminded(client: ClientState, reminder: timedelta, before: Sequence[timedelta]) -> ClientState:
    """The client, with this reminder and all earlier ones behind it."""
    done = {_seconds(ahead) for ahead in before if ahead >= reminder} | set(client.reminded)
    return client.model_copy(update={"reminded": tuple(sorted(done, reverse=True))})


def usage_known(named: int, *, complete: bool) -> bool:
    """Whether silence means anything: a log in which no line names a key tells nothing about old keys."""
    return complete and named > 0


def token_overlap(life: timedelta, skew: timedelta, wanted: timedelta) -> timedelta:
    """How long tokens of the old key stay accepted: never less than the longest life of one and the clocks' skew."""
    return max(life + skew, wanted)


def unused(last: datetime | None, switched: datetime, now: datetime, quiet: timedelta) -> bool:
    """Whether nobody has used the old user for so long, counted from the switch at the earliest."""
    return now - max(last or switched, switched) >= quiet


def next_rotation(started: datetime, every: timedelta, closed: datetime, overlap: timedelta) -> datetime:
    """When the next rotation begins: one period after this one began, and never within one overlap of its end."""
    return max(started + every, closed + overlap)


def next_try(started: datetime, ended: datetime, pause: timedelta) -> datetime:
    """When what came to nothing begins anew: a pause after it ended, at the hour at which it had begun.

    The hour makes it half a day earlier or later. ``pause`` is at least a day.
    """
    days = round((ended + pause - started) / _DAY)
    return started + days * _DAY


def _seconds(span: timedelta) -> int:
    return round(span.total_seconds())
