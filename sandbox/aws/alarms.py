"""CloudWatch alarms: judged on exactly their own metric, period by period, and no staler than ten seconds.

ministack pools every dimension set of a metric and judges only when someone puts metric data. Here an alarm is judged
when it is put, when it is looked at, and by itself every ten seconds, so that its SNS actions go out without anybody's
doing.
"""

from __future__ import annotations

import asyncio
import logging
import re
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
_builtin_put = cw._put_metric_alarm

_judging: asyncio.Task[None] | None = None


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
        _change(alarm, state, _reason(alarm, values, state))


def _reason(alarm: dict[str, Any], values: list[float | None], state: str) -> str:
    """In CloudWatch's words."""
    seen = [f"{value:g}" for value in values if value is not None]
    if not seen:
        return "no datapoints were received"
    compared = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", alarm["ComparisonOperator"]).lower().replace(" threshold", "")
    was = "was" if state == "ALARM" else "was not"
    return (
        f"Threshold Crossed: {len(seen)} out of the last {len(values)} datapoints [{', '.join(seen)}] {was} {compared} "
        f"the threshold ({float(alarm.get('Threshold', 0)):g})."
    )


def _change(alarm: dict[str, Any], state: str, reason: str) -> None:
    before = alarm["StateValue"]
    alarm |= {"StateValue": state, "StateReason": reason, "StateUpdatedTimestamp": int(time.time())}
    cw._record_history(alarm["AlarmName"], before, state, reason)
    cw._dispatch_alarm_actions(alarm, before, state, reason)
    cw._evaluate_parent_alarms(alarm)


def _judge_all() -> None:
    now = time.time()
    for alarm in list(cw._alarms.values()):
        if now - float(alarm.get("StateUpdatedTimestamp") or 0) >= _JUDGED_EVERY_S:
            judge(alarm)


def _describe_alarms(*arguments: Any) -> Response:
    _judge_all()
    answer: Response = _builtin_describe(*arguments)
    return answer


async def _keep_judging() -> None:
    while True:
        await asyncio.sleep(_JUDGED_EVERY_S)
        try:
            _judge_all()
        except Exception:  # one alarm that cannot be judged must not end the judging
            logging.getLogger("cloudwatch").exception("alarms could not be judged")


def _put_metric_alarm(*arguments: Any) -> Response:
    """Also begins the judging by itself: in the server's own loop, where no other judgement runs at the same time."""
    global _judging
    answer: Response = _builtin_put(*arguments)
    if _judging is None or _judging.done():
        _judging = asyncio.get_running_loop().create_task(_keep_judging())
    return answer


def install() -> None:
    cw._evaluate_alarm = judge
    cw._evaluate_all_alarms = lambda: None
    cw._describe_alarms = _describe_alarms
    cw._put_metric_alarm = _put_metric_alarm
