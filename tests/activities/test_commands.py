"""Deploying with a command: sst in a saved build or a git checkout, a template, and a worker that dies meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities import commands
from activities.deployment_models import CheckTarget, DeployInput
from activities.releases import ReleaseFacts
from sandbox.api.releases import CATALOGUE
from tests.activities.site import Site, environment

GOOD, BROKEN = CATALOGUE["good"], CATALOGUE["broken"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH, with the ``sst`` stand-in in it, and a workspace of this test's own."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write(folder / "sst", f'PYTHONPATH={Path.cwd()} exec {sys.executable} -m sandbox.sst "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return folder


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def order(site: Site, engine: str = "sst", release: str | None = None, **deploy: Any) -> DeployInput:
    facts = site.facts("good") if release is None else ReleaseFacts(release=release)
    stage = site.stage(engine, **({"releases": str(site.releases)} | deploy))
    return DeployInput(stage=stage, release=facts, deployment_id="wf/redeploy")


def refused(site: Site, wanted: DeployInput) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        environment().run(site.deployments.deploy, wanted)
    assert caught.value.non_retryable
    return caught.value


def test_sst_deploys_a_saved_build_once(site: Site, path: Path) -> None:
    wanted, before = order(site), site.updates()
    done = environment().run(site.deployments.deploy, wanted)
    assert (done.changed, done.release, done.as_recorded) == (True, GOOD.id, True)
    assert done.how.startswith("sst 4.17.1 deploy")
    output = site.records.fetch(str(done.log_location))
    assert output
    assert b"Complete" in output
    assert not environment(attempt=2).run(site.deployments.deploy, wanted).changed
    assert site.updates() == before + 1


def test_sst_v2_is_its_own_engine_and_a_wrong_one_is_refused(
    site: Site, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SST_STANDIN_MAJOR", "2")
    error = refused(site, order(site))
    assert error.type == "WrongEngine"
    assert "'sst-v2'" in error.message
    assert site.live_release() == BROKEN.id
    done = environment().run(site.deployments.deploy, order(site, "sst-v2"))
    assert done.how.startswith("sst 2.49.8 deploy")
    assert site.live_release() == GOOD.id


def test_sst_that_fails_says_why_and_where_its_output_is(site: Site, path: Path) -> None:
    (site.releases / GOOD.id / "sst.config.ts").unlink()
    error = refused(site, order(site))
    assert error.type == "DeployFailed"
    assert "Could not find sst.config.ts" in error.message
    assert "s3://test-records/team/deploys/" in error.message
    assert site.live_release() == BROKEN.id
    assert refused(site, order(site, release="0123456789")).type == "MissingArtifact"
    assert refused(site, order(site, release="../good")).type == "MissingArtifact"


def test_a_success_that_left_another_release_live_is_no_success(site: Site, path: Path) -> None:
    write(path / "sst", '[ "$1" = version ] && echo "sst 4.17.1"; exit 0')
    error = refused(site, order(site))
    assert error.type == "WrongRelease"
    assert BROKEN.id in error.message


def test_a_deployment_that_outlives_its_worker_is_waited_for(site: Site, path: Path) -> None:
    real = (path / "sst").read_text().splitlines()[1]
    write(path / "sst", f'if [ "$1" = deploy ]; then touch "$0.began"; sleep 1.5; fi\n{real}')
    wanted, before, beats = order(site), site.updates(), []

    class Killed(Exception):
        pass

    def beat(details: Any) -> None:
        beats.append(details)
        if (path / "sst.began").exists():
            raise Killed

    env = environment()
    env.on_heartbeat = beat
    with pytest.raises(Killed):
        env.run(site.deployments.deploy, wanted)
    assert site.live_release() == BROKEN.id
    phases: list[str] = []
    env = environment(attempt=2, beats=beats)
    env.on_heartbeat = lambda details: phases.append(details["phase"])
    done = env.run(site.deployments.deploy, wanted)
    assert (done.changed, done.release, done.how) == (True, GOOD.id, "deployed by an earlier attempt")
    assert any("still running" in phase for phase in phases)
    assert site.updates() == before + 1


def test_a_stopping_worker_leaves_the_deployment_alone(site: Site, path: Path) -> None:
    real = (path / "sst").read_text().splitlines()[1]
    write(path / "sst", f'if [ "$1" = deploy ]; then touch "$0.began"; sleep 1; fi\n{real}')
    env = environment()

    def stop(details: Any) -> None:
        if (path / "sst.began").exists():
            env.worker_shutdown()

    env.on_heartbeat = stop
    with pytest.raises(ApplicationError) as caught:
        env.run(site.deployments.deploy, order(site))
    assert (caught.value.type, caught.value.non_retryable) == ("WorkerStopping", False)
    assert environment(attempt=2).run(site.deployments.deploy, order(site)).release == GOOD.id


def test_a_release_is_deployed_from_git_when_there_is_no_saved_build(site: Site, path: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        done = subprocess.run(["git", "-C", str(source), *identity, *arguments], capture_output=True, check=True)
        return done.stdout.decode().strip()

    source.mkdir()
    git("init", "-q")
    (source / "handler.txt").write_text("old")
    git("add", "-A")
    git("commit", "-qm", "old")
    old = git("rev-parse", "HEAD")
    (source / "handler.txt").write_text("new")
    git("commit", "-qam", "new")
    seen = tmp_path / "seen"
    write(path / "sst", f'[ "$1" = version ] && echo "sst 3.19.3" || echo "$PWD $(cat handler.txt) $*" > {seen}')
    write(path / "npm", "echo prepared > prepared.txt")
    stage = site.stage("sst", directory=str(source), prepare=["npm", "ci"])
    wanted = DeployInput(stage=stage, release=ReleaseFacts(release=old), deployment_id="wf/git")
    # The stand-in deploys nothing here, so the release that is live cannot be the commit.
    assert refused(site, wanted).type == "WrongRelease"
    folder, content, *arguments = seen.read_text().split()
    assert content == "old"
    assert arguments == ["deploy", "--stage", site.name]
    assert not Path(folder).exists()
    assert (source / "handler.txt").read_text() == "new"
    missing = wanted.model_copy(update={"release": ReleaseFacts(release="a" * 40)})
    assert refused(site, missing).type == "MissingArtifact"
    check = CheckTarget(stage=stage, strategy="redeploy", target=ReleaseFacts(release="a" * 40))
    assert not environment().run(site.deployments.check_target, check).ok
    known = check.model_copy(update={"target": ReleaseFacts(release=old)})
    assert environment().run(site.deployments.check_target, known).ok


def test_a_command_template_fills_arguments_without_a_shell(site: Site, path: Path, tmp_path: Path) -> None:
    seen = tmp_path / "arguments"
    # It leaves a process behind, which must not keep the next deployment waiting.
    write(path / "back", f'sleep 3 & printf "%s\\n" "$@" > {seen}; echo "password=hunter2 went well"')
    wanted = order(site, command=["back", "{stage}; touch x", "--to={release}@{version}"])
    wanted = wanted.model_copy(update={"strategy": "command"})
    refused(site, wanted)  # the command changes nothing, so the wrong release is live
    assert seen.read_text().splitlines() == [f"{site.name}; touch x", f"--to={GOOD.id}@1"]
    log = site.records.fetch(site.records.location(f"deploys/{site.name}/wf-redeploy.log"))
    assert log == b"password=*** went well\n"
    for argv in (["sst", "deploy", "--prior-deployment"], ["npx", "sst", "deploy", "--prior-deployment"]):
        bad = order(site, command=argv).model_copy(update={"strategy": "command"})
        error = refused(site, bad)
        assert error.type == "BadCommand"
        assert "no version of SST" in error.message
    unknown = order(site, command=["back", "{stack}"]).model_copy(update={"strategy": "command"})
    assert "{stack}" in refused(site, unknown).message
    gone = order(site, command=["no-such-program"]).model_copy(update={"strategy": "command"})
    phases: list[str] = []
    env = environment()
    env.on_heartbeat = lambda details: phases.append(details["phase"])
    with pytest.raises(ApplicationError, match="no command 'no-such-program'"):
        env.run(site.deployments.deploy, gone)
    assert phases == ["starting"]


def test_a_command_that_never_ends_is_ended_with_all_it_started(site: Site, path: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    write(path / "back", f"sleep 300 & echo $! $$ > {pids}; wait")
    wanted = order(site, command=["back"], timeout="PT2S").model_copy(update={"strategy": "command"})
    assert refused(site, wanted).type == "DeployTimeout"
    deadline = time.monotonic() + 5
    while alive := [pid for pid in pids.read_text().split() if running(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_commands_of_one_stage_run_one_at_a_time(site: Site, path: Path) -> None:
    stage, order_of_events = site.stage(), []
    entered, leave = threading.Event(), threading.Event()

    def first(_: None) -> None:
        with commands.Workspace(stage, 0.02).alone():
            entered.set()
            leave.wait(10)
            order_of_events.append("first left")

    def second(_: None) -> None:
        with commands.Workspace(stage, 0.02).alone():
            order_of_events.append("second entered")

    thread = threading.Thread(target=lambda: environment().run(first, None))
    thread.start()
    assert entered.wait(10)
    env = environment()
    env.on_heartbeat = lambda _: leave.set()
    env.run(second, None)
    thread.join()
    assert order_of_events == ["first left", "second entered"]
