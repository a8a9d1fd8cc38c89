"""Lambda: weighted aliases, reserved concurrency, limits, and the metrics and log lines of every invocation.

Corrected: an alias's weights decide the version at each invocation, by whichever way it arrives; reserved concurrency
counts for all versions; sizes, weights and qualifiers that AWS refuses are refused; an update while another is in
progress is a conflict. Metrics are reported in one place, where all ways to invoke meet, so exactly once.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from ministack.services import lambda_svc as lam

from sandbox.aws import capacity, environments, logs, metrics
from sandbox.aws.environments import Outcome
from sandbox.aws.responses import Response, refused

_UPDATE_TAKES_S = 0.2
"""How long a function stays ``InProgress`` after a change. Long enough to be seen, short enough for a demo."""

_MEMORY_MB = range(128, 10_240 + 1)
_TIMEOUT_S = range(1, 900 + 1)

_requested: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar("requested", default=None)
"""Function and alias (or version) that the running invocation asked for."""

_by_cloudformation: contextvars.ContextVar[bool] = contextvars.ContextVar("by_cloudformation", default=False)

_builtin_invoke = lam._invoke
_builtin_execute = lam._execute_function
_builtin_dispatch = lam._execute_function_dispatch
_builtin_create_function = lam._create_function
_builtin_update_code = lam._update_code
_builtin_update_config = lam._update_config
_builtin_publish_version = lam._publish_version
_builtin_create_alias = lam._create_alias
_builtin_update_alias = lam._update_alias


# --- which version runs ----------


@contextmanager
def routed(name: str, qualifier: str | None) -> Iterator[str | None]:
    """The version to run for this invocation: an alias's weights are drawn here. Metrics keep the asked-for alias."""
    token = _requested.set((name, qualifier) if qualifier else None)
    try:
        yield _draw(lam._functions.get(name), qualifier)
    finally:
        _requested.reset(token)


def _draw(function: dict[str, Any] | None, qualifier: str | None) -> str | None:
    alias = (function or {}).get("aliases", {}).get(qualifier)
    weights = ((alias or {}).get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}
    drawn = random.random()
    for version, weight in weights.items():
        if drawn < weight:
            return str(version)
        drawn -= weight
    return qualifier


async def invoke(
    name: str,
    event: Any,
    headers: dict[str, str],
    path_qualifier: str | None = None,
    query_params: dict[str, Any] | None = None,
) -> Response:
    qualifier = path_qualifier or lam._qp_first(query_params or {}, "Qualifier") or None
    with routed(name, qualifier) as version:
        answer: Response = await _builtin_invoke(name, event, headers, version, query_params)
    return answer


# --- one invocation ----------


def execute(function: dict[str, Any], event: Any) -> dict[str, Any]:
    """Every way to invoke passes here. A refusal for lack of concurrency is counted here, the rest in ``dispatch``."""
    result: dict[str, Any] = _builtin_execute(function, event)
    config = function.get("config") or function
    if result.get("throttle") and not lam._function_config_scope_mismatch(config):  # else it came through here twice
        metrics.record_throttle(config["FunctionName"], _asked_for(config))
    return result


def dispatch(
    function: dict[str, Any], config: dict[str, Any], event: Any, request_id: str, started: float
) -> dict[str, Any]:
    """Run an admitted invocation and report it."""
    if not function.get("code_zip") or not str(config.get("Runtime", "")).startswith(("python", "nodejs")):
        result: dict[str, Any] = _builtin_dispatch(function, config, event, request_id, started)
        return result
    name, version, qualifier = config["FunctionName"], config.get("Version", "$LATEST"), _asked_for(config)
    context = {
        "request_id": request_id,
        "invoked_function_arn": lam._func_arn(name) + (f":{qualifier}" if qualifier else ""),
        "timeout_ms": int(config.get("Timeout", 3)) * 1000,
        "depth": lam._invoke_depth.get(),
    }
    lam._ensure_reaper_thread()
    environment = environments.lease(name, config, function["code_zip"], version)
    try:
        outcome = environment.run(event, context)
    finally:
        environments.release(environment)
    lines = _log_lines(outcome, request_id, version, config)
    group = (config.get("LoggingConfig") or {}).get("LogGroup") or f"/aws/lambda/{name}"
    logs.write(group, environment.log_stream, [{"timestamp": at, "message": text} for at, text in lines])
    metrics.record_invocation(
        name,
        qualifier,
        version,
        started=outcome.started,
        duration_ms=outcome.duration_ms,
        failed=outcome.failure is not None,
    )
    return _result(outcome, request_id, "\n".join(text for _, text in lines))


