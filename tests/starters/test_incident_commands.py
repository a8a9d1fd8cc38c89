"""``runbooks incident`` against a real server: one incident a problem, and every answer at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import Client

from activities.incidents import incident_id
from starters.problems import Code
from tests.patience import soon
from tests.starters.conftest import Cli, write_settings
from tests.workflows.incident_world import World, situation, working
from tests.workflows.probe import progress, until


async def test_an_incident_from_the_command_line(
    cli: Cli, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World("errors")
    async with working(client, world) as queue:
        write_settings(monkeypatch, tmp_path, client, queue)
        opening = ("incident", "open", "Checkout fails!", "--stage", queue, "--severity", "P1", "--json")
        said = await cli(*opening)
        assert said.code == Code.DONE, said.err
        assert said.document["new"] is True
        run = said.document["workflow_id"]
        assert run == incident_id(queue, "Checkout fails!")
        again = await cli(*opening)
        assert (again.document["workflow_id"], again.document["new"]) == (run, False), "the same problem joins"
        handle = client.get_workflow_handle(run)
        await soon(lambda: bool(world.pages))
        assert (await cli("incident", "ack", run)).out == "ann is on it\n"
        assert (await cli("incident", "command", run, "--to", "carla")).out == "carla is commander\n"
        assert (await cli("incident", "severity", run, "P2", "--reason", "half of it works")).code == Code.DONE
        assert (await cli("incident", "note", run, "looking at the release")).code == Code.DONE
        assert (await cli("incident", "cause", run, "a typo")).code == Code.DONE
        wrong = await cli("incident", "severity", run, "P9", "--reason", "x")
        assert wrong.code == Code.BAD_INPUT
        refused = await cli("incident", "action", run, "done", "A7")
        assert refused.code == Code.CONFLICT
        assert "no open action 'A7'; open: none" in refused.err
        await until(handle, lambda s: s.open_gate() is not None)
        no = await cli("incident", "recover", run, "FormatDisk")
        assert no.code == Code.CONFLICT
        assert "is no recovery" in no.err
        world.fault = "none"
        assert (await cli("incident", "mitigated", run, "took it out of the load balancer")).code == Code.DONE
        assert (await cli("incident", "resolve", run)).code == Code.DONE
        await until(handle, lambda s: "resolved as ann said" in "\n".join(e.text for e in s.timeline), 30)
        assert (await cli("incident", "action", run, "add", "write a test", "--owner", "bob")).out == "A1\n"
        assert (await cli("incident", "action", run, "hand-on", "A1", "--owner", "the platform team")).code == Code.DONE
        assert (await cli("incident", "held", run)).code == Code.DONE
        await until(handle, lambda s: s.outcome is not None, 30)
        assert (await progress(handle)).outcome == "completed"
        seen = await situation(handle)
        assert (seen.repeats, seen.cause, seen.roles["commander"]) == (1, "a typo", "carla")
