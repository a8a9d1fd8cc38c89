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


def _from_s3(parsed: dict[str, Any], **_: Any) -> None:
    """S3 tells the ETag of whatever it takes or gives. Without one, a page of some proxy would pass for an object."""
    if parsed["ResponseMetadata"]["HTTPStatusCode"] < 300 and "ETag" not in parsed:
        raise passing("what answered is not S3, perhaps a proxy on the way. It is tried again", type="NotS3")


class Aws:
    """AWS clients for the region and endpoint of the settings; credentials come from the worker's environment."""

    def __init__(self, settings: Settings) -> None:
        self.region = settings.aws.region
        self.endpoint_url = settings.aws.endpoint_url
        self._session = boto3.Session(region_name=self.region)
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
        made = self._session.client("s3", endpoint_url=self.endpoint_url, config=_CONFIG)
        for operation in ("GetObject", "PutObject", "UploadPart"):
            made.meta.events.register(f"after-call.s3.{operation}", _from_s3)
        return made

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
