"""Memory, limits and provisioned environments of a real function in the embedded AWS, and its alarms."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.alarms import AlarmSettings, Threshold, UtilisationAlarm, utilisation_name
from activities.deployment_models import DeployAgain
from activities.function_capacity import ApplyOrder, FunctionCapacity, LimitOrder, RestartOrder, Setting
from activities.stage import SourceFacts, Stage
from tests.activities.site import POLL, Site, environment


@pytest.fixture
def stage(site: Site) -> Stage:
    return site.stage().model_copy(update={"source": SourceFacts(pool_variable="MONGODB_MAX_POOL_SIZE")})


@pytest.fixture
def capacity(site: Site) -> FunctionCapacity:
    return FunctionCapacity(site.aws.functions, poll=POLL)


def live(site: Site) -> dict[str, Any]:
    return dict(site.aws.functions.get_function_configuration(FunctionName=site.service, Qualifier="live"))


def apply(capacity: FunctionCapacity, stage: Stage, only_if: Setting | None = None, **setting: int) -> Any:
    order = ApplyOrder(stage=stage, setting=Setting(**setting), only_if=only_if)
    return environment().run(capacity.apply, order)


def test_memory_and_pool_are_served_by_a_new_version_of_the_same_code(
    site: Site, stage: Stage, capacity: FunctionCapacity
) -> None:
    before = live(site)
    assert apply(capacity, stage, memory_mb=1024, max_pool_size=5).changed
    after = live(site)
    assert (after["MemorySize"], after["CodeSha256"]) == (1024, before["CodeSha256"])
    assert after["Environment"]["Variables"] == before["Environment"]["Variables"] | {"MONGODB_MAX_POOL_SIZE": "5"}
    assert not apply(capacity, stage, memory_mb=1024, max_pool_size=5).changed, "the same again changes nothing"
    found = environment().run(capacity.capacity, stage)
    assert (found.memory_mb, found.max_pool_size) == (1024, 5)
    apply(capacity, stage, memory_mb=512, max_pool_size=0)
    assert live(site)["Environment"]["Variables"] == before["Environment"]["Variables"]


def test_what_somebody_else_has_set_is_left(site: Site, stage: Stage, capacity: FunctionCapacity) -> None:
    apply(capacity, stage, memory_mb=2048)
    found = apply(capacity, stage, Setting(memory_mb=1024), memory_mb=512)
    assert (found.left, live(site)["MemorySize"]) == (True, 2048)


def test_provisioned_environments_are_waited_for_and_taken_away(
    site: Site, stage: Stage, capacity: FunctionCapacity
) -> None:
    apply(capacity, stage, provisioned=1)
    found = site.aws.functions.get_provisioned_concurrency_config(FunctionName=site.service, Qualifier="live")
    assert found["Status"] == "READY"
    assert environment().run(capacity.capacity, stage).provisioned == 1
    assert not apply(capacity, stage, provisioned=1).changed
    assert apply(capacity, stage, provisioned=0).changed
    assert environment().run(capacity.capacity, stage).provisioned is None
    without = stage.model_copy(update={"alias": "none"})
    with pytest.raises(ApplicationError, match="LATEST cannot have"):
        apply(capacity, without, provisioned=1)


def test_a_pool_without_a_variable_needs_a_deployment(site: Site, capacity: FunctionCapacity) -> None:
    with pytest.raises(ApplicationError, match="way=merge"):
        apply(capacity, site.stage(), max_pool_size=5)


def test_a_limit_is_absolute_and_leaves_that_of_others(site: Site, stage: Stage, capacity: FunctionCapacity) -> None:
    def limit(concurrency: int | None, known: tuple[int | None, ...], strict: bool = False) -> Any:
        order = LimitOrder(stage=stage, concurrency=concurrency, known=known, strict=strict)
        return environment().run(capacity.limit, order)

    def reserved() -> Any:
        return site.aws.functions.get_function_concurrency(FunctionName=site.service).get(
            "ReservedConcurrentExecutions"
        )

    assert limit(0, (None,), strict=True).changed
    assert not limit(0, (None,), strict=True).changed
    assert (limit(2, (0, None)).changed, reserved()) == (True, 2)
    site.aws.functions.put_function_concurrency(FunctionName=site.service, ReservedConcurrentExecutions=77)
    assert (limit(None, (0, 2, None)).left, reserved()) == (True, 77)
    with pytest.raises(ApplicationError, match="somebody set that"):
        limit(0, (None,), strict=True)
    assert (limit(None, (77, None)).changed, reserved()) == (True, None)


def test_a_restart_is_made_once_a_key_and_keeps_every_variable(
    site: Site, stage: Stage, capacity: FunctionCapacity
) -> None:
    before = live(site)
    first, again, other = (restart(capacity, stage, key) for key in ("one", "one", "two"))
    assert (first.changed, again.changed, other.changed) == (True, False, True)
    assert first.version == again.version != other.version
    variables = live(site)["Environment"]["Variables"]
    assert {name: variables[name] for name in before["Environment"]["Variables"]} == before["Environment"]["Variables"]


def settings(found: dict[str, Any]) -> dict[str, Any]:
    """What a release decides, without what a restart writes."""
    variables = {n: v for n, v in found["Environment"]["Variables"].items() if n != "RUNBOOKS_RESTARTED"}
    return {"variables": variables, "memory": found["MemorySize"], "timeout": found["Timeout"]}


def restart(capacity: FunctionCapacity, stage: Stage, key: str = "one") -> Any:
    return environment().run(capacity.restart, RestartOrder(stage=stage, key=key))


@pytest.mark.parametrize("by", ["restart", "again", "apply"])
def test_settings_that_were_taken_back_stay_taken_back(
    site: Site, stage: Stage, capacity: FunctionCapacity, by: str
) -> None:
    """A release that changed settings only was rolled back by the alias: its code is live, its settings are not."""
    before = site.take_settings_back()
    found = environment().run(capacity.capacity, stage)
    assert found.reissue_problem is None
    assert "unpublished Timeout, MemorySize, Environment would be set back to what is live" in found.summary
    expected = settings(before)
    if by == "restart":
        restart(capacity, stage)
    elif by == "again":
        environment().run(site.deployments.again, DeployAgain(stage=stage, deployment_id="a-rotation/again"))
    else:
        apply(capacity, stage, memory_mb=1024)
        assert settings(live(site)) == expected | {"memory": 1024}
        apply(capacity, stage, Setting(memory_mb=1024), memory_mb=before["MemorySize"])
    assert live(site)["Version"] != before["Version"]
    assert settings(live(site)) == expected
    assert "set back" not in environment().run(capacity.capacity, stage).summary


def test_a_setting_that_cannot_be_set_back_does_not_go_live(
    site: Site, stage: Stage, capacity: FunctionCapacity
) -> None:
    before, functions = live(site), site.aws.functions
    functions.update_function_configuration(FunctionName=site.service, Role="arn:aws:iam::123456789012:role/other")
    with pytest.raises(ApplicationError, match="has another Role than what is live") as refused:
        restart(capacity, stage)
    assert (refused.value.type, refused.value.non_retryable) == ("SettingsDiffer", True)
    assert live(site)["Version"] == before["Version"]
    assert "another Role" in str(environment().run(capacity.capacity, stage).reissue_problem)


def test_a_change_between_the_look_and_the_publication_does_not_go_live(
    site: Site, stage: Stage, capacity: FunctionCapacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, functions = live(site), site.aws.functions
    publish = functions.publish_version

    def meanwhile(**asked: Any) -> Any:
        functions.update_function_configuration(FunctionName=site.service, Timeout=1)
        return publish(**asked)

    with monkeypatch.context() as patch:
        patch.setattr(functions, "publish_version", meanwhile)
        with pytest.raises(ApplicationError) as changed:
            restart(capacity, stage)
    assert (changed.value.type, changed.value.non_retryable) == ("FunctionChanged", False)
    assert live(site)["Version"] == before["Version"]
    assert restart(capacity, stage).changed
    assert settings(live(site)) == settings(before)


def test_variables_that_are_not_shown_are_not_written(
    site: Site, stage: Stage, capacity: FunctionCapacity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So AWS answers a role that may not decrypt them: a map that is merged with it would wipe them."""
    before, functions = live(site), site.aws.functions
    shown = functions.get_function_configuration
    hidden = {"Error": {"ErrorCode": "AccessDeniedException", "Message": "Lambda was unable to decrypt"}}
    with monkeypatch.context() as patch:
        patch.setattr(functions, "get_function_configuration", lambda **asked: shown(**asked) | {"Environment": hidden})
        with pytest.raises(ApplicationError, match="kms:Decrypt") as refused:
            restart(capacity, stage)
    assert (refused.value.type, refused.value.non_retryable) == ("VariablesHidden", True)
    for found in (live(site), dict(functions.get_function_configuration(FunctionName=site.service))):
        assert settings(found) == settings(before)


