"""The document's decision tree, as a pure function of what was seen: same readings, same conclusion.

In the document's order: not responding, errors above 5 %, latency above 5 s, throttling. What cannot be is set aside
first and named. Every cause is weighed by the evidence for and against it, and whatever is not known weighs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta

from workflows.details import length
from workflows.diagnosis_model import Branch, Conclusion, Readings
from workflows.diagnosis_remedies import Context, options, rank, refusals

ERRORS_ABOVE = 0.05
LATENCY_ABOVE_MS = 5000.0
THROTTLED_ABOVE = 0.01
_MOSTLY = 0.5
_FEWEST_ERRORS = 2
"""One failed request of ten is no rate."""


def diagnose(readings: Readings, context: Context) -> Conclusion:
    """Where on the tree the stage is, why, and what to do next."""
    seen, impossible = set_aside(readings)
    branch, symptoms = place(seen)
    causes = rank(branch, seen, context)
    refused = refusals(branch, seen)
    possible = options(causes, branch, seen, context, refused)
    return Conclusion(
        branch=branch,
        symptoms=symptoms,
        summary=_summary(branch, symptoms, causes[0].text if causes else None, impossible),
        checks=_CHECKS[branch](seen),
        causes=causes,
        next=possible[0] if possible else None,
        options=possible,
        refused=refused,
        impossible=impossible,
        failed=tuple(f"{source}: {why}" for source, why in sorted(readings.failed_sources.items())),
        deployments=_deployments(seen),
    )


def place(seen: Readings) -> tuple[Branch, tuple[str, ...]]:
    """The first branch whose condition holds, and every condition that holds, in words."""
    found = [(branch, text) for branch, holds in _CONDITIONS if (text := holds(seen)) is not None]
    if found:
        return found[0][0], tuple(text for _, text in found)
    if seen.health_ok is None:
        return Branch.UNKNOWN, ("whether the API responds is not known",)
    if "metrics" in seen.failed_sources:
        return Branch.UNKNOWN, ("/health answers, and the figures of the requests could not be read",)
    known = [f"/health answers in {seen.health_ms or 0:.0f} ms"]
    if seen.error_rate is not None:
        known.append(f"{seen.error_rate:.2%} of the requests fail")
    return Branch.HEALTHY, tuple(known)


# --- the conditions, in the document's order -------------------------------------------------------------------------


def _not_responding(seen: Readings) -> str | None:
    if seen.health_ok is False:
        if _throttled(seen) and (seen.invocations or 0) > 0:
            return None  # it does respond, to whoever is let through
        how = f"HTTP {seen.health_status}" if seen.health_status else "nothing"
        return f"the API does not respond: /health answers {how}"
    if seen.ready_ok is False and (seen.error_rate is None or seen.error_rate >= _MOSTLY):
        if seen.ready_status is None and (seen.latency_ms or 0) > LATENCY_ABOVE_MS:
            return None  # slow, not gone
        how = f"HTTP {seen.ready_status}" if seen.ready_status else "nothing"
        return f"the API responds but is not ready: /health/ready answers {how}"
    return None


def _errors(seen: Readings) -> str | None:
    rate = seen.error_rate
    counted = [seen.errors, seen.gateway_5xx] if "metrics" not in seen.failed_sources else [seen.lines_of_failures]
    failed = max(count or 0 for count in counted)
    if rate is None or rate <= ERRORS_ABOVE or failed < _FEWEST_ERRORS or _refusals_explain_it(seen):
        return None
    return f"{rate:.1%} of the requests fail, more than {ERRORS_ABOVE:.0%}"


def _latency(seen: Readings) -> str | None:
    if seen.latency_ms is None or seen.latency_ms <= LATENCY_ABOVE_MS:
        return None
    return f"requests take {seen.latency_ms / 1000:.1f} s on average, more than {LATENCY_ABOVE_MS / 1000:.0f} s"


def _throttling(seen: Readings) -> str | None:
    if not _throttled(seen):
        return None
    return f"{seen.throttles} calls were refused, {seen.throttle_rate or 0:.1%} of all"


def _throttled(seen: Readings) -> bool:
    return seen.throttle_rate is not None and seen.throttle_rate > THROTTLED_ABOVE


def _refusals_explain_it(seen: Readings) -> bool:
    """The 5xx of the gateway are refused calls, and what ran did well: the document's last branch, not its second."""
    own = (seen.errors or 0) / seen.invocations if seen.invocations else 0.0
    return _throttled(seen) and own <= ERRORS_ABOVE and (seen.throttles or 0) >= _MOSTLY * (seen.gateway_5xx or 0)


_CONDITIONS: tuple[tuple[Branch, Callable[[Readings], str | None]], ...] = (
    (Branch.NOT_RESPONDING, _not_responding),
    (Branch.ERRORS, _errors),
    (Branch.LATENCY, _latency),
    (Branch.THROTTLING, _throttling),
)


# --- readings that cannot be -----------------------------------------------------------------------------------------

_APART = 1.25
_SLACK_MS = 100.0
"""Averages over different minutes differ a little; only what no rounding explains is impossible."""


