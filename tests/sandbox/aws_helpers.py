"""Clients and small deployments for the tests of the embedded AWS."""

from __future__ import annotations

import io
import json
import time
import uuid
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import boto3
import botocore.exceptions
import httpx
import pytest
from botocore.config import Config

T = TypeVar("T")

ROLE = "arn:aws:iam::123456789012:role/test"
ASSUME = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def code(body: str = "ok", *, prelude: str = "") -> bytes:
    """A package whose handler says ``body`` and the version that ran."""
    source = (
        f"import os, time\n{prelude}\n"
        "def handler(event, context):\n"
        f"    return {{'statusCode': 200, 'body': {body!r} + '@' + context.function_version}}\n"
    )
    return package(source)


def package(source: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", source)
    return buffer.getvalue()


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def until(probe: Callable[[], T], what: str, seconds: float = 60) -> T:
    """The first truthy answer of ``probe``; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not happen within {seconds} s")
        time.sleep(0.05)
    return found


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The error code of a call that must be refused."""
    with pytest.raises(botocore.exceptions.ClientError) as error:
        call(*arguments, **named)
    return str(error.value.response["Error"]["Code"])


class Aws:
    """The clients, made when first used (``aws.s3``, ``aws.function`` ...), and what the tests do with them."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.session = boto3.Session(
            aws_access_key_id="AKIAEXAMPLE", aws_secret_access_key="example", region_name="us-east-1"
        )
        self._clients: dict[str, Any] = {}
        self.http = httpx.Client(timeout=40, trust_env=False, limits=httpx.Limits(max_connections=40))

    def client(self, service: str) -> Any:
        if service not in self._clients:
            config = Config(retries={"total_max_attempts": 1}, max_pool_connections=40, inject_host_prefix=False)
            self._clients[service] = self.session.client(  # type: ignore[call-overload]  # any service
                service, endpoint_url=self.endpoint, config=config
            )
        return self._clients[service]

    def __getattr__(self, name: str) -> Any:
        return self.client({"function": "lambda"}.get(name, name))

    # --- functions ---

    def make_function(self, package: bytes | None = None, **settings: Any) -> str:
        name = unique("fn")
        settings = {"Runtime": "python3.12", "Role": ROLE, "Handler": "app.handler", "Timeout": 10, **settings}
        self.function.create_function(FunctionName=name, Code={"ZipFile": package or code()}, **settings)
        self.settled(name)
        return name

    def settled(self, name: str) -> None:
        """Until the function's last change is done. The SDK's waiters look once a second at most."""

        def done() -> bool:
            found = self.function.get_function_configuration(FunctionName=name)
            return bool(found["State"] == "Active" and found["LastUpdateStatus"] == "Successful")

        until(done, f"settling of {name}")

    def published(self, *bodies: str) -> str:
        """A function with a version for each body, ``1``, ``2`` ..., and the alias ``live`` on 1."""
        name = self.make_function(code(bodies[0]))
        self.function.publish_version(FunctionName=name)
        for body in bodies[1:]:
            self.function.update_function_code(FunctionName=name, ZipFile=code(body))
            self.settled(name)
            self.function.publish_version(FunctionName=name)
        self.function.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
        return name

    # --- APIs ---

    def make_api(self, uri: str, *, variables: dict[str, str] | None = None) -> str:
        """A REST API whose root calls ``uri``, deployed to the stage ``production``."""
        api: str = self.apigateway.create_rest_api(name=unique("api"))["id"]
        root = self.root(api)
        self.apigateway.put_method(restApiId=api, resourceId=root, httpMethod="ANY", authorizationType="NONE")
        self.integrate(api, uri)
        self.apigateway.create_deployment(restApiId=api, stageName="production", variables=variables or {})
        return api

    def root(self, api: str) -> str:
        return str(self.apigateway.get_resources(restApiId=api)["items"][0]["id"])

    def integrate(self, api: str, function_ref: str) -> None:
        self.apigateway.put_integration(
            restApiId=api,
            resourceId=self.root(api),
            httpMethod="ANY",
            type="AWS_PROXY",
            integrationHttpMethod="POST",
            uri="arn:aws:apigateway:us-east-1:lambda:path/2015-03-31/functions/"
            f"arn:aws:lambda:us-east-1:123456789012:function:{function_ref}/invocations",
        )

    def get(self, api: str, path: str = "/", stage: str = "production") -> httpx.Response:
        return self.http.get(f"{self.endpoint}/restapis/{api}/{stage}/_user_request_{path}")

    def api_name(self, api: str) -> str:
        return str(self.apigateway.get_rest_api(restApiId=api)["name"])

    # --- metrics ---

    def total(self, metric: str, stat: str = "Sum", **dimensions: str) -> float:
        """Over the last quarter of an hour, of exactly these dimensions."""
        now = datetime.now(UTC)
        namespace = "AWS/ApiGateway" if "ApiName" in dimensions else "AWS/Lambda"
        points = self.cloudwatch.get_metric_statistics(
            Namespace=namespace,
            MetricName=metric,
            Dimensions=[{"Name": name, "Value": value} for name, value in dimensions.items()],
            StartTime=now - timedelta(minutes=15),
            EndTime=now + timedelta(minutes=1),
            Period=3600,
            Statistics=[stat],
        )["Datapoints"]
        return float(sum(point[stat] for point in points))

    # --- stacks ---

    def status(self, stack: str) -> str:
        """Once nothing is in progress any more."""

        def settled() -> str:
            status: str = self.cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"]
            return "" if status.endswith("_IN_PROGRESS") else status

        return until(settled, f"end of the operation on {stack}", 30)

    def create_stack(self, stack: str, template: dict[str, Any], **more: Any) -> str:
        body = json.dumps(template)
        self.cloudformation.create_stack(
            StackName=stack, TemplateBody=body, Capabilities=["CAPABILITY_NAMED_IAM"], **more
        )
        return self.status(stack)

    def update_stack(self, stack: str, template: dict[str, Any], **more: Any) -> str:
        body = json.dumps(template)
        self.cloudformation.update_stack(
            StackName=stack, TemplateBody=body, Capabilities=["CAPABILITY_NAMED_IAM"], **more
        )
        return self.status(stack)
