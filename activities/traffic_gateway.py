"""Splitting traffic by a canary of an API Gateway stage (REST APIs only).

The integration of the API names the function's alias by a stage variable, and the canary overrides that variable with a
version. So both sides serve the very same deployment of the API, and only the version of the function differs: the
deployment that AWS makes together with a canary is a snapshot of the API as it is being edited, and is not served.

A promotion copies the canary's variables and deployment to the stage, as AWS wants it. Afterwards the alias is moved
and the variable names the alias again, or the next deployment, which moves the alias, would reach nobody.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from activities.errors import lasting
from activities.functions import Functions
from activities.stage import Stage
from activities.traffic_alias import AliasTraffic
from activities.traffic_models import AliasShare, CanaryShare, GatewayShare, Restore, Split, TrafficRouting

if TYPE_CHECKING:
    from mypy_boto3_apigateway import APIGatewayClient
    from mypy_boto3_apigateway.type_defs import PatchOperationTypeDef
    from mypy_boto3_lambda import LambdaClient

_CANARY = "/canarySettings"


class GatewayTraffic:
    def __init__(self, gateway: APIGatewayClient, functions: LambdaClient) -> None:
        self._gateway = gateway
        self._lambda = functions
        self._functions = Functions(functions)
        self._alias = AliasTraffic(self._functions)

    def found(self, stage: Stage) -> TrafficRouting:
        """What serves now.

        Raises:
            NoStageVariable: the API does not name the function's alias by the stage variable, so a canary of it would
                serve the same version as the stage.
            RoutingUnclear: the stage variable names another version than the alias points at.
        """
        alias, share = self._alias.share(stage), self._share(stage)
        self._require_variable(stage, share)
        if share.value not in (stage.alias, alias.version):
            raise lasting(
                f"{stage.gateway.name} has {share.variable}={share.value}, but alias {stage.alias} is at "
                f"{alias.described()}: which of them deployments move is not clear. Set the variable to {stage.alias}",
                type="RoutingUnclear",
            )
        summary = f"{stage.gateway.name}: {share.described()}; alias {stage.alias}: {alias.described()}"
        return TrafficRouting(summary=summary, version=alias.version, alias=alias, gateway=share)

    def shift(self, order: Split) -> bool:
        now = self._unmoved(order)
        stage_deployment = _recorded(order.before).deployment_id
        overrides = {now.variable: order.target}
        wanted = CanaryShare(percent=order.percent, deployment_id=stage_deployment, overrides=overrides)
        if now.canary == wanted:
            return False
        self._permit(order.stage, now.api_id, order.target)
        spare = self._begin(order, now) if now.canary is None else now.canary.deployment_id
        self._patch(order.stage, now.api_id, *_as(wanted))
        if spare != stage_deployment:
            with contextlib.suppress(self._gateway.exceptions.NotFoundException):
                self._gateway.delete_deployment(restApiId=now.api_id, deploymentId=spare)
        return True

    def promote(self, order: Split) -> bool:
        recorded, changed = _recorded(order.before), False
        now = self._unmoved(order)
        if now.canary is not None:
            # One call, so all or nothing: a canary at 100 % would still not be the stage.
            self._patch(
                order.stage,
                now.api_id,
                _replace(f"{_CANARY}/percentTraffic", "0"),
                {"op": "copy", "from": f"{_CANARY}/stageVariableOverrides", "path": "/variables"},
                {"op": "copy", "from": f"{_CANARY}/deploymentId", "path": "/deploymentId"},
                {"op": "remove", "path": _CANARY},
            )
            changed = True
        changed |= self._alias.point(order, AliasShare(version=order.target))
        if self._share(order.stage).value != recorded.value:
            self._patch(order.stage, now.api_id, _replace(f"/variables/{now.variable}", recorded.value))
            changed = True
        return changed

    def restore(self, order: Restore) -> tuple[bool, str]:
        """The alias first: the stage variable may still lead past it, and then nobody notices."""
        changed, said = self._alias.restore(order)
        now, back = self._share(order.stage), _recorded(order.before)
        patches: list[PatchOperationTypeDef] = []
        if now.canary != back.canary:
            patches += _as(back.canary) if back.canary else [{"op": "remove", "path": _CANARY}]
        if now.value == order.target and now.value != back.value:
            patches.append(_replace(f"/variables/{back.variable}", back.value))
        if patches:
            self._patch(order.stage, now.api_id, *patches)
        restored = self._share(order.stage)
        return changed or bool(patches), f"{order.stage.gateway.name}: {restored.described()}; {said}"

    # --- the stage of the API -----------------------------------------------------------------------------------

    def _share(self, stage: Stage) -> GatewayShare:
        api_id = stage.gateway.api_id or self._api_id(stage)
        found: Any = self._gateway.get_stage(restApiId=api_id, stageName=stage.gateway.stage)
        variable, variables = stage.gateway.variable, found.get("variables") or {}
        if variable not in variables:
            raise _no_variable(stage, f"its stage has no variable {variable}")
        canary = found.get("canarySettings")
        return GatewayShare(
            api_id=api_id,
            deployment_id=found["deploymentId"],
            variable=variable,
            value=variables[variable],
            canary=CanaryShare(
                percent=canary.get("percentTraffic", 0.0),
                deployment_id=canary["deploymentId"],
                overrides=canary.get("stageVariableOverrides") or {},
            )
            if canary
            else None,
        )

    def _api_id(self, stage: Stage) -> str:
        for page in self._gateway.get_paginator("get_rest_apis").paginate():
            for api in page["items"]:
                if api.get("name") == stage.gateway.name:
                    return api["id"]
        raise lasting(
            f"there is no REST API named {stage.gateway.name!r}. Correct the stage's 'gateway', or split by the alias: "
            "HTTP APIs have no canary",
            type="NoApi",
        )

    def _require_variable(self, stage: Stage, share: GatewayShare) -> None:
        """An integration that names the function itself, or a fixed alias, serves the same version on both sides."""
        named = f"${{stageVariables.{share.variable}}}"
        pages = self._gateway.get_paginator("get_resources").paginate(restApiId=share.api_id, embed=["methods"])
        methods = [
            method for page in pages for found in page["items"] for method in found.get("resourceMethods", {}).values()
        ]
        uris = [str((method.get("methodIntegration") or {}).get("uri", "")) for method in methods]
        fixed = [uri for uri in uris if f":function:{stage.function}" in uri and named not in uri]
        if fixed or not any(named in uri for uri in uris):
            raise _no_variable(stage, f"its integration does not name the function by {named}")

    def _unmoved(self, order: Split) -> GatewayShare:
        """The share as it is now.

        Raises:
            RoutingMoved: it is neither what was found at the start nor what this order makes of it.
        """
        now, before = self._share(order.stage), _recorded(order.before)
        split = now.canary and now.canary.overrides.get(now.variable)
        if (
            now.deployment_id != before.deployment_id
            or now.value not in (before.value, order.target)
            or (now.canary != before.canary and split != order.target)
        ):
            raise lasting(
                f"{order.stage.gateway.name} is at {now.described()}: somebody changed it since this began, at "
                f"{before.described()}. Look who deployed, and start again",
                type="RoutingMoved",
            )
        return now

    def _begin(self, order: Split, now: GatewayShare) -> str:
        """Make a canary that gets nothing yet; returns the deployment that comes with it."""
        return self._gateway.create_deployment(
            restApiId=now.api_id,
            stageName=order.stage.gateway.stage,
            description=f"canary for version {order.target}",
            canarySettings={
                "percentTraffic": 0.0,
                "stageVariableOverrides": {now.variable: order.target},
                "useStageCache": False,
            },
        )["id"]

    def _permit(self, stage: Stage, api_id: str, version: str) -> None:
        """Let the API call this version: the permission that it has is for the alias only."""
        arn = self._lambda.get_function_configuration(FunctionName=stage.function)["FunctionArn"]
        _, partition, _, region, account, *_ = arn.split(":")
        try:
            self._lambda.add_permission(
                FunctionName=stage.function,
                Qualifier=version,
                StatementId=f"canary-of-{api_id}-version-{version}",
                Action="lambda:InvokeFunction",
                Principal="apigateway.amazonaws.com",
                SourceArn=f"arn:{partition}:execute-api:{region}:{account}:{api_id}/*/*",
            )
        except self._lambda.exceptions.ResourceConflictException as error:
            if "already exists" not in error.response["Error"]["Message"]:
                raise  # an update is under way; otherwise it may already

    def _patch(self, stage: Stage, api_id: str, *operations: PatchOperationTypeDef) -> None:
        self._gateway.update_stage(restApiId=api_id, stageName=stage.gateway.stage, patchOperations=list(operations))


def _recorded(before: TrafficRouting) -> GatewayShare:
    if before.gateway is None:
        raise lasting(
            "the routing that was found is one of an alias, but the stage now says traffic = 'gateway'. Start again",
            type="RoutingUnclear",
        )
    return before.gateway


def _replace(path: str, value: str) -> PatchOperationTypeDef:
    return {"op": "replace", "path": path, "value": value}


def _as(canary: CanaryShare) -> list[PatchOperationTypeDef]:
    overrides = [
        _replace(f"{_CANARY}/stageVariableOverrides/{name}", value) for name, value in canary.overrides.items()
    ]
    return [
        _replace(f"{_CANARY}/deploymentId", canary.deployment_id),
        *overrides,
        _replace(f"{_CANARY}/percentTraffic", f"{canary.percent:g}"),
    ]


def _no_variable(stage: Stage, why: str) -> Exception:
    return lasting(
        f"the traffic of {stage.gateway.name} cannot be split by a canary: {why}. Name the alias in the integration's "
        f"URI by a stage variable, or split by the alias (traffic = 'alias')",
        type="NoStageVariable",
    )
