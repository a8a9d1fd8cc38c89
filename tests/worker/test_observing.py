"""Open gates, their age and what runs are doing, as metrics."""

from __future__ import annotations

import asyncio
import urllib.request
from datetime import timedelta
from typing import Any

import pytest
from temporalio.client import Client
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig

from sandbox.ports import any_free
from tests.patience import eventually
from tests.workflows.probe import Probe, World, at_gate, begin, until, working
from worker import observing
from worker.observing import Gauges, Seen, figures, look
from workflows.plugin import RunbooksPlugin


def seen(gate: str | None = None, minutes: int | None = None, **more: str) -> Seen:
    known = {"workflow_id": "w", "runbook": "QuickRollback", "stage": "production", "phase": "approval", **more}
    return Seen(**known, gate=gate, waits=None if minutes is None else timedelta(minutes=minutes))


def test_the_oldest_gate_counts_and_runs_without_a_gate_do_not() -> None:
    values = figures([seen("go", 5), seen("go", 7), seen("keep", None), seen(None, phase="changing")])
    go = (("stage", "production"), ("runbook", "QuickRollback"), ("gate", "go"))
    keep = (*go[:2], ("gate", "keep"))
    assert values["runbooks_gates_open"] == {go: 2, keep: 1}
    assert values["runbooks_gate_oldest_seconds"] == {go: 420}, "how long is not known is not shown as nothing"
    assert sum(values["runbooks_runs_open"].values()) == 4


class Meter:
    """Takes the place of the SDK's meter, which shows its values only over HTTP."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}

    def create_gauge_float(self, name: str, description: str) -> Any:
        meter = self

        class Gauge:
            def set(self, value: float, labels: dict[str, str]) -> None:
                meter.values[name, labels.get("gate", "")] = value

        return Gauge()


def test_a_gate_that_was_answered_falls_back_to_zero() -> None:
    meter = Meter()
    gauges = Gauges(meter)  # type: ignore[arg-type]
    gauges.show(figures([seen("go", 5)]))
    assert meter.values["runbooks_gates_open", "go"] == 1
    gauges.show(figures([]))
    assert meter.values["runbooks_gates_open", "go"] == 0
    assert meter.values["runbooks_gate_oldest_seconds", "go"] == 0


async def test_a_real_run_is_seen_and_counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "RUNBOOKS", (Probe,))
    port, world = any_free(), World()
    telemetry = Runtime(
        telemetry=TelemetryConfig(
            metrics=PrometheusConfig(bind_address=f"127.0.0.1:{port}", counters_total_suffix=True)
        )
    )
    target = client.service_client.config.target_host
    counted = await Client.connect(target, plugins=[RunbooksPlugin()], runtime=telemetry)
    async with working(counted, world) as queue:
        handle = await begin(counted, queue)
        state = await until(handle, at_gate)
        opened = state.gates[0].opened_at

        async def at_its_gate() -> list[Seen]:
            runs = await look(counted, opened + timedelta(minutes=3))
            return [run for run in runs if run.gate and run.workflow_id == handle.id]

        (mine,) = await eventually(at_its_gate, "the gate in visibility, which is a moment behind")
        assert (mine.gate, mine.phase, mine.waits) == ("turn-it", "approval", timedelta(minutes=3))
        watching = asyncio.create_task(observing.watch(counted, telemetry.metric_meter, timedelta(milliseconds=50)))
        await handle.signal("reject", {"by": "bob"})

        async def counted_as_rejected() -> str:
            text = await asyncio.to_thread(metrics, port)
            return text if 'outcome="rejected"' in text else ""

        text = await eventually(counted_as_rejected, "the rejected run among the metrics")
        watching.cancel()
    (line,) = (line for line in text.splitlines() if line.startswith("runbooks_runs_closed_total"))
    assert 'workflow_type="Probe"' in line
    assert line.endswith(" 1")


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())
