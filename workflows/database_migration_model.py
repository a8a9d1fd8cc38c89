"""What ``DatabaseMigration`` takes: one change, as a person types it. What cannot be is refused here, at once."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from activities.batch_models import AbortLimits, LoadLimits
from activities.migration_models import Index, Query
from activities.update_rules import check_collection, check_filter, check_update, describe_update, touched_paths
from workflows.batched_update_model import check_limits
from workflows.model import Name, RunbookInput

FieldName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^$.\x00][^\x00]*$")]
IndexName = Annotated[str, StringConstraints(min_length=1, max_length=127, pattern=r"^[^\x00*]+$")]
Keys = dict[FieldName, Literal[1, -1]]

Filter = dict[str, Any]
Update = dict[str, Any] | list[dict[str, Any]]


class BaseChange(BaseModel):
    """What every kind of change has."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, frozen=True)

    collection: str = Field(description="Collection of the stage's database", examples=["sessions"])
    sort: Keys = Field(default_factory=dict, description="Sort of that query, such as {'created_at': -1}")

    @field_validator("collection")
    @classmethod
    def _collection(cls, name: str) -> str:
        return check_collection(name)

    @field_validator("query", check_fields=False)
    @classmethod
    def _query(cls, query: Filter) -> Filter:
        return check_filter(query, all_documents=not query)

    def measured(self) -> Query:
        """The query whose plan and time are compared before and after."""
        return Query(filter=getattr(self, "query"), sort=tuple(self.sort.items()))  # noqa: B009 each kind has its own


class AddIndex(BaseChange):
    """An index, with the query that it is for."""

    kind: Literal["add_index"]
    keys: Keys = Field(min_length=1, max_length=32, description="Fields in order, 1 or -1 each")
    query: Filter = Field(
        min_length=1, description="Filter of the query in question: afterwards it has to use the index"
    )
    name: IndexName | None = Field(None, description="Name of the index; MongoDB's own way of naming when absent")
    unique: bool = Field(False, description="Whether no two documents may have the same values")

    @field_validator("keys")
    @classmethod
    def _not_the_identity(cls, keys: Keys) -> Keys:
        if list(keys) == ["_id"]:
            raise ValueError("_id has its index already")
        return keys

    def index(self) -> Index:
        name = self.name or "_".join(f"{field}_{direction}" for field, direction in self.keys.items())
        return Index(name=name, keys=tuple(self.keys.items()), unique=self.unique)

    def described(self) -> str:
        index = self.index()
        return f"add the {'unique ' if self.unique else ''}index {index.name} {index.described()} to {self.collection}"


class BackfillField(BaseChange):
    """A field that documents without it get."""

    kind: Literal["backfill_field"]
    field: FieldName = Field(description="Field that older documents lack; a path such as meta.environment will do")
    value: Any = Field(description="Value they get, in MongoDB Extended JSON")
    query: Filter = Field(default_factory=dict, description="Filter of a query to compare before and after")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_update(self.update)
        return self

    @property
    def filter(self) -> Filter:
        return {self.field: {"$exists": False}}

    @property
    def update(self) -> Update:
        return {"$set": {self.field: self.value}}

    @property
    def all_documents(self) -> bool:
        return False

    def described(self) -> str:
        return f"give documents of {self.collection} without {self.field} this field"


class UpdateDocuments(BaseChange):
    """Any update of many documents."""

    kind: Literal["update_documents"]
    filter: Filter = Field(
        default_factory=dict,
        description="Which documents, in Extended JSON. Best is a condition that the update makes false",
    )
    update: Update = Field(description="Update operators, or a pipeline, in MongoDB Extended JSON")
    all_documents: bool = Field(False, description="Needed when the filter is empty")
    query: Filter = Field(default_factory=dict, description="Filter of a query to compare before and after")

    @field_validator("update")
    @classmethod
    def _update(cls, update: Any) -> Any:
        return check_update(update)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_filter(self.filter, all_documents=self.all_documents)
        return self

    def described(self) -> str:
        return f"update {self.collection}: {describe_update(self.update)}"


Change = Annotated[AddIndex | BackfillField | UpdateDocuments, Field(discriminator="kind")]


class DatabaseMigrationInput(RunbookInput):
    """One change of one collection, on staging first."""

    change: Change = Field(description="add_index, backfill_field or update_documents, by its 'kind'")
    staging_stage: Name = Field("staging", description="Stage on which the change is made and validated first")
    release: Name | None = Field(
        None,
        description=(
            "Release (commit, label) of the code: for an index the one that needs it, deployed after it; otherwise the "
            "one that works with both forms, deployed before. Absent: people are asked about the code"
        ),
    )
    when_closed: Literal["wait", "refuse"] = Field(
        "wait", description="What to do while the stage's maintenance window is closed"
    )
    backup_max_age: timedelta | None = Field(
        None, gt=timedelta(0), description="Accept a whole backup no older than this, such as PT1H; absent: make one"
    )
    journal: bool = Field(
        True, description="Keep ids and former values of the touched fields, so that an update can be undone by itself"
    )
    restore: Literal["replace", "repoint"] = Field(
        "replace",
        description="How the backup would come back, if a failed change cannot be undone: see DatabaseRestore",
    )
    late_writers: timedelta = Field(
        timedelta(minutes=1), ge=timedelta(0), description="Time between the two last looks for documents left"
    )
    throttle: LoadLimits = Field(LoadLimits(), description="Load of a stage beyond which an update's batches wait")
    abort: AbortLimits = Field(AbortLimits(), description="Load of a stage beyond which an update stops and is undone")
    approved: bool = Field(False, description="Set by the run that rehearses here; no effect when a person starts this")

    @model_validator(mode="after")
    def _limits(self) -> Self:
        check_limits(self.throttle, self.abort)
        return self

    def touches(self) -> tuple[str, ...]:
        """Fields that the change writes."""
        return () if self.change.kind == "add_index" else touched_paths(self.change.update)
