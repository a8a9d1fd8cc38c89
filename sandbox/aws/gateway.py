"""API Gateway (REST): deployments are snapshots, canaries get their share, and every request is measured.

Corrected: a deployment serves the API as it was when it was made; canary settings are kept, checked and obeyed;
stage variables name the alias of an integration; refused and failed invocations become the 500, 502 and 504 that AWS
answers with; AWS/ApiGateway metrics are reported and access logs written.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ministack.core.responses import AccountRegionScopedDict
from ministack.services import apigateway_v1 as ag
from ministack.services import lambda_svc as lam

from sandbox.aws import access_log, functions, metrics, stage_patches
from sandbox.aws.responses import Response, also_on_reset

_INTEGRATION_TIMEOUT_MS = 29_000
_STAGE_VARIABLE = re.compile(r"\$\{stageVariables\.(\w+)\}")
_PROXY_KEYS = frozenset({"statusCode", "headers", "multiValueHeaders", "body", "isBase64Encoded"})

_builtin_execute = ag._handle_execute_in_scope
_builtin_invoke_proxy = ag._invoke_lambda_proxy_v1
_builtin_call_lambda = ag._call_lambda_raw
_builtin_create_deployment = ag._create_deployment
_builtin_delete_deployment = ag._delete_deployment
_builtin_create_stage = ag._create_stage
_builtin_update_stage = ag._update_stage
_builtin_delete_api = ag._delete_rest_api


@dataclass
class _Request:
    """The request that is being served: which deployment serves it, and how long the backend took."""

    api_id: str
    resources: dict[str, Any] | None
    variables: dict[str, str]
    integration_ms: float | None = None


_current: contextvars.ContextVar[_Request | None] = contextvars.ContextVar("current_request", default=None)
_snapshots: dict[tuple[str, str], dict[str, Any]] = {}
"""The resources of each deployment, by API and deployment id."""

_unfinished: set[asyncio.Future[Any]] = set()


class _Resources(AccountRegionScopedDict):  # type: ignore[misc]  # ministack is untyped
    """The APIs' resources: those of the deployment for the request being served, else the live ones."""

    __slots__ = ()

    def get(self, key: str, default: Any = None) -> Any:
        request = _current.get()
        if request is not None and request.api_id == key and request.resources is not None:
            return request.resources
        return super().get(key, default)


# --- requests ----------


async def execute(api_id: str, stage_name: str, *arguments: Any) -> Any:
    """Serve one request through the stage, or through its canary."""
    stage = ag._stages_v1.get(api_id, {}).get(stage_name)
    if stage is None or api_id not in ag._rest_apis:
        return await _builtin_execute(api_id, stage_name, *arguments)
    settings = stage.get("canarySettings") or {}
    to_canary = random.random() * 100 < settings.get("percentTraffic", 0.0)
    deployment_id, variables = stage.get("deploymentId"), dict(stage.get("variables") or {})
    if to_canary:
        deployment_id = settings["deploymentId"]
        variables |= settings.get("stageVariableOverrides") or {}
    request = _Request(api_id, _snapshots.get((api_id, deployment_id)), variables)
    token = _current.set(request)
    started, begin = time.time(), time.monotonic()
    try:
        response = await _builtin_execute(api_id, stage_name, *arguments)
    finally:
        _current.reset(token)
    latency_ms = (time.monotonic() - begin) * 1000
    metrics.record_request(
        ag._rest_apis[api_id]["name"] if api_id in ag._rest_apis else api_id,
        f"{stage_name}/Canary" if to_canary else stage_name,
        started=started,
        status=int(response[0]),
        latency_ms=latency_ms,
        integration_ms=request.integration_ms,
    )
    access_log.write(
        stage.get("accessLogSettings") or {},
        {
            "apiId": api_id,
            "stage": stage_name,
            "httpMethod": str(arguments[0]),
            "path": f"/{stage_name}/{str(arguments[1]).lstrip('/')}",
            "status": int(response[0]),
            "responseLatency": round(latency_ms),
            "integrationLatency": "-" if request.integration_ms is None else round(request.integration_ms),
        },
    )
    return response


