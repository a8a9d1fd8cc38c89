"""``runbooks doctor`` on the database's users: what each is granted, together, against what the runbooks do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from activities.clients import Aws
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from starters.doctor_database import DatabaseChecks
from starters.doctor_lines import State
from tests.workflows.bare_stage import bare_stage

ROLES = Path(__file__).parents[2] / "deploy" / "mongodb"


def granted(*families: str) -> list[dict[str, Any]]:
    """The privileges of these roles, as they are handed out for the database ``state``."""
    texts = [(ROLES / f"{family}.json").read_text().replace("${Database}", "state") for family in families]
    return [privilege for text in texts for privilege in json.loads(text)["privileges"]]


@pytest.mark.parametrize(
    ("of_api", "of_operator", "state"),
    [
        (("incident", "database"), ("performance",), State.OK),
        (("incident", "database"), (), State.WRONG),
        (("incident",), ("performance",), State.WRONG),
    ],
)
def test_each_user_brings_its_own_role(
    of_api: tuple[str, ...], of_operator: tuple[str, ...], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deploy/README.md hands them out: the profiler is the operator's, who is no user of the API."""
    users = {"env:API": granted(*of_api), "env:OPERATOR": granted(*of_operator) or [{"resource": {}, "actions": []}]}
    monkeypatch.setattr(DatabaseChecks, "_privileges", lambda _self, reference: users[reference])
    stage = bare_stage("production", {"database": {"uri": "env:API", "operator_uri": "env:OPERATOR", "name": "state"}})
    settings = Settings()
    aws = Aws(settings)
    checks = DatabaseChecks(aws, settings, stage, SecretResolver(aws.ssm, aws.secretsmanager), httpx.Client())
    roles = next(check for check in checks.all() if check.name == "database roles")
    assert roles.ask().state is state, roles.ask()
