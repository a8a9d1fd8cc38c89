"""The demonstration of an incident, as a newcomer runs it: from the alarm to the closed action."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starters.problems import Code
from tests.starters.test_demo import begin, nothing_left  # noqa: F401


@pytest.mark.long
@pytest.mark.usefixtures("nothing_left")
def test_a_dead_release_is_noticed_by_the_alarm_and_ends_in_a_post_mortem(tmp_path: Path) -> None:
    demo = begin(tmp_path, "incident", "--json")  # no terminal: it answers its question by itself
    out, err = demo.communicate(timeout=300)
    assert demo.returncode == Code.DONE, err
    document = json.loads(out)
    assert document["outcome"] == "completed"
    assert document["error_rate_before"] > 0.9
    assert document["error_rate_after"] == 0
    assert [item["id"] for item in document["checklist"] if not item["done"]] == []
    for text in ("has opened incident-production-", "PAGE P1 production", "acknowledges the page", "time to mitigate"):
        assert text in err
    kept = {name: (tmp_path / file).read_text() for name, file in document["copy"].items()}
    assert "asked for: more than 5% of the requests to production" in kept["post-mortem.md"].replace("**", "")
    assert "<svg" in kept["post-mortem.html"]
    assert "BEGIN:VEVENT" in kept["post-mortem.ics"]
    for received in ("INCIDENT DECLARED - P1", "Resolved after", "deploy behind a canary"):
        assert received in kept["received"]
