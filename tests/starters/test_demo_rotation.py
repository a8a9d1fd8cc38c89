"""The demo of a key rotation, as a newcomer runs it: in a file of its own, because each demo takes a while."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from starters.problems import Code
from tests.starters.test_demo import begin, nothing_left

__all__ = ["nothing_left"]


@pytest.mark.long
@pytest.mark.usefixtures("nothing_left")
def test_the_demo_rotates_the_keys(tmp_path: Path) -> None:
    demo = begin(tmp_path, "rotation", "--json")
    out, err = demo.communicate(timeout=240)
    assert demo.returncode == Code.DONE, err
    document = json.loads(out)
    assert (document["outcome"], document["right"]) == ("completed", True)
    assert document["statuses"] == {
        "old": dict.fromkeys(("primary", "backup", "internal"), 401),
        "new": dict.fromkeys(("primary", "backup", "internal"), 200),
    }
    done = {item["id"] for item in document["checklist"] if item["done"]}
    assert {"generated", "staged", "non-production", "production", "disabled", "log", "next"} <= done
    for text in ("dashboard uses its new key", "demo colleague answers reject", "mobile-app uses its new key"):
        assert text in err
