"""The Lambda function of a stage: what is live behind its alias, and which versions are published.

The environment of a function may hold secrets, so only its ``RELEASE`` variable ever leaves this module.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import botocore.exceptions
from pydantic import Field

from activities.errors import lasting, passing
from activities.progress import pause
from activities.releases import LATEST, CodeSha256, PublishedVersion, ReleaseFacts
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_lambda.type_defs import AliasConfigurationResponseTypeDef

RELEASE_VARIABLE = "RELEASE"
"""Environment variable of the function that names the release it was built from."""

_SETTLE_SECONDS = 120.0


class Routing(Facts):
    """Where an alias sends its traffic."""

    alias: str
    version: str
    weights: dict[str, float] = Field(default_factory=dict, description="Share of traffic of other versions, 0 to 1")
    revision_id: str

    def described(self) -> str:
        shares = "".join(f", {share:.0%} to version {version}" for version, share in sorted(self.weights.items()))
        return f"version {self.version}{shares}"


class Live(Facts):
    """What answers calls now."""

    release: str | None = Field(
        None, description="RELEASE of the version that is live; absent when the function has none"
    )
    version: str
    code_sha256: CodeSha256
    routing: Routing | None = Field(None, description="The alias; absent when the stage has none and $LATEST is live")

    def facts(self) -> ReleaseFacts:
        return ReleaseFacts(release=self.release, version=self.version, code_sha256=self.code_sha256)


class Functions:
    def __init__(self, functions: LambdaClient) -> None:
        self._lambda = functions

    def live(self, stage: Stage) -> Live:
        """What is behind the stage's alias, or the unpublished code when there is no such alias.

        Raises:
            NoFunction: the function does not exist.
        """
        routing = self.routing(stage)
        version = routing.version if routing else LATEST
        found = self.version(stage, version)
        if found is None:
            raise lasting(
                f"there is no function {stage.function!r} in {stage.region}. "
                "Correct the stage's 'function' in the settings",
                type="NoFunction",
            )
        return Live(release=found.release, version=version, code_sha256=found.code_sha256, routing=routing)

    def routing(self, stage: Stage) -> Routing | None:
        """The stage's alias, or ``None`` when the function has no alias of that name."""
        try:
            alias = self._lambda.get_alias(FunctionName=stage.function, Name=stage.alias)
        except self._lambda.exceptions.ResourceNotFoundException:
            return None
        return _routing(alias)

    def version(self, stage: Stage, version: str) -> PublishedVersion | None:
        """One version with the code it runs, or ``None`` when it does not exist."""
        try:
            found = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=version)
        except self._lambda.exceptions.ResourceNotFoundException:
            return None
        return PublishedVersion(
            version=found["Version"],
            code_sha256=found["CodeSha256"],
            release=found.get("Environment", {}).get("Variables", {}).get(RELEASE_VARIABLE),
        )

    def published(self, stage: Stage) -> tuple[PublishedVersion, ...]:
        """Every published version, the unpublished code left out; empty when the function does not exist."""
        pages = self._lambda.get_paginator("list_versions_by_function").paginate(FunctionName=stage.function)
        try:
            found = [version for page in pages for version in page["Versions"] if version["Version"] != LATEST]
        except self._lambda.exceptions.ResourceNotFoundException:
            return ()
        return tuple(
            PublishedVersion(
                version=version["Version"],
                code_sha256=version["CodeSha256"],
                release=version.get("Environment", {}).get("Variables", {}).get(RELEASE_VARIABLE),
                published_at=_moment(version.get("LastModified")),
            )
            for version in found
        )

    def point(self, stage: Stage, routing: Routing) -> Routing:
        """Set the alias to exactly ``routing``, provided that nobody changed it since ``routing.revision_id``.

        Raises:
            AliasBusy: somebody changed it in between; retryable, because the caller looks again first.
        """
        try:
            changed = self._lambda.update_alias(
                FunctionName=stage.function,
                Name=routing.alias,
                FunctionVersion=routing.version,
                RoutingConfig={"AdditionalVersionWeights": routing.weights},
                RevisionId=routing.revision_id,
            )
        except botocore.exceptions.ClientError as error:
            if error.response.get("Error", {}).get("Code") == "PreconditionFailedException":
                raise passing(
                    f"alias {routing.alias!r} of {stage.function} was changed by somebody else just now; looking again",
                    type="AliasBusy",
                ) from None
            raise
        return _routing(changed)

    def settle(self, stage: Stage, poll: float) -> None:
        """Wait until no update of the function is under way.

        Raises:
            FunctionBusy: it is still updating after two minutes.
        """
        waited = 0.0
        while waited < _SETTLE_SECONDS:
            found = self._lambda.get_function_configuration(FunctionName=stage.function)
            if found.get("LastUpdateStatus") != "InProgress" and found.get("State") != "Pending":
                return
            pause(poll, f"waiting for {stage.function} to finish its update")
            waited += poll
        raise passing(f"{stage.function} is still updating after {_SETTLE_SECONDS:.0f} s", type="FunctionBusy")


def _routing(alias: AliasConfigurationResponseTypeDef) -> Routing:
    return Routing(
        alias=alias["Name"],
        version=alias["FunctionVersion"],
        weights=dict(alias.get("RoutingConfig", {}).get("AdditionalVersionWeights", {})),
        revision_id=alias["RevisionId"],
    )


def _moment(text: str | None) -> datetime | None:
    """Lambda writes offsets without a colon (``+0000``), which ISO 8601 parsers of this Python take."""
    return datetime.fromisoformat(text) if text else None
