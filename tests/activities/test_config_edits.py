"""Capacity in the repository's files: found, changed, shown as a diff."""

from __future__ import annotations

from pathlib import Path

import pytest

from activities import config_edits
from activities.config_files import ConfigAt, ConfigFiles, Drift
from activities.function_capacity import Setting
from tests.activities.site import Site, environment

SST = """api.route("ANY /{proxy+}", {
  handler: "src/lambda.handler",
  memory: "512 MB",
  timeout: "30 seconds",
});
"""
MODULE = "MongooseModule.forRoot(uri, {\n  maxPoolSize: 100,\n  minPoolSize: 10,\n})\n"


@pytest.mark.parametrize(
    ("text", "setting", "before", "line"),
    [
        (SST, Setting(memory_mb=1024), Setting(memory_mb=512), '  memory: "1024 MB",'),
        (SST.replace("512 MB", "2 GB"), Setting(memory_mb=1024), Setting(memory_mb=2048), '  memory: "1024 MB",'),
        (SST.replace('"512 MB"', "512"), Setting(memory_mb=1024), Setting(memory_mb=512), "  memory: 1024,"),
        (SST, Setting(provisioned=5), Setting(provisioned=0), "  concurrency: { provisioned: 5 },"),
        (
            SST.replace("30 seconds", '30 seconds", concurrency: { provisioned: 5 }, x: "'),
            Setting(provisioned=10),
            Setting(provisioned=5),
            '  timeout: "30 seconds", concurrency: { provisioned: 10 }, x: "",',
        ),
        (MODULE, Setting(max_pool_size=20), Setting(max_pool_size=100), "  maxPoolSize: 20,"),
        (
            MODULE,
            Setting(max_pool_size=20, min_pool_size=2),
            Setting(max_pool_size=100, min_pool_size=10),
            "  minPoolSize: 2,",
        ),
    ],
)
def test_a_value_is_found_and_changed(text: str, setting: Setting, before: Setting, line: str) -> None:
    assert config_edits.read(text, setting) == before
    after = config_edits.write(text, setting)
    assert line in after.splitlines()
    assert config_edits.read(after, setting) == setting
    assert config_edits.write(after, setting) == after


@pytest.mark.parametrize("text", ["", SST + SST, "memory: process.env.MEMORY"])
def test_what_does_not_stand_there_once_is_left_to_people(text: str) -> None:
    with pytest.raises(config_edits.NotFoundError):
        config_edits.write(text, Setting(memory_mb=1024))


def test_the_diff_is_that_of_the_live_build(site: Site) -> None:
    stage = site.stage("sst", releases=str(site.releases))
    release, files = site.live_release(), ConfigFiles(site.records)
    asked = ConfigAt(stage=stage, setting=Setting(memory_mb=1024), release=release)
    found = environment().run(files.propose, asked)
    assert found.diff
    assert '-      memory: "512 MB",' in found.diff
    assert '+      memory: "1024 MB",' in found.diff
    config = site.releases / release / "sst.config.ts"
    config.write_text(config.read_text().replace("512 MB", "1024 MB"))
    assert environment().run(files.propose, asked).has_it
    Path(config).unlink()
    assert "cannot be read" in environment().run(files.propose, asked).summary


def test_drift_is_recorded_and_closed_in_one_place(site: Site) -> None:
    files = ConfigFiles(site.records)
    given = {"stage": site.name, "key": "run/1", "path": "sst.config.ts", "setting": {"memory_mb": 1024}}
    drift = Drift.model_validate({**given, "former": {}, "reason": "slow", "at": "2026-01-01T00:00:00Z"})
    one = environment().run(files.drift, drift)
    other = environment().run(files.drift, drift.model_copy(update={"state": "closed"}))
    assert one.location == other.location
    assert b'"closed"' in (site.records.fetch(one.location) or b"")
