"""Secrets Manager: what AWS does with tokens and labels where ministack does not.

On AWS a token stands for one value: the same token with another value is refused, where ministack replaces the value. A
label is on one version at a time, also ``AWSPENDING``. A secret that is created without a value has no version.
"""

from __future__ import annotations

from typing import Any

from ministack.services import secretsmanager as sm

from sandbox.aws.responses import Response, refused

_builtin_create = sm._create_secret
_builtin_put = sm._put_secret_value


def _create(data: dict[str, Any]) -> Response:
    answer: Response = _builtin_create(data)
    if answer[0] == 200 and data.get("SecretString") is None and data.get("SecretBinary") is None:
        _, secret = sm._resolve(data["Name"])
        secret["Versions"].clear()
    return answer


def _put(data: dict[str, Any]) -> Response:
    _, secret = sm._resolve(data.get("SecretId"))
    token = data.get("ClientRequestToken")
    known = secret["Versions"].get(token) if secret and token else None
    if known is not None and secret is not None:
        if (known["SecretString"], known["SecretBinary"]) != (data.get("SecretString"), data.get("SecretBinary")):
            text = (
                f"You can't use ClientRequestToken {token} because that value is already in use for a version "
                f"of secret {secret['ARN']}."
            )
            return refused("ResourceExistsException", text)
        labels = {"VersionId": token, "VersionStages": list(known["Stages"])}
        again: Response = sm.json_response({"ARN": secret["ARN"], "Name": secret["Name"], **labels})
        return again
    answer: Response = _builtin_put(data)
    if answer[0] == 200 and secret is not None:
        made = token or next(reversed(secret["Versions"]))
        if len(secret["Versions"]) == 1:  # the first version is always the current one
            sm._add_stage(secret, made, "AWSCURRENT")
        for label in secret["Versions"][made]["Stages"]:
            sm._remove_stage_everywhere(secret, label, except_version_id=made)
    return answer


def install() -> None:
    sm._create_secret = _create
    sm._put_secret_value = _put
