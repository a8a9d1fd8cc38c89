"""The CloudFormation stack of one stage of the State Tracking API.

The gateway calls the alias ``live`` by its ARN: the emulator does not resolve stage variables in an integration's URI,
so an alias named by ``${stageVariables.lambdaAlias}`` would never be reached.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

APP = "state-api"
ALIAS = "live"
SECRETS = {"API_KEYS_PARAM": "ApiKeys", "MONGODB_URI_PARAM": "MongoDBUri", "JWT_SECRET_PARAM": "JwtSecret"}
"""Environment variable that names the parameter of a secret, and the secret's name."""

_ACCESS_LOG = {
    "requestId": "$context.requestId",
    "ip": "$context.identity.sourceIp",
    "method": "$context.httpMethod",
    "path": "$context.path",
    "status": "$context.status",
    "latency": "$context.responseLatency",
    "integrationLatency": "$context.integrationLatency",
}
_ASSUME = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}
_RETENTION_DAYS = 14

Template = dict[str, Any]


@dataclass(frozen=True)
class Deployable:
    """All that decides a stage's template: equal values give an equal template, byte for byte."""

    stage: str
    release: str
    """Id of the release."""
    bucket: str
    code_key: str
    code_sha256: str
    """Hex digest of the package."""
    memory_mb: int = 512
    timeout_seconds: int = 30
    secrets_version: str = "none"
    """Changes whenever a secret does, so that environments restart."""


def service_name(stage: str) -> str:
    """Name of a stage's stack and of its function."""
    return f"claude-projects-state-api-{stage}"


def api_name(stage: str) -> str:
    """Name of a stage's REST API, as in the ``ApiName`` dimension of its metrics."""
    return f"state-api-{stage}"


def secret_parameter(stage: str, name: str) -> str:
    """SSM path of a secret, as SST v2 lays it out."""
    return f"/sst/{APP}/{stage}/Secret/{name}/value"


def limits_parameter(stage: str) -> str:
    """SSM path of the limits by client."""
    return f"/sst/{APP}/{stage}/ClientLimits"


def invoke_url(endpoint: str, api_id: str, stage: str) -> str:
    """Base URL of a stage on the emulator at ``endpoint``."""
    return f"{endpoint.rstrip('/')}/restapis/{api_id}/{stage}/_user_request_"


def template(wanted: Deployable) -> str:
    """The template's body. With the package at its key in S3 it is all that is needed to deploy the same again."""
    name = service_name(wanted.stage)
    # CloudFormation makes a version only for a new logical id, and Lambda publishes none of what is unchanged: the id
    # stands for everything that goes into the version.
    digest = hashlib.sha256(json.dumps(asdict(wanted), separators=(",", ":")).encode()).hexdigest()[:8]
    version = f"Version{wanted.release}x{digest}"
    body: Template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"State Tracking API, stage {wanted.stage}, release {wanted.release}",
        "Resources": {**_function(wanted, name, version), **_gateway(wanted, name)},
        "Outputs": {
            "ApiId": {"Value": {"Ref": "Api"}},
            "ApiStage": {"Value": {"Ref": "ApiStage"}},
            "Url": {"Value": {"Fn::Sub": "https://${Api}.execute-api.${AWS::Region}.amazonaws.com/${ApiStage}"}},
            "FunctionName": {"Value": {"Ref": "Function"}},
            "AliasArn": {"Value": {"Ref": "Alias"}},
            "Version": {"Value": {"Fn::GetAtt": [version, "Version"]}},
            "Release": {"Value": wanted.release},
        },
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _function(wanted: Deployable, name: str, version: str) -> Template:
    parameters = {variable: secret_parameter(wanted.stage, secret) for variable, secret in SECRETS.items()}
    parameter = "arn:aws:ssm:${AWS::Region}:${AWS::AccountId}:parameter"
    readable = [
        {"Fn::Sub": parameter + path} for path in (secret_parameter(wanted.stage, "*"), limits_parameter(wanted.stage))
    ]
    return {
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {
                "RoleName": f"{name}-role",
                "AssumeRolePolicyDocument": _ASSUME,
                "ManagedPolicyArns": ["arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"],
                "Policies": [
                    {
                        "PolicyName": "read-secrets",
                        "PolicyDocument": {
                            "Version": "2012-10-17",
                            "Statement": [
                                {"Effect": "Allow", "Action": "ssm:GetParameter", "Resource": readable},
                            ],
                        },
                    }
                ],
            },
        },
        "FunctionLogs": _log_group(f"/aws/lambda/{name}"),
        "Function": {
            "Type": "AWS::Lambda::Function",
            "DependsOn": ["FunctionLogs"],
            "Properties": {
                "FunctionName": name,
                "Description": f"State Tracking API, release {wanted.release}",
                "Runtime": "python3.12",
                "Handler": "handler.handler",
                "Role": {"Fn::GetAtt": ["Role", "Arn"]},
                "MemorySize": wanted.memory_mb,
                "Timeout": wanted.timeout_seconds,
                "Code": {"S3Bucket": wanted.bucket, "S3Key": wanted.code_key},
                "Environment": {
                    "Variables": {
                        **parameters,
                        "RELEASE": wanted.release,
                        "SST_SECRETS_VERSION": wanted.secrets_version,
                        "SST_STAGE": wanted.stage,
                    }
                },
            },
        },
        version: {
            "Type": "AWS::Lambda::Version",
            # Versions outlive the deployment that made them: a rollback points the alias back at one.
            "DeletionPolicy": "Retain",
            "UpdateReplacePolicy": "Retain",
            "Properties": {"FunctionName": {"Ref": "Function"}, "Description": f"release {wanted.release}"},
        },
        "Alias": {
            "Type": "AWS::Lambda::Alias",
            "Properties": {
                "FunctionName": {"Ref": "Function"},
                "FunctionVersion": {"Fn::GetAtt": [version, "Version"]},
                "Name": ALIAS,
            },
        },
    }


