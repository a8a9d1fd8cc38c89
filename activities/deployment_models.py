"""What the activities of a deployment are asked and what they answer."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from activities.evidence import Finding
from activities.functions import Routing
from activities.releases import CodeSha256, ReleaseFacts, Strategy
from activities.stage import Facts, Stage

Named = Annotated[str, StringConstraints(pattern=r"^\w[\w.+/-]*$", max_length=200)]
"""A commit, label or version as a person names it; never something that a command could take for an option."""


class FindTarget(Facts):
    stage: Stage
    strategy: Strategy
    to: Named | None = Field(
        None, description="Commit, label or Lambda version to go to; absent means the last good one"
    )


class RollbackTarget(Finding):
    """From what to what a rollback goes, and how that is known."""

    strategy: Strategy
    current: ReleaseFacts
    target: ReleaseFacts
    sources: dict[str, str] = Field(description="Where each fact comes from")
    notes: tuple[str, ...] = Field((), description="What does not fit together, one line each")


class CheckTarget(Facts):
    stage: Stage
    strategy: Strategy
    target: ReleaseFacts


class TargetCheck(Finding):
    """Whether a release can be gone back to."""

    ok: bool
    problems: tuple[str, ...] = ()


class Former(Finding):
    """Exactly what is live, so that it can be put back."""

    live: ReleaseFacts
    routing: Routing | None = Field(None, description="The alias with its weights; absent where there is no alias")
    stack_status: str | None = None


class DeployInput(Facts):
    stage: Stage
    release: ReleaseFacts
    deployment_id: str = Field(min_length=1, description="Workflow id and step: the same id never deploys twice")
    strategy: Strategy = "redeploy"


class DeployAgain(Facts):
    """Deploy what is live, whatever that is by then."""

    stage: Stage
    deployment_id: str = Field(min_length=1, description="Workflow id and step")


class Deployed(Finding):
    """What a deployment did and what is live since."""

    changed: bool = Field(description="False when the release was live already")
    release: str | None = Field(None, description="What the live version says it is")
    version: str
    code_sha256: CodeSha256
    as_recorded: bool | None = Field(
        None, description="Whether the live code is byte for byte the recorded one; absent if nothing was recorded"
    )
    stack_status: str | None = None
    started_at: datetime
    finished_at: datetime
    how: str
    log_location: str | None = None


class PointAlias(Facts):
    stage: Stage
    version: str = Field(pattern=r"^[0-9]+$", description="Published version that takes the traffic")
    weights: dict[str, float] = Field(
        default_factory=dict, description="Share of traffic of other versions; empty gives it all to one"
    )
    expect_version: str | None = Field(
        None, description="Change nothing unless the alias points at this version (or at the wanted one) now"
    )


class AliasPointed(Finding):
    changed: bool
    alias: str
    version: str
    former_version: str
    weights: dict[str, float] = Field(default_factory=dict)
    release: str | None = None


class Continued(Finding):
    status: str


class Recorded(Finding):
    location: str
