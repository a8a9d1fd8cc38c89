"""Whether the service is good, judged look by look. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from activities.pulse import Pulse
from workflows.diagnosis_model import Branch
from workflows.incident_state import Look, Situation, Tried

GOOD_ERRORS = 0.01
"""The document's threshold: more than 1 % of the requests failing is a high error rate."""

GOOD_LATENCY_MS = 2000.0
"""The document's threshold of degradation."""

BELIEVED = 2
"""Bad looks in a row that are believed: one is chance."""

HELPS_WITHIN = 4
"""Looks after a remedy within which the service has to be good once, or it did not help."""


class Turn(StrEnum):
    """What a look changes."""

    NONE = "none"
    RECOVERED = "recovered"
    STABLE = "stable"
    RELAPSED = "relapsed"
    DID_NOT_HELP = "did_not_help"


@dataclass(frozen=True)
class Verdict:
    good: bool | None
    text: str


def judge(pulse: Pulse | None) -> Verdict:
    """Good, bad, or not to be told: what could not be measured is never good."""
    if pulse is None:
        return Verdict(None, "the service could not be looked at")
    problems = []
    if not pulse.health_ok:
        problems.append(f"/health answers {pulse.health}")
    if not pulse.ready_ok:
        problems.append(f"/health/ready answers {pulse.ready}")
    if pulse.error_rate is not None and pulse.error_rate > GOOD_ERRORS:
        problems.append(f"{pulse.error_rate:.1%} of the requests fail")
    if pulse.throttled:
        problems.append(f"{pulse.throttled} calls were refused")
    if pulse.latency_ms is not None and pulse.latency_ms > GOOD_LATENCY_MS:
        problems.append(f"requests take {pulse.latency_ms / 1000:.1f} s")
    if problems:
        return Verdict(False, "; ".join(problems))
    return Verdict(True, pulse.summary)


def turn(situation: Situation, verdict: Verdict, stable_for: timedelta, now: datetime) -> Turn:
    """Enter a look, and say what it changes."""
    situation.looked(Look(at=now, good=verdict.good, text=verdict.text))
    book = situation.book
    if book is None or verdict.good is None:
        return Turn.NONE
    if not verdict.good:
        return _bad(situation)
    situation.bad_row = 0
    recovered = situation.good_since is None
    if recovered:
        situation.good_since = now
    last = _last_remedy(situation)
    if last is not None and last.helped is None:
        last.helped = True
    since = situation.good_since or now
    if now - since >= stable_for and not book.reached("stable"):
        return Turn.STABLE
    return Turn.RECOVERED if recovered else Turn.NONE


def _bad(situation: Situation) -> Turn:
    book = situation.book
    situation.was_bad = True
    situation.bad_row += 1
    if situation.bad_row < BELIEVED or book is None:
        return Turn.NONE
    was_good, situation.good_since = situation.good_since is not None, None
    if was_good and book.reached("mitigated"):
        return Turn.RELAPSED
    last = _last_remedy(situation)
    if last is not None and last.helped is None and situation.bad_row >= HELPS_WITHIN:
        last.helped = False
        return Turn.DID_NOT_HELP
    return Turn.NONE


def unexplained(situation: Situation, verdict: Verdict) -> bool:
    """Whether to diagnose anew: this look was bad, and the last diagnosis names nothing that could be done about it.

    At the first look everything may have been away that could tell. Not at every look: after 2, 4, 8 and so on. A look
    that could not tell is not counted, so it decides nothing either.
    """
    return _nothing_explains(situation, verdict) and _doubled(situation.bad_row)


def still_unexplained(situation: Situation, verdict: Verdict) -> bool:
    """The same for as long as it lasts, at every eighth look: what could not tell may be back at any time."""
    return _nothing_explains(situation, verdict) and situation.bad_row % 8 == 0


def unread(situation: Situation, verdict: Verdict) -> bool:
    """Whether it is :func:`uncured`, and a source that would have told more could not be read."""
    return uncured(situation, verdict) and situation.conclusion is not None and bool(situation.conclusion.failed)


def uncured(situation: Situation, verdict: Verdict) -> bool:
    """Whether to diagnose anew though something explains it: no runbook is known to cure that.

    What explains much may have been so for a moment, as a database that did not answer. As often as what nothing
    explains.
    """
    row, found = situation.bad_row, situation.conclusion
    due = _doubled(row) or row % 8 == 0
    return verdict.good is False and due and found is not None and not found.options


def _doubled(row: int) -> bool:
    """Whether so many bad looks are believed, and twice as many as at the last time: 2, 4, 8 and so on."""
    return row >= BELIEVED and row & (row - 1) == 0


def _nothing_explains(situation: Situation, verdict: Verdict) -> bool:
    conclusion = situation.conclusion
    return verdict.good is False and (conclusion is None or conclusion.branch in (Branch.UNKNOWN, Branch.HEALTHY))


def _last_remedy(situation: Situation) -> Tried | None:
    done = [tried for tried in situation.tried if tried.state == "done"]
    return done[-1] if done else None
