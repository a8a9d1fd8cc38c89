"""CloudFormation: creates that must fail do, and a retried request is not a second update.

Corrected: a missing code object, a name that is taken, a function, version or deployment that does not exist, and a
reference to nothing fail the operation, so that it rolls back; a ``ClientRequestToken`` is honoured; a stage's access
log is set up.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from ministack.core.responses import AccountRegionScopedDict
from ministack.services import apigateway_v1 as ag
from ministack.services import cloudformation as cf
from ministack.services import cloudwatch_logs as cwl
from ministack.services import iam
from ministack.services import lambda_svc as lam
from ministack.services.cloudformation import changesets, engine, handlers, helpers, provisioners

from sandbox.aws import functions
from sandbox.aws.responses import Response, also_on_reset

_Check = Callable[[str, dict[str, Any], str], None]
"""``(logical id, properties, stack name)``; raises ValueError with the reason when the resource cannot be made."""

_TOKENS = AccountRegionScopedDict()
"""Accepted requests by ClientRequestToken: ``(action and parameters, response)``."""

_builtin_support = engine.validate_template_support


# --- what must exist, and what must not ----------


def _name(props: dict[str, Any], key: str, logical_id: str, stack_name: str, longest: int) -> str:
    return str(props.get(key) or provisioners._physical_name(stack_name, logical_id, max_len=longest))


def _taken(kind: str, name: str) -> ValueError:
    return ValueError(f"Resource of type '{kind}' with identifier '{name}' already exists.")


def _check_role(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    name = _name(props, "RoleName", logical_id, stack_name, 64)
    if name in iam._roles:
        raise _taken("AWS::IAM::Role", name)


def _check_log_group(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    if props.get("LogGroupName") in cwl._log_groups:
        raise _taken("AWS::Logs::LogGroup", props["LogGroupName"])


def _check_new_function(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    name = _name(props, "FunctionName", logical_id, stack_name, 64)
    if name in lam._functions:
        raise _taken("AWS::Lambda::Function", name)
    _check_function(logical_id, props, stack_name)


def _check_function(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    problem = functions.beyond_limits(props)
    if problem:
        raise ValueError(problem)
    code = props.get("Code") or {}
    if (
        "S3Bucket" in code
        and lam._fetch_code_from_s3(code["S3Bucket"], code["S3Key"], code.get("S3ObjectVersion")) is None
    ):
        raise ValueError(
            "Error occurred while GetObject. S3 Error Code: NoSuchKey. S3 Error Message: "
            f"The specified key does not exist. (s3://{code['S3Bucket']}/{code['S3Key']})"
        )


def _check_of_function(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    function, name, _, _ = provisioners._lambda_function_for_cfn_ref(props.get("FunctionName", ""))
    if function is None:
        raise ValueError(f"Function not found: {lam._func_arn(name)}")


def _check_alias(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    _check_of_function(logical_id, props, stack_name)
    _, name, _, _ = provisioners._lambda_function_for_cfn_ref(props["FunctionName"])
    routing = provisioners._lambda_alias_routing_config(props)
    problem = functions.alias_problem(name, props.get("Name", ""), {**props, "RoutingConfig": routing})
    if problem:
        raise ValueError(json.loads(problem[2])["message"])


def _check_api(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    if props.get("RestApiId") not in ag._rest_apis:
        raise ValueError("Invalid API identifier specified")


def _check_stage(logical_id: str, props: dict[str, Any], stack_name: str) -> None:
    _check_api(logical_id, props, stack_name)
    if props.get("DeploymentId") not in ag._deployments_v1.get(props["RestApiId"], {}):
        raise ValueError("Deployment id does not exist")
    if props.get("StageName") in ag._stages_v1.get(props["RestApiId"], {}):
        raise _taken("AWS::ApiGateway::Stage", props["StageName"])


_CREATE_CHECKS: dict[str, _Check] = {
    "AWS::IAM::Role": _check_role,
    "AWS::Logs::LogGroup": _check_log_group,
    "AWS::Lambda::Function": _check_new_function,
    "AWS::Lambda::Version": _check_of_function,
    "AWS::Lambda::Alias": _check_alias,
    "AWS::Lambda::Permission": _check_of_function,
    "AWS::ApiGateway::Resource": _check_api,
    "AWS::ApiGateway::Method": _check_api,
    "AWS::ApiGateway::Deployment": _check_api,
    "AWS::ApiGateway::Stage": _check_stage,
}


def _checked(check: _Check, create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_checked(logical_id: str, props: dict[str, Any], stack_name: str) -> Any:
        check(logical_id, props, stack_name)
        return create(logical_id, props, stack_name)

    return create_checked


def _logged(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_logged(logical_id: str, props: dict[str, Any], stack_name: str) -> Any:
        made = create(logical_id, props, stack_name)
        log = props.get("AccessLogSetting") or {}
        stage = ag._stages_v1[props["RestApiId"]][props["StageName"]]
        stage["accessLogSettings"] = {"destinationArn": log.get("DestinationArn"), "format": log.get("Format")}
        return made

    return create_logged


def _update_function(
    physical_id: str,
    old_props: dict[str, Any],
    new_props: dict[str, Any],
    stack_name: str,
    logical_id: str | None = None,
) -> Any:
    """Refuse before anything is changed, and answer only when the function is settled, as CloudFormation waits."""
    _check_function(logical_id or physical_id, new_props, stack_name)
    with functions.cloudformation_deploys():
        result = provisioners._lambda_update(physical_id, old_props, new_props, stack_name, logical_id)
    lam._functions[result[0]]["config"] |= {
        "State": "Active",
        "StateReason": "",
        "StateReasonCode": "",
        "LastUpdateStatus": "Successful",
    }
    return result


def validate_support(
    template: dict[str, Any], conditions: dict[str, Any], params: dict[str, Any] | None = None
) -> None:
    """Refuse a template whose ``Ref``, ``Fn::GetAtt``, ``Fn::Sub`` or ``DependsOn`` names nothing."""
    _builtin_support(template, conditions, params=params)
    if template.get("Transform"):
        return  # a macro may still add what is missing
    resources: dict[str, dict[str, Any]] = template.get("Resources") or {}
    known = resources.keys() | (template.get("Parameters") or {}).keys()
    missing = set()
    for resource in resources.values():
        depends_on = resource.get("DependsOn") or []
        missing |= set([depends_on] if isinstance(depends_on, str) else depends_on) - resources.keys()
        names = {name for name, _ in engine._intrinsic_references(resource.get("Properties") or {})}
        missing |= {name for name in names if name not in known and not name.startswith("AWS::")}
    if missing:
        raise ValueError(
            f"Template format error: Unresolved resource dependencies [{', '.join(sorted(missing))}] "
            "in the Resources block of the template"
        )


# --- retried requests ----------


def _once(action: str, handler: Callable[[dict[str, Any]], Response]) -> Callable[[dict[str, Any]], Response]:
    """The same token with the same request is answered as the first time; with another it is refused."""

    def handle(params: dict[str, Any]) -> Response:
        token = helpers._p(params, "ClientRequestToken")
        if not token:
            return handler(params)
        request = (action, json.dumps(params, sort_keys=True, default=str))
        known = _TOKENS.get(token)
        if known is None:
            response = handler(params)
            if response[0] == 200:
                _TOKENS[token] = (request, response)
            return response
        if known[0] != request:
            answer: Response = helpers._error(
                "TokenAlreadyExistsException", f"A client request token {token} already exists for another request"
            )
            return answer
        retried: Response = known[1]
        return retried

    return handle


def install() -> None:
    for resource_type, check in _CREATE_CHECKS.items():
        handler = provisioners._RESOURCE_HANDLERS[resource_type]
        handler["create"] = _checked(check, handler["create"])
    stages = provisioners._RESOURCE_HANDLERS["AWS::ApiGateway::Stage"]
    stages["create"] = _logged(stages["create"])
    provisioners._RESOURCE_HANDLERS["AWS::Lambda::Function"]["update"] = _update_function
    for module in (engine, handlers, changesets):
        module.validate_template_support = validate_support
    for action in cf._TOKEN_ACTIONS:
        handlers._ACTION_HANDLERS[action] = _once(action, handlers._ACTION_HANDLERS[action])
    also_on_reset(cf, _TOKENS.clear)
