"""The AWS clients, where what answers is not AWS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.settings import Settings
from tests.chaos.faults import Proxy
from tests.chaos.strikes import Strikes

BUCKET = "test-records"


@pytest.fixture
def behind(aws: Aws, settings: Settings) -> Iterator[Aws]:
    """Clients behind a proxy that answers with a page of its own, and with status 200."""
    aws.s3.put_object(Bucket=BUCKET, Key="asked.txt", Body=b"content")
    assert settings.aws.endpoint_url is not None
    proxy = Proxy(settings.aws.endpoint_url, Strikes("garbage"))
    yield Aws(settings.model_copy(update={"aws": settings.aws.model_copy(update={"endpoint_url": proxy.url})}))
    proxy.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda aws: aws.s3.get_object(Bucket=BUCKET, Key="asked.txt")["Body"].read(),
        lambda aws: aws.s3.put_object(Bucket=BUCKET, Key="told.txt", Body=b"content"),
        lambda aws: aws.ssm.put_parameter(Name="/told", Value="content", Type="String"),
        lambda aws: aws.functions.list_functions(),
    ],
    ids=["read", "write", "change", "look"],
)
def test_a_page_is_no_answer(behind: Aws, ask: Callable[[Aws], Any]) -> None:
    with pytest.raises(ApplicationError, match="is not AWS") as raised:
        ask(behind)
    assert not raised.value.non_retryable
