"""What tests use to look into a running hub and the AWS emulator."""

from __future__ import annotations

from typing import Any

import boto3
import botocore.config
import httpx

WEBHOOK_TOKEN = "hook-token-7f31"
ATLAS_SECRET = "atlas-secret-93b2"


class RunningHub:
    """A hub on a free port, and a client to look into it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, timeout=10, verify=False)

    def received(self, target: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.client.get("/_control/received", params={"target": target}).json()
        return events

    def fail(self, target: str, mode: str, **options: Any) -> None:
        self.client.post("/_control/fail", json={"target": target, "mode": mode, **options}).raise_for_status()

    def heal(self, target: str) -> None:
        self.client.delete(f"/_control/fail/{target}").raise_for_status()

    def hits(self, target: str) -> int:
        """How many requests the failure switch of ``target`` has hit."""
        return sum(fault["used"] for fault in self.client.get("/_control/fail").json() if fault["target"] == target)


def aws_client(service: str, endpoint: str) -> Any:
    return boto3.client(
        service,  # type: ignore[call-overload]
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )
