"""One stage of the State Tracking API in the embedded AWS, deployed as the team deploys it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.clients import Aws
from activities.deployments import Deployments
from activities.records import DeployLedger, Records
from activities.releases import LedgerEntry, ReleaseFacts
from activities.settings import Settings
from activities.stage import DatabaseFacts, DeployPolicy, GatewayFacts, Stage
from sandbox.api.checkout import write_checkout
from sandbox.api.deploy import Deployer
from sandbox.api.releases import CATALOGUE
from sandbox.api.stack import ALIAS, APP, SECRETS, invoke_url, secret_parameter, service_name

POLL = 0.05


class Site:
    def __init__(self, aws: Aws, settings: Settings, name: str, folder: Path) -> None:
        self.aws = aws
        self.name = name
        self.service = service_name(name)
        self.folder = folder
        self.releases = folder / "releases"
        self.releases.mkdir(exist_ok=True)
        self.records = Records(aws.s3, settings)
        self.ledger = DeployLedger(self.records)
        self.deployments = Deployments(aws.cloudformation, aws.functions, self.records, poll=POLL)
        values = {"ApiKeys": "the-key", "MongoDBUri": "mongodb://127.0.0.1:9/test?directConnection=true"}
        values["JwtSecret"] = "a-signing-secret"
        for secret in SECRETS.values():
            path = secret_parameter(name, secret)
            aws.ssm.put_parameter(Name=path, Value=values[secret], Type="SecureString", Overwrite=True)
        self.api_id: str | None = None

    def stage(self, engine: str = "cloudformation", **deploy: Any) -> Stage:
        url = invoke_url(str(self.aws.endpoint_url), self.api_id or "none", self.name)
        return Stage(
            name=self.name,
            function=self.service,
            alias=ALIAS,
            stack=self.service,
            url=url,
            api_key="env:TEST_API_KEY",
            log_group=f"/aws/lambda/{self.service}",
            gateway=GatewayFacts(name="gateway", stage=self.name),
            database=DatabaseFacts(uri="env:TEST_MONGODB_URI", name="test"),
            deploy=DeployPolicy.model_validate({"engine": engine, "app": APP, **deploy}),
        )

    def deploy(self, label: str, *, record: bool = True) -> LedgerEntry:
        """Deploy a release of the catalogue and write it into the ledger, as a good pipeline does."""
        release = CATALOGUE[label]
        checkout = write_checkout(release, self.releases)
        outcome = Deployer().deploy(checkout, self.name, lambda line: None)
        self.api_id = outcome.outputs["ApiId"]
        live = self.aws.functions.get_function_configuration(FunctionName=self.service, Qualifier=ALIAS)
        location = f"s3://{outcome.bucket}/{outcome.template_key}"
        entry = LedgerEntry(
            app=APP,
            stage=self.name,
            release=release.id,
            label=label,
            version=live["Version"],
            code_sha256=live["CodeSha256"],
            code_location=f"s3://{outcome.bucket}/{outcome.code_key}",
            template_sha256=hashlib.sha256(self.records.fetch(location) or b"").hexdigest(),
            template_location=location,
            stack=self.service,
            engine="cloudformation",
            deployed_at=datetime.now(UTC),
            deployed_by="ci",
        )
        if record:
            self.ledger.append(entry)
        return entry

    def facts(self, label: str) -> ReleaseFacts:
        """What the ledger knows of a release."""
        entries = self.ledger.list(self.stage()).entries
        return next(entry.facts() for entry in entries if entry.label == label)

    def template(self) -> dict[str, Any]:
        """The template of the stack, to be changed."""
        body = self.aws.cloudformation.get_template(StackName=self.service)["TemplateBody"]
        copied: dict[str, Any] = json.loads(json.dumps(body) if not isinstance(body, str) else body)
        return copied

    def save_template(self, body: dict[str, Any], label: str) -> ReleaseFacts:
        """A release that consists of this template."""
        text = json.dumps(body).encode()
        location = self.records.store(f"templates/{self.name}/{label}.json", text, "application/json")
        return ReleaseFacts(label=label, template_location=location, template_sha256=hashlib.sha256(text).hexdigest())

    def update(self, body: dict[str, Any]) -> None:
        """Begin an update behind the back of the project."""
        self.aws.cloudformation.update_stack(
            StackName=self.service, TemplateBody=json.dumps(body), Capabilities=["CAPABILITY_NAMED_IAM"]
        )

    def status(self) -> str:
        return self.aws.cloudformation.describe_stacks(StackName=self.service)["Stacks"][0]["StackStatus"]

    def settled(self) -> str:
        deadline = time.monotonic() + 30
        while (status := self.status()).endswith("IN_PROGRESS"):
            assert time.monotonic() < deadline, status
            time.sleep(POLL)
        return status

    def updates(self) -> int:
        """How many updates of the stack were begun so far."""
        pages = self.aws.cloudformation.get_paginator("describe_stack_events").paginate(StackName=self.service)
        return sum(
            event["LogicalResourceId"] == self.service and event["ResourceStatus"] == "UPDATE_IN_PROGRESS"
            for page in pages
            for event in page["StackEvents"]
        )

    def live_release(self) -> str:
        live = self.aws.functions.get_function_configuration(FunctionName=self.service, Qualifier=ALIAS)
        return live["Environment"]["Variables"]["RELEASE"]

    def take_settings_back(self) -> dict[str, Any]:
        """A release of the same code with bad settings comes and is rolled back by the alias; returns what is live."""
        functions, name = self.aws.functions, self.service
        live = dict(functions.get_function_configuration(FunctionName=name, Qualifier=ALIAS))
        bad = live["Environment"]["Variables"] | {"RELEASE": "bad", "LOG_LEVEL": "nonsense"}
        functions.update_function_configuration(
            FunctionName=name, Timeout=3, MemorySize=256, Environment={"Variables": bad}
        )
        functions.get_waiter("function_updated_v2").wait(FunctionName=name)
        for version in (functions.publish_version(FunctionName=name)["Version"], live["Version"]):
            functions.update_alias(FunctionName=name, Name=ALIAS, FunctionVersion=version)
        return live

    def custom_resource(self, code: str) -> dict[str, Any]:
        """A resource that stands for whatever this Lambda code does when CloudFormation changes it."""
        name = f"{self.service}-custom"
        package = self.folder / "custom.zip"
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr("index.py", code)
        made = self.aws.functions.create_function(
            FunctionName=name,
            Runtime="python3.12",
            Role="arn:aws:iam::123456789012:role/custom",
            Handler="index.handler",
            Code={"ZipFile": package.read_bytes()},
            Timeout=20,
            Environment={"Variables": {"BROKEN": "no"}},
        )
        self.aws.functions.get_waiter("function_active_v2").wait(FunctionName=name)
        return {"Type": "Custom::Thing", "Properties": {"ServiceToken": made["FunctionArn"], "V": "1"}}

    def break_custom_resource(self, broken: str) -> None:
        name = f"{self.service}-custom"
        self.aws.functions.update_function_configuration(
            FunctionName=name, Environment={"Variables": {"BROKEN": broken}}
        )
        self.aws.functions.get_waiter("function_updated_v2").wait(FunctionName=name)


CUSTOM = """
import json, os, time, urllib.request

def handler(event, context):
    properties = event["ResourceProperties"]
    time.sleep(float(properties.get("Seconds", "0")))
    going_back = event["RequestType"] == "Update" and properties["V"] == "1"
    body = {
        "Status": "FAILED" if going_back and os.environ["BROKEN"] == "yes" else "SUCCESS",
        "Reason": "the thing is stuck",
        "PhysicalResourceId": event.get("PhysicalResourceId", "thing"),
        **{key: event[key] for key in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = urllib.request.Request(event["ResponseURL"], data=json.dumps(body).encode(), method="PUT")
    urllib.request.urlopen(request)
"""


def environment(attempt: int = 1, beats: list[Any] | None = None, **info: Any) -> ActivityEnvironment:
    """An activity's surroundings, with the heartbeats of an earlier attempt where there was one."""
    made = ActivityEnvironment()
    details = (beats[-1],) if beats else ()
    made.info = dataclasses.replace(made.info, attempt=attempt, heartbeat_details=details, **info)
    return made
