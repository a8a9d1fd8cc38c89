"""What kind of errors these are, by the document's branches: 4xx or 5xx, 500, 504, 429, 404. Pure functions.

A 4xx answer is usually the client's matter and no reason to act; 429 and 404 have branches of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from activities.metrics import Window
from activities.stage import Stage
from activities.symptom_models import ErrorMinutes, Minute, Requests, RouteCount
from workflows.symptom_readings import Readings

GREW = 1.5
"""So many times the requests of the time before are a spike."""

MOST = 0.5
"""A client with this share of the requests, or of what was added, can be the one that hammers."""

TIMES_OTHERS = 5.0
"""And it sends so many times what the median of the others sends."""

INCREASED = 2.0
"""Answers of a status have increased when their share is so many times what it was."""

MINUTE = timedelta(minutes=1)

ROLLS_OUT = MINUTE
"""So long the old and the new version answer side by side."""

Primary = Literal["5xx", "4xx", "none", "unknown"]


@dataclass(frozen=True)
class Picture:
    """The errors of a window, told apart. Shares are of all requests, 0 to 1; None is not known."""

    primary: Primary
    failed: float | None
    limited: float | None
    missed: float | None
    gone: tuple[RouteCount, ...] = ()
    """Routes that answer 404 now and answered well before: they should exist."""
    unknown: tuple[RouteCount, ...] = ()
    """Routes that answer 404 and never answered well: clients call what is not there."""
    refusing: tuple[RouteCount, ...] = ()
    """Routes that answer 400 to most and answered well before."""
    slowest: tuple[RouteCount, ...] = ()
    """Routes answered 504, or that failed after the longest time."""

    def described(self) -> str:
        shares = (("5xx", self.failed), ("429", self.limited), ("404", self.missed))
        shown = ", ".join(f"{name} {share:.2%}" for name, share in shares if share is not None)
        return f"primary error type {self.primary} ({shown or 'shares not known'})"


def share_of(requests: Requests | None, *statuses: int) -> float | None:
    """Share of answers with these statuses; None when requests are not known."""
    if requests is None or not requests.total:
        return None
    return sum(requests.statuses.get(str(status), 0) for status in statuses) / requests.total


def server_errors(requests: Requests | None) -> float | None:
    if requests is None or not requests.total:
        return None
    return sum(n for status, n in requests.statuses.items() if status.startswith("5")) / requests.total


def picture(seen: Readings, threshold: float) -> Picture:
    """The whole of it. ``threshold`` is the share above which a kind of error counts as the trouble."""
    failed = worst(seen.errors.rate if seen.errors else None, server_errors(seen.requests), server_errors(seen.gateway))
    limited = worst(share_of(seen.requests, 429), share_of(seen.gateway, 429))
    missed = worst(share_of(seen.requests, 404), share_of(seen.gateway, 404))
    was = share_of(seen.earlier, 404)
    if missed is not None and was is not None and missed < INCREASED * was:
        missed = min(missed, threshold)  # as many as ever: nothing has increased
    known = [share for share in (failed, limited, missed) if share is not None]
    primary: Primary = "none"
    if not known:
        primary = "unknown"
    elif failed is not None and failed > threshold:
        primary = "5xx"
    elif max(limited or 0.0, missed or 0.0) > threshold:
        primary = "4xx"
    gone, unknown = missing_routes(seen.requests, seen.earlier)
    return Picture(
        primary=primary,
        failed=failed,
        limited=limited,
        missed=missed,
        gone=gone,
        unknown=unknown,
        refusing=newly_refusing(seen.requests, seen.earlier),
        slowest=slowest(seen),
    )


def worst(*shares: float | None) -> float | None:
    return max((share for share in shares if share is not None), default=None)


def _routes(requests: Requests | None, *statuses: int) -> tuple[RouteCount, ...]:
    return tuple(one for one in requests.routes if one.status in statuses) if requests else ()


def _last_well(requests: Requests | None) -> dict[str, datetime | None]:
    """Routes that answered well, with when they last did."""
    return {one.route: one.last_at for one in requests.routes if one.status < 400} if requests else {}


def _over(bad: RouteCount, well: dict[str, datetime | None]) -> bool:
    """Whether the route has not answered well since it began to answer so.

    Good and bad answers in turns are something else: ids that do not exist, bodies that are wrong. While a deployment
    rolls out both come for a moment.
    """
    if bad.route not in well:
        return True
    last = well[bad.route]
    if last is None or bad.first_at is None or bad.last_at is None or bad.last_at <= last:
        return False
    return last - bad.first_at <= min(ROLLS_OUT, (bad.last_at - bad.first_at) / 2)


def missing_routes(
    now: Requests | None, earlier: Requests | None
) -> tuple[tuple[RouteCount, ...], tuple[RouteCount, ...]]:
    """404s on routes that answered well before, and on routes that never did.

    What answered before has to be known, or nobody can tell.
    """
    well_now, well_before = _last_well(now), _last_well(earlier)
    if not well_before and not well_now:
        return (), ()
    missed = [one for one in _routes(now, 404) if _over(one, well_now)]
    gone = tuple(one for one in missed if one.route in well_before or one.route in well_now)
    if not well_before:
        return gone, ()
    return gone, tuple(one for one in missed if one not in gone)


def newly_refusing(now: Requests | None, earlier: Requests | None) -> tuple[RouteCount, ...]:
    """Routes that answer 400 or 422 to every request, and answered well before: validation that was changed."""
    well_now, well_before = _last_well(now), _last_well(earlier)
    known = well_now.keys() | well_before.keys()
    return tuple(one for one in _routes(now, 400, 422) if one.route in known and _over(one, well_now))


def slowest(seen: Readings) -> tuple[RouteCount, ...]:
    """Which routes time out: by the gateway's log, which sees what the function could not log any more."""
    timed_out = _routes(seen.gateway, 504) or _routes(seen.requests, 504)
    if timed_out:
        return timed_out
    timed = [one for one in (seen.requests.routes if seen.requests else ()) if one.longest_ms is not None]
    return tuple(sorted(timed, key=lambda one: -(one.longest_ms or 0.0))[:3])


