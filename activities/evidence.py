"""What an activity found or did, in a form that a step of a run can show."""

from __future__ import annotations

from pydantic import Field

from activities.stage import Facts

Evidence = dict[str, str | int | float | bool]


class Finding(Facts):
    """Base of every activity's result."""

    summary: str = Field(description="One line for the run's page: what was seen or done, with figures and units")

    def evidence(self) -> Evidence:
        """The figures behind the summary: every scalar field that has a value (times as ISO 8601)."""
        plain = self.model_dump(mode="json", exclude={"summary"}, exclude_none=True)
        return {name: value for name, value in plain.items() if isinstance(value, str | int | float | bool)}
