"""The backup runbooks in the house: S3, users with passwords, a function that reads its secret."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any

import httpx
import pymongo
import pytest

from sandbox.api.stack import secret_parameter
from sandbox.cloud import operator_uri_parameter
from tests.runbooks.conftest import WorkerProcess
from tests.runbooks.site import Site, finished, until
from workflows.model import Outcome

STAGE = "staging"
"""Not production: what other tests of this house work on stays as it is."""


def parameter(site: Site, name: str) -> str:
    found = site.aws("ssm").get_parameter(Name=name, WithDecryption=True)
    return str(found["Parameter"]["Value"])


async def approve(handle: Any, gate: str) -> None:
    await until(handle, lambda s: (found := s.open_gate()) is not None and found.id == gate)
    await handle.signal("approve", {"by": "bob", "gate": gate})


@pytest.fixture
def pointed_back(site: Site, worker: WorkerProcess) -> Iterator[None]:
    """Afterwards the stage works on its own database again, with what was in it: other tests of this house do."""
    name = secret_parameter(STAGE, "MongoDBUri")
    uri = parameter(site, name)
    with pymongo.MongoClient[dict[str, Any]](parameter(site, operator_uri_parameter(STAGE))) as mongo:
        sessions = mongo.get_default_database()["sessions"]
        documents = list(sessions.find())
        yield
        sessions.delete_many({})
        sessions.insert_many(documents)
    site.aws("ssm").put_parameter(Name=name, Value=uri, Type="SecureString", Overwrite=True)
    site.house.deploy(STAGE, "good", latency_ms=1)  # another release, so that no function that runs is kept
    worker.stop()  # it remembers secrets for a while


@pytest.mark.usefixtures("pointed_back")
async def test_backup_drill_and_a_restore_that_the_api_works_on(site: Site) -> None:
    with pymongo.MongoClient[dict[str, Any]](parameter(site, operator_uri_parameter(STAGE))) as mongo:
        data = mongo.get_default_database()
        count = data["sessions"].count_documents({})

        made = await finished(await site.start("DatabaseBackup", stage=STAGE))
        assert str(made.facts["backup"]).startswith("s3://")
        atlas = await finished(await site.start("DatabaseBackup", stage=STAGE, provider="atlas"))
        assert str(atlas.facts["backup"]).startswith(f"atlas://state-api/{STAGE}/")

        done = await finished(await site.start("RestoreDrill", stage=STAGE, backup=made.facts["backup"]))
        assert (done.facts["identical"], done.facts["dropped"]) == (True, True)

        data["sessions"].delete_many({})
        handle = await site.start("DatabaseRestore", stage=STAGE, backup=made.facts["backup"], then="repoint")
        await approve(handle, "approve-restore")
        await approve(handle, "approve-finish")
        result = await finished(handle)
        assert result.outcome is Outcome.COMPLETED
        assert "NOT verified" not in result.summary
        assert data["sessions"].count_documents({}) == 0, "the old database is left as it was"
        assert mongo[f"{data.name}_restored"]["sessions"].count_documents({}) == count
    assert f"/{data.name}_restored?" in parameter(site, secret_parameter(STAGE, "MongoDBUri"))
    stage = tomllib.loads(site.house.layout.settings.read_text())["stages"][STAGE]
    key = {"X-Api-Key": site.house.key(STAGE)}
    async with httpx.AsyncClient(timeout=30) as http:
        listed = await http.get(stage["url"] + "/sessions", headers=key)
    assert listed.status_code == 200
    assert listed.json(), "the API works on what was restored"
