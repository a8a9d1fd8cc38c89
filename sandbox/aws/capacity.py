"""Lambda's limits: reserved concurrency within its bounds, and provisioned concurrency that really starts environments.

ministack takes any reservation, only writes down what is provisioned, and takes the question for all of it for one.
"""

from __future__ import annotations

import contextvars
import threading
from typing import Any

from ministack.services import lambda_svc as lam

from sandbox.aws import environments
from sandbox.aws.responses import Response, refused

ACCOUNT_CONCURRENCY = 1000
"""AWS's own default. ministack's follows the memory of the machine; here the environments are bounded instead."""

_UNRESERVED_MINIMUM = 100

_builtin_get_provisioned = lam._get_provisioned_concurrency
_builtin_put_provisioned = lam._put_provisioned_concurrency
_builtin_delete_provisioned = lam._delete_provisioned_concurrency
_builtin_put_concurrency = lam._put_function_concurrency


def put_concurrency(name: str, data: dict[str, Any]) -> Response:
    """Never so much that less than a hundred are left for the others, never less than what is provisioned."""
    function, wanted = lam._functions.get(name), int(data.get("ReservedConcurrentExecutions", 0))
    if function is not None:
        others = sum(int(lam._functions[n].get("concurrency") or 0) for n in list(lam._functions.keys()) if n != name)
        if wanted and ACCOUNT_CONCURRENCY - others - wanted < _UNRESERVED_MINIMUM:
            return _invalid(
                "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
                f"below its minimum value of [{_UNRESERVED_MINIMUM}]."
            )
        provisioned = sum(_requested(config) for config in function.get("provisioned_concurrency", {}).values())
        if wanted < provisioned:
            return _invalid(
                "Specified ReservedConcurrentExecutions for function should not be lower than function's total "
                f"provisioned concurrency [{provisioned}]."
            )
    answer: Response = _builtin_put_concurrency(name, data)
    return answer


def get_provisioned(name: str, qualifier: str | None) -> Response:
    """One needs a qualifier; without it the path is that of ListProvisionedConcurrencyConfigs."""
    function = lam._functions.get(name)
    if qualifier or function is None:
        answer: Response = _builtin_get_provisioned(name, qualifier)
    else:
        arn, kept = function["config"]["FunctionArn"], function.get("provisioned_concurrency", {})
        every = [config | {"FunctionArn": f"{arn}:{qualifier}"} for qualifier, config in kept.items()]
        answer = lam.json_response({"ProvisionedConcurrencyConfigs": every})
    return answer


def put_provisioned(name: str, qualifier: str | None, data: dict[str, Any]) -> Response:
    if qualifier in (None, "", "$LATEST"):
        return _invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
    wanted = int(data.get("ProvisionedConcurrentExecutions", 0))
    if wanted < 1:
        return _invalid("ProvisionedConcurrentExecutions must be at least 1")
    reserved = (lam._functions.get(name) or {}).get("concurrency")
    if reserved is not None and wanted > int(reserved):
        return _invalid(
            f"Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for "
            f"function [{reserved}]"
        )
    answer: Response = _builtin_put_provisioned(name, qualifier, data)
    follow(name, str(qualifier))
    return answer


def delete_provisioned(name: str, qualifier: str | None) -> Response:
    settings = lam._get_func_record_for_qualifier(name, qualifier)[1] if name in lam._functions else None
    answer: Response = _builtin_delete_provisioned(name, qualifier)
    if settings is not None:
        environments.withdraw(name, settings, settings.get("Version", "$LATEST"))
    return answer


def follow(name: str, qualifier: str) -> None:
    """Start the environments that are provisioned for a qualifier, on the version that it names now."""
    config = (lam._functions.get(name) or {}).get("provisioned_concurrency", {}).get(qualifier)
    if config is None:
        return
    config |= {"Status": "IN_PROGRESS", "AllocatedProvisionedConcurrentExecutions": 0}
    config["AvailableProvisionedConcurrentExecutions"] = 0
    record, settings = lam._get_func_record_for_qualifier(name, qualifier)
    if record is None or settings is None:
        return

    def provide() -> None:
        wanted = _requested(config)
        failed = environments.provide(name, settings, record["code_zip"], settings.get("Version", "$LATEST"), wanted)
        if failed:
            config.update(Status="FAILED", StatusReason="FUNCTION_ERROR_INIT_FAILURE")
            return
        config["AllocatedProvisionedConcurrentExecutions"] = wanted
        config.update(Status="READY", AvailableProvisionedConcurrentExecutions=wanted)

    context = contextvars.copy_context()  # it names the account and region that all of this is in
    threading.Thread(target=lambda: context.run(provide), name=f"provide {name}:{qualifier}", daemon=True).start()


def _requested(config: dict[str, Any]) -> int:
    return int(config["RequestedProvisionedConcurrentExecutions"])


def _invalid(message: str) -> Response:
    return refused("InvalidParameterValueException", message)


def install() -> None:
    lam._put_function_concurrency = put_concurrency
    lam._put_provisioned_concurrency = put_provisioned
    lam._get_provisioned_concurrency = get_provisioned
    lam._delete_provisioned_concurrency = delete_provisioned
    lam._ACCOUNT_CONCURRENCY_CAP = ACCOUNT_CONCURRENCY