def set_aside(readings: Readings) -> tuple[Readings, tuple[str, ...]]:
    """The readings without those that cannot be, and what is wrong with these."""
    wrong: dict[str, str] = {}

    def exceeds(part: str, whole: str, what: str, unit: str, factor: float = 1.0, slack: float = 0.0) -> None:
        low, high = getattr(readings, whole), getattr(readings, part)
        if low is not None and high is not None and high > low * factor + slack:
            wrong[part] = wrong[whole] = f"{what}: {high:g} of {low:g} {unit}"

    averages: dict[str, float] = {"factor": _APART, "slack": _SLACK_MS}
    exceeds("integration_ms", "gateway_ms", "the integration outlasts the gateway, which includes it", "ms", **averages)
    exceeds("duration_ms", "duration_max_ms", "invocations take longer on average than at most", "ms", slack=1)
    exceeds("errors", "invocations", "more invocations fail than there are", "invocations")
    exceeds("gateway_5xx", "requests", "more requests are answered 5xx than there are", "requests")
    exceeds("duration_max_ms", "timeout_ms", "an invocation ran longer than the function may", "ms", slack=2000)
    exceeds("memory_used_mb", "memory_mb", "an invocation used more memory than there is", "MB", slack=10)
    calls, asked = readings.invocations, readings.requests
    if calls and asked and 0.8 <= calls / asked <= 1.25:  # else they are not about the same requests
        exceeds("duration_ms", "gateway_ms", "the function outlasts the gateway, which waits for it", "ms", **averages)
    if readings.live_since is not None and readings.live_since > readings.taken_at + timedelta(minutes=1):
        wrong["live_since"] = "the live release was deployed in the future: a clock is wrong"
    for name, value in readings:
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            wrong[name] = f"{name} is {value:g}, and nothing less than nothing can be measured"
    kept = readings.model_copy(update=dict.fromkeys(wrong))
    return kept, tuple(dict.fromkeys(wrong.values()))


# --- what is said of it ----------------------------------------------------------------------------------------------


def _summary(branch: Branch, symptoms: tuple[str, ...], cause: str | None, impossible: tuple[str, ...]) -> str:
    doubt = f" ({len(impossible)} readings cannot be: see the data problems)" if impossible else ""
    if branch in (Branch.HEALTHY, Branch.UNKNOWN):
        return f"{'; '.join(symptoms)}{doubt}"
    return f"{symptoms[0]}; most likely: {cause or 'not known'}{doubt}"


def _deployments(seen: Readings) -> tuple[str, ...]:
    return tuple(
        f"{entry.facts().name} at {entry.deployed_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC by {entry.deployed_by} "
        f"({length(seen.taken_at - entry.deployed_at)} before)"
        for entry in seen.deployments
    )


def _logs(seen: Readings) -> str:
    if seen.log_lines is None:
        return "not known"
    kinds = {name: count for name, count in seen.log_lines.model_dump().items() if count}
    return ", ".join(f"{count} {name}" for name, count in kinds.items()) or "no error lines"


def _database(seen: Readings) -> str:
    if seen.database_ok is None:
        return "not known"
    if not seen.database_ok:
        return f"does not answer: {seen.database_problem or 'no reason given'}"
    left = f", {seen.connections_left} left" if seen.connections_left is not None else ""
    used = f"{seen.connections} connections{left}" if seen.connections is not None else "connections not known"
    return f"answers in {seen.database_ping_ms or 0:.0f} ms, {used}"


def _gateway(seen: Readings) -> str:
    if seen.requests is None:
        return "no requests measured"
    return f"{seen.gateway_5xx or 0} of {seen.requests} answered 5xx, {seen.gateway_4xx or 0} answered 4xx"


def _duration(seen: Readings) -> str:
    if seen.duration_ms is None:
        return "not known"
    most = f", {seen.duration_max_ms:.0f} ms at most" if seen.duration_max_ms is not None else ""
    return f"{seen.duration_ms:.0f} ms on average{most}"


def _volume(seen: Readings) -> str:
    if seen.invocations is None and seen.throttles is None:
        return "not known"
    return f"{seen.invocations or 0} invocations and {seen.throttles or 0} refused in {length(seen.window)}"


def _provisioning(seen: Readings) -> str:
    limit = "no reserved concurrency" if seen.reserved is None else f"at most {seen.reserved} at once"
    return f"{limit}, {seen.concurrent if seen.concurrent is not None else 'not known how many'} at once were seen"


def _routes(seen: Readings) -> str:
    return ", ".join(f"{route} ({count})" for route, count in seen.routes.items()) or "none known"


_CHECKS: dict[Branch, Callable[[Readings], dict[str, str]]] = {
    Branch.NOT_RESPONDING: lambda seen: {
        "Check Lambda logs": _logs(seen),
        "Check database connection": _database(seen),
        "Check API Gateway metrics": _gateway(seen),
    },
    Branch.ERRORS: lambda seen: {
        "Check error types in logs": _logs(seen),
        "Identify affected endpoints": _routes(seen),
    },
    Branch.LATENCY: lambda seen: {
        "Check Lambda duration metrics": _duration(seen),
        "Check database query performance": _database(seen),
    },
    Branch.THROTTLING: lambda seen: {
        "Check request volume": _volume(seen),
        "Consider upgrading Lambda provisioning": _provisioning(seen),
        "Implement request rate limiting on client side": "a person decides",
    },
    Branch.HEALTHY: lambda seen: {},
    Branch.UNKNOWN: lambda seen: {},
}
