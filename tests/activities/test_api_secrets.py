"""A secret as the engine keeps it: through the standard input of sst, or where the settings say; never in argv."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.api_secrets import ApiSecrets
from activities.clients import Aws
from activities.errors import RENEWAL
from activities.secret_refs import SecretResolver
from activities.stage import RotatedSecret, Stage
from sandbox.api.stack import SECRETS, secret_parameter
from tests.activities.site import Site, environment
from tests.activities.test_commands import write

KEYS = RotatedSecret(name="ApiKeys", store="app/ApiKeys")
SECRET = "hush=hush/+,0123456789"


@pytest.fixture
def secrets(aws: Aws) -> ApiSecrets:
    return ApiSecrets(SecretResolver(aws.ssm, aws.secretsmanager), aws.functions, poll=0.02)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for sst, first on PATH, which notes its command lines."""
    folder = tmp_path / "bin"
    folder.mkdir()
    noted = f'echo "$@" >> {folder}/argv; tr "\\0" " " < /proc/$$/cmdline >> {folder}/argv'
    write(folder / "sst", f'{noted}\nPYTHONPATH={Path.cwd()} exec {sys.executable} -m sandbox.sst "$@"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return folder


def with_sst(site: Site) -> Stage:
    return site.stage("sst", releases=str(site.releases))


def test_sst_is_told_on_its_standard_input(site: Site, secrets: ApiSecrets, path: Path, tmp_path: Path) -> None:
    stage, run = with_sst(site), environment().run
    assert run(secrets.read, stage, KEYS) == "the-key"
    assert run(secrets.write, stage, KEYS, SECRET) is True
    assert run(secrets.read, stage, KEYS) == SECRET, "whole, whatever is in it"
    assert run(secrets.write, stage, KEYS, SECRET) is False, "it is set already"
    assert "secret set ApiKeys" in (path / "argv").read_text()
    left = [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert left == [], "on no command line, in no file"


@pytest.mark.parametrize("engine", ["sst", "cloudformation"])
def test_an_empty_value_is_refused(site: Site, secrets: ApiSecrets, path: Path, engine: str) -> None:
    stage = site.stage(engine, releases=str(site.releases))
    with pytest.raises(ApplicationError) as refused:
        environment().run(secrets.write, stage, KEYS, " \n")
    assert refused.value.type == "EmptySecret"


def test_sst_that_fails_repeats_no_value(site: Site, secrets: ApiSecrets, path: Path) -> None:
    stage = with_sst(site)
    environment().run(secrets.read, stage, KEYS)
    write(path / "sst", 'case "$*" in *list*) echo "ApiKeys=x";; *) cat; exit 1;; esac')
    with pytest.raises(ApplicationError) as failed:
        environment().run(secrets.write, stage, KEYS, SECRET)
    assert (failed.value.type, failed.value.non_retryable) == ("SecretNotSet", False)
    assert SECRET not in failed.value.message


def test_sst_that_cannot_ask_is_asked_again_and_one_that_shows_no_value_is_not(
    site: Site, secrets: ApiSecrets, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expired credentials, a network that is away: the way back of a rotation must not end with them."""
    stage, run = with_sst(site), environment().run
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(ApplicationError, match=r"failed with exit code 1\. Try it by hand") as away:
            run(secrets.read, stage, KEYS)
    write(path / "sst", "exec sleep 60")
    with monkeypatch.context() as patch:
        patch.setattr("activities.commands._QUICK", 0.2)
        with pytest.raises(ApplicationError, match="gave no answer") as silent:
            run(secrets.read, stage, KEYS)
    for failed in (away, silent):
        assert (failed.value.type, failed.value.next_retry_delay) == ("SecretUnusable", timedelta(seconds=RENEWAL))
        assert not failed.value.non_retryable
    write(path / "sst", 'echo "# app/stage"; echo "Others=x"')
    with pytest.raises(ApplicationError, match="shows no value of ApiKeys") as wrong:
        run(secrets.read, stage, KEYS)
    assert (wrong.value.type, wrong.value.non_retryable) == ("SecretUnusable", True)


def test_a_stage_that_never_had_a_secret_is_told_at_once(site: Site, secrets: ApiSecrets, path: Path, aws: Aws) -> None:
    """Its 'sst secret list' fails as one with expired credentials does, and no renewal would help."""
    aws.ssm.delete_parameters(Names=[secret_parameter(site.name, secret) for secret in SECRETS.values()])
    with pytest.raises(ApplicationError, match=r"shows no value of ApiKeys\. Set it once by hand") as none:
        environment().run(secrets.read, with_sst(site), KEYS)
    assert (none.value.type, none.value.non_retryable) == ("SecretUnusable", True)


def test_other_engines_have_it_where_the_settings_say(site: Site, secrets: ApiSecrets, aws: Aws) -> None:
    stage, run = site.stage("sst-v2", releases=str(site.releases)), environment().run
    parameter = f"/t/{site.name}/keys"
    aws.ssm.put_parameter(Name=parameter, Value="before", Type="SecureString")
    aws.secretsmanager.create_secret(Name=f"t/{site.name}", SecretString='{"keys": "before", "other": "x"}')
    for ref in (f"ssm:{parameter}", f"secretsmanager:t/{site.name}#keys"):
        kept = KEYS.model_copy(update={"ref": ref})
        assert run(secrets.read, stage, kept) == "before"
        assert run(secrets.write, stage, kept, SECRET) is True
        assert run(secrets.read, stage, kept) == SECRET
        assert run(secrets.write, stage, kept, SECRET) is False
    assert '"other": "x"' in aws.secretsmanager.get_secret_value(SecretId=f"t/{site.name}")["SecretString"]
    for ref, kind in ((None, "NotConfigured"), ("env:PATH", "NotWritable")):
        with pytest.raises(ApplicationError) as refused:
            run(secrets.write, stage, KEYS.model_copy(update={"ref": ref}), SECRET)
        assert refused.value.type == kind
