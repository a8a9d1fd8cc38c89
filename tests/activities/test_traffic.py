"""Splitting traffic between two published versions, by alias and by canary, in the embedded AWS."""

from __future__ import annotations

from collections import Counter
from typing import Any

import httpx
import pytest
from temporalio.exceptions import ApplicationError

from activities.stage import Stage
from activities.traffic import Traffic
from activities.traffic_models import Restore, Split, TrafficRouting
from tests.activities.site import Site

VARIABLE = "${stageVariables.lambdaAlias}"


class Split2:
    """A stage with two versions, its routing as it was found, and what may be done to it."""

    def __init__(self, site: Site, way: str) -> None:
        site.deploy("good")
        if way == "gateway":
            name_by_variable(site)
        site.deploy("flaky")
        self.site = site
        self.stage: Stage = site.stage().model_copy(update={"traffic": way})
        self.stage = self.stage.model_copy(
            update={"gateway": self.stage.gateway.model_copy(update={"api_id": site.api_id})}
        )
        self.traffic = Traffic(site.aws.functions, site.aws.apigateway)
        self.before = self.traffic.routing(self.stage)
        self.old, self.new = self.versions()

    def versions(self) -> tuple[str, str]:
        found = self.site.aws.functions.list_versions_by_function(FunctionName=self.site.service)["Versions"]
        numbers = [one["Version"] for one in found if one["Version"] != "$LATEST"]
        return numbers[-2], numbers[-1]

    def order(self, percent: int = 100, **more: Any) -> Split:
        return Split.model_validate(
            {"stage": self.stage, "before": self.before, "target": self.old, "percent": percent, **more}
        )

    def restore(self) -> Any:
        return self.traffic.restore(Restore(stage=self.stage, before=self.before, target=self.old))

    def now(self) -> TrafficRouting:
        return self.traffic.routing(self.stage)

    def served(self, requests: int = 60) -> Counter[str]:
        """Versions that answered that many requests."""
        with httpx.Client() as client:
            return Counter(client.get(self.stage.url + "/health").json()["version"] for _ in range(requests))


def name_by_variable(site: Site) -> None:
    """Let the API name the alias by a stage variable, as a team does that uses canaries of the gateway."""
    gateway, api = site.aws.apigateway, str(site.api_id)
    for resource in gateway.get_resources(restApiId=api, embed=["methods"])["items"]:
        for method, found in resource.get("resourceMethods", {}).items():
            uri = found["methodIntegration"]["uri"].replace(":live/", f":{VARIABLE}/")
            gateway.put_integration(
                restApiId=api,
                resourceId=resource["id"],
                httpMethod=method,
                type="AWS_PROXY",
                integrationHttpMethod="POST",
                uri=uri,
            )
    gateway.create_deployment(restApiId=api, stageName=site.name, variables={"lambdaAlias": "live"})


@pytest.fixture(params=["alias", "gateway"])
def world(request: pytest.FixtureRequest, new_site: Any) -> Split2:
    return Split2(new_site(), request.param)


def test_shift_promote_and_restore_are_absolute(world: Split2) -> None:
    deployments = len(world.site.aws.apigateway.get_deployments(restApiId=str(world.site.api_id))["items"])
    assert world.before.version == world.new
    for percent, least, most in ((10, 0, 25), (50, 18, 42)):
        order = world.order(percent)
        assert world.traffic.shift(order).changed
        assert not world.traffic.shift(order).changed, "a repeated attempt recognises its own work"
        assert least <= world.served()[world.old] <= most
    assert world.restore().changed
    assert world.now().model_copy(update={"summary": ""}) == world.before.model_copy(update={"summary": ""})
    assert not world.restore().changed
    assert world.served(10) == {world.new: 10}

    world.traffic.shift(world.order(50))
    assert world.traffic.promote(world.order()).changed
    assert not world.traffic.promote(world.order()).changed
    now = world.now()
    assert (now.version, now.alias.weights) == (world.old, {})
    if now.gateway:
        assert now.gateway.canary is None
        assert now.gateway.value == "live", "the next deployment, which moves the alias, has to reach somebody"
    assert world.served(10) == {world.old: 10}
    assert len(world.site.aws.apigateway.get_deployments(restApiId=str(world.site.api_id))["items"]) == deployments
    world.restore()
    assert world.served(10) == {world.new: 10}, "a promotion is undone, too"


