"""ApiKeyRotation against the real house: real keys, a real client that is slow to change, real 200 and 401."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from temporalio.client import Client

from sandbox.house import House
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, failure, finished, progress, until
from workflows.model import Outcome, State

STAGE = "staging"
QUICK = {
    "grace": "PT3S",
    "look_every": "PT1S",
    "reminders": ["PT2S", "PT1S"],
    "quiet": "PT3S",
    "extension": "PT6S",
}


@pytest.fixture
def site(house: House, worker: WorkerProcess, runs: Client) -> Site:
    worker.start()
    return Site(house, runs, STAGE)


@pytest.fixture
def build_fails(site: Site, tmp_path: Path) -> Iterator[None]:
    """The next ``sst deploy`` fails as a build does that cannot fetch its packages; the ones after that work."""
    sst, real, failed = site.house.layout.bin / "sst", tmp_path / "sst", tmp_path / "failed"
    sst.rename(real)
    once = f'[ "$1" = deploy ] && [ ! -e {shlex.quote(str(failed))} ]'
    fails = f"touch {shlex.quote(str(failed))}; echo 'Error: npm install failed' >&2; exit 1"
    sst.write_text(f'#!/bin/sh\nif {once}; then {fails}; fi\nexec {shlex.quote(str(real))} "$@"\n')
    sst.chmod(0o755)
    yield
    real.replace(sst)


def status(site: Site, key: str) -> int:
    settings = tomllib.loads(site.house.layout.settings.read_text())
    url = settings["stages"][STAGE]["url"] + "/sessions?limit=1"
    return httpx.get(url, headers={"X-Api-Key": key}, timeout=30).status_code


async def test_three_keys_are_replaced_while_a_client_stays_on_the_old_one(site: Site) -> None:
    old = [site.house.key(STAGE, role) for role in ("primary", "backup", "internal")]
    slow = site.house.traffic(STAGE, 4, 300, key=old[0], name="mobile-app")
    try:
        handle = await site.start("ApiKeyRotation", reason="quarterly rotation", **QUICK)
        state = await until(handle, lambda s: s.open_gate() is not None, 120)
        plan = state.gates[-1].plan
        assert plan["on old keys"] == "mobile-app"
        fresh = [site.house.key(STAGE, role) for role in ("primary", "backup", "internal")]
        assert not set(old) & set(fresh)
        assert [status(site, key) for key in (*old, *fresh)] == [200] * 6, "both work during the grace"
        await handle.signal("reject", {"by": "bob", "reason": "mobile needs another day"})
        await until(handle, lambda s: bool(s.waits), 30)
    finally:
        slow.stop()
    with_new = site.house.traffic(STAGE, 4, 300, name="mobile-app")
    try:
        await handle.signal("acknowledge", {"by": "mo", "client": "mobile-app"})
        result = await finished(handle, 120)
    finally:
        with_new.stop()
    assert result.outcome is Outcome.COMPLETED, result
    assert [status(site, key) for key in old] == [401] * 3
    assert [status(site, key) for key in fresh] == [200] * 3
    done = {item.id: item.done for item in result.checklist}
    assert [item for item, ticked in done.items() if not ticked] == ["clients"], result.checklist
    await keep(handle, "ApiKeyRotation", "extended-once")
    text = json.dumps(result.model_dump(mode="json")) + (await progress(handle)).model_dump_json()
    assert not any(key in text for key in (*old, *fresh))


@pytest.mark.long
@pytest.mark.usefixtures("build_fails")
async def test_a_deployment_that_fails_leaves_the_old_keys_and_the_store_as_it_was(site: Site) -> None:
    def kept() -> dict[str, list[str]]:
        manager = site.aws("secretsmanager")
        found = {each["Name"]: each["SecretVersionsToStages"] for each in manager.list_secrets()["SecretList"]}
        return {
            name: sorted(version for version, labels in versions.items() if "AWSCURRENT" in labels)
            for name, versions in found.items()
            if f"/{STAGE}/" in name
        }

    old, listed, current = site.house.key(STAGE, "primary"), site.secret("ApiKeys"), kept()
    assert any(current.values())
    handle = await site.start("ApiKeyRotation", reason="quarterly rotation", **QUICK)
    error = await failure(handle)
    assert error.type == "DeployFailed"
    assert "npm install failed" in error.message
    assert (await progress(handle)).step("create").state is State.UNDONE
    assert (site.secret("ApiKeys"), kept()) == (listed, current)
    assert status(site, old) == 200
