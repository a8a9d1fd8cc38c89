"""What the stage's function is allowed to use: memory, time, concurrency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio import activity

from activities.errors import classified
from activities.stage import Stage
from activities.symptom_models import FunctionSettings

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient


class FunctionLimits:
    def __init__(self, functions: LambdaClient) -> None:
        self._lambda = functions

    @activity.defn(name="functions.settings")
    @classified("read the function's settings")
    def settings(self, stage: Stage) -> FunctionSettings:
        """Memory and time-out of what the alias serves (of the unpublished code where there is no alias)."""
        try:
            found = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=stage.alias)
        except self._lambda.exceptions.ResourceNotFoundException:
            found = self._lambda.get_function_configuration(FunctionName=stage.function)
        reserved = self._lambda.get_function_concurrency(FunctionName=stage.function).get(
            "ReservedConcurrentExecutions"
        )
        provisioned = self._provisioned(stage)
        limits = [f"{found['MemorySize']} MB", f"time-out {found['Timeout']} s"]
        limits.append("shares the account's concurrency" if reserved is None else f"reserved concurrency {reserved}")
        limits.append(f"provisioned {provisioned}" if provisioned else "no provisioned concurrency")
        return FunctionSettings(
            summary=", ".join(limits),
            memory_mb=found["MemorySize"],
            timeout_s=found["Timeout"],
            reserved=reserved,
            provisioned=provisioned,
        )

    def _provisioned(self, stage: Stage) -> int | None:
        try:
            found = self._lambda.get_provisioned_concurrency_config(FunctionName=stage.function, Qualifier=stage.alias)
        except (
            self._lambda.exceptions.ProvisionedConcurrencyConfigNotFoundException,
            self._lambda.exceptions.ResourceNotFoundException,
        ):
            return None
        return found.get("RequestedProvisionedConcurrentExecutions")
