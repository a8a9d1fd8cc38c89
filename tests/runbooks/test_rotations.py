"""Rotations of what clients do not hold, against the real house: real tokens, real database users."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Iterator
from typing import Any

import httpx
import pymongo
import pymongo.errors
import pytest
from temporalio.client import Client

from activities.connection_string import password_of, user_of
from sandbox.api import tokens
from sandbox.house import House
from tests.histories import keep
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, failure, finished, progress, until
from workflows.model import Outcome

STAGE = "staging"
LIFE = 3
"""Seconds that a token lives: the worker's settings say so too."""


@pytest.fixture
def site(house: House, worker: WorkerProcess, runs: Client) -> Site:
    worker.start()
    return Site(house, runs, STAGE)


def facts(site: Site) -> dict[str, Any]:
    stage: dict[str, Any] = tomllib.loads(site.house.layout.settings.read_text())["stages"][STAGE]
    return stage


def let_in(site: Site, token: str) -> int:
    url = facts(site)["url"] + "/tokens/self"
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code


@pytest.mark.long
async def test_a_release_with_one_slot_is_found_out_and_one_with_two_is_rotated(site: Site) -> None:
    site.deploy("one-secret")
    before = site.secret("JwtSecret")
    handle = await site.start("SigningSecretRotation", reason="twice a year", skew="PT1S")
    error = await failure(handle)
    assert error.type == "NotDual", error.message
    assert site.secret("JwtSecret") == before
    await keep(handle, "SigningSecretRotation", "one-slot")

    site.deploy("good", token_seconds=LIFE)
    handle = await site.start("SigningSecretRotation", reason="twice a year", skew="PT1S")
    result = await finished(handle, 180)
    assert result.outcome is Outcome.COMPLETED, result
    assert [item.id for item in result.checklist if not item.done] == []
    after = tokens.Keyring.of(site.secret("JwtSecret"))
    assert len(after.keys) == 1
    assert let_in(site, after.issue(60)) == 200
    assert let_in(site, tokens.Keyring.of(before).issue(60)) == 401
    await keep(handle, "SigningSecretRotation", "rotated")
    text = json.dumps(result.model_dump(mode="json")) + (await progress(handle)).model_dump_json()
    assert not any(secret in text for secret in (*(key.decode() for key in after.keys.values()), before))


@pytest.fixture
def users(request: pytest.FixtureRequest, worker: WorkerProcess) -> Iterator[str]:
    """By which adapter the worker makes database users."""
    adapter = str(request.param)
    other = {"RUNBOOKS_STAGES__STAGING__ROTATION__USERS": adapter}
    with worker.set(other) if adapter != "mongodb" else contextlib.nullcontext():
        yield adapter


@pytest.mark.long
@pytest.mark.parametrize("users", ["mongodb", pytest.param("atlas", marks=pytest.mark.long)], indirect=True)
async def test_the_database_user_is_replaced(site: Site, users: str) -> None:
    before = site.secret("MongoDBUri")
    old = user_of(before).name
    handle = await site.start("DatabaseCredentialRotation", reason="every 6 months", quiet="PT1S", patience="PT2S")
    # The embedded server does not name the users of its connections, so people are asked.
    state = await until(handle, lambda s: s.open_gate() is not None, 120)
    assert (state.gates[-1].plan["old user"], state.gates[-1].plan["in use"]) == (old, "not known")
    await handle.signal("approve", {"by": "bob", "reason": "the API is its only user"})
    result = await finished(handle, 120)
    assert result.outcome is Outcome.COMPLETED, result
    after = site.secret("MongoDBUri")
    assert user_of(after).name == result.facts["new_user"] != old
    with pymongo.MongoClient[Any](after) as client:
        assert client[facts(site)["database"]["name"]]["sessions"].estimated_document_count() > 0
    with pymongo.MongoClient[Any](before) as client, pytest.raises(pymongo.errors.OperationFailure) as refused:
        client[facts(site)["database"]["name"]]["sessions"].find_one()
    assert refused.value.code == 18
    assert {item.id for item in result.checklist if not item.done} == {"clients"}
    await keep(handle, "DatabaseCredentialRotation", "rotated" if users == "mongodb" else "rotated-by-atlas")
    text = json.dumps(result.model_dump(mode="json")) + (await progress(handle)).model_dump_json()
    assert not any(password_of(uri) in text for uri in (before, after))
