"""The clients that the activities are given: one a service, made once at the worker's start.

boto3 clients are safe to share between threads once they exist. Botocore retries a request only once and gives up after
a few seconds, so that Temporal owns the retries and a step never hangs inside a client.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
import httpx
from botocore.config import Config

from activities import calls
from activities.errors import passing
from activities.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_apigateway import APIGatewayClient
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_logs import CloudWatchLogsClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ses import SESClient
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_sts import STSClient

OWN_NAME = "operational-runbooks"
"""What this project calls itself to the services it asks: its own calls are told from those of clients."""

_CONFIG = Config(connect_timeout=3, read_timeout=20, retries={"max_attempts": 1, "mode": "standard"})


def _by_aws(parsed: dict[str, Any], **_: Any) -> None:
    """AWS gives every answer an id. Without it a page of some proxy would pass for an object, or for a change made."""
    answer = parsed["ResponseMetadata"]
    if answer["HTTPStatusCode"] < 300 and "RequestId" not in answer:
        raise passing(
            "what answered is not AWS, perhaps a proxy on the way. Look what is between the worker and AWS",
            type="NotAws",
        )


class Aws:
    """AWS clients for the region and endpoint of the settings; credentials come from the worker's environment."""

    def __init__(self, settings: Settings) -> None:
        self.region = settings.aws.region
        self.endpoint_url = settings.aws.endpoint_url
        self._session = boto3.Session(region_name=self.region)
        self._session.events.register("after-call", _by_aws)
        if listening := calls.recorder():
            listening.watch_aws(self._session)

    @cached_property
    def cloudformation(self) -> CloudFormationClient:
        return self._session.client("cloudformation", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def functions(self) -> LambdaClient:
        return self._session.client("lambda", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def apigateway(self) -> APIGatewayClient:
        return self._session.client("apigateway", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def cloudwatch(self) -> CloudWatchClient:
        return self._session.client("cloudwatch", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def logs(self) -> CloudWatchLogsClient:
        return self._session.client("logs", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def s3(self) -> S3Client:
        return self._session.client("s3", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def secretsmanager(self) -> SecretsManagerClient:
        return self._session.client("secretsmanager", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def ssm(self) -> SSMClient:
        return self._session.client("ssm", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def ses(self) -> SESClient:
        return self._session.client("ses", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def iam(self) -> IAMClient:
        return self._session.client("iam", endpoint_url=self.endpoint_url, config=_CONFIG)

    @cached_property
    def sts(self) -> STSClient:
        return self._session.client("sts", endpoint_url=self.endpoint_url, config=_CONFIG)


def http_client() -> httpx.Client:
    """The HTTP client that the activities share. It never follows a redirect: a health check must see it."""
    listening = calls.recorder()
    hooks = {"request": [listening.http]} if listening else None
    return httpx.Client(
        timeout=httpx.Timeout(10.0, connect=3.0),
        follow_redirects=False,
        headers={"User-Agent": f"{OWN_NAME}/1"},
        event_hooks=hooks,
    )
