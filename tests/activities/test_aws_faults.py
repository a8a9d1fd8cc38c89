"""How AWS's refusals reach a run: which of them pass when another operation ends."""

from __future__ import annotations

import time
from typing import Any

import pytest
from botocore.exceptions import ClientError
from temporalio.exceptions import ApplicationError

from activities.errors import classified, from_aws
from tests.activities.site import POLL, Site

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:state-api"


@pytest.mark.parametrize(
    ("status", "code", "text", "lasting"),
    [
        (
            409,
            "ConflictException",
            "Unable to complete operation due to concurrent modification. Please try again later.",
            False,
        ),
        (409, "ConflictException", "Stage already exists", True),
        (
            409,
            "ResourceConflictException",
            f"The operation cannot be performed at this time. An update is in progress for resource: {ARN}",
            False,
        ),
        (
            409,
            "ResourceConflictException",
            "The operation cannot be performed at this time. The function is currently in the following state: Pending",
            False,
        ),
        (409, "ResourceConflictException", "The statement id (a) provided already exists.", True),
        (409, "OperationAborted", "A conflicting conditional operation is currently in progress. Try again.", False),
        (400, "TooManyUpdates", "There are concurrent updates for a resource that supports one at a time.", False),
        (400, "InvalidParameterValueException", "at this time no alias may point to $LATEST", True),
    ],
)
def test_a_conflict_with_another_operation_passes_and_one_with_what_is_there_does_not(
    status: int, code: str, text: str, lasting: bool
) -> None:
    answer: Any = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}
    found = from_aws(ClientError(answer, "Change"), "change it")
    assert (found.type, found.non_retryable) == (code, lasting)


def test_an_update_of_the_function_is_waited_for(site: Site) -> None:
    functions, name = site.aws.functions, site.service
    publish = classified("publish a version")(lambda: functions.publish_version(FunctionName=name)["Version"])
    deadline, busy = time.monotonic() + 20, None
    while busy is None:  # the update is quick: on a busy machine it can be over before the first try
        assert time.monotonic() < deadline
        functions.update_function_configuration(FunctionName=name, Description="somebody's")
        try:
            publish()
        except ApplicationError as error:
            busy = error
    assert (busy.type, busy.non_retryable) == ("ResourceConflictException", False)
    while functions.get_function_configuration(FunctionName=name)["LastUpdateStatus"] == "InProgress":
        assert time.monotonic() < deadline
        time.sleep(POLL)
    assert publish().isdigit()
