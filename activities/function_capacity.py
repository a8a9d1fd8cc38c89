"""The settings of a stage's function that decide how much it can take: memory, concurrency, environments.

Every change is absolute, so an attempt whose answer was lost is simply made again. Variables of the function may hold
secrets: of them only the number leaves this module.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from pydantic import Field
from temporalio import activity

from activities.errors import classified, lasting
from activities.evidence import Evidence, Finding
from activities.functions import RESTARTED_VARIABLE, Functions
from activities.progress import pause
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_lambda.type_defs import FunctionConfigurationResponseTypeDef

UNRESERVED_MINIMUM = 100
"""AWS lets nobody reserve so much that less than this is left for the functions without a reservation."""


class Setting(Facts):
    """Part of the function's capacity, in absolute figures. What is absent is not touched."""

    memory_mb: int | None = None
    provisioned: int | None = Field(None, description="Environments kept ready for the alias; 0 is none")
    max_pool_size: int | None = Field(None, description="The pool variable of the function; 0 takes it away")
    min_pool_size: int | None = Field(None, description="Only in the repository: no variable holds it")

    def described(self) -> str:
        parts = []
        if self.memory_mb is not None:
            parts.append(f"{self.memory_mb} MB")
        if self.provisioned is not None:
            parts.append(f"{self.provisioned or 'no'} provisioned environments")
        if self.max_pool_size is not None:
            parts.append(f"maxPoolSize {self.max_pool_size}" if self.max_pool_size else "maxPoolSize as in the code")
        return ", ".join(parts)


class ApplyOrder(Facts):
    """Give the function this setting."""

    stage: Stage
    setting: Setting
    only_if: Setting | None = Field(None, description="Change nothing unless it has this setting (or the wanted one)")


class Applied(Finding):
    changed: bool
    version: str | None = None
    left: bool = Field(False, description="True when another setting was found, and left alone")


class FunctionState(Finding):
    """What decides how much the function can take, as it was found."""

    version: str
    release: str | None = None
    memory_mb: int
    timeout_s: int
    architecture: str = "x86_64"
    reserved: int | None = Field(None, description="Reserved concurrency; absent when it shares the account's")
    account_limit: int | None = Field(None, description="Concurrent executions of the whole account")
    reservable: int | None = Field(None, description="How much more may be reserved")
    provisioned: int | None = Field(None, description="Environments kept ready for the alias; absent when none")
    max_pool_size: int | None = Field(None, description="What the pool variable says; absent without one")
    reissue_problem: str | None = Field(None, description="Why its environments cannot be started anew as it is")

    def evidence(self) -> Evidence:
        return {name: value for name, value in super().evidence().items() if name != "release"}


class LimitOrder(Facts):
    """How many calls the function takes at the same time: 0 stops all, ``None`` is no limit of its own."""

    stage: Stage
    concurrency: int | None = Field(None, ge=0)
    known: tuple[int | None, ...] = Field(
        description="Limits that the run itself can have left behind; another one was set by somebody else"
    )
    strict: bool = Field(False, description="Whether somebody else's limit is an error; otherwise it is left alone")


class Limited(Finding):
    changed: bool
    concurrency: int | None = None
    left: bool = Field(False, description="True when somebody else's limit was found, and left alone")


class RestartOrder(Facts):
    """Start every environment anew."""

    stage: Stage
    key: str = Field(min_length=1, description="Workflow id and step: done once a key")


class Restarted(Finding):
    changed: bool
    version: str


