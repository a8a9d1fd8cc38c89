"""Where the proof is made: a sandbox, a worker that dies, and people who say yes to everything."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError

from activities.archive_format import MANIFEST
from activities.incident_policy import IncidentPolicy
from sandbox.house import House
from tests.chaos.worker import DETOUR, NOTES, PHASE, Notes, serve
from tests.runbooks.site import Site
from workflows.model import RunbookResult, RunState, State
from workflows.search_attributes import WAITING_FOR_PEOPLE

PEOPLE = ("bob", "eve", "kim")
"""Who says yes. Nobody of them is who asks."""


def _hurried() -> str:
    """The policy of incidents, with seconds instead of minutes of watching."""
    policy = IncidentPolicy()
    quick = {"watch_every": timedelta(seconds=2), "stable_for": timedelta(seconds=4)}
    rules = {name: rule.model_copy(update=quick) for name, rule in policy.severities.items()}
    return policy.model_copy(update={"severities": rules}).model_dump_json()


QUICK = {
    **{
        f"RUNBOOKS_STAGES__{stage}__{name}": value
        for stage in ("PRODUCTION", "STAGING")
        for name, value in (
            ("ROLLBACK__ERROR_WINDOW", "PT3S"),
            ("ROLLBACK__METRICS_DELAY", "PT1S"),
            ("ROTATION__TOKENS__LIFE", "PT3S"),
            ("ROTATION__TOKENS__PATIENCE", "PT3S"),
        )
    },
    "RUNBOOKS_STAGES__PRODUCTION__INCIDENTS": _hurried(),
}
"""The minutes of watching are not what is proven here."""


_WORKERS = multiprocessing.get_context("forkserver")
_WORKERS.set_forkserver_preload(["tests.chaos.ahead"])
"""Loads what a worker needs once for all rows of a scenario: else two seconds and more of each."""


_WEDGED = 15
"""Looks, two seconds apart, in which the tasks of a run have failed and none has not."""


@dataclass
class Ending:
    """How one run ended, and what it left behind."""

    outcome: str
    summary: str
    checklist: dict[str, bool]
    left_undone: list[str]
    found: dict[str, Any] = field(default_factory=dict)
    """How things were before the run."""
    state: dict[str, Any] = field(default_factory=dict)
    """How they are after it."""
    effects: Counter[str] = field(default_factory=Counter)
    faults: int = 0
    pairs: set[tuple[str, str]] = field(default_factory=set)
    """Operations of dependencies, and how each failed."""
    seconds: float = 0
    """What it took in all, with what had to be there before."""
    changed: list[str] = field(default_factory=list)
    """What of everything else around is not as it was before the run."""

    def differences(self, from_other: Ending) -> list[str]:
        """In what this ending is not the other one; what was done more often is told apart by :meth:`doubled`."""
        found = [
            f"{name}: {mine!r} instead of {others!r}"
            for name, mine, others in (
                ("outcome", self.outcome, from_other.outcome),
                ("left undone", self.left_undone, from_other.left_undone),
                *((key, value, from_other.state.get(key)) for key, value in self.state.items()),
            )
            if mine != others
        ]
        fewer = [name for name, count in from_other.effects.items() if self.effects[name] < count]
        return found + [f"{name}: {self.effects[name]} instead of {from_other.effects[name]}" for name in fewer]

    def unconfirmed(self, from_other: Ending) -> list[str]:
        """Items of the checklist that the other one could confirm, and this one leaves open."""
        return [key for key, done in from_other.checklist.items() if done and not self.checklist.get(key)]

    @property
    def undone(self) -> bool:
        """Whether it failed in so many words, with everything as it was found."""
        as_found = self.state == self.found and not self.changed
        return self.outcome == "failed" and not self.left_undone and as_found

    def doubled(self, from_other: Ending) -> list[str]:
        """Effects that were made more often than without a fault."""
        return [
            f"{name}: {count} instead of {from_other.effects[name]}"
            for name, count in self.effects.items()
            if count > from_other.effects[name]
        ]


class Ground:
    """One sandbox with its client, for one scenario at a time."""

    def __init__(self, house: House, client: Client, notes: Path) -> None:
        self.site = Site(house, client)
        self.house, self.client = house, client
        self._loop = asyncio.get_running_loop()
        self.before: dict[str, str] = {}
        """What a scenario has to remember of how it was before the run."""
        self._served: BaseProcess
        """The last worker; it outlives those of its children that are killed."""
        self._notes, self._log = notes, notes / "worker.log"
        notes.mkdir(parents=True, exist_ok=True)

    def notes(self, scenario: str) -> Notes:
        return Notes(self._notes / scenario)

    @contextmanager
    def worker(self, scenario: str, phase: str, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
        """A worker that is killed in this phase of each activity, as long as the block lasts."""
        self.notes(scenario).begin(phase)
        environment = os.environ | self.house.environment() | QUICK | settings
        environment |= {PHASE: phase, NOTES: str(self._notes / scenario)}
        process = self._served = _WORKERS.Process(target=serve, args=(environment, self._log))
        process.start()
        try:
            yield
            assert process.is_alive(), self._log.read_text(errors="replace")[-3000:]
        finally:
            process.terminate()
            process.join(60)

    def through(self, proxy: str, database: tuple[int, int]) -> dict[str, str]:
        """Settings of a worker that reaches AWS and the API through this address, and what listens on the first port
        at the second one.
        """
        direct = self.house.environment()["AWS_ENDPOINT_URL"]
        stages = tomllib.loads(self.house.layout.settings.read_text())["stages"]
        urls = {
            f"RUNBOOKS_STAGES__{name.upper()}__URL": stage["url"].replace(direct, proxy)
            for name, stage in stages.items()
        }
        return {"RUNBOOKS_AWS__ENDPOINT_URL": proxy, DETOUR: "{}:{}".format(*database), **urls}

    # --- what is there ------------------------------------------------------------------------------------------

    def effects(self) -> Counter[str]:
        """What has reached the receiving ends so far, counted where a second time would be a fault.

        Chat has no key that a sender could repeat, so a message whose answer was lost is sent again: not counted. A
        webhook drops what has come with this key before, as its receiver does.
        """
        counted: Counter[str] = Counter()
        known: set[tuple[str, str]] = set()
        for event in self.site.received():
            if event["channel"] == "webhook":
                message = (str(event["body"].get("event")), str(event["body"].get("key")))
                if message in known:
                    continue
                known.add(message)
            if event["channel"] in ("github", "jira", "atlas", "webhook") or event["action"] in ("trigger", "opened"):
                counted[f"{event['channel']} {event['action']}"] += 1
        files: dict[str, set[str]] = {}
        for page in self.site.aws("s3").get_paginator("list_objects_v2").paginate(Bucket="operational-runbooks"):
            for archive, _, file in (item["Key"].rpartition("/") for item in page.get("Contents", [])):
                if archive.endswith("/replaced"):
                    counted["archives put in place"] += 1
                elif archive.startswith("backups/"):
                    files.setdefault(archive, set()).add(file)
        counted["whole archives"] = sum(MANIFEST in inside for inside in files.values())
        counted["archives without their manifest"] = len(files) - counted["whole archives"]
        for stage in ("production", "staging"):
            there = Site(self.house, self.client, stage)
            counted[f"{stage}: stack updates"] = there.updates()
            versions = there.aws("lambda").list_versions_by_function(FunctionName=there.stack)["Versions"]
            counted[f"{stage}: published versions"] = len(versions)
        return counted

    # --- a run --------------------------------------------------------------------------------------------------

    def undisturbed(self, runbook: str, **inp: Any) -> None:
        """A whole run before the one of the scenario, which needs what it leaves. Called in a thread of its own."""
        with self.worker("before-the-scenario", "undisturbed"):
            run = asyncio.run_coroutine_threadsafe(self.play(runbook, inp, 300), self._loop)
            ending = run.result()
        assert ending.outcome == "completed", ending.summary

    async def play(
        self,
        runbook: str,
        inp: dict[str, Any],
        patience: float,
        beside: Callable[[Any], Awaitable[None]] | None = None,
    ) -> Ending:
        """Start it, say yes to whatever it asks, and wait for its end."""
        before, began = self.effects(), time.monotonic()
        handle = await self.site.start(runbook, **inp)
        ended = asyncio.create_task(_result(handle))
        people = [asyncio.create_task(self._say_yes(handle.id))]
        if beside is not None:
            people.append(asyncio.create_task(_persist(beside, handle)))
        looks, why = 0, f"still open after {patience:g} s"
        while not ended.done() and self._served.is_alive() and time.monotonic() - began < patience:
            await asyncio.wait({ended}, timeout=2)
            looks = looks + 1 if (wedged := await self._wedged()) else 0
            if looks == _WEDGED:
                why = f"the tasks of {', '.join(wedged)} fail"
                break
        for person in people:
            person.cancel()
        if not ended.done():
            ended.cancel()
            state = await _asked(handle)
            await self.clear()
            return Ending("still open", f"{why}: {_where(state)}", {}, [])
        result = ended.result()
        counted = self.effects()
        counted.subtract(before)
        return Ending(
            outcome=str(result.outcome),
            summary=result.summary,
            checklist={item.id: item.done for item in result.checklist},
            left_undone=list(result.left_undone),
            effects=+counted,
        )

    async def _wedged(self) -> list[str]:
        """Runs whose tasks fail, one after the other: as the server sees it, they cannot go on."""
        failing = "TemporalReportedProblems IS NOT NULL AND ExecutionStatus = 'Running'"
        with contextlib.suppress(RPCError):  # the server is dead at the moment
            return [found.id async for found in self.client.list_workflows(failing)]
        return []

    async def clear(self) -> None:
        """End what still runs: it would hold the stage against the next run."""
        async for left in self.client.list_workflows('ExecutionStatus = "Running"'):
            with contextlib.suppress(RPCError):  # it has just ended
                await self.client.get_workflow_handle(left.id).terminate("the proof has waited long enough")

    async def _say_yes(self, run: str) -> None:
        """To every gate of the run and of the runs below it."""
        asked: set[tuple[str, str, int, str]] = set()
        waiting = f'{WAITING_FOR_PEOPLE} AND WorkflowId STARTS_WITH "{run}"'
        while True:
            try:
                ids = [found.id async for found in self.client.list_workflows(waiting)]
                for one in ids:
                    handle = self.client.get_workflow_handle(one)
                    state = await _asked(handle)
                    gate = state.open_gate() if state else None
                    for person in PEOPLE if gate else ():
                        assert gate is not None
                        answer = (one, gate.id, gate.asked, person)
                        if answer not in asked:
                            await handle.signal("approve", {"by": person, "gate": gate.id})
                            asked.add(answer)
            except RPCError:
                pass  # the server or the worker is dead at the moment: that is what this is about
            await asyncio.sleep(0.6)


async def _persist(act: Callable[[Any], Awaitable[None]], handle: WorkflowHandle[Any, Any]) -> None:
    """As a person who tries again: the server or the worker may be dead, or it may be too early."""
    while True:
        with contextlib.suppress(RPCError, WorkflowUpdateFailedError, WorkflowQueryFailedError, LookupError):
            await act(handle)
            return
        await asyncio.sleep(0.5)


async def _asked(handle: WorkflowHandle[Any, Any]) -> RunState | None:
    try:
        return await asyncio.wait_for(handle.query("progress", result_type=RunState), 3)
    except Exception:  # no worker to answer, or the run has ended
        return None


def _where(state: RunState | None) -> str:
    if state is None:
        return "no worker answers"
    at = [f"{step.id} is {step.state}" for step in state.steps if step.state in (State.RUNNING, State.WAITING)]
    return ", ".join([state.phase, *at, *(entry.text for entry in state.timeline[-2:])])


async def _result(handle: WorkflowHandle[Any, Any]) -> RunbookResult:
    while True:
        try:
            return RunbookResult.model_validate(await handle.result())
        except RPCError:
            await asyncio.sleep(0.5)
        except WorkflowFailureError as error:
            if isinstance(error.cause, ApplicationError) and error.cause.details:
                return RunbookResult.model_validate(error.cause.details[0])
            if isinstance(error.cause, CancelledError):
                raise AssertionError("the run was cancelled, and nobody asked for that") from None
            raise
