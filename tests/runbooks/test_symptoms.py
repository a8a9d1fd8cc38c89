"""The runbooks of a symptom against the real house: each symptom made for real, found, remedied, measured better.

Symptoms that take minutes to make and to mend are in ``test_long_symptoms.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from temporalio.client import Client

from activities.secret_refs import fingerprint
from sandbox.house import House
from sandbox.state import Vault
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, finished, progress
from tests.runbooks.symptom_site import approve, done, logged, now, placed, traffic, without_errors
from workflows.model import Outcome

QUICK = {
    "window": "PT20S",
    "stable_for": "PT5S",
    "look_every": "PT2S",
    "patience": "PT2M",
    "profile_for": "PT0S",
}
"""The document's half hour and ten minutes, shortened."""


@pytest.fixture(scope="module")
def place(house: House, worker: WorkerProcess, runs: Client) -> Iterator[Site]:
    with placed(house, worker, runs, 4) as site:
        yield site


@pytest.mark.long
async def test_a_bad_release_is_found_rolled_back_and_measured_well(place: Site) -> None:
    site, began = place, now()
    await without_errors(site, timedelta(seconds=20))
    await logged(site, "2", 6, began)
    site.deploy("broken")
    await logged(site, "5", 5, now())
    handle = await site.start("HighErrorRate", remedy="add_index", **QUICK | {"profile_for": "PT3S"})
    plan = await approve(site, handle.id, "apply-roll_back")
    assert "add_index (" in plan["cannot help"], "the remedy that was asked for is refused with the reason"
    await approve(site, f"{handle.id}/run-roll_back", "approve-rollback")
    result = await finished(handle, 150)
    assert result.outcome is Outcome.COMPLETED, result
    assert (result.facts["mended_by"], site.health()["label"]) == ("roll_back", "good")
    assert done(result) == dict.fromkeys(done(result), True), result.checklist
    said = [entry.text for entry in (await progress(handle)).timeline]
    assert any(text.startswith("REFUSED: add_index") for text in said)
    await keep(handle, "HighErrorRate", "real-bad-release")


@pytest.mark.long
async def test_a_route_that_is_gone_and_memory_that_is_short_are_told_apart(place: Site) -> None:
    site, began = place, now()
    await logged(site, "2", 4, began)
    site.deploy("incomplete", memory_held_mb=370)
    await logged(site, "404", 4, now())
    # However long a deployment takes here: the answers from before it are in the window.
    since = {"window": f"PT{(now() - began).seconds + 10}S"}
    errors = await site.start("HighErrorRate", dry_run=True, **QUICK | since)
    memory = await site.start("HighMemoryUsage", dry_run=True, **QUICK)
    wrong, heavy = await finished(errors), await finished(memory)
    assert "GET /sessions/{id}" in str(wrong.facts["404"])
    assert any(
        line.startswith("offer roll_back by QuickRollback: routes that answered before") for line in wrong.would_change
    )
    assert not any("contact_clients" in line for line in wrong.would_change)
    assert any(line.startswith("offer more_memory by VerticalScaling") for line in heavy.would_change), heavy
    assert "512 MB" in str(heavy.facts["before"])
    assert "refused provisioned_concurrency" in heavy.facts or "provisioned" in str(heavy.would_change)


@pytest.mark.long
async def test_one_hammering_client_is_limited_and_the_others_are_served(place: Site) -> None:
    site = place
    # Twice what the other client sends is what the runbook leaves to this one: that has to fit beside the other.
    site.deploy("throttled", shared_limit=780)
    with traffic(site, 20, client=1) as hammering:
        await logged(site, "429", 10, now())
        handle = await site.start("HighErrorRate", **QUICK)
        key = Vault.open(site.house.layout.vault).stages["production"].api_keys[1]
        plan = await approve(site, handle.id, "apply-limit_client")
        assert (plan["its client"], plan["by"]) == (fingerprint(key), "ClientRateLimit")
        assert "async_jobs (no request timed out)" in plan["cannot help"]
        assert key not in str(plan)
        await approve(site, f"{handle.id}/run-limit_client", "approve-limit")
        result = await finished(handle, 150)
        # Requests are counted in slices of ten seconds, and those over the limit are the last of each.
        assert hammering.stats(last_seconds=12).statuses.get("429", 0) > 0, "it hammers on, and is refused"
    assert result.outcome is Outcome.COMPLETED, result
    assert result.facts["mended_by"] == "limit_client"
    await keep(handle, "HighErrorRate", "real-hammering-client")
    site.aws("ssm").delete_parameter(Name="/sst/state-api/production/ClientLimits")