def _gateway(wanted: Deployable, name: str) -> Template:
    source = "arn:aws:execute-api:${AWS::Region}:${AWS::AccountId}:${Api}/*/*"
    return {
        "Permission": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {
                "Action": "lambda:InvokeFunction",
                "FunctionName": {"Ref": "Alias"},
                "Principal": "apigateway.amazonaws.com",
                "SourceArn": {"Fn::Sub": source},
            },
        },
        "Api": {"Type": "AWS::ApiGateway::RestApi", "Properties": {"Name": api_name(wanted.stage)}},
        "Proxy": {
            "Type": "AWS::ApiGateway::Resource",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "ParentId": {"Fn::GetAtt": ["Api", "RootResourceId"]},
                "PathPart": "{proxy+}",
            },
        },
        "RootMethod": _method({"Fn::GetAtt": ["Api", "RootResourceId"]}),
        "ProxyMethod": _method({"Ref": "Proxy"}),
        "Deployment": {
            "Type": "AWS::ApiGateway::Deployment",
            "DependsOn": ["RootMethod", "ProxyMethod"],
            "Properties": {"RestApiId": {"Ref": "Api"}, "Description": "ANY / and /{proxy+} to the alias"},
        },
        "GatewayLogs": _log_group(f"/aws/apigateway/{name}"),
        "ApiStage": {
            "Type": "AWS::ApiGateway::Stage",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "DeploymentId": {"Ref": "Deployment"},
                "StageName": wanted.stage,
                "AccessLogSetting": {
                    "DestinationArn": {"Fn::GetAtt": ["GatewayLogs", "Arn"]},
                    "Format": json.dumps(_ACCESS_LOG, separators=(",", ":")),
                },
                "MethodSettings": [{"ResourcePath": "/*", "HttpMethod": "*", "MetricsEnabled": True}],
            },
        },
    }


def _method(resource: Template) -> Template:
    uri = "arn:aws:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/${Alias}/invocations"
    return {
        "Type": "AWS::ApiGateway::Method",
        "Properties": {
            "RestApiId": {"Ref": "Api"},
            "ResourceId": resource,
            "HttpMethod": "ANY",
            "AuthorizationType": "NONE",
            "Integration": {"Type": "AWS_PROXY", "IntegrationHttpMethod": "POST", "Uri": {"Fn::Sub": uri}},
        },
    }


def _log_group(name: str) -> Template:
    return {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": name, "RetentionInDays": _RETENTION_DAYS}}
