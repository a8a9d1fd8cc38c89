"""What the sandbox puts into its AWS: buckets, secrets, the mail identity, and the two deployed stages of the API.

AWS keeps nothing over its own end, so all of it is put there again whenever that part has been started.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import httpx

from activities.records import DeployLedger, Records
from activities.releases import LedgerEntry
from activities.settings import RecordsStore, Settings
from activities.stage import (
    ApiClient,
    BackupPolicy,
    Channels,
    DatabaseFacts,
    DeployPolicy,
    GatewayFacts,
    Role,
    RotatedSecret,
    RotationPolicy,
    Stage,
)
from sandbox import guard, mongodb
from sandbox.api import data
from sandbox.api.checkout import write_checkout
from sandbox.api.releases import Release, build
from sandbox.api.stack import ALIAS, APP, api_name, invoke_url, limits_parameter, secret_parameter, service_name
from sandbox.connections import ALARM_PREFIX, SENDER, alarm_topic, client, environment
from sandbox.parts import ACCOUNT, REGION, Site
from sandbox.state import STAGES

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ses import SESClient
    from mypy_boto3_ssm import SSMClient

_DEPLOY_SECONDS = 120.0
_HEALTHY_SECONDS = 15.0
_POLL = 0.1
_ALARM_ABOVE = 0.05
_DOMAIN = SENDER.partition("@")[2]
ROLES: tuple[Role, ...] = ("primary", "backup", "internal")
_CLIENTS = (
    ApiClient(name="dashboard", owner="Dana (dashboard)", key="primary", mail=(f"dashboard@{_DOMAIN}",)),
    ApiClient(name="mobile-app", owner="Mo (mobile)", key="primary", mail=(f"mobile@{_DOMAIN}",), chat=("slack",)),
    ApiClient(name="nightly-import", owner="Nils (data)", key="backup", mail=(f"data@{_DOMAIN}",)),
    ApiClient(name="operational-runbooks", owner="operations", key="internal", chat=("slack",)),
)
_STAKEHOLDERS = (f"engineering@{_DOMAIN}", f"customer-success@{_DOMAIN}")


class CloudError(Exception):
    """The sandbox's AWS, or what is deployed there, is not as it should be. One readable line."""


