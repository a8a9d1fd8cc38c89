"""One finished example a runbook, made once."""

from __future__ import annotations

from activities.settings import load_settings
from starters.seeds import seed
from starters.session import Session
from tests.starters.conftest import House
from tests.workflows.probe import Outer
from workflows.model import Outcome


async def test_every_runbook_gets_an_example_that_changed_nothing(house: House) -> None:
    # Not the Probe: its one example on this server belongs to the test of the command that begins examples.
    session = Session(house.client, load_settings())
    assert await seed(session, (Outer,)) == {"example-Outer": Outcome.DRY_RUN}
    first = await house.client.get_workflow_handle("example-Outer").describe()
    assert house.world.done == []
    assert await seed(session, (Outer,)) == {"example-Outer": Outcome.DRY_RUN}
    assert (await house.client.get_workflow_handle("example-Outer").describe()).run_id == first.run_id
