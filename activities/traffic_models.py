"""What the activities that split traffic are asked and what they answer: always whole routings, never differences."""

from __future__ import annotations

from pydantic import Field

from activities.evidence import Evidence, Finding
from activities.releases import CodeSha256
from activities.stage import Facts, Stage


class AliasShare(Facts):
    """Where the alias sends its calls."""

    version: str
    weights: dict[str, float] = Field(default_factory=dict, description="Share of calls of other versions, 0 to 1")

    def described(self) -> str:
        shares = "".join(f", {share:.0%} to version {version}" for version, share in sorted(self.weights.items()))
        return f"version {self.version}{shares}"


class CanaryShare(Facts):
    """A canary of a stage of an API."""

    percent: float = Field(description="Share of requests, 0 to 100")
    deployment_id: str
    overrides: dict[str, str] = Field(default_factory=dict, description="Stage variables that differ in the canary")


class GatewayShare(Facts):
    """Where a stage of an API sends its requests: a stage variable names the qualifier of the function."""

    api_id: str
    deployment_id: str
    variable: str
    value: str = Field(description="Alias or version that the stage variable names outside of the canary")
    canary: CanaryShare | None = None

    def described(self) -> str:
        if self.canary is None:
            return f"{self.variable}={self.value}"
        named = self.canary.overrides.get(self.variable, self.value)
        return f"{self.variable}={self.value}, canary of {self.canary.percent:g} % with {self.variable}={named}"


class TrafficRouting(Finding):
    """Everything that decides which version serves, as it was found."""

    version: str = Field(description="Version that serves what is not split off")
    alias: AliasShare
    gateway: GatewayShare | None = Field(None, description="Absent where the alias splits the traffic")

    def described(self) -> str:
        return f"{self.alias.described()}; {self.gateway.described()}" if self.gateway else self.alias.described()

    def evidence(self) -> Evidence:
        return {"version": self.version, "routing": self.described()}


class Split(Facts):
    """Part of a stage's traffic, or with 100 all of it, for another version than the one that has it.

    ``before`` is the routing as it was found: what is there now has to be that, or something this order could have
    made of it. Anything else was changed by somebody, and is refused.
    """

    stage: Stage
    before: TrafficRouting
    target: str = Field(pattern=r"^[0-9]+$", description="Published version that gets the share")
    target_code: CodeSha256 | None = Field(None, description="Its code, so that another of the same number is noticed")
    percent: int = Field(100, ge=1, le=100)


class Restore(Facts):
    """Back to the routing that was found."""

    stage: Stage
    before: TrafficRouting
    target: str = Field(description="Version whose share is taken away")


class Shifted(Finding):
    changed: bool = Field(description="False when it was so already")
    percent: int = Field(description="Share of the version that traffic is shifted to, in percent")