class Cloud:
    """The AWS part of one sandbox, as its owner sees it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        endpoint = site.url("aws")
        self._s3: S3Client = client("s3", endpoint)
        self._ssm: SSMClient = client("ssm", endpoint)
        self._secrets: SecretsManagerClient = client("secretsmanager", endpoint)
        self._ses: SESClient = client("ses", endpoint)
        self._stacks: CloudFormationClient = client("cloudformation", endpoint)
        self._functions: LambdaClient = client("lambda", endpoint)
        self._sns = client("sns", endpoint)
        self._cloudwatch: CloudWatchClient = client("cloudwatch", endpoint)

    @cached_property
    def _ledger(self) -> DeployLedger:
        # Without reading a file: this sandbox's settings are not written yet, and another's must not count.
        return DeployLedger(Records(self._s3, Settings.model_construct(records=RecordsStore())))

    def furnish(self) -> None:
        """Make the records bucket, the mail identity, and each stage's database users and secrets; safe to repeat."""
        self._s3.create_bucket(Bucket=RecordsStore().bucket)
        self._ses.verify_email_identity(EmailAddress=SENDER)
        self._ses.verify_domain_identity(Domain=_DOMAIN)
        port, vault = self._site.ports["mongodb"], self._site.vault
        mongodb.ensure_users(port, vault)
        for stage in STAGES:
            keys = vault.stages[stage].api_keys
            self._put(secret_parameter(stage, "ApiKeys"), ",".join(keys))
            self._put(secret_parameter(stage, "MongoDBUri"), mongodb.api_uri(port, vault, stage))
            self._put(secret_parameter(stage, "JwtSecret"), vault.stages[stage].signing_secret)
            for role, key in zip(ROLES, keys, strict=True):
                self._keep(f"{secret_store(stage, 'ApiKeys')}/{role}", key)
            self._put(operator_uri_parameter(stage), mongodb.operator_uri(port, vault, stage))
            self._put(users_uri_parameter(stage), mongodb.admin_uri(port, vault))

    def seed(self) -> None:
        """Give each stage's database its sessions and the index that their list needs."""
        for stage in STAGES:
            data.seed(mongodb.api_uri(self._site.ports["mongodb"], self._site.vault, stage))

    def watch(self) -> None:
        """An alarm on each stage's failing requests, and the topic by which it reaches the receiver; safe to repeat.

        The average of API Gateway's 5XXError is the share of requests that were answered 5xx.
        """
        topic = self._sns.create_topic(Name=alarm_topic().rpartition(":")[2])["TopicArn"]
        self._sns.subscribe(TopicArn=topic, Protocol="http", Endpoint=f"{self._site.url('alerts')}/sns")
        for stage in STAGES:
            self._cloudwatch.put_metric_alarm(
                AlarmName=f"{ALARM_PREFIX.format(stage=stage)}errors",
                AlarmDescription=f"more than {_ALARM_ABOVE:.0%} of the requests to {stage} are answered 5xx",
                Namespace="AWS/ApiGateway",
                MetricName="5XXError",
                Dimensions=[{"Name": "ApiName", "Value": api_name(stage)}],
                Statistic="Average",
                Period=60,
                EvaluationPeriods=1,
                Threshold=_ALARM_ABOVE,
                ComparisonOperator="GreaterThanThreshold",
                TreatMissingData="notBreaching",
                AlarmActions=[topic],
                OKActions=[topic],
            )

    def deploy(self, stage: str, release: Release, *, by: str = "sandbox") -> LedgerEntry:
        """Deploy a release with ``sst deploy``, as a person would, and write it into the deploy ledger.

        A deployment that failed stands in the ledger, too.

        Raises:
            CloudError: ``sst`` failed; the message ends with its last words.
        """
        checkout = write_checkout(release, self._site.layout.releases)
        started = datetime.now(UTC)
        try:
            done = subprocess.run(
                [str(self._site.layout.bin / "sst"), "deploy", "--stage", stage],
                cwd=checkout,
                env=environment(self._site),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_DEPLOY_SECONDS,
                check=False,
                preexec_fn=guard.dies_with(os.getpid()),
            )
        except subprocess.TimeoutExpired:
            raise CloudError(f"sst deploy has not ended within {_DEPLOY_SECONDS:.0f} s") from None
        entry = self._entry(stage, release, by, started, succeeded=done.returncode == 0)
        self._ledger.append(entry)
        if done.returncode != 0:
            said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise CloudError(f"sst deploy ended with {done.returncode}: {said}")
        return entry

    def stage(self, name: str) -> Stage:
        """The deployed stage as the settings describe it, found through the outputs of its stack."""
        service = service_name(name)
        outputs = self._outputs(name)
        return Stage(
            name=name,
            production=name == "production",
            region=REGION,
            function=service,
            alias=ALIAS,
            stack=service,
            url=invoke_url(self._site.url("aws"), outputs["ApiId"], outputs["ApiStage"]),
            api_key=f"secretsmanager:{secret_store(name, 'ApiKeys')}/internal",
            log_group=f"/aws/lambda/{service}",
            gateway=GatewayFacts(
                name=api_name(name),
                stage=outputs["ApiStage"],
                api_id=outputs["ApiId"],
                log_group=f"/aws/apigateway/{service}",
            ),
            database=DatabaseFacts(
                uri=f"ssm:{secret_parameter(name, 'MongoDBUri')}",
                name=mongodb.database(name),
                operator_uri=f"ssm:{operator_uri_parameter(name)}",
            ),
            limits_parameter=limits_parameter(name),
            backup=BackupPolicy(uri=f"ssm:{operator_uri_parameter(name)}"),
            deploy=DeployPolicy(engine="sst", app=APP, releases=str(self._site.layout.releases)),
            rotation=RotationPolicy(
                api_keys=RotatedSecret(name="ApiKeys", store=secret_store(name, "ApiKeys")),
                database=RotatedSecret(name="MongoDBUri", store=secret_store(name, "MongoDBUri")),
                signing=RotatedSecret(name="JwtSecret", store=secret_store(name, "JwtSecret")),
                clients=_CLIENTS,
                guide="https://wiki.example.com/state-api/change-your-key",
                rehearse_on="staging" if name == "production" else None,
                users_uri=f"ssm:{users_uri_parameter(name)}",
            ),
            channels=Channels(stakeholders=_STAKEHOLDERS),
        )

    def key(self, stage: str, role: Role) -> str:
        """The key of that role as it is now: keys are rotated."""
        found = self._secrets.get_secret_value(SecretId=f"{secret_store(stage, 'ApiKeys')}/{role}")
        return found["SecretString"]

    def await_healthy(self, stage: Stage) -> None:
        """Ask ``/health`` and, with the operator's key, ``/health/ready`` until both answer 200.

        Raises:
            CloudError: they did not in time.
        """
        headers = {"X-Api-Key": self.key(stage.name, "internal")}
        deadline = time.monotonic() + _HEALTHY_SECONDS
        with httpx.Client(headers=headers, timeout=_HEALTHY_SECONDS, trust_env=False) as client:
            for path in ("/health", "/health/ready"):
                while (status := client.get(stage.url + path).status_code) != 200:
                    if time.monotonic() > deadline:
                        raise CloudError(f"stage {stage.name} answers {path} with {status}: see its log group")
                    time.sleep(_POLL)

    def _put(self, name: str, value: str) -> None:
        self._ssm.put_parameter(Name=name, Value=value, Type="SecureString", Overwrite=True)

    def _keep(self, name: str, value: str) -> None:
        try:
            self._secrets.create_secret(Name=name, SecretString=value)
        except self._secrets.exceptions.ResourceExistsException:
            self._secrets.put_secret_value(SecretId=name, SecretString=value)

    def _outputs(self, stage: str) -> Mapping[str, str]:
        stack = self._stacks.describe_stacks(StackName=service_name(stage))["Stacks"][0]
        return {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])}

    def _entry(self, stage: str, release: Release, by: str, started: datetime, *, succeeded: bool) -> LedgerEntry:
        common = {
            "app": APP,
            "stage": stage,
            "engine": "sst",
            "deployed_by": by,
            "started_at": started,
            "deployed_at": datetime.now(UTC),
        }
        if not succeeded:
            return LedgerEntry(release=release.id, label=release.label, status="failed", **common)
        bucket = f"sst-asset-{ACCOUNT}"
        live = self._functions.get_function_configuration(FunctionName=service_name(stage), Qualifier=ALIAS)
        code = hashlib.sha256(build(release)).hexdigest()
        body = self._stacks.get_template(StackName=service_name(stage))["TemplateBody"]
        text = body if isinstance(body, str) else json.dumps(body, sort_keys=True, separators=(",", ":"))
        template = hashlib.sha256(text.encode()).hexdigest()
        return LedgerEntry(
            release=release.id,
            label=release.label,
            version=live["Version"],
            code_sha256=live["CodeSha256"],
            code_location=f"s3://{bucket}/{APP}/{stage}/code/{code}.zip",
            template_sha256=template,
            template_location=f"s3://{bucket}/{APP}/{stage}/templates/{template}.json",
            stack=service_name(stage),
            **common,
        )


def secret_store(stage: str, secret: str) -> str:
    """Where the versions of a rotated secret are kept in Secrets Manager."""
    return f"{APP}/{stage}/{secret}"


def users_uri_parameter(stage: str) -> str:
    return f"/runbooks/{stage}/users-database-uri"


def operator_uri_parameter(stage: str) -> str:
    return f"/runbooks/{stage}/operator-database-uri"
