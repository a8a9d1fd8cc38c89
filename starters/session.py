"""One connection of one command: settings, Temporal, and who is asking."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowHandle

from activities.settings import Settings, load_settings
from starters.problems import Code, Problem
from workflows.connection import connect
from workflows.details import run_page

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds that a command waits for Temporal: somebody sits before it."""


@dataclass(frozen=True)
class Session:
    client: Client
    settings: Settings

    def handle(self, run_id: str) -> WorkflowHandle[Any, Any]:
        return self.client.get_workflow_handle(run_id)

    def page(self, workflow_id: str, run_id: str | None = None) -> str:
        """Address of a run's page in the Temporal UI."""
        return run_page(self.settings.ui.url, self.client.namespace, workflow_id, run_id)


def connected(work: Callable[[Session], Awaitable[T]]) -> T:
    """Do ``work`` with a connection: the one way from a command into asynchronous code.

    Raises:
        ConfigError: the settings cannot be used.
        ConnectionProblem: Temporal cannot be used.
    """

    async def whole() -> T:
        settings = load_settings()
        return await work(Session(await connect(settings, patience=PATIENCE), settings))

    return asyncio.run(whole())


def me() -> str | None:
    """Who sits here: ``RUNBOOKS_USER``, or the name of the login; None when there is neither."""
    try:
        return os.environ.get("RUNBOOKS_USER") or getpass.getuser()
    except (KeyError, OSError):
        return None


def somebody(by: str | None) -> str:
    """Who answers: as named, or who sits here.

    Raises:
        Problem: nobody is known.
    """
    who = by or me()
    if not who:
        raise Problem("say who you are with --by, or set RUNBOOKS_USER", Code.BAD_INPUT)
    return who
