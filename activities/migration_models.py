"""What the activities of a migration are asked and what they answer.

Filters and updates are MongoDB Extended JSON (relaxed or canonical), as plain JSON objects: ``{"at": {"$lt": {"$date":
"2026-01-20T00:00:00Z"}}}``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, Field

from activities.evidence import Finding
from activities.stage import Facts, Stage

Kind = Literal["collection", "view", "timeseries", "absent"]


class Index(Facts):
    """An index by name and keys. The order of the keys is part of it."""

    name: str
    keys: tuple[tuple[str, int], ...] = Field(description="Field and direction, 1 or -1")
    unique: bool = False

    def described(self) -> str:
        return "{" + ", ".join(f"{name}: {direction}" for name, direction in self.keys) + "}"


class Query(Facts):
    """The query whose plan and time are measured before and after: its first documents, as the API reads them."""

    filter: dict[str, Any] = Field(default_factory=dict)
    sort: tuple[tuple[str, int], ...] = ()


class LookRequest(Facts):
    """What a migration is about, as far as looking at it goes."""

    stage: Stage
    collection: str
    query: Query
    filter: dict[str, Any] | None = Field(None, description="Documents still to be migrated; absent for an index")
    index: Index | None = None
    touches: tuple[str, ...] = Field((), description="Fields that the change writes")


class QueryCost(Facts):
    """What the query costs. What the server does not say is absent."""

    plan: str | None = Field(None, description="Winning plan, such as COLLSCAN or IXSCAN")
    index: str | None = Field(None, description="Name of the index it uses")
    docs_examined: int | None = None
    returned: int | None = None
    latency_ms: float | None = Field(None, description="Median of five, with the way to the database")

    def described(self) -> str:
        uses = f"{self.plan} of {self.index}" if self.index else self.plan or "plan not known"
        examined = f", examines {self.docs_examined} documents" if self.docs_examined is not None else ""
        took = f", {self.latency_ms:.1f} ms" if self.latency_ms is not None else ""
        return uses + examined + took


class MigrationState(Finding):
    """How things are before, during or after a migration."""

    server: str = Field(description="What the server says it is")
    kind: Kind
    documents: int = Field(description="In the collection, by its metadata")
    collection_bytes: int | None = Field(None, description="Of documents, without indexes")
    database_bytes: int | None = None
    remaining: int | None = Field(None, description="Documents still to be migrated; absent for an index")
    cost: QueryCost
    change_plan: str | None = Field(None, description="How the documents to migrate are found; absent for an index")
    index_ready: bool | None = Field(None, description="Whether the wanted index is there, with just these keys")
    covered_by: str | None = Field(None, description="Another index that makes the wanted one redundant")
    makes_redundant: tuple[str, ...] = ()
    unused: tuple[str, ...] = Field((), description="Indexes that no query used since the server counts")
    problems: tuple[str, ...] = Field((), description="Why the change cannot be made here, one line each")


class IndexOrder(Facts):
    stage: Stage
    collection: str
    index: Index


class IndexBuilt(Finding):
    built: bool = Field(description="False when it was there already, or an earlier attempt had built it")
    seconds: float


class IndexProgress(Finding):
    """How far a build is, as far as the server says."""

    percent: float | None = None


class IndexDropped(Finding):
    dropped: bool


class MigrationEntry(Facts):
    """One migration as it stands in the migration log. Entries are only ever added."""

    id: str
    stage: str
    kind: str
    change: dict[str, Any]
    reason: str
    requested_by: str | None = None
    outcome: str
    summary: str
    began_at: AwareDatetime
    ended_at: AwareDatetime
    facts: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class Logged(Finding):
    location: str
