"""Finding, checking, deploying and going back, against CloudFormation and Lambda as they answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.deployment_models import CheckTarget, DeployInput, FindTarget, PointAlias
from activities.releases import LedgerEntry, ReleaseFacts
from sandbox.api.releases import CATALOGUE
from tests.activities.site import CUSTOM, Site, environment

GOOD, BROKEN = CATALOGUE["good"].id, CATALOGUE["broken"].id


def refused(call: Callable[..., Any], argument: Any, attempt: int = 1) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        environment(attempt).run(call, argument)
    return caught.value


def test_the_target_is_the_last_good_release_before_the_live_one(site: Site) -> None:
    found = environment().run(site.deployments.find_target, FindTarget(stage=site.stage(), strategy="redeploy"))
    assert (found.current.release, found.target.release) == (BROKEN, GOOD)
    assert found.target == site.facts("good")
    assert found.sources["current"] == "alias live"
    assert found.notes == ()
    check = environment().run(
        site.deployments.check_target, CheckTarget(stage=site.stage(), strategy="redeploy", target=found.target)
    )
    assert check.ok, check.problems


def test_without_a_ledger_the_published_versions_decide_and_a_first_release_has_no_target(
    new_site: Callable[[], Site],
) -> None:
    site = new_site()
    site.deploy("good", record=False)
    find = FindTarget(stage=site.stage(), strategy="alias")
    error = refused(site.deployments.find_target, find)
    assert error.type == "NoTarget"
    assert error.non_retryable
    assert "'to'" in error.message
    site.deploy("broken", record=False)
    found = environment().run(site.deployments.find_target, find)
    assert (found.target.version, found.target.release) == ("1", GOOD)
    assert found.sources["target"] == "published version 1 of the function"
    found = environment().run(site.deployments.find_target, find.model_copy(update={"to": "1"}))
    assert found.target.release == GOOD
    assert refused(site.deployments.find_target, find.model_copy(update={"to": "2"})).type == "AlreadyLive"
    assert "is 'v9'" in refused(site.deployments.find_target, find.model_copy(update={"to": "v9"})).message


def test_a_target_that_is_gone_altered_or_was_never_good_is_refused(site: Site) -> None:
    stage, good = site.stage(), site.facts("good")
    bucket, _, key = str(good.code_location).removeprefix("s3://").partition("/")
    package = site.aws.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def problems(target: ReleaseFacts, strategy: str = "redeploy") -> str:
        asked = CheckTarget.model_validate({"stage": stage, "strategy": strategy, "target": target})
        check = environment().run(site.deployments.check_target, asked)
        assert check.ok == (not check.problems)
        return "; ".join(check.problems)

    site.aws.s3.put_object(Bucket=bucket, Key=key, Body=package + b"x")
    assert "code package was altered" in problems(good)
    site.aws.s3.delete_object(Bucket=bucket, Key=key)
    assert "code package is gone" in problems(good)
    site.aws.s3.put_object(Bucket=bucket, Key=key, Body=package)
    assert problems(good) == ""
    assert "template was altered" in problems(good.model_copy(update={"template_sha256": "0" * 64}))
    assert "was not saved" in problems(good.model_copy(update={"template_location": None}))
    assert problems(good, "alias") == ""
    assert "is gone" in problems(good.model_copy(update={"version": "77"}), "alias")
    assert "other code" in problems(good.model_copy(update={"version": "2", "release": None}), "alias")
    failed = LedgerEntry(
        app=stage.deploy.app, stage=stage.name, release="f" * 40, engine="cloudformation",
        deployed_at=datetime.now(UTC), deployed_by="ci", status="failed",
    )  # fmt: skip
    environment().run(site.deployments.record, failed)
    template = {"template_location": good.template_location}
    assert "recorded as failed" in problems(failed.facts().model_copy(update=template))


def test_redeploy_by_cloudformation_happens_once_and_capture_undoes_it(site: Site) -> None:
    stage = site.stage()
    former = environment().run(site.deployments.capture, stage)
    assert former.live.release == BROKEN
    assert "Resources" not in former.model_dump_json()
    before = site.updates()
    order = DeployInput(stage=stage, release=site.facts("good"), deployment_id="run 1/deploy")
    done = environment().run(site.deployments.deploy, order)
    assert done.changed
    assert done.as_recorded
    assert (done.release, done.stack_status) == (GOOD, "UPDATE_COMPLETE")
    assert site.live_release() == GOOD
    # The answer was lost: the same deployment again makes no second update.
    again = environment(attempt=2).run(site.deployments.deploy, order)
    assert (again.changed, again.release) == (True, GOOD)
    assert site.updates() == before + 1
    # Another deployment of what is live changes nothing.
    other = environment().run(site.deployments.deploy, order.model_copy(update={"deployment_id": "run 2/deploy"}))
    assert not other.changed
    assert site.updates() == before + 1
    undone = environment().run(
        site.deployments.deploy, DeployInput(stage=stage, release=former.live, deployment_id="run 1/undo")
    )
    assert undone.changed
    assert site.live_release() == BROKEN


def test_a_worker_that_dies_while_the_stack_updates_makes_one_update_only(site: Site) -> None:
    slow = site.template()
    slow["Resources"]["Thing"] = site.custom_resource(CUSTOM)
    slow["Resources"]["Thing"]["Properties"]["Seconds"] = "1.5"
    order = DeployInput(stage=site.stage(), release=site.save_template(slow, "slow"), deployment_id="killed")
    before, beats = site.updates(), []

    class Killed(Exception):
        pass

    def beat(details: Any) -> None:
        beats.append(details)
        if details["phase"].startswith("updating"):
            raise Killed

    env = environment()
    env.on_heartbeat = beat
    with pytest.raises(Killed):
        env.run(site.deployments.deploy, order)
    assert site.status() == "UPDATE_IN_PROGRESS"
    done = environment(attempt=2, beats=beats).run(site.deployments.deploy, order)
    assert done.changed
    assert "earlier attempt" in done.how
    assert site.updates() == before + 1
    assert (done.finished_at - done.started_at).total_seconds() > 1


def test_a_stack_that_is_busy_is_waited_for(site: Site) -> None:
    busy = site.template()
    busy["Resources"]["Thing"] = site.custom_resource(CUSTOM)
    busy["Resources"]["Thing"]["Properties"]["Seconds"] = "1"
    site.update(busy)
    phases: list[str] = []
    env = environment()
    env.on_heartbeat = lambda details: phases.append(details["phase"])
    order = DeployInput(stage=site.stage(), release=site.facts("good"), deployment_id="after-another")
    done = env.run(site.deployments.deploy, order)
    assert done.changed
    assert site.live_release() == GOOD
    assert any(phase.startswith("waiting for the operation under way") for phase in phases)


def test_an_update_that_fails_says_which_resource_and_leaves_all_as_it_was(site: Site) -> None:
    bad = site.template()
    bad["Resources"]["Function"]["Properties"]["Code"]["S3Key"] = "nowhere.zip"
    order = DeployInput(stage=site.stage(), release=site.save_template(bad, "bad"), deployment_id="fails")
    error = refused(site.deployments.deploy, order)
    assert (error.type, error.non_retryable) == ("DeployFailed", True)
    assert "Function: " in error.message
    assert "UPDATE_ROLLBACK_COMPLETE" in error.message
    assert site.live_release() == BROKEN
    begun = site.updates()
    assert refused(site.deployments.deploy, order, attempt=2).type == "DeployFailed"
    assert site.updates() == begun
    assert refused(site.deployments.continue_rollback, site.stage()).type == "NothingToContinue"


def test_a_saved_template_that_was_altered_is_not_deployed(site: Site) -> None:
    release = site.facts("good").model_copy(update={"template_sha256": "0" * 64})
    order = DeployInput(stage=site.stage(), release=release, deployment_id="altered")
    before = site.updates()
    assert refused(site.deployments.deploy, order).type == "AlteredArtifact"
    gone = release.model_copy(update={"template_location": "s3://test-records/nothing"})
    assert refused(site.deployments.deploy, order.model_copy(update={"release": gone})).type == "MissingArtifact"
    assert site.updates() == before


def test_a_rollback_that_failed_is_continued_once_its_cause_is_mended(site: Site) -> None:
    stage = site.stage()
    error = refused(site.deployments.continue_rollback, stage)
    assert error.type == "NothingToContinue"
    assert "'redeploy' or 'alias'" in error.message
    body = site.template()
    body["Resources"]["Thing"] = site.custom_resource(CUSTOM)
    body["Resources"]["Function"]["DependsOn"] = ["FunctionLogs", "Thing"]
    site.update(body)
    assert site.settled() == "UPDATE_COMPLETE"
    site.break_custom_resource("yes")
    body["Resources"]["Thing"]["Properties"]["V"] = "2"
    body["Resources"]["Function"]["Properties"]["Code"]["S3Key"] = "nowhere.zip"
    order = DeployInput(stage=stage, release=site.save_template(body, "worse"), deployment_id="worse")
    error = refused(site.deployments.deploy, order)
    assert "UPDATE_ROLLBACK_FAILED" in error.message
    assert "Function: " in error.message
    # Nothing else can be deployed now, and the target is what the stack had before.
    blocked = DeployInput(stage=stage, release=site.facts("good"), deployment_id="blocked")
    assert refused(site.deployments.deploy, blocked).type == "StackRollbackFailed"
    found = environment().run(site.deployments.find_target, FindTarget(stage=stage, strategy="cloudformation"))
    assert found.target.release == BROKEN
    error = refused(site.deployments.continue_rollback, stage)
    assert error.type == "DeployFailed"
    assert "Thing: " in error.message
    site.break_custom_resource("no")
    assert environment().run(site.deployments.continue_rollback, stage).status == "UPDATE_ROLLBACK_COMPLETE"
    assert environment(attempt=2).run(site.deployments.continue_rollback, stage).status == "UPDATE_ROLLBACK_COMPLETE"
    assert site.live_release() == BROKEN


def test_parameters_are_saved_in_the_store_and_hidden_ones_keep_their_value(site: Site) -> None:
    stage, body = site.stage(), site.template()
    body["Parameters"] = {"Note": {"Type": "String", "Default": "a"}, "Hidden": {"Type": "String", "NoEcho": True}}
    body["Resources"]["Function"]["Properties"]["Environment"]["Variables"] |= {
        "NOTE": {"Ref": "Note"},
        "HIDDEN": {"Ref": "Hidden"},
    }

    def update(note: str) -> None:
        site.aws.cloudformation.update_stack(
            StackName=site.service,
            TemplateBody=json.dumps(body),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[
                {"ParameterKey": "Note", "ParameterValue": note},
                {"ParameterKey": "Hidden", "ParameterValue": "quiet"},
            ],
        )
        assert site.settled() == "UPDATE_COMPLETE"

    update("first")
    former = environment().run(site.deployments.capture, stage)
    assert "first" not in former.model_dump_json()
    update("second")
    order = DeployInput(stage=stage, release=former.live, deployment_id="back")
    assert environment().run(site.deployments.deploy, order).changed
    variables = site.aws.functions.get_function_configuration(FunctionName=site.service)["Environment"]["Variables"]
    assert (variables["NOTE"], variables["HIDDEN"]) == ("first", "quiet")


def test_the_alias_is_set_absolutely_and_never_over_somebody_elses_change(site: Site) -> None:
    stage, point = site.stage(), site.deployments.point_alias
    to_first = PointAlias(stage=stage, version="1", expect_version="2")
    moved = environment().run(point, to_first)
    assert (moved.changed, moved.former_version, moved.release) == (True, "2", GOOD)
    assert not environment(attempt=2).run(point, to_first).changed
    split = environment().run(point, PointAlias(stage=stage, version="2", weights={"1": 0.1}))
    assert split.weights == {"1": 0.1}
    former = environment().run(site.deployments.capture, stage)
    assert former.routing is not None
    assert former.routing.weights == {"1": 0.1}
    cleared = environment().run(point, PointAlias(stage=stage, version="2"))
    assert (cleared.changed, cleared.weights) == (True, {})
    restored = PointAlias(stage=stage, version=former.routing.version, weights=former.routing.weights)
    environment().run(point, restored)
    alias = site.aws.functions.get_alias(FunctionName=site.service, Name="live")
    assert alias["RoutingConfig"]["AdditionalVersionWeights"] == {"1": 0.1}
    site.aws.functions.publish_version(FunctionName=site.service)
    assert refused(point, PointAlias(stage=stage, version="1", expect_version="7")).type == "AliasMoved"
    assert refused(point, PointAlias(stage=stage, version="99")).type == "NoVersion"
    other = stage.model_copy(update={"alias": "blue"})
    assert refused(point, PointAlias(stage=other, version="1")).type == "NoAlias"


def test_an_alias_that_changes_between_look_and_change_is_looked_at_again(site: Site) -> None:
    functions, raced = site.aws.functions, threading.Event()

    def race(**_: Any) -> None:
        if not raced.is_set():
            raced.set()
            functions.update_alias(FunctionName=site.service, Name="live", Description="changed by somebody else")

    functions.meta.events.register("before-call.lambda.UpdateAlias", race)
    try:
        error = refused(site.deployments.point_alias, PointAlias(stage=site.stage(), version="1"))
    finally:
        functions.meta.events.unregister("before-call.lambda.UpdateAlias", race)
    assert (error.type, error.non_retryable) == ("AliasBusy", False)
    assert site.live_release() == BROKEN
    assert environment(attempt=2).run(site.deployments.point_alias, PointAlias(stage=site.stage(), version="1")).changed
