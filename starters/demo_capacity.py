"""``runbooks demo restart`` and ``runbooks demo scale``: traffic that comes back, and a change that ends by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from activities.load_models import LoadPlan
from starters import runs
from starters.demo_play import STAGE, Play
from starters.runs import Ended
from starters.session import connected
from starters.worker_child import WorkerChild
from workflows.provisioned_concurrency import ProvisionedConcurrency
from workflows.scaling_model import ProvisionedConcurrencyInput, ServiceRestartInput
from workflows.service_restart import ServiceRestart

if TYPE_CHECKING:
    from sandbox.house import House
    from sandbox.traffic import Stats, Traffic


class Restart(Play):
    """The last resort, with the worker killed at the worst moment: while no traffic is let in."""

    runbook = ServiceRestart
    rate = 8.0

    def trouble(self, _house: House, traffic: Traffic) -> Stats:
        self._scene("a service that hangs, says somebody: the last resort stops its traffic")
        return self._measured(traffic, 1)

    def request(self, _before: Stats) -> ServiceRestartInput:
        return ServiceRestartInput(
            stage=STAGE,
            reason="requests hang, all troubleshooting has failed",
            requested_by=self.requester,
            drain=timedelta(seconds=6),
            ladder=(2, 10),
            hold=timedelta(seconds=6),
            patience=timedelta(seconds=20),
        )

    @contextlib.contextmanager
    def meanwhile(self, child: WorkerChild, traffic: Traffic) -> Iterator[None]:
        over = threading.Event()

        def kill() -> None:
            while not over.wait(0.3):
                seen = traffic.stats(last_seconds=2)
                if seen.error_rate is not None and seen.sent >= 5 and seen.error_rate > 0.9:
                    self._aside("no call gets in. kill -9 of the worker now, before it can give traffic back", "red")
                    os.kill(child.pid, signal.SIGKILL)
                    return

        thread = threading.Thread(target=kill, name="demo-kill", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Scale(Play):
    """Cold starts of seconds, provisioned environments for a while, and their end without anybody's doing."""

    runbook = ProvisionedConcurrency
    rate = 5.0

    def trouble(self, house: House, traffic: Traffic) -> Stats:
        self._scene("deploying a release whose environments take four seconds to start")
        house.deploy("staging", "cold")
        house.deploy(STAGE, "cold")
        before = self._measured(traffic, 6)
        self._aside(f"clients see: p95 {before.p95_ms or 0:.0f} ms", "bold red")
        return before

    def request(self, _before: Stats) -> ProvisionedConcurrencyInput:
        return ProvisionedConcurrencyInput(
            stage=STAGE,
            reason="cold starts of four seconds since the deploy",
            requested_by=self.requester,
            executions=3,
            load=LoadPlan(requests=60, concurrency=4),
            window=timedelta(seconds=20),
            expires_after=timedelta(seconds=15),
        )

    def afterwards(self, _house: House, end: Ended) -> None:
        ending = end.result.facts.get("ends by") if end.result else None
        if not isinstance(ending, str):
            return
        self._scene("the change was a temporary one: its end comes by itself")
        ended = connected(lambda session: runs.ended(session, ending))
        self._aside(f"{ended.outcome}: {ended.summary}", "bold green" if ended.well else "bold red")
