"""CloudWatch alarms: judged on exactly their own metric, period by period, and no staler than ten seconds.

ministack pools every dimension set of a metric and judges only when someone puts metric data. Here an alarm is judged
when it is put and when it is looked at. Its SNS actions therefore go out when somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ministack.services import cloudwatch as cw

from sandbox.aws import metrics
from sandbox.aws.responses import Response

_JUDGED_EVERY_S = 10.0
"""A state set by hand (``set_alarm_state``) stands at least this long, as on AWS until the next evaluation."""

_BREACHES: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
    "LessThanOrEqualToThreshold": lambda value, threshold: value <= threshold,
}

_builtin_describe = cw._describe_alarms


def judge(alarm: dict[str, Any]) -> None:
    """Bring one metric alarm's state up to date. An alarm on metric math or anomaly bands keeps its state."""
    stat = alarm.get("ExtendedStatistic") or alarm.get("Statistic")
    breaches = _BREACHES.get(alarm.get("ComparisonOperator", ""))
    if not alarm.get("MetricName") or not stat or breaches is None:
        return
    period, periods = int(alarm.get("Period", 60)), int(alarm.get("EvaluationPeriods", 1))
    needed = int(alarm.get("DatapointsToAlarm") or periods)
    threshold = float(alarm.get("Threshold", 0))
    current = int(time.time() // period) * period
    buckets = metrics.by_period(
        metrics.points_of(alarm["Namespace"], alarm["MetricName"], alarm.get("Dimensions")), period
    )
    values = [metrics.statistic(buckets.get(current - n * period, []), stat) for n in range(periods)]
    missing = alarm.get("TreatMissingData") or "missing"
    if all(value is None for value in values) and missing in ("missing", "ignore"):
        state = alarm["StateValue"] if missing == "ignore" else "INSUFFICIENT_DATA"
    else:
        breaching = sum(missing == "breaching" if value is None else breaches(value, threshold) for value in values)
        state = "ALARM" if breaching >= needed else "OK"
    if state != alarm["StateValue"]:
        _change(alarm, state, f"Threshold Crossed: {stat} of the last {periods} period(s) was {values}")


def _change(alarm: dict[str, Any], state: str, reason: str) -> None:
    before = alarm["StateValue"]
    alarm |= {"StateValue": state, "StateReason": reason, "StateUpdatedTimestamp": int(time.time())}
    cw._record_history(alarm["AlarmName"], before, state, reason)
    cw._dispatch_alarm_actions(alarm, before, state, reason)
    cw._evaluate_parent_alarms(alarm)


def _describe_alarms(*arguments: Any) -> Response:
    now = time.time()
    for alarm in cw._alarms.values():
        if now - float(alarm.get("StateUpdatedTimestamp") or 0) >= _JUDGED_EVERY_S:
            judge(alarm)
    answer: Response = _builtin_describe(*arguments)
    return answer


def install() -> None:
    cw._evaluate_alarm = judge
    cw._evaluate_all_alarms = lambda: None
    cw._describe_alarms = _describe_alarms
