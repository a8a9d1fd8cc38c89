"""Versions of secrets in AWS Secrets Manager: made, staged as ``AWSPENDING``, promoted to ``AWSCURRENT``, put back.

The id of a version is derived from the rotation it belongs to. So a value is made once a rotation, whoever asks how
often: it comes into being and into the store within one call, and whoever comes second reads the first one's.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import botocore.exceptions
from pydantic import Field

from activities.errors import lasting, passing
from activities.secret_values import require_strong
from activities.stage import Facts

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

Label = Literal["AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"]
_ORDER: tuple[Label, ...] = ("AWSCURRENT", "AWSPREVIOUS", "AWSPENDING")
"""Moving AWSCURRENT moves AWSPREVIOUS too, so it goes first."""


class Labels(Facts):
    """Which version of a secret has which label: enough to put them back, and nothing secret."""

    name: str
    exists: bool
    versions: dict[Label, str] = Field(default_factory=dict, description="Version id by label")


class StagedSecrets:
    def __init__(self, secretsmanager: SecretsManagerClient) -> None:
        self._sm = secretsmanager

    def value(self, name: str, version: str | None = None) -> str | None:
        """The value of one version, or of ``AWSCURRENT``; None when there is none."""
        wanted = {"VersionId": version} if version else {}
        try:
            return self._sm.get_secret_value(SecretId=name, **wanted).get("SecretString")
        except self._sm.exceptions.ResourceNotFoundException:
            return None

    def need(self, name: str, version: str) -> str:
        """
        Raises:
            SecretGone: it was made, and is not there.
        """
        value = self.value(name, version)
        if not value:
            raise lasting(
                f"version {version[:8]} of the secret {name} is not in Secrets Manager (any more). "
                "Abort this rotation and start another",
                type="SecretGone",
            )
        return value

    def stage(self, name: str, version: str, make: Callable[[], str], *, parts: Callable[[str], list[str]]) -> str:
        """The value of this version, made and stored as ``AWSPENDING`` if it is not there.

        Args:
            parts: the single secrets in a value, each of which has to be strong.

        Raises:
            WeakSecret: what was made must not be used; nothing was stored.
        """
        if (known := self.value(name, version)) is not None:
            return known
        value = make()
        require_strong(f"the new value of {name}", parts(value))
        try:
            self._sm.create_secret(Name=name, Description="Written by operational runbooks: do not edit")
        except self._sm.exceptions.ResourceExistsException:
            pass
        except self._sm.exceptions.InvalidRequestException:
            raise lasting(
                f"the secret {name} is marked for deletion in Secrets Manager. Restore it there, then start again",
                type="SecretDeleted",
            ) from None
        # Refused if an attempt beside this one was first: then its value counts.
        with contextlib.suppress(self._sm.exceptions.ResourceExistsException):
            self._sm.put_secret_value(
                SecretId=name, SecretString=value, ClientRequestToken=version, VersionStages=["AWSPENDING"]
            )
        if (stored := self.value(name, version)) is None:
            raise passing(f"Secrets Manager does not show the new version of {name} yet", type="NotVisibleYet")
        return stored

    def promote(self, name: str, version: str) -> None:
        """Make a version ``AWSCURRENT``; what was that becomes ``AWSPREVIOUS``, and nothing is pending."""
        self._put(name, "AWSCURRENT", version)
        if self.labels(name).versions.get("AWSPENDING") == version:
            self._put(name, "AWSPENDING", None)

    def labels(self, name: str) -> Labels:
        try:
            found = self._sm.describe_secret(SecretId=name)
        except self._sm.exceptions.ResourceNotFoundException:
            return Labels(name=name, exists=False)
        held = {
            label: version
            for version, labels in found.get("VersionIdsToStages", {}).items()
            for label in _ORDER
            if label in labels
        }
        return Labels(name=name, exists=True, versions=held)

    def restore(self, wanted: Labels) -> None:
        """Put the labels back as they were; a secret that did not exist is deleted for good."""
        if not wanted.exists:
            if self.labels(wanted.name).exists:
                self._sm.delete_secret(SecretId=wanted.name, ForceDeleteWithoutRecovery=True)
            return
        for label in _ORDER:
            self._put(wanted.name, label, wanted.versions.get(label))

    def _put(self, name: str, label: Label, version: str | None) -> None:
        held = self.labels(name).versions.get(label)
        if held == version:
            return
        move = {"MoveToVersionId": version} if version else {}
        remove = {"RemoveFromVersionId": held} if held else {}
        try:
            self._sm.update_secret_version_stage(SecretId=name, VersionStage=label, **move, **remove)
        except botocore.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") == "InvalidParameterException":
                raise passing(f"the labels of {name} were changed at the same time; looking again") from None
            raise


def version_of(*parts: str) -> str:
    """The id of a version, from what it belongs to: the same parts are the same version."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("operational-runbooks", *parts))))
