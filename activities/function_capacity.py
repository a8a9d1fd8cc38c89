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
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

UNRESERVED_MINIMUM = 100
"""AWS lets nobody reserve so much that less than this is left for the functions without a reservation."""


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
        problem = self._functions.reissue_problem(stage, live)
        provisioned = self._functions.provisioned(stage) if live.routing else None
        limit = "no limit of its own" if reserved is None else f"at most {reserved} calls at once"
        ready = f", {provisioned} environments kept ready" if provisioned else ""
        return FunctionState(
            summary=f"version {live.version}, {config['MemorySize']} MB, {config['Timeout']} s, {limit}{ready}",
            version=live.version,
            release=live.release,
            memory_mb=config["MemorySize"],
            timeout_s=config["Timeout"],
            architecture=str((config.get("Architectures") or ["x86_64"])[0]),
            reserved=reserved,
            account_limit=limits.get("ConcurrentExecutions"),
            reservable=max(0, free - UNRESERVED_MINIMUM) if free is not None else None,
            provisioned=provisioned,
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
        """Change one variable in the merged map and publish, so that no call reaches an environment that ran before.

        Never by emptying the variables: that leaves the function running without its secrets.
        """
        mark = hashlib.sha256(order.key.encode()).hexdigest()[:12]
        version, changed = self._functions.reissue(order.stage, self._poll, variables={RESTARTED_VARIABLE: mark})
        state = "starts every environment anew" if changed else "did so already"
        return Restarted(summary=f"version {version}, same code, {state}", changed=changed, version=version)


def _limit(concurrency: int | None) -> str:
    if concurrency is None:
        return "no limit of its own"
    return "a limit of 0: no call gets in" if concurrency == 0 else f"a limit of {concurrency} calls at once"