def _asked_for(config: dict[str, Any]) -> str | None:
    requested = _requested.get()
    return requested[1] if requested and requested[0] == config["FunctionName"] else None


def _log_lines(outcome: Outcome, request_id: str, version: str, config: dict[str, Any]) -> list[tuple[int, str]]:
    """The lines AWS writes around the function's own, each with the time it happened."""
    start = int(outcome.started * 1000)
    end = int(outcome.started * 1000 + (outcome.init_ms or 0) + outcome.duration_ms)
    failure, lines = outcome.failure, []
    if outcome.init_ms is not None:
        runtime_name = str(config.get("Runtime", "")).replace("python", "python:").replace("nodejs", "nodejs:")
        lines.append((start, f"INIT_START Runtime Version: {runtime_name}"))
        start += int(outcome.init_ms)
    lines.append((start, f"START RequestId: {request_id} Version: {version}"))
    lines += [(min(max(at, start), end), text) for at, text in outcome.output or ()]
    status = ""
    if failure and failure.type == "Sandbox.Timedout":
        stamp = datetime.fromtimestamp(end / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        lines.append((end, f"{stamp}Z {request_id} {failure.message}"))
        status = "\tStatus: timeout"
    elif failure and failure.type.startswith("Runtime."):
        lines.append((end, f"RequestId: {request_id} Error: {failure.message}\n{failure.type}"))
        status = f"\tStatus: error\tError Type: {failure.type}"
    elif failure:
        lines.append((end, f"[ERROR] {failure.type}: {failure.message}\n{failure.trace}".rstrip()))
    report = (
        f"REPORT RequestId: {request_id}\tDuration: {outcome.duration_ms:.2f} ms\t"
        f"Billed Duration: {int(outcome.duration_ms + (outcome.init_ms or 0)) + 1} ms\t"
        f"Memory Size: {config.get('MemorySize', 128)} MB\tMax Memory Used: {outcome.memory_mb} MB"
    )
    if outcome.init_ms is not None:
        report += f"\tInit Duration: {outcome.init_ms:.2f} ms"
    return [*lines, (end, f"END RequestId: {request_id}"), (end, report + status)]


def _result(outcome: Outcome, request_id: str, log: str) -> dict[str, Any]:
    if outcome.failure is None:
        return {"body": outcome.value, "log": log}
    body: dict[str, Any] = {"errorType": outcome.failure.type, "errorMessage": outcome.failure.message}
    if outcome.failure.trace:
        body |= {"requestId": request_id, "stackTrace": outcome.failure.trace.splitlines()[1:-1]}
    return {"body": body, "error": True, "function_error": "Unhandled", "log": log}


def reserved_concurrency(function: dict[str, Any], config: dict[str, Any]) -> int | None:
    """The reservation belongs to the function, whichever version runs."""
    reserved = (lam._functions.get(config["FunctionName"]) or function).get("concurrency")
    return None if reserved is None else int(reserved)


# --- what AWS refuses ----------


@contextmanager
def cloudformation_deploys() -> Iterator[None]:
    """CloudFormation waits for one update before the next, so none of its own is a conflict."""
    token = _by_cloudformation.set(True)
    try:
        yield
    finally:
        _by_cloudformation.reset(token)


def beyond_limits(properties: dict[str, Any]) -> str | None:
    """Why these settings of a function are refused, None when they are in order."""
    for key, allowed in (("MemorySize", _MEMORY_MB), ("Timeout", _TIMEOUT_S)):
        value = properties.get(key)
        if value is not None and int(value) not in allowed:
            return (
                f"1 validation error detected: Value '{value}' at '{key[0].lower()}{key[1:]}' failed to satisfy "
                f"constraint: Member must have value between {allowed[0]} and {allowed[-1]}"
            )
    return None


def _invalid(message: str) -> Response:
    return refused("InvalidParameterValueException", message)


def _in_progress(name: str) -> Response | None:
    config = (lam._functions.get(name) or {}).get("config", {})
    busy = config.get("LastUpdateStatus") == "InProgress" or config.get("State") == "Pending"
    if not busy or _by_cloudformation.get():
        return None
    return refused(
        "ResourceConflictException",
        f"The operation cannot be performed at this time. An update is in progress for resource: {lam._func_arn(name)}",
        409,
    )


def create_function(data: dict[str, Any]) -> Response:
    problem = beyond_limits(data)
    return _invalid(problem) if problem else _forward(_builtin_create_function, data)


def update_code(name: str, data: dict[str, Any]) -> Response:
    return _in_progress(name) or _forward(_builtin_update_code, name, data)


def update_config(name: str, data: dict[str, Any]) -> Response:
    problem = beyond_limits(data)
    return _invalid(problem) if problem else _in_progress(name) or _forward(_builtin_update_config, name, data)


def publish_version(name: str, data: dict[str, Any]) -> Response:
    """With a stale CodeSha256 or RevisionId nothing is published."""
    config = (lam._functions.get(name) or {}).get("config", {})
    if data.get("CodeSha256") and data["CodeSha256"] != config.get("CodeSha256"):
        return _invalid(f"CodeSHA256 ({data['CodeSha256']}) is different from current CodeSHA256 in $LATEST")
    stale: Response | None = lam._check_revision(config, {key: value for key, value in data.items() if value})
    return stale or _in_progress(name) or _forward(_builtin_publish_version, name, data)


def alias_problem(name: str, alias: str, data: dict[str, Any]) -> Response | None:
    """Why an alias with these settings is refused. Settings left out are the ones it has."""
    function = lam._functions.get(name)
    if function is None:
        return None
    version = data.get("FunctionVersion") or function["aliases"].get(alias, {}).get("FunctionVersion", "$LATEST")
    weights = (data.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}
    for target in (version, *weights):
        if target != "$LATEST" and target not in function["versions"]:
            return refused("ResourceNotFoundException", f"Function not found: {lam._func_arn(name)}:{target}", 404)
    if len(weights) > 1:
        return _invalid("Number of items in AdditionalVersionWeights cannot be greater than 1")
    if any(not 0 <= float(weight) <= 1 for weight in weights.values()):
        return _invalid("Weights must be between 0.0 and 1.0")
    if weights and (version == "$LATEST" or "$LATEST" in weights):
        return _invalid("$LATEST is not supported for an alias pointing to more than 1 version")
    if version in weights:
        return _invalid(f"Invalid function version {version}. Function version {version} is already included")
    return None


def create_alias(name: str, data: dict[str, Any]) -> Response:
    return alias_problem(name, data.get("Name", ""), data) or _forward(_builtin_create_alias, name, data)


def update_alias(name: str, alias: str, data: dict[str, Any]) -> Response:
    problem = alias_problem(name, alias, data)
    answer = problem or _forward(_builtin_update_alias, name, alias, data)
    if problem is None:
        capacity.follow(name, alias)
    return answer


def _forward(operation: Callable[..., Any], *arguments: Any) -> Response:
    answer: Response = operation(*arguments)
    return answer


def install() -> None:
    environments.install()
    lam._LAMBDA_STATE_TRANSITION_DELAY = _UPDATE_TAKES_S
    lam._invoke = invoke
    lam._execute_function = execute
    lam._execute_function_dispatch = dispatch
    lam._emit_lambda_metrics = lambda *args, **kwargs: None  # reported by execute() and dispatch()
    lam._reserved_concurrency = reserved_concurrency
    lam.invalidate_worker = environments.retire
    lam._create_function = create_function
    lam._update_code = update_code
    lam._update_config = update_config
    lam._publish_version = publish_version
    lam._create_alias = create_alias
    lam._update_alias = update_alias
    capacity.install()
