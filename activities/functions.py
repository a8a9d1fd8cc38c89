"""The Lambda function of a stage: what is live behind its alias, and which versions are published.

The environment of a function may hold secrets, so only its ``RELEASE`` variable ever leaves this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import botocore.exceptions
from pydantic import Field
from temporalio.exceptions import ApplicationError

from activities.errors import lasting, passing
from activities.progress import pause
from activities.releases import LATEST, CodeSha256, PublishedVersion, ReleaseFacts
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_lambda.type_defs import AliasConfigurationResponseTypeDef, FunctionConfigurationResponseTypeDef

RELEASE_VARIABLE = "RELEASE"
"""Environment variable of the function that names the release it was built from."""

RESTARTED_VARIABLE = "RUNBOOKS_RESTARTED"
"""Environment variable whose change starts every environment of the function anew."""

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

    def reserved(self, stage: Stage) -> int | None:
        """The function's reserved concurrency; ``None`` when it has none and shares the account's."""
        found = self._lambda.get_function_concurrency(FunctionName=stage.function)
        return found.get("ReservedConcurrentExecutions")

    def reserve(self, stage: Stage, concurrency: int | None) -> None:
        """Set the reserved concurrency; ``None`` takes the reservation away, 0 lets no call in."""
        if concurrency is None:
            self._lambda.delete_function_concurrency(FunctionName=stage.function)
        else:
            self._lambda.put_function_concurrency(FunctionName=stage.function, ReservedConcurrentExecutions=concurrency)

    def provisioned(self, stage: Stage) -> int | None:
        """How many environments are kept ready for the alias; ``None`` when none are."""
        try:
            found = self._lambda.get_provisioned_concurrency_config(FunctionName=stage.function, Qualifier=stage.alias)
        except self._lambda.exceptions.ProvisionedConcurrencyConfigNotFoundException:
            return None
        return found.get("RequestedProvisionedConcurrentExecutions")

    def reissue_problem(self, stage: Stage, live: Live) -> ApplicationError | None:
        """Why what is live cannot be published once more with other settings; ``None`` when it can."""
        return _problem(stage, live, *self._configurations(stage, live))

    def unpublished(self, stage: Stage, live: Live) -> tuple[str, ...]:
        """Names of the settings that :meth:`reissue` sets back: the unpublished code has others than what is live.

        So it is after the alias went back to an earlier version, and when somebody changed them by hand.
        """
        serving, newest = self._configurations(stage, live)
        mark = _variables(newest).get(RESTARTED_VARIABLE)  # it means nothing
        return tuple(_differing(_wanted(serving, {RESTARTED_VARIABLE: mark}, None), newest))

    def reissue(
        self, stage: Stage, poll: float, *, variables: dict[str, str | None], memory_mb: int | None = None
    ) -> tuple[str, bool]:
        """Publish what is live once more, with these settings, and let the alias serve that.

        Settings of a published version cannot be changed, so its environments are started anew by a new version. What
        is not named is as in the version that serves, which is not always what the unpublished code has: see
        :meth:`unpublished`. The map of variables is merged, and ``None`` takes one away.

        Returns:
            The version that serves, and whether it was made for this.

        Raises:
            CodeDiffers, SettingsDiffer, TrafficSplit, VariablesHidden: see :meth:`reissue_problem`.
            FunctionChanged: somebody changed the function in between; retryable, because the caller looks again.
        """
        live = self.live(stage)
        serving, _ = self._configurations(stage, live)
        if _has(serving, variables, memory_mb):
            return live.version, False
        newest = self.settle(stage, poll)
        if problem := _problem(stage, live, serving, newest):
            raise problem
        wanted = _wanted(serving, variables, memory_mb)
        if changes := _differing(wanted, newest):
            with _unless_changed(stage):
                self._lambda.update_function_configuration(
                    FunctionName=stage.function, RevisionId=newest["RevisionId"], **changes
                )
            newest = self.settle(stage, poll)
        if live.routing is None:
            return live.version, True
        if _problem(stage, live, serving, newest) or _differing(wanted, newest):
            raise _changed(stage)
        with _unless_changed(stage):
            published = self._lambda.publish_version(
                FunctionName=stage.function, CodeSha256=live.code_sha256, RevisionId=newest["RevisionId"]
            )["Version"]
        self._ready(stage, published, poll)
        self.point(stage, live.routing.model_copy(update={"version": published}))
        return published, True

    def _configurations(
        self, stage: Stage, live: Live
    ) -> tuple[FunctionConfigurationResponseTypeDef, FunctionConfigurationResponseTypeDef]:
        """Of the version that serves, and of the unpublished code."""
        serving = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=live.version)
        return serving, self._lambda.get_function_configuration(FunctionName=stage.function)

    def _ready(self, stage: Stage, version: str, poll: float) -> None:
        """Wait until a version that was just published may serve."""
        waited = 0.0
        while waited < _SETTLE_SECONDS:
            found = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=version)
            if found.get("State", "Active") != "Pending":
                return
            pause(poll, f"waiting for version {version} of {stage.function}")
            waited += poll
        raise passing(f"version {version} of {stage.function} is still pending", type="FunctionBusy")

    def settle(self, stage: Stage, poll: float) -> FunctionConfigurationResponseTypeDef:
        """Wait until no update of the function is under way, and return what it then is, not yet published.

        Raises:
            FunctionBusy: it is still updating after two minutes.
        """
        waited = 0.0
        while waited < _SETTLE_SECONDS:
            found = self._lambda.get_function_configuration(FunctionName=stage.function)
            if found.get("LastUpdateStatus") != "InProgress" and found.get("State") != "Pending":
                return found
            pause(poll, f"waiting for {stage.function} to finish its update")
            waited += poll
        raise passing(f"{stage.function} is still updating after {_SETTLE_SECONDS:.0f} s", type="FunctionBusy")


_CHANGED_MEANWHILE = ("PreconditionFailedException", "ResourceConflictException")

_SETTABLE = ("Runtime", "Handler", "Timeout", "EphemeralStorage", "TracingConfig", "LoggingConfig")
"""With memory and variables, what the unpublished code is given of the version that serves before it is published."""

_FIXED = (
    "PackageType",
    "Architectures",
    "ImageConfigResponse",
    "Role",
    "VpcConfig",
    "Layers",
    "KMSKeyArn",
    "DeadLetterConfig",
    "FileSystemConfigs",
    "SnapStart",
)
"""What it is not given: changing these takes rights in other services, iam:PassRole above all, or a new package."""


def _problem(
    stage: Stage,
    live: Live,
    serving: FunctionConfigurationResponseTypeDef,
    newest: FunctionConfigurationResponseTypeDef,
) -> ApplicationError | None:
    if "Error" in serving.get("Environment", {}):
        return lasting(
            f"AWS does not show the variables of {stage.function}, and to change one is to write all of them. Give the "
            "worker's role kms:Decrypt of the function's key",
            type="VariablesHidden",
        )
    if live.routing is None:
        return None
    if live.routing.weights:
        return lasting(
            f"the traffic of {stage.function} is split: {live.routing.described()}. End that first",
            type="TrafficSplit",
        )
    if newest["CodeSha256"] != live.code_sha256:
        return lasting(
            f"the unpublished code of {stage.function} is not what is live, so its environments cannot be started "
            "anew without deploying it. Deploy the live release, then start again",
            type="CodeDiffers",
        )
    differing = [name for name in _FIXED if _fixed(serving, name) != _fixed(newest, name)]
    if differing:
        return lasting(
            f"the unpublished code of {stage.function} has another {' and '.join(differing)} than what is live, which "
            "would go live with it. Deploy the live release, then start again",
            type="SettingsDiffer",
        )
    return None


def _fixed(found: FunctionConfigurationResponseTypeDef, name: str) -> Any:
    """A setting to be compared: what is empty is as if it were absent, and what AWS says about it is left out."""
    value: Any = dict(found).get(name)
    if name == "SnapStart":
        return (value or {}).get("ApplyOn", "None")
    if name == "Layers":
        return [layer["Arn"] for layer in value or ()]
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if part}
    return value or None


def _wanted(
    serving: FunctionConfigurationResponseTypeDef, variables: dict[str, str | None], memory_mb: int | None
) -> dict[str, Any]:
    """The settings of the version that serves, but for what is to be changed."""
    merged = {**_variables(serving), **variables}
    return {
        **{name: value for name, value in dict(serving).items() if name in _SETTABLE},
        "MemorySize": memory_mb or serving["MemorySize"],
        "Environment": {"Variables": {name: value for name, value in merged.items() if value is not None}},
    }


def _differing(wanted: dict[str, Any], found: FunctionConfigurationResponseTypeDef) -> dict[str, Any]:
    """Of the wanted settings those that were not found so: no other is named in a change."""
    has = {**dict(found), "Environment": {"Variables": _variables(found)}}
    return {name: value for name, value in wanted.items() if has.get(name) != value}


def _variables(found: FunctionConfigurationResponseTypeDef) -> dict[str, str]:
    return dict(found.get("Environment", {}).get("Variables", {}))


def _changed(stage: Stage) -> ApplicationError:
    return passing(f"{stage.function} was changed by somebody else just now; looking again", type="FunctionChanged")


@contextlib.contextmanager
def _unless_changed(stage: Stage) -> Iterator[None]:
    try:
        yield
    except botocore.exceptions.ClientError as error:
        if error.response.get("Error", {}).get("Code") in _CHANGED_MEANWHILE:
            raise _changed(stage) from None
        raise


def _has(found: FunctionConfigurationResponseTypeDef, variables: dict[str, str | None], memory_mb: int | None) -> bool:
    has = _variables(found)
    return memory_mb in (None, found.get("MemorySize")) and all(has.get(name) == v for name, v in variables.items())


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