def test_only_the_threshold_of_an_alarm_changes(site: Site, stage: Stage) -> None:
    cloudwatch, name = site.aws.cloudwatch, f"{site.service}-slow"
    dimensions: Any = [{"Name": "FunctionName", "Value": site.service}]
    cloudwatch.put_metric_alarm(
        AlarmName=name,
        Namespace="AWS/Lambda",
        MetricName="Duration",
        Dimensions=dimensions,
        ExtendedStatistic="p95",
        Period=60,
        EvaluationPeriods=3,
        Threshold=3000,
        ComparisonOperator="GreaterThanThreshold",
        AlarmActions=["arn:aws:sns:us-east-1:123456789012:on-call"],
    )
    alarms = AlarmSettings(cloudwatch)
    found = environment().run(alarms.find, stage)
    assert [(one.name, one.metric, one.threshold) for one in found.alarms] == [(name, "Duration", 3000)]
    assert environment().run(alarms.threshold, Threshold(name=name, threshold=1200, only_if=3000)).changed
    assert not environment().run(alarms.threshold, Threshold(name=name, threshold=900, only_if=3000)).changed
    now = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"][0]
    assert (now["Threshold"], now["EvaluationPeriods"], now["ExtendedStatistic"]) == (1200, 3, "p95")
    assert now["AlarmActions"] == ["arn:aws:sns:us-east-1:123456789012:on-call"]
    for present in (True, True, False, False):
        environment().run(alarms.utilisation, UtilisationAlarm(stage=stage, present=present))
        there = cloudwatch.describe_alarms(AlarmNames=[utilisation_name(stage)])["MetricAlarms"]
        assert bool(there) is present
