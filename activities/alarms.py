"""CloudWatch alarms of the stage's function, fitted to a new capacity. All of an alarm but its threshold stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field
from temporalio import activity

from activities.errors import classified
from activities.evidence import Finding
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import MetricAlarmTypeDef

_KEPT = (
    *("AlarmName", "AlarmDescription", "ActionsEnabled", "OKActions", "AlarmActions", "InsufficientDataActions"),
    *("MetricName", "Namespace", "Statistic", "ExtendedStatistic", "Dimensions", "Period", "Unit", "EvaluationPeriods"),
    *("DatapointsToAlarm", "Threshold", "ComparisonOperator", "TreatMissingData", "EvaluateLowSampleCountPercentile"),
)
"""What ``put_metric_alarm`` takes of what ``describe_alarms`` gives."""


class Alarm(Facts):
    name: str
    metric: str
    statistic: str
    threshold: float


class Alarms(Finding):
    """Alarms on single metrics of the function."""

    alarms: tuple[Alarm, ...] = ()


class Threshold(Facts):
    """One alarm with this threshold."""

    name: str
    threshold: float
    only_if: float | None = Field(None, description="Leave it alone unless its threshold is this one (or the wanted)")


class AlarmSet(Finding):
    changed: bool


class UtilisationAlarm(Facts):
    """The alarm that tells when the provisioned environments are nearly all in use."""

    stage: Stage
    present: bool
    threshold: float = Field(0.8, gt=0, le=1)


class AlarmSettings:
    def __init__(self, cloudwatch: CloudWatchClient) -> None:
        self._cloudwatch = cloudwatch

    @activity.defn(name="alarms.find")
    @classified("look for the function's alarms")
    def find(self, stage: Stage) -> Alarms:
        """Alarms on one metric of the function; alarms on expressions are left to people."""
        pages = self._cloudwatch.get_paginator("describe_alarms").paginate(AlarmTypes=["MetricAlarm"])
        found = [alarm for page in pages for alarm in page["MetricAlarms"] if _of(alarm, stage)]
        alarms = tuple(
            Alarm(
                name=alarm["AlarmName"],
                metric=alarm["MetricName"],
                statistic=str(alarm.get("ExtendedStatistic") or alarm.get("Statistic", "")),
                threshold=float(alarm.get("Threshold", 0)),
            )
            for alarm in found
        )
        names = ", ".join(alarm.name for alarm in alarms)
        return Alarms(
            summary=f"{len(alarms)} alarms of {stage.function}" + (f": {names}" if names else ""), alarms=alarms
        )

    @activity.defn(name="alarms.threshold")
    @classified("set an alarm's threshold")
    def threshold(self, order: Threshold) -> AlarmSet:
        """Set the threshold; the rest of the alarm, its actions too, stays. An alarm that is gone is left so."""
        found = self._cloudwatch.describe_alarms(AlarmNames=[order.name], AlarmTypes=["MetricAlarm"])["MetricAlarms"]
        if not found:
            return AlarmSet(summary=f"there is no alarm {order.name} any more", changed=False)
        now = float(found[0].get("Threshold", 0))
        if now == order.threshold:
            return AlarmSet(summary=f"{order.name} is at {now:g} already", changed=False)
        if order.only_if is not None and now != order.only_if:
            return AlarmSet(summary=f"{order.name} is at {now:g}: somebody set that, it stays", changed=False)
        kept: dict[str, Any] = {key: value for key, value in found[0].items() if key in _KEPT}
        self._cloudwatch.put_metric_alarm(**(kept | {"Threshold": order.threshold}))
        return AlarmSet(summary=f"{order.name}: {now:g} → {order.threshold:g}", changed=True)

    @activity.defn(name="alarms.utilisation")
    @classified("set the alarm of the provisioned environments")
    def utilisation(self, order: UtilisationAlarm) -> AlarmSet:
        """Make or delete the alarm on ``ProvisionedConcurrencyUtilization`` of the alias."""
        stage, name = order.stage, utilisation_name(order.stage)
        there = bool(self._cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"])
        if not order.present:
            if there:
                self._cloudwatch.delete_alarms(AlarmNames=[name])
            return AlarmSet(summary=f"no alarm {name}" + ("" if there else " already"), changed=there)
        self._cloudwatch.put_metric_alarm(
            AlarmName=name,
            AlarmDescription="Provisioned environments are nearly all in use: the next calls meet cold starts",
            Namespace="AWS/Lambda",
            MetricName="ProvisionedConcurrencyUtilization",
            Dimensions=[
                {"Name": "FunctionName", "Value": stage.function},
                {"Name": "Resource", "Value": f"{stage.function}:{stage.alias}"},
            ],
            Statistic="Maximum",
            Period=60,
            EvaluationPeriods=5,
            Threshold=order.threshold,
            ComparisonOperator="GreaterThanThreshold",
            TreatMissingData="notBreaching",
        )
        return AlarmSet(summary=f"alarm {name} above {order.threshold:.0%}", changed=not there)


def utilisation_name(stage: Stage) -> str:
    return f"{stage.function}-provisioned-utilisation"


def _of(alarm: MetricAlarmTypeDef, stage: Stage) -> bool:
    dimensions = {d["Name"]: d["Value"] for d in alarm.get("Dimensions", [])}
    return alarm.get("Namespace") == "AWS/Lambda" and dimensions.get("FunctionName") == stage.function