def test_half_of_a_gateway_promotion_is_finished_or_undone(new_site: Any) -> None:
    world = Split2(new_site(), "gateway")
    aws = world.site.aws
    world.traffic.shift(world.order(50))
    # As if the worker had died after the copy operations: the stage names the version, the alias is still elsewhere.
    aws.apigateway.update_stage(
        restApiId=str(world.site.api_id),
        stageName=world.site.name,
        patchOperations=[
            {"op": "copy", "from": "/canarySettings/stageVariableOverrides", "path": "/variables"},
            {"op": "remove", "path": "/canarySettings"},
        ],
    )
    assert world.served(10) == {world.old: 10}
    world.traffic.promote(world.order())
    assert world.served(10) == {world.old: 10}
    assert world.now().gateway.value == "live"  # type: ignore[union-attr]  # this world has one
    aws.apigateway.update_stage(
        restApiId=str(world.site.api_id),
        stageName=world.site.name,
        patchOperations=[{"op": "replace", "path": "/variables/lambdaAlias", "value": world.old}],
    )
    world.restore()
    assert world.now().gateway == world.before.gateway
    assert world.served(10) == {world.new: 10}


def test_a_version_that_could_not_be_permitted_just_now_gets_no_traffic(
    new_site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Split2(new_site(), "gateway")
    functions = world.site.aws.functions
    text = "The operation cannot be performed at this time. An update is in progress for resource: it"
    answer: Any = {
        "Error": {"Code": "ResourceConflictException", "Message": text},
        "ResponseMetadata": {"HTTPStatusCode": 409},
    }

    def busy(**_asked: Any) -> None:
        raise functions.exceptions.ResourceConflictException(answer, "AddPermission")

    with monkeypatch.context() as patch:
        patch.setattr(functions, "add_permission", busy)
        with pytest.raises(ApplicationError) as refused:
            world.traffic.shift(world.order(50))
    assert (refused.value.type, refused.value.non_retryable) == ("ResourceConflictException", False)
    assert world.served(20) == {world.new: 20}
    for percent in (10, 99):  # the second time it may already
        assert world.traffic.shift(world.order(percent)).changed
    assert world.served(20)[world.old] > 10


def test_what_somebody_else_changed_is_refused_and_left_alone(new_site: Any) -> None:
    world = Split2(new_site(), "alias")
    functions, name = world.site.aws.functions, world.site.service
    world.traffic.shift(world.order(10))
    world.site.deploy("slow")  # a deployment in the middle of it
    functions.update_alias(FunctionName=name, Name="live", RoutingConfig={"AdditionalVersionWeights": {world.old: 0.1}})
    with pytest.raises(ApplicationError) as refused:
        world.traffic.shift(world.order(50))
    assert (refused.value.type, refused.value.non_retryable) == ("RoutingMoved", True)
    newest = world.versions()[1]
    assert "where somebody pointed it meanwhile" in world.restore().summary
    alias = functions.get_alias(FunctionName=name, Name="live")
    assert alias["FunctionVersion"] == newest
    assert not alias.get("RoutingConfig", {}).get("AdditionalVersionWeights")


def test_a_target_that_is_gone_or_altered_gets_no_traffic(new_site: Any) -> None:
    world = Split2(new_site(), "alias")
    functions, name = world.site.aws.functions, world.site.service
    for bad, kind in (({"target": "99"}, "NoVersion"), ({"target_code": "another"}, "AlteredVersion")):
        for change in (world.traffic.shift, world.traffic.promote):
            with pytest.raises(ApplicationError) as refused:
                change(world.order(10, **bad))
            assert refused.value.type == kind
    functions.delete_function(FunctionName=name, Qualifier=world.old)
    with pytest.raises(ApplicationError) as refused:
        world.traffic.shift(world.order(10))
    assert refused.value.type == "NoVersion"
    assert world.now().alias == world.before.alias


def test_an_api_that_names_no_alias_by_a_variable_has_no_use_for_a_canary(site: Site) -> None:
    traffic = Traffic(site.aws.functions, site.aws.apigateway)
    stage = site.stage()
    stage = stage.model_copy(
        update={"traffic": "gateway", "gateway": stage.gateway.model_copy(update={"api_id": site.api_id})}
    )
    with pytest.raises(ApplicationError) as refused:
        traffic.routing(stage)
    assert refused.value.type == "NoStageVariable"
    with pytest.raises(ApplicationError) as refused:
        traffic.routing(stage.model_copy(update={"alias": "nope", "traffic": "alias"}))
    assert refused.value.type == "NoAlias"