async def invoke_proxy(
    integration: dict[str, Any], api_id: str, stage_name: str, stage: dict[str, Any], *arguments: Any, **named: Any
) -> Any:
    """A Lambda proxy integration: its URI and the event see the stage variables of this request."""
    request = _current.get()
    if request is None:
        return await _builtin_invoke_proxy(integration, api_id, stage_name, stage, *arguments, **named)
    uri = _STAGE_VARIABLE.sub(lambda found: request.variables.get(found[1], ""), integration.get("uri", ""))
    integration, stage = {**integration, "uri": uri}, {**stage, "variables": request.variables}
    timeout_ms = min(int(integration.get("timeoutInMillis") or _INTEGRATION_TIMEOUT_MS), _INTEGRATION_TIMEOUT_MS)
    begin = time.monotonic()
    call = asyncio.ensure_future(_builtin_invoke_proxy(integration, api_id, stage_name, stage, *arguments, **named))
    done, _ = await asyncio.wait({call}, timeout=timeout_ms / 1000)
    request.integration_ms = (time.monotonic() - begin) * 1000
    if done:
        return call.result()
    _unfinished.add(call)  # the function runs on, as it does on AWS; only nobody waits for it
    call.add_done_callback(_unfinished.discard)
    return 504, {"Content-Type": "application/json"}, b'{"message": "Endpoint request timed out"}'


async def call_lambda(
    function_ref: str, event: Any, *, account_id: str | None = None, region: str | None = None
) -> Any:
    """Invoke what an integration URI names: function, version or alias, whose weights are drawn here."""
    name, qualifier = lam._resolve_name_and_qualifier(function_ref)
    with functions.routed(name, qualifier) as version:
        if version != qualifier:
            function_ref = f"{function_ref.removesuffix(f':{qualifier}')}:{version}"
        return await _builtin_call_lambda(function_ref, event, account_id=account_id, region=region)


def proxy_response(result: dict[str, Any]) -> tuple[dict[str, Any], None]:
    """What a Lambda's result becomes.

    "If the Lambda API rejects the invocation request, API Gateway returns a 500 error code. If the function runs but
    returns an error, or returns a response in the wrong format, API Gateway returns a 502" (Lambda developer guide,
    services-apigateway-errors). So a throttled Lambda is a 500; the 429 is the gateway's own throttling.
    """
    if result.get("throttle"):
        return _failed(500), None
    answer = result.get("body")
    well_formed = (
        isinstance(answer, dict)
        and answer.keys() <= _PROXY_KEYS
        and isinstance(answer.get("body"), str | None)
        and str(answer.get("statusCode", 200)).isdigit()
    )
    if result.get("error") or not well_formed:
        return _failed(502), None
    assert isinstance(answer, dict)
    return {**answer, "statusCode": int(answer.get("statusCode", 200)), "body": answer.get("body") or ""}, None


def _failed(status: int) -> dict[str, Any]:
    return {"statusCode": status, "body": json.dumps({"message": "Internal server error"})}


# --- deployments and stages ----------


def create_deployment(api_id: str, data: dict[str, Any]) -> Response:
    """Snapshot the API. With canary settings the stage stays where it is and its canary gets the deployment."""
    settings, stage_name = data.get("canarySettings"), data.get("stageName")
    stage = ag._stages_v1.get(api_id, {}).get(stage_name)
    if settings is None:
        response = _forward(_builtin_create_deployment, api_id, data)
        _snapshot(api_id, response)
        if stage is not None and response[0] == 201:
            stage.pop("canarySettings", None)
            if data.get("variables"):
                stage["variables"] = dict(data["variables"])
        return response
    if stage is None:
        return _bad_request(
            f"Invalid deployment content specified. Stage {stage_name} must already be created before making "
            "a canary release deployment"
        )
    try:
        canary = stage_patches.canary({**settings, "deploymentId": ""}, "")
    except stage_patches.BadPatch as error:
        return _bad_request(str(error))
    response = _forward(_builtin_create_deployment, api_id, {**data, "stageName": None})
    deployment_id = _snapshot(api_id, response)
    if deployment_id:
        stage |= {"canarySettings": {**canary, "deploymentId": deployment_id}, "lastUpdatedDate": ag._now_unix()}
    return response


