"""``runbooks demo rotation``: fresh API keys, a client that is slow to change, and old keys that the API refuses."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from activities.stage import Role
from starters import runs
from starters.demo_play import STAGE, Play
from starters.problems import Code
from starters.runs import Ended
from starters.sandbox_commands import environment_of, opened
from starters.session import connected
from starters.worker_child import WorkerChild
from workflows.api_key_model import ApiKeyRotationInput
from workflows.api_key_rotation import ApiKeyRotation
from workflows.model import Decision, Gate

if TYPE_CHECKING:
    from sandbox.house import House
    from sandbox.traffic import Traffic

ROLES: tuple[Role, ...] = ("primary", "backup", "internal")
QUICK, SLOW = "dashboard", "mobile-app"
"""Two clients that share the primary key: one changes when it is told, the other one late."""


class Rotation(Play):
    """A rotation of a month within a minute: a grace of seconds, reminders, a gate, one extension."""

    runbook = ApiKeyRotation
    rate = 3.0

    def play(self, stack: ExitStack, root: Path) -> int:
        self._scene("starting a whole sandbox: Temporal and its UI, AWS, MongoDB, the people's tools")
        house = stack.enter_context(opened(root, self._aside))
        house.up(attached=True)
        environment = stack.enter_context(environment_of(house))
        temporary = root / "tmp"  # whatever the worker leaves goes with the rest
        temporary.mkdir()
        stack.enter_context(
            WorkerChild(environment | {"TMPDIR": str(temporary)}, house.layout.log("worker"), self._aside)
        )
        old = self._keys(house)
        clients = stack.enter_context(_Clients(house, self.rate, old["primary"], self._aside))
        self._aside(f"{QUICK} and {SLOW} call {STAGE} with the same key")

        self._scene("rotating the keys: staging first, then production with a grace of 10 s instead of 30 days")
        request = ApiKeyRotationInput(
            stage=STAGE,
            reason="every 90 days",
            requested_by=self.requester,
            grace=timedelta(seconds=10),
            look_every=timedelta(seconds=2),
            reminders=(timedelta(seconds=6), timedelta(seconds=3)),
            quiet=timedelta(seconds=3),
            extension=timedelta(seconds=8),
        )
        started = connected(lambda session: runs.begin(session, self.runbook, request))
        self._output.line(f"  the run in the Temporal UI, its timers named: {started.ui}")
        self._clients = clients
        self._watch(started.id)
        end = connected(lambda session: runs.ended(session, started.id))
        return self._end(house, old, end, started.ui)

    def _answer(self, gate: Gate) -> Decision:
        """The one who knows the slow client says no, and has it changed."""
        if self._attended or not gate.id.startswith("remove-in-use"):
            decision = super()._answer(gate)
        else:
            decision = (
                super()
                ._answer(gate)
                .model_copy(update={"decision": "reject", "reason": f"{SLOW} needs another moment"})
            )
        if decision.decision == "reject":
            self._clients.change(SLOW)
        return decision

    def _keys(self, house: House) -> dict[Role, str]:
        return {role: house.key(STAGE, role) for role in ROLES}

    def _end(self, house: House, old: dict[Role, str], end: Ended, page: str) -> int:
        new = self._keys(house)
        seen = {
            name: {role: _status(house, key) for role, key in keys.items()}
            for name, keys in (("old", old), ("new", new))
        }
        right = end.well and set(seen["old"].values()) == {401} and set(seen["new"].values()) == {200}
        self._scene("the end")
        self._output.line(f"  {end.outcome}: {end.summary}", "bold green" if end.well else "bold red")
        for name, statuses in seen.items():
            told = ", ".join(f"{role} {status}" for role, status in statuses.items())
            self._output.line(f"  the API itself, called with the {name} keys: {told}", "bold")
        self._output.line(f"  run: {page}")
        if self._output.json:
            facts = end.result.facts if end.result else {}
            checklist = [item.model_dump(mode="json") for item in end.result.checklist] if end.result else []
            document: dict[str, Any] = {
                "outcome": end.outcome,
                "summary": end.summary,
                "statuses": seen,
                "right": right,
            }
            self._output.show(document | {"extensions": facts.get("extensions", 0), "checklist": checklist, "ui": page})
        return Code.DONE if right else Code.RUN_FAILED


class _Clients:
    """Traffic of two clients. The quick one changes its key as soon as there is a new one, the slow one when told."""

    def __init__(self, house: House, rate: float, key: str, say: Any) -> None:
        self._house, self._rate, self._old, self._say = house, rate, key, say
        self._over = threading.Event()
        self._guard = threading.Lock()
        self._traffic: dict[str, Traffic] = {}
        self._thread = threading.Thread(target=self._watch, name="demo-clients", daemon=True)

    def __enter__(self) -> _Clients:
        for name in (QUICK, SLOW):
            self._traffic[name] = self._house.traffic(STAGE, self._rate, 600, key=self._old, name=name)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for traffic in self._traffic.values():
            traffic.stop()

    def change(self, name: str) -> None:
        """Let a client use the new key from now on."""
        with self._guard:
            self._traffic[name].stop()
            self._traffic[name] = self._house.traffic(STAGE, self._rate, 600, name=name)
        self._say(f"{name} uses its new key from now on")

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            if self._house.key(STAGE, "primary") != self._old:
                self.change(QUICK)
                return


def _status(house: House, key: str) -> int:
    return httpx.get(f"{house.url(STAGE)}/sessions?limit=1", headers={"X-Api-Key": key}, timeout=30).status_code
