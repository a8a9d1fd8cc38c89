"""Versions and labels in Secrets Manager: one value a rotation, and the labels put back as they were."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.secret_values import new_api_key
from activities.staged_secrets import Labels, StagedSecrets, version_of


def one(value: str) -> list[str]:
    return [value]


@pytest.fixture
def staged(aws: Aws) -> StagedSecrets:
    return StagedSecrets(aws.secretsmanager)


@pytest.fixture
def name() -> str:
    return f"state-api/t{uuid.uuid4().hex[:8]}/ApiKeys"


def test_a_value_is_made_once_whoever_asks_how_often(staged: StagedSecrets, name: str) -> None:
    made: list[str] = []

    def make() -> str:
        made.append(new_api_key())
        return made[-1]

    version = version_of("rotation-1")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: staged.stage(name, version, make, parts=one), range(4)))
    assert len(set(found)) == 1, "two attempts side by side have the same value"
    assert staged.stage(name, version, make, parts=one) == found[0]
    assert staged.value(name, version) == found[0]


def test_a_killed_attempt_leaves_nothing_or_all(staged: StagedSecrets, name: str) -> None:
    def killed() -> str:
        raise KeyboardInterrupt

    version = version_of("rotation-2")
    with pytest.raises(KeyboardInterrupt):
        staged.stage(name, version, killed, parts=one)
    assert not staged.labels(name).exists
    value = staged.stage(name, version, new_api_key, parts=one)
    assert staged.need(name, version) == value


@pytest.mark.parametrize("weak", ["", "550e8400-e29b-41d4-a716-446655440000", "short"])
def test_a_weak_value_is_never_stored(staged: StagedSecrets, name: str, weak: str) -> None:
    with pytest.raises(ApplicationError) as refused:
        staged.stage(name, version_of("rotation-3"), lambda: weak, parts=one)
    assert refused.value.type == "WeakSecret"
    assert not staged.labels(name).exists


def test_promoting_and_putting_back(staged: StagedSecrets, name: str) -> None:
    first, second, third = (version_of(f"rotation-{n}") for n in (4, 5, 6))
    before = staged.labels(name)
    assert before == Labels(name=name, exists=False)
    for version in (first, second):
        staged.stage(name, version, new_api_key, parts=one)
        for _ in range(2):
            staged.promote(name, version)
    settled = staged.labels(name)
    assert settled.versions == {"AWSCURRENT": second, "AWSPREVIOUS": first}
    staged.stage(name, third, new_api_key, parts=one)
    assert staged.labels(name).versions["AWSPENDING"] == third
    staged.promote(name, third)
    assert staged.labels(name).versions == {"AWSCURRENT": third, "AWSPREVIOUS": second}
    for _ in range(2):
        staged.restore(settled)
        assert staged.labels(name) == settled
    for _ in range(2):
        staged.restore(before)
        assert staged.labels(name) == before


def test_what_is_gone_is_said(staged: StagedSecrets, name: str) -> None:
    with pytest.raises(ApplicationError) as gone:
        staged.need(name, version_of("never"))
    assert gone.value.type == "SecretGone"


def test_a_token_stands_for_one_value(aws: Aws, name: str) -> None:
    """As on AWS; the embedded one is corrected so."""
    token: Any = str(uuid.uuid4())
    aws.secretsmanager.create_secret(Name=name)
    with pytest.raises(aws.secretsmanager.exceptions.ResourceNotFoundException):
        aws.secretsmanager.get_secret_value(SecretId=name)
    for _ in range(2):
        aws.secretsmanager.put_secret_value(SecretId=name, SecretString="a", ClientRequestToken=token)
    with pytest.raises(aws.secretsmanager.exceptions.ResourceExistsException):
        aws.secretsmanager.put_secret_value(SecretId=name, SecretString="b", ClientRequestToken=token)
