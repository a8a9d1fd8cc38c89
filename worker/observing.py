"""What waits for people, as metrics: open gates and the age of the oldest, runs by what they are doing.

Every worker looks by itself and shows the same, so a dashboard takes the maximum over the workers. Counters of what has
happened are counted where it happens: ``workflows/meters.py`` and the activities.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from temporalio.client import Client
from temporalio.common import MetricMeter
from temporalio.service import RPCError

from workflows import search_attributes
from workflows.catalog import RUNBOOKS
from workflows.model import RunState

EVERY = timedelta(seconds=30)
"""Between two looks."""

_MOST_RUNS = 1000
_MOST_GATES = 50
"""Runs asked for the age of their gate at one look; more open gates than that are counted all the same."""

_ANSWER = timedelta(seconds=5)

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Seen:
    """One run that is under way."""

    workflow_id: str
    runbook: str
    stage: str
    phase: str
    gate: str | None
    waits: timedelta | None = None
    """How long its gate has been open, where the run could be asked."""


def figures(seen: Iterable[Seen]) -> dict[str, dict[Labels, float]]:
    """The gauges, by metric and labels."""
    seen = list(seen)
    runs = Counter(_labels(stage=run.stage, runbook=run.runbook, phase=run.phase) for run in seen)
    waiting = [(run, _labels(stage=run.stage, runbook=run.runbook, gate=run.gate)) for run in seen if run.gate]
    oldest: dict[Labels, float] = {}
    for run, labels in waiting:
        if run.waits is not None:
            oldest[labels] = max(oldest.get(labels, 0.0), run.waits.total_seconds())
    return {
        "runbooks_runs_open": {labels: float(number) for labels, number in runs.items()},
        "runbooks_gates_open": {labels: float(n) for labels, n in Counter(labels for _, labels in waiting).items()},
        "runbooks_gate_oldest_seconds": oldest,
    }


def _labels(**pairs: str | None) -> Labels:
    return tuple((name, value or "unknown") for name, value in pairs.items())


_GAUGES = {
    "runbooks_runs_open": "Runs under way",
    "runbooks_gates_open": "Gates that wait for people",
    "runbooks_gate_oldest_seconds": "How long the oldest of these gates has been open",
}


class Gauges:
    """Gauges that fall back to zero when what they counted is gone."""

    def __init__(self, meter: MetricMeter) -> None:
        self._gauges = {name: meter.create_gauge_float(name, text) for name, text in _GAUGES.items()}
        self._shown: dict[str, set[Labels]] = {name: set() for name in self._gauges}

    def show(self, values: dict[str, dict[Labels, float]]) -> None:
        for name, gauge in self._gauges.items():
            now = values.get(name, {})
            for labels in self._shown[name] | now.keys():
                gauge.set(now.get(labels, 0.0), dict(labels))
            self._shown[name] |= now.keys()


async def look(client: Client, now: datetime) -> list[Seen]:
    """The runs that are under way, as Temporal's visibility has them; those at a gate are asked since when."""
    names = ", ".join(f"'{runbook.__name__}'" for runbook in RUNBOOKS)
    query = f"WorkflowType IN ({names}) AND ExecutionStatus = 'Running'"
    found = [
        Seen(
            workflow_id=run.id,
            runbook=run.workflow_type,
            stage=run.typed_search_attributes.get(search_attributes.STAGE) or "unknown",
            phase=run.typed_search_attributes.get(search_attributes.PHASE) or "starting",
            gate=run.typed_search_attributes.get(search_attributes.GATE),
        )
        async for run in client.list_workflows(query, limit=_MOST_RUNS)
    ]
    waiting = [run for run in found if run.gate][:_MOST_GATES]
    ages = dict(zip(waiting, await asyncio.gather(*(_age(client, run, now) for run in waiting)), strict=True))
    return [Seen(**{**vars(run), "waits": ages.get(run)}) for run in found]


async def _age(client: Client, run: Seen, now: datetime) -> timedelta | None:
    try:
        handle = client.get_workflow_handle(run.workflow_id)
        state = await handle.query("progress", result_type=RunState, rpc_timeout=_ANSWER)
    except Exception:  # whatever keeps one run from answering must not hide the others
        return None
    gate = state.open_gate()
    return now - gate.opened_at if gate else None


async def watch(client: Client, meter: MetricMeter, every: timedelta = EVERY) -> None:
    """Look again and again, until cancelled. A Temporal that is away is news for the log, no reason to end."""
    gauges, away = Gauges(meter), False
    while True:
        try:
            gauges.show(figures(await look(client, datetime.now(UTC))))
            away = False
        except RPCError as error:
            if not away:
                logging.warning(
                    "could not look for open gates (%s): the metrics stand still until it works", error.status
                )
            away = True
        await asyncio.sleep(every.total_seconds())
