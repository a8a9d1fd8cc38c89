"""The Temporal server that benchmarks run on: the embedded one, tuned as the sandbox's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio.testing import WorkflowEnvironment

from tests.conftest import DYNAMIC_CONFIG, temporal_binary
from workflows import search_attributes
from workflows.plugin import RunbooksPlugin


@asynccontextmanager
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    flags = [part for key, value in DYNAMIC_CONFIG.items() for part in ("--dynamic-config-value", f"{key}={value}")]
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=temporal_binary(),
        dev_server_extra_args=flags,
        search_attributes=list(search_attributes.ALL),
        plugins=[RunbooksPlugin()],
    ) as env:
        yield env