def _snapshot(api_id: str, response: Response) -> str | None:
    if response[0] != 201:
        return None
    deployment_id: str = json.loads(response[2])["id"]
    _snapshots[api_id, deployment_id] = copy.deepcopy(ag._resources.get(api_id, {}))
    return deployment_id


def delete_deployment(api_id: str, deployment_id: str) -> Response:
    for stage in ag._stages_v1.get(api_id, {}).values():
        if deployment_id in (stage.get("deploymentId"), (stage.get("canarySettings") or {}).get("deploymentId")):
            return _bad_request("Active stages pointing to this deployment must be moved or deleted")
    _snapshots.pop((api_id, deployment_id), None)
    return _forward(_builtin_delete_deployment, api_id, deployment_id)


def create_stage(api_id: str, data: dict[str, Any]) -> Response:
    if data.get("stageName") in ag._stages_v1.get(api_id, {}):
        message = json.dumps({"message": "Stage already exists"}).encode()
        return 409, {"Content-Type": "application/json", "x-amzn-ErrorType": "ConflictException"}, message
    deployments = ag._deployments_v1.get(api_id, {})
    settings = data.get("canarySettings")
    try:
        canary = stage_patches.canary(settings, data.get("deploymentId", "")) if settings else None
    except stage_patches.BadPatch as error:
        return _bad_request(str(error))
    if data.get("deploymentId") not in deployments or (canary and canary["deploymentId"] not in deployments):
        return _bad_request("Deployment id does not exist")
    response = _forward(_builtin_create_stage, api_id, data)
    if response[0] == 201 and canary:
        stage = ag._stages_v1[api_id][data["stageName"]]
        stage["canarySettings"] = canary
        return _forward(ag._v1_response, stage, 201)
    return response


def update_stage(api_id: str, stage_name: str, data: dict[str, Any]) -> Response:
    """All of the operations or none."""
    stage = ag._stages_v1.get(api_id, {}).get(stage_name)
    if stage is None:
        return _forward(_builtin_update_stage, api_id, stage_name, data)
    changed = copy.deepcopy(stage)
    try:
        others = stage_patches.apply(changed, data.get("patchOperations", []), ag._deployments_v1.get(api_id, {}))
    except stage_patches.BadPatch as error:
        return _bad_request(str(error))
    stage.clear()
    stage.update(changed)
    return _forward(_builtin_update_stage, api_id, stage_name, {**data, "patchOperations": others})


def delete_api(api_id: str) -> Response:
    for key in [key for key in _snapshots if key[0] == api_id]:
        del _snapshots[key]
    return _forward(_builtin_delete_api, api_id)


def _bad_request(message: str) -> Response:
    return _forward(ag._v1_error, "BadRequestException", message, 400)


def _forward(operation: Callable[..., Any], *arguments: Any) -> Response:
    answer: Response = operation(*arguments)
    return answer


def install() -> None:
    ag._resources = _Resources()
    ag._handle_execute_in_scope = execute
    ag._invoke_lambda_proxy_v1 = invoke_proxy
    ag._call_lambda_raw = call_lambda
    ag._lambda_proxy_response = proxy_response
    ag._create_deployment = create_deployment
    ag._delete_deployment = delete_deployment
    ag._create_stage = create_stage
    ag._update_stage = update_stage
    ag._delete_rest_api = delete_api
    also_on_reset(ag, _snapshots.clear)