# --- one client, or all of them -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crowd:
    """Who sends the requests."""

    kind: Literal["one client", "general spike", "no spike", "unknown"]
    why: str
    client: str | None = None
    requests: int | None = None
    growth: float | None = None
    """Requests now by requests before; None when the time before is not known."""


def crowd(now: Requests | None, earlier: Requests | None) -> Crowd:
    """Whether one client hammers the API, or many send more, or neither.

    One client: most of what was added is its, or it sends most of everything and many times what the others send.
    """
    if now is None or not now.total or not now.clients:
        return Crowd("unknown", "who sends the requests is not known")
    before = {one.client: one.requests for one in earlier.clients} if earlier and earlier.total else None
    growth = now.total / earlier.total if earlier and earlier.total else None
    top = now.clients[0]
    share = top.requests / now.total
    if before is not None and growth is not None and growth >= GREW and earlier is not None and earlier.total:
        added = now.total - earlier.total
        most = max(now.clients, key=lambda one: one.requests - before.get(one.client, 0))
        own = most.requests - before.get(most.client, 0)
        if own >= MOST * added:
            why = f"{own} of {added} requests more than before are from {most.client}"
            return Crowd("one client", why, most.client, most.requests, growth)
        return Crowd(
            "general spike",
            f"{growth:.1f} times the requests of before, from {now.client_count} clients",
            growth=growth,
        )
    if now.client_count > 1 and share >= MOST and top.requests >= TIMES_OTHERS * (now.other_median or 0.0):
        why = f"{share:.0%} of {now.total} requests are from {top.client}, {now.other_median:.0f} from the median other"
        return Crowd("one client", why, top.client, top.requests, growth)
    if growth is None:
        return Crowd("no spike", f"no client stands out of {now.client_count}; the time before is not known")
    return Crowd("no spike", f"{growth:.1f} times the requests of before, no client stands out", growth=growth)


def without_clients(requests: Requests | None, clients: set[str]) -> Requests | None:
    """As if these clients had sent nothing; their own answers other than 429, 404 and 5xx count as good ones."""
    if requests is None or not requests.total:
        return requests
    left, total = dict(requests.statuses), requests.total
    for one in requests.clients:
        if one.client not in clients:
            continue
        total -= one.requests
        for status, n in (("429", one.limited), ("404", one.missed)):
            left[status] = max(0, left.get(status, 0) - n)
        for status in [status for status in left if status.startswith("5")]:
            taken = min(left[status], one.failed)
            left[status] -= taken
    return requests.model_copy(update={"total": total or None, "statuses": left})


# --- how long it lasts ----------------------------------------------------------------------------------------------


def lasting_window(stage: Stage, end: datetime, lasting: timedelta) -> Window:
    """What :func:`sustained` has to see. Metrics are of whole minutes: one more, or fewer than asked for are inside."""
    return Window(stage=stage, start=end - _full_minutes(lasting) - MINUTE, end=end)


def sustained(errors: ErrorMinutes | None, over: float, lasting: timedelta, now: datetime) -> bool:
    """Whether every minute with traffic of the last ``lasting`` failed at more than ``over``.

    The minutes have to reach over the whole time: a spike of a moment is none, and neither is one busy minute of ten.
    """
    if errors is None:
        return False
    lasting = _full_minutes(lasting)
    recent = [one for one in errors.minutes if one.at + MINUTE > now - lasting]
    if not recent or any(_rate(one) <= over for one in recent):
        return False
    return max(one.at for one in recent) + MINUTE - min(one.at for one in recent) >= lasting


def _full_minutes(lasting: timedelta) -> timedelta:
    return max(MINUTE, lasting - lasting % MINUTE)


def _rate(minute: Minute) -> float:
    return minute.failed / minute.requests if minute.requests else 0.0


def described_routes(routes: Iterable[RouteCount], most: int = 3) -> str:
    """A few routes for people."""
    return ", ".join(f"{one.route} ({one.requests})" for one in list(routes)[:most]) or "none"
