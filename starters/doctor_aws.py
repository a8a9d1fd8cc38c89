"""What a stage needs of AWS: credentials, permissions, and that everything has the name that the settings say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.exceptions
from temporalio.exceptions import ApplicationError

from activities import calls, commands
from activities.clients import Aws
from activities.deployment_models import FindTarget
from activities.deployments import Deployments
from activities.errors import from_aws
from activities.functions import Functions
from activities.permissions import filled, statements, with_rare
from activities.records import Records
from activities.settings import Settings
from activities.stacks import Stacks
from activities.stage import Stage
from starters.doctor_lines import Check, Seen, by_activity, warning, wrong

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch.type_defs import DimensionFilterTypeDef

_VERSION_ANSWER = 30.0
"""Seconds that 'sst version' may take: its first call unpacks it."""

_RECENT = timedelta(days=1)
_INVOCATION = ('"REPORT RequestId"', '{ $.type = "platform.report" }')
"""What ends an invocation in the log, as text and as JSON."""


class AwsChecks:
    """The checks of one stage."""

    def __init__(self, aws: Aws, settings: Settings, stage: Stage) -> None:
        self._aws, self._settings, self._stage = aws, settings, stage
        self._functions = Functions(aws.functions)

    def all(self) -> Sequence[Check]:
        stage = self._stage
        named = f"[stages.{stage.name}]"
        return (
            Check("records", self._records, "create the bucket, or correct 'bucket' in [records]", ("credentials",)),
            Check(
                "permissions",
                self._permissions,
                "let the worker's role ask: allow iam:SimulatePrincipalPolicy and iam:GetRole on itself",
                ("credentials",),
            ),
            Check("function", self._function, f"correct 'function' in {named}", ("credentials",)),
            Check("alias", self._alias, f"correct 'alias' in {named}", ("function",)),
            Check("versions", self._versions, "publish a version at every deployment", ("function",)),
            Check("stack", self._stack, f"correct 'stack' in {named}", ("credentials",)),
            Check("engine", self._engine, f"correct [stages.{stage.name}.deploy]"),
            Check(
                "way back",
                self._way_back,
                "deploy through the ledger, so that there is a release to go back to",
                ("function", "records"),
            ),
            Check("gateway", self._gateway, f"correct [stages.{stage.name}.gateway]", ("credentials",)),
            Check("metrics", self._metrics, "see that the function is called at all", ("function",)),
            Check("log", self._log, f"correct 'log_group' in {named}", ("function",)),
        )

    def credentials(self) -> Check:
        """What all others need."""
        return Check(
            "credentials",
            self._credentials,
            "give the worker credentials: a role, AWS_PROFILE, or AWS_ACCESS_KEY_ID; for an emulator set "
            "aws.endpoint_url",
        )

    def _credentials(self) -> Seen:
        try:
            who = self._aws.sts.get_caller_identity()
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise from_aws(error, "ask AWS who this is") from None
        if self._stage.region != self._settings.aws.region:
            return wrong(
                f"stage {self._stage.name} is in {self._stage.region}, aws.region is {self._settings.aws.region}",
                f"run a worker for {self._stage.region}, with a task_queue of its own and aws.region set to it",
            )
        return Seen(f"{who['Arn']} in {self._settings.aws.region}")

    def _permissions(self) -> Seen:
        """Ask IAM about every call that the tests have seen the runbooks make, on this stage's own resources."""
        arn = self._aws.sts.get_caller_identity()["Arn"]
        if arn.endswith(":root"):
            return warning(
                "these are root credentials, which may do everything and cannot be simulated",
                "give the worker a role of its own with the policies in deploy/iam",
            )
        source = self._principal(arn)
        names = self._names(arn)
        refused: list[str] = []
        wanted = {call for made in with_rare(calls.kept(), "aws", self._stage).values() for call in made}
        for resources, actions in statements(wanted):
            # One resource at a time: an answer about several does not say of which it is true.
            for resource in dict.fromkeys(_concrete(filled(resource, names)) for resource in resources):
                pages = self._aws.iam.get_paginator("simulate_principal_policy").paginate(
                    PolicySourceArn=source, ActionNames=actions, ResourceArns=[resource]
                )
                results = [result for page in pages for result in page["EvaluationResults"]]
                refused += [result["EvalActionName"] for result in results if result["EvalDecision"] != "allowed"]
        if refused:
            listed = ", ".join(sorted(set(refused)))
            return wrong(
                f"{source} may not: {listed}",
                "attach the policies of the runbook families that this worker serves: deploy/iam/*.json",
            )
        return Seen(f"{source} may make all {len(wanted)} calls of the runbooks")

    def _principal(self, arn: str) -> str:
        """What can be simulated: the role itself, where the caller is a session of it."""
        session = re.fullmatch(r"(arn:[\w-]+):sts::(\d+):assumed-role/([^/]+)/.*", arn)
        if session is None:
            return arn
        try:
            return self._aws.iam.get_role(RoleName=session[3])["Role"]["Arn"]
        except botocore.exceptions.ClientError:  # the path of the role stays unknown
            return f"{session[1]}:iam::{session[2]}:role/{session[3]}"

    def _names(self, arn: str) -> dict[str, str]:
        stage = self._stage
        return {
            "Partition": arn.split(":")[1],
            "Region": stage.region,
            "Account": arn.split(":")[4],
            "Function": stage.function,
            "Stack": stage.stack or "",
            "LogGroup": stage.log_group,
            "GatewayLogGroup": stage.gateway.log_group or stage.log_group,  # where none is named, none is read
            "Records": self._settings.records.bucket,
            "RestApi": stage.gateway.api_id or "",
        }

    def _function(self) -> Seen:
        live = self._functions.live(self._stage)
        return Seen(f"{self._stage.function}, version {live.version} is live (release {live.release or 'not named'})")

    def _alias(self) -> Seen:
        stage = self._stage
        routing = self._functions.routing(stage)
        if routing is None:
            newest = max((int(v.version) for v in self._functions.published(stage)), default=0)
            return wrong(
                f"{stage.function} has no alias {stage.alias!r}",
                f"set 'alias' in [stages.{stage.name}], or make it: aws lambda create-alias --function-name "
                f"{stage.function} --name {stage.alias} --function-version {newest or 'VERSION'}",
            )
        if routing.weights:
            return warning(
                f"{stage.alias} splits its traffic: {routing.described()}", "finish or abort the gradual rollback"
            )
        return Seen(f"{stage.alias} is at version {routing.version}")

    def _versions(self) -> Seen:
        found = self._functions.published(self._stage)
        if not found:
            return wrong("no version is published", "publish a version at every deployment, and call it by the alias")
        if len(found) == 1:
            return warning("one version is published: there is no earlier one yet", "deploy once more")
        return Seen(f"{len(found)} versions are published, the newest is {max(int(v.version) for v in found)}")

    def _stack(self) -> Seen:
        if self._stage.stack is None:
            return Seen("this stage has no CloudFormation stack")
        status = by_activity(Stacks(self._aws.cloudformation).status, self._stage)
        if status.healthy:
            return Seen(status.summary)
        if status.status and status.status.endswith("_IN_PROGRESS"):
            return warning(status.summary, "wait for the operation under way to end")
        return wrong(
            f"{status.summary}" + (f": {status.reason}" if status.reason else ""),
            "mend the resource that failed, then: runbooks start QuickRollback "
            f"--set stage={self._stage.name} --set strategy=cloudformation --set reason='the stack is half-way'",
        )

    def _engine(self) -> Seen:
        policy, name = self._stage.deploy, self._stage.name
        for key, place in (("directory", policy.directory), ("releases", policy.releases)):
            if place is not None and not Path(place).is_dir():
                return wrong(
                    f"there is no folder {place}", f"mount it on the worker, or correct {key} in [stages.{name}.deploy]"
                )
        if policy.engine == "cloudformation":
            if self._stage.stack is None:
                return wrong("engine cloudformation, and the stage has no stack", f"set 'stack' in [stages.{name}]")
            return Seen("cloudformation, by AWS itself")
        if not (policy.directory or policy.releases) and policy.engine != "command":
            return wrong(
                f"engine {policy.engine}, and nothing to build a release from",
                f"set 'directory' (a git checkout) or 'releases' (saved builds) in [stages.{name}.deploy]",
            )
        if policy.engine == "command":
            if not policy.command:
                return wrong("engine command, and no command", f"set 'command' in [stages.{name}.deploy]")
            return Seen(f"command {commands.program(policy.command[0], self._checkout())}")
        return self._sst()

    def _sst(self) -> Seen:
        policy = self._stage.deploy
        directory = self._checkout()
        program = commands.program("sst", directory)
        done = subprocess.run(  # noqa: S603
            [program, "version"], cwd=directory, capture_output=True, text=True, timeout=_VERSION_ANSWER, check=False
        )
        found = re.search(r"(\d+)\.\d+\.\d+\S*", done.stdout + done.stderr)
        if done.returncode != 0 or found is None:
            return wrong(f"'{program} version' does not answer (exit code {done.returncode})", "mend SST on the worker")
        engine = "sst-v2" if int(found[1]) <= 2 else "sst"
        if engine != policy.engine:
            return wrong(
                f"this is sst {found[0]}, and the stage says engine {policy.engine!r}",
                f"set engine = {engine!r} in [stages.{self._stage.name}.deploy], or install the right version",
            )
        return Seen(f"sst {found[0]} at {program}")

    def _checkout(self) -> Path:
        """Where a release's own commands would be found: the checkout, or the newest saved build."""
        policy = self._stage.deploy
        if policy.releases:
            builds = sorted(Path(policy.releases).iterdir(), key=lambda build: build.stat().st_mtime)
            if folders := [build for build in builds if build.is_dir()]:
                return folders[-1]
        return Path(policy.directory or ".")

    def _way_back(self) -> Seen:
        policy = self._stage.rollback
        if policy.strategy in ("cloudformation", "command"):
            return Seen(f"strategy {policy.strategy} finds it by itself")
        records = Records(self._aws.s3, self._settings)
        deployments = Deployments(self._aws.cloudformation, self._aws.functions, records)
        try:
            found = by_activity(deployments.find_target, FindTarget(stage=self._stage, strategy=policy.strategy))
        except ApplicationError as error:
            if error.type == "NoTarget":
                return warning(error.message, "deploy once more, and there is one")
            raise
        return Seen(f"a rollback would go {found.summary}")

    def _gateway(self) -> Seen:
        facts, client = self._stage.gateway, self._aws.apigateway
        apis = [api for page in client.get_paginator("get_rest_apis").paginate() for api in page["items"]]
        found = [api for api in apis if facts.api_id == api["id"] or (not facts.api_id and api["name"] == facts.name)]
        if not found:
            known = ", ".join(sorted(api["name"] for api in apis)) or "none"
            return wrong(
                f"there is no REST API {facts.api_id or facts.name}; there are: {known}",
                f"correct 'name' or 'api_id' in [stages.{self._stage.name}.gateway]; HTTP APIs are not supported",
            )
        api = found[0]
        if api["name"] != facts.name:
            return wrong(
                f"REST API {api['id']} is named {api['name']}, so the metrics of {facts.name} are another's",
                f"set name = {api['name']!r} in [stages.{self._stage.name}.gateway]",
            )
        stages = [stage["stageName"] for stage in client.get_stages(restApiId=api["id"])["item"]]
        if facts.stage not in stages:
            return wrong(
                f"REST API {api['name']} has no stage {facts.stage}; it has: {', '.join(stages)}",
                f"correct 'stage' in [stages.{self._stage.name}.gateway]",
            )
        return Seen(f"REST API {api['name']} ({api['id']}), stage {facts.stage}")

    def _metrics(self) -> Seen:
        stage = self._stage
        per_version = [("FunctionName", stage.function), ("Resource", f"{stage.function}:{stage.alias}")]
        missing = [
            what
            for what, namespace, metric, dimensions in (
                ("the function's", "AWS/Lambda", "Invocations", [("FunctionName", stage.function)]),
                ("those of each version behind the alias", "AWS/Lambda", "Invocations", per_version),
                (
                    "the gateway's",
                    "AWS/ApiGateway",
                    "Count",
                    [("ApiName", stage.gateway.name), ("Stage", stage.gateway.stage)],
                ),
            )
            if not self._listed(namespace, metric, dimensions)
        ]
        if missing:
            return warning(
                f"no data in two weeks: {', '.join(missing)}",
                "call the API once through its alias; where it is called, the names in the settings are another's",
            )
        return Seen("the function's, each version's and the gateway's are there")

    def _listed(self, namespace: str, metric: str, dimensions: list[tuple[str, str]]) -> bool:
        wanted: list[DimensionFilterTypeDef] = [{"Name": name, "Value": value} for name, value in dimensions]
        found = self._aws.cloudwatch.list_metrics(Namespace=namespace, MetricName=metric, Dimensions=wanted)
        return bool(found["Metrics"])

    def _log(self) -> Seen:
        stage, logs = self._stage, self._aws.logs
        config = self._aws.functions.get_function_configuration(FunctionName=stage.function).get("LoggingConfig", {})
        writes = config.get("LogGroup")
        if writes and writes != stage.log_group:
            return wrong(
                f"{stage.function} writes to {writes}, the settings read {stage.log_group}",
                f"set log_group = {writes!r} in [stages.{stage.name}]",
            )
        groups = logs.describe_log_groups(logGroupNamePrefix=stage.log_group)["logGroups"]
        if not any(group["logGroupName"] == stage.log_group for group in groups):
            return wrong(
                f"there is no log group {stage.log_group}",
                f"correct 'log_group' in [stages.{stage.name}]; Lambda's own is /aws/lambda/{stage.function}, and is "
                "made at the first call",
            )
        form = config.get("LogFormat", "Text")
        if form == "JSON" and config.get("SystemLogLevel", "INFO") == "WARN":
            return wrong(
                "the log is JSON without Lambda's own lines, so invocations cannot be counted",
                f"aws lambda update-function-configuration --function-name {stage.function} "
                "--logging-config LogFormat=JSON,SystemLogLevel=INFO",
            )
        since = int((datetime.now(UTC) - _RECENT).timestamp() * 1000)
        for pattern in _INVOCATION:
            pages = logs.get_paginator("filter_log_events").paginate(
                logGroupName=stage.log_group, startTime=since, filterPattern=pattern, PaginationConfig={"MaxItems": 1}
            )
            if any(page["events"] for page in pages):
                return Seen(f"{stage.log_group}, format {form}, invocations can be counted")
        return warning(
            f"{stage.log_group} has no end of an invocation within a day", "call the API once, and look again"
        )

    def _records(self) -> Seen:
        bucket = self._settings.records.bucket
        try:
            self._aws.s3.head_bucket(Bucket=bucket)
        except botocore.exceptions.ClientError as error:
            code = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if code == 404:
                return wrong(
                    f"there is no bucket {bucket}", f"create it (aws s3 mb s3://{bucket}), or set records.bucket"
                )
            return wrong(f"bucket {bucket} answers HTTP {code}", "let the worker's role list, read and write it")
        return Seen(f"bucket {bucket} answers")


def _concrete(resource: str) -> str:
    """A resource that can be simulated: a bare '*' in an ARN stands for anything, so something is put there."""
    return resource if resource == "*" else resource.replace("*", "any")
