"""States of a stack that take some doing to reach, for the demo and the tests. Over the public API only.

``UPDATE_ROLLBACK_FAILED``: a stack first gets a custom resource whose provider can be made to refuse. An update then
changes that resource and, after it, something that cannot be made; rolling back asks the provider to go back, it
refuses, and the stack is stuck until the provider is cured and somebody continues the rollback.
"""

from __future__ import annotations

import json
import time
from typing import Any

import boto3

PROVIDER = "RollbackProvider"
BLOCKER = "RollbackBlocker"
"""The custom resource that does not go back; the one to name in ``ResourcesToSkip``."""

_BROKEN = "NeverMade"
_PATIENCE_S = 120.0

_PROVIDER_CODE = """\
import json, os, urllib.request

def handler(event, context):
    back = event["RequestType"] == "Update" and event["ResourceProperties"]["Revision"] == "1"
    refuse = back and os.environ.get("REFUSE") == "yes"
    answer = {
        "Status": "FAILED" if refuse else "SUCCESS",
        "Reason": "the provider refuses to go back" if refuse else "",
        "PhysicalResourceId": "rollback-blocker",
        **{key: event[key] for key in ("StackId", "RequestId", "LogicalResourceId")},
    }
    body = json.dumps(answer).encode()
    urllib.request.urlopen(urllib.request.Request(event["ResponseURL"], data=body, method="PUT"), timeout=10)
"""


class StuckRollback:
    """Brings one existing stack, whose template is JSON, into ``UPDATE_ROLLBACK_FAILED`` and lets it out again."""

    def __init__(self, stack: str, session: boto3.Session, endpoint_url: str | None = None) -> None:
        self.stack = stack
        self._stacks: Any = session.client("cloudformation", endpoint_url=endpoint_url)
        self._functions: Any = session.client("lambda", endpoint_url=endpoint_url)

    def stick(self) -> None:
        """Leave the stack in ``UPDATE_ROLLBACK_FAILED``.

        Raises:
            RuntimeError: the stack ended in another state; the message names it.
        """
        template = json.loads(json.dumps(self._stacks.get_template(StackName=self.stack)["TemplateBody"]))
        template["Resources"] |= self._blocker(template, revision="1")
        self._update(template, "UPDATE_COMPLETE")
        template["Resources"] |= self._blocker(template, revision="2")
        template["Resources"][_BROKEN] = {
            "Type": "AWS::Lambda::Function",
            "DependsOn": [BLOCKER],
            "Properties": {
                "Runtime": "python3.12",
                "Handler": "index.handler",
                "Role": template["Resources"][PROVIDER]["Properties"]["Role"],
                "Code": {"S3Bucket": "no-such-bucket", "S3Key": "no-such-key.zip"},
            },
        }
        self._update(template, "UPDATE_ROLLBACK_FAILED")

    def cure(self) -> None:
        """Remove the cause: from now on the rollback can be continued."""
        name = self._stacks.describe_stack_resource(StackName=self.stack, LogicalResourceId=PROVIDER)
        function = name["StackResourceDetail"]["PhysicalResourceId"]
        self._functions.update_function_configuration(FunctionName=function, Environment={"Variables": {}})
        self._functions.get_waiter("function_updated_v2").wait(FunctionName=function, WaiterConfig={"Delay": 1})

    def _blocker(self, template: dict[str, Any], revision: str) -> dict[str, Any]:
        resources = template["Resources"]
        roles = [id for id, resource in resources.items() if resource["Type"] == "AWS::IAM::Role"]
        account = self._stacks.describe_stacks(StackName=self.stack)["Stacks"][0]["StackId"].split(":")[4]
        role = {"Fn::GetAtt": [roles[0], "Arn"]} if roles else f"arn:aws:iam::{account}:role/provider"
        return {
            PROVIDER: {
                "Type": "AWS::Lambda::Function",
                "Properties": {
                    "Runtime": "python3.12",
                    "Handler": "index.handler",
                    "Role": role,
                    "Timeout": 20,
                    "Environment": {"Variables": {"REFUSE": "yes"}},
                    "Code": {"ZipFile": _PROVIDER_CODE},
                },
            },
            BLOCKER: {
                "Type": "Custom::RollbackBlocker",
                "DependsOn": [id for id in resources if id not in (PROVIDER, BLOCKER, _BROKEN)],
                "Properties": {"ServiceToken": {"Fn::GetAtt": [PROVIDER, "Arn"]}, "Revision": revision},
            },
        }

    def _update(self, template: dict[str, Any], wanted: str) -> None:
        stack = self._stacks.describe_stacks(StackName=self.stack)["Stacks"][0]
        self._stacks.update_stack(
            StackName=self.stack,
            TemplateBody=json.dumps(template),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[
                {"ParameterKey": one["ParameterKey"], "UsePreviousValue": True} for one in stack.get("Parameters", [])
            ],
        )
        deadline = time.monotonic() + _PATIENCE_S
        while (status := self._status()).endswith("_IN_PROGRESS") and time.monotonic() < deadline:
            time.sleep(0.1)
        if status != wanted:
            raise RuntimeError(f"stack {self.stack} is {status}, not {wanted}")

    def _status(self) -> str:
        return str(self._stacks.describe_stacks(StackName=self.stack)["Stacks"][0]["StackStatus"])
