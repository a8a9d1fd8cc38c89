"""Deploys a checkout of the State Tracking API: package and template to S3, then the stack, until it has settled."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError

from sandbox.api.releases import Release, build
from sandbox.api.stack import APP, SECRETS, Deployable, secret_parameter, service_name, template

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import StackEventTypeDef, StackTypeDef
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ssm import SSMClient

_POLL = 0.2
_PATIENCE = 600.0
_SUCCESS = ("CREATE_COMPLETE", "UPDATE_COMPLETE")

Say = Callable[[str], None]


class DeployError(Exception):
    """The stage was not deployed; the message says why."""


class StackBusyError(DeployError):
    """Another change of the same stack is under way."""


@dataclass(frozen=True)
class Config:
    """What ``sst.config.ts`` says."""

    memory_mb: int
    timeout_seconds: int

    @classmethod
    def read(cls, path: Path) -> Config:
        """Find memory and timeout in the file's text, as SST writes them.

        Raises:
            DeployError: the file or a value is missing.
        """
        try:
            text = path.read_text()
        except FileNotFoundError:
            raise DeployError("Could not find sst.config.ts") from None
        memory, unit = _value(text, r'memory:\s*"(\d+) (MB|GB)"', 'memory: "512 MB"')
        timeout, span = _value(text, r'timeout:\s*"(\d+) (second|minute)s?"', 'timeout: "30 seconds"')
        return cls(
            memory_mb=int(memory) * (1024 if unit == "GB" else 1),
            timeout_seconds=int(timeout) * (60 if span == "minute" else 1),
        )


@dataclass(frozen=True)
class Outcome:
    """A stage that is as its checkout wants it."""

    changed: bool
    release: str
    outputs: Mapping[str, str]
    bucket: str
    code_key: str
    template_key: str


class Deployer:
    """Deploys to the AWS that the environment's credentials and endpoint lead to."""

    def __init__(self) -> None:
        self._stacks: CloudFormationClient = boto3.client("cloudformation")
        self._s3: S3Client = boto3.client("s3")
        self._ssm: SSMClient = boto3.client("ssm")

    def deploy(self, checkout: Path, stage: str, say: Say, *, token: str | None = None) -> Outcome:
        """Build the checkout and bring the stage's stack to it.

        Args:
            say: told each step and resource, one line at a time.
            token: ``ClientRequestToken`` of the stack operation, found again in its events.

        Raises:
            StackBusyError: the stack is being changed by somebody else.
            DeployError: nothing was changed, or the change was rolled back.
            ReleaseError: the checkout's ``release.json`` cannot be used.
        """
        config = Config.read(checkout / "sst.config.ts")
        release = Release.read(checkout / "release.json")
        package = build(release, checkout / "handler.py")
        secrets = self._secrets_version(stage)
        bucket = self._bucket()
        sha = hashlib.sha256(package).hexdigest()
        code_key = f"{APP}/{stage}/code/{sha}.zip"
        wanted = Deployable(
            stage=stage,
            release=release.id,
            bucket=bucket,
            code_key=code_key,
            code_sha256=sha,
            memory_mb=config.memory_mb,
            timeout_seconds=config.timeout_seconds,
            secrets_version=secrets,
        )
        body = template(wanted)
        template_key = f"{APP}/{stage}/templates/{hashlib.sha256(body.encode()).hexdigest()}.json"
        current = self._ready_stack(stage)
        self._s3.put_object(Bucket=bucket, Key=code_key, Body=package)
        self._s3.put_object(Bucket=bucket, Key=template_key, Body=body.encode())
        changed = self._apply(stage, body, current, token)
        stack = self._settled(stage, say) if changed else self._stack(stage)
        if stack is None:
            raise DeployError(f"stack {service_name(stage)} was deleted while it was deployed")
        outputs = {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])}
        return Outcome(changed, release.id, outputs, bucket, code_key, template_key)

    def _bucket(self) -> str:
        """The account's bucket for packages and templates, made when it is missing."""
        bucket = f"sst-asset-{boto3.client('sts').get_caller_identity()['Account']}"
        try:
            self._s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            self._s3.create_bucket(Bucket=bucket)
        return bucket

    def _secrets_version(self, stage: str) -> str:
        """A digest of which value each secret has, made without reading one."""
        names = {secret_parameter(stage, secret): secret for secret in SECRETS.values()}
        found = self._ssm.get_parameters(Names=list(names))["Parameters"]
        for missing in sorted(set(names) - {parameter["Name"] for parameter in found}):
            raise DeployError(f"Set a value for {names[missing]} with `sst secret set {names[missing]} <value>`")
        # A secret that was removed and set again starts at version 1 again: its time tells the two apart.
        versions = sorted(f"{p['Name']}:{p['Version']}:{p['LastModifiedDate'].timestamp()}" for p in found)
        return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:16]

    def _stack(self, stage: str) -> StackTypeDef | None:
        try:
            return self._stacks.describe_stacks(StackName=service_name(stage))["Stacks"][0]
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationError":
                return None
            raise

    def _ready_stack(self, stage: str) -> StackTypeDef | None:
        stack = self._stack(stage)
        if stack is None:
            return None
        status = stack["StackStatus"]
        if status.endswith("_IN_PROGRESS"):
            raise StackBusyError(f"stack {service_name(stage)} is {status}")
        if status == "ROLLBACK_COMPLETE" or status.endswith("_FAILED"):
            raise DeployError(f"stack {service_name(stage)} is in {status} state and can not be updated")
        return stack

    def _apply(self, stage: str, body: str, current: StackTypeDef | None, token: str | None) -> bool:
        name = service_name(stage)
        change = self._stacks.update_stack if current else self._stacks.create_stack
        extra = {"ClientRequestToken": token} if token else {}
        try:
            change(StackName=name, TemplateBody=body, Capabilities=["CAPABILITY_NAMED_IAM"], **extra)  # type: ignore[arg-type]
        except ClientError as error:
            text = error.response["Error"]["Message"]
            if "No updates are to be performed" in text:
                return False
            if "_IN_PROGRESS" in text or error.response["Error"]["Code"] == "AlreadyExistsException":
                raise StackBusyError(text) from None
            raise DeployError(text) from None
        return True

    def _settled(self, stage: str, say: Say) -> StackTypeDef | None:
        """Wait for the end of the operation, telling its events as they come.

        Raises:
            DeployError: it did not succeed, or has not ended within ten minutes.
        """
        deadline = time.monotonic() + _PATIENCE
        reasons: list[str] = []
        told: set[str] = set()
        while time.monotonic() < deadline:
            stack = self._stack(stage)
            if stack is None:
                return None
            for event in self._new_events(stage, told):
                line = f"{event['LogicalResourceId']} {event.get('ResourceType', '')} {event['ResourceStatus']}"
                say(line)
                if event["ResourceStatus"].endswith("_FAILED") and event.get("ResourceStatusReason"):
                    reasons.append(f"{event['LogicalResourceId']}: {event['ResourceStatusReason']}")
            status = stack["StackStatus"]
            if status in _SUCCESS:
                return stack
            if not status.endswith("_IN_PROGRESS"):
                raise DeployError(f"stack {service_name(stage)} is {status}. {'; '.join(reasons)}".strip())
            time.sleep(_POLL)
        raise DeployError(f"stack {service_name(stage)} has not settled within {_PATIENCE:.0f} seconds")

    def _new_events(self, stage: str, told: set[str]) -> list[StackEventTypeDef]:
        """Events of the running operation that were not told before, oldest first."""
        running: list[StackEventTypeDef] = []
        pages = self._stacks.get_paginator("describe_stack_events").paginate(StackName=service_name(stage))
        for event in (event for page in pages for event in page["StackEvents"]):
            running.append(event)
            whole = event.get("PhysicalResourceId") == event["StackId"]
            if whole and event["ResourceStatus"] in ("CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"):
                break
        fresh = [event for event in reversed(running) if event["EventId"] not in told]
        told.update(event["EventId"] for event in fresh)
        return fresh


def _value(text: str, pattern: str, example: str) -> tuple[str, str]:
    found = re.search(pattern, text)
    if found is None:
        raise DeployError(f"sst.config.ts has no value such as {example}")
    return found[1], found[2]
