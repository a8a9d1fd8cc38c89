"""What the inputs of the scaling runbooks take and refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from activities.load_models import LoadPlan
from workflows.scaling_model import (
    ConnectionPoolScalingInput,
    LoadTestInput,
    ProvisionedConcurrencyInput,
    ServiceRestartInput,
    VerticalScalingInput,
)

WHO: dict[str, Any] = {"stage": "production", "reason": "slow"}


def test_the_documents_figures_are_the_defaults() -> None:
    assert VerticalScalingInput(**WHO).memory_mb == 1024
    assert ProvisionedConcurrencyInput(**WHO).executions == 5
    plan = LoadTestInput(**WHO).plan()
    assert (plan.requests, plan.concurrency, plan.path) == (1000, 100, "/sessions")
    assert ServiceRestartInput(**WHO).drain.total_seconds() == 30


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (LoadPlan, {"arrivals": "open", "requests": 1000, "rate": 1}, "longer than at_most"),
        (LoadPlan, {"path": "https://elsewhere.example.com/"}, "path"),
        (LoadPlan, {"requests": 1_000_000}, "requests"),
        (VerticalScalingInput, {**WHO, "memory_mb": 64}, "memory_mb"),
        (ConnectionPoolScalingInput, {**WHO, "max_pool_size": 5, "min_pool_size": 6}, "at most max_pool_size"),
        (ConnectionPoolScalingInput, WHO, "max_pool_size"),
        (ServiceRestartInput, {**WHO, "ladder": [10, 5]}, "let in more"),
        (ServiceRestartInput, {**WHO, "longest": "PT5M"}, "have to fit in"),
    ],
)
def test_what_cannot_be_is_refused(model: type[BaseModel], given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        model.model_validate(given)