class FunctionCapacity:
    def __init__(self, functions: LambdaClient, poll: float = 1.0) -> None:
        self._lambda, self._poll = functions, poll
        self._functions = Functions(functions)

    @activity.defn(name="functions.capacity")
    @classified("look at the function's settings")
    def capacity(self, stage: Stage) -> FunctionState:
        """Memory, limits and versions of the function, and what the account has left to reserve."""
        live = self._functions.live(stage)
        config = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=live.version)
        reserved = self._functions.reserved(stage)
        limits = self._lambda.get_account_settings().get("AccountLimit", {})
        free = limits.get("UnreservedConcurrentExecutions")
        problem, differing = self._functions.reissue_problem(stage, live), self._functions.unpublished(stage, live)
        provisioned = self._functions.provisioned(stage) if live.routing else None
        limit = "no limit of its own" if reserved is None else f"at most {reserved} calls at once"
        ready = f", {provisioned} environments kept ready" if provisioned else ""
        back = f"; its unpublished {', '.join(differing)} would be set back to what is live" if differing else ""
        return FunctionState(
            summary=f"version {live.version}, {config['MemorySize']} MB, {config['Timeout']} s, {limit}{ready}{back}",
            version=live.version,
            release=live.release,
            memory_mb=config["MemorySize"],
            timeout_s=config["Timeout"],
            architecture=str((config.get("Architectures") or ["x86_64"])[0]),
            reserved=reserved,
            account_limit=limits.get("ConcurrentExecutions"),
            reservable=max(0, free - UNRESERVED_MINIMUM) if free is not None else None,
            provisioned=provisioned,
            max_pool_size=_pool(config, stage),
            reissue_problem=problem.message if problem else None,
        )

    @activity.defn(name="functions.limit")
    @classified("limit the function's concurrency")
    def limit(self, order: LimitOrder) -> Limited:
        """Let so many calls in at the same time, unless somebody else has set another limit meanwhile.

        Raises:
            LimitMoved: somebody has, and the order is ``strict``.
        """
        stage, wanted = order.stage, order.concurrency
        found = self._functions.reserved(stage)
        if found != wanted and found not in order.known:
            said = f"{stage.function} has {_limit(found)}: somebody set that since this began"
            if order.strict:
                raise lasting(f"{said}. Ask who, and start again", type="LimitMoved")
            return Limited(summary=f"{said}, it stays", changed=False, concurrency=found, left=True)
        if found != wanted:
            self._functions.reserve(stage, wanted)
        already = "" if found != wanted else " already"
        return Limited(
            summary=f"{stage.function} has {_limit(wanted)}{already}", changed=found != wanted, concurrency=wanted
        )

    @activity.defn(name="functions.restart")
    @classified("start the function's environments anew")
    def restart(self, order: RestartOrder) -> Restarted:
        """Change one variable of what is live and publish, so that no call reaches an environment that ran before.

        Never by emptying the variables: that leaves the function running without its secrets.
        """
        mark = hashlib.sha256(order.key.encode()).hexdigest()[:12]
        version, changed = self._functions.reissue(order.stage, self._poll, variables={RESTARTED_VARIABLE: mark})
        state = "starts every environment anew" if changed else "did so already"
        return Restarted(summary=f"version {version}, same code, {state}", changed=changed, version=version)

    @activity.defn(name="functions.apply")
    @classified("change the function's capacity")
    def apply(self, order: ApplyOrder) -> Applied:
        """Give the function this memory, pool variable and provisioned concurrency, whatever of it it has already.

        Memory and variables of a published version cannot be changed, so the live code is published once more.
        Provisioned concurrency is waited for, because until then calls still meet cold starts.

        Raises:
            NoAlias: provisioned concurrency needs an alias; the unpublished code can have none.
            NotProvisioned: AWS could not start them; with its reason.
            NoPoolVariable: the code reads its pool size from no variable.
        """
        stage, wanted = order.stage, order.setting
        found = self._found(stage)
        if order.only_if is not None and not (_fits(found, order.only_if) or _fits(found, wanted)):
            has = _part(found, wanted).described()
            return Applied(
                summary=f"{stage.function} has {has}, which somebody else has set: it stays",
                changed=False,
                left=True,
            )
        variables: dict[str, str | None] = {}
        if wanted.max_pool_size is not None:
            variables[_pool_variable(stage)] = str(wanted.max_pool_size) if wanted.max_pool_size else None
        version, changed = None, False
        if variables or wanted.memory_mb is not None:
            version, changed = self._functions.reissue(
                stage, self._poll, variables=variables, memory_mb=wanted.memory_mb
            )
        if wanted.provisioned is not None:
            changed = self._provision(stage, wanted.provisioned) or changed
        by = f", served by version {version}" if version else ""
        already = "" if changed else " already"
        return Applied(
            summary=f"{stage.function} has {wanted.described()}{by}{already}", changed=changed, version=version
        )

    def _found(self, stage: Stage) -> Setting:
        live = self._functions.live(stage)
        config = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=live.version)
        provisioned = self._functions.provisioned(stage) if live.routing else None
        return Setting(
            memory_mb=config["MemorySize"], provisioned=provisioned or 0, max_pool_size=_pool(config, stage) or 0
        )

    def _provision(self, stage: Stage, executions: int) -> bool:
        if self._functions.routing(stage) is None:
            raise lasting(
                f"{stage.function} has no alias {stage.alias!r}, and $LATEST cannot have provisioned concurrency. "
                "Correct the stage's 'alias'",
                type="NoAlias",
            )
        found = self._functions.provisioned(stage) or 0
        if executions == 0:
            if found:
                self._lambda.delete_provisioned_concurrency_config(FunctionName=stage.function, Qualifier=stage.alias)
            return bool(found)
        if found != executions:
            self._lambda.put_provisioned_concurrency_config(
                FunctionName=stage.function, Qualifier=stage.alias, ProvisionedConcurrentExecutions=executions
            )
        self._provided(stage)
        return found != executions

    def _provided(self, stage: Stage) -> None:
        """Wait until they are ready; AWS takes a minute or two."""
        while True:
            now = self._lambda.get_provisioned_concurrency_config(FunctionName=stage.function, Qualifier=stage.alias)
            if now["Status"] == "READY":
                return
            if now["Status"] == "FAILED":
                raise lasting(
                    f"AWS could not provision {stage.function}: {now.get('StatusReason', 'no reason given')}. "
                    "Look at the function's log: its start fails",
                    type="NotProvisioned",
                )
            ready = now.get("AvailableProvisionedConcurrentExecutions", 0)
            pause(self._poll, f"waiting for provisioned environments of {stage.function}", ready=ready)


def _pool_variable(stage: Stage) -> str:
    if stage.source.pool_variable is None:
        raise lasting(
            f"the code of {stage.name} reads its pool size from no variable (source.pool_variable), so only a "
            "deployment changes it. Use way=merge",
            type="NoPoolVariable",
        )
    return stage.source.pool_variable


def _pool(config: FunctionConfigurationResponseTypeDef, stage: Stage) -> int | None:
    name = stage.source.pool_variable
    value = config.get("Environment", {}).get("Variables", {}).get(name) if name else None
    return int(value) if value and value.isdecimal() else None


def _fits(found: Setting, wanted: Setting) -> bool:
    return all(value is None or value == getattr(found, name) for name, value in wanted)


def _part(found: Setting, of: Setting) -> Setting:
    """Of what was found, the figures that the other names too."""
    return Setting.model_validate({name: getattr(found, name) for name, value in of if value is not None})


def _limit(concurrency: int | None) -> str:
    if concurrency is None:
        return "no limit of its own"
    return "a limit of 0: no call gets in" if concurrency == 0 else f"a limit of {concurrency} calls at once"
