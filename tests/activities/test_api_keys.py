"""The API's keys: real Secrets Manager and SSM, an API that accepts a list of keys, and a worker that dies."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.api_keys import ApiKeys, split
from activities.api_secrets import ApiSecrets
from activities.clients import Aws
from activities.deployment_models import DeployAgain
from activities.rotation_models import (
    ROLES,
    AcceptAgain,
    AcceptKeys,
    KeyOrder,
    KeyUsage,
    KeyUse,
    PromoteKeys,
    PutKeysBack,
    UsageQuery,
    VerifyKeys,
)
from activities.secret_refs import SecretResolver, fingerprint
from activities.secret_values import new_api_key
from activities.stage import (
    ApiClient,
    DatabaseFacts,
    DeployPolicy,
    GatewayFacts,
    RotatedSecret,
    RotationPolicy,
    Stage,
)
from activities.staged_secrets import StagedSecrets

run = ActivityEnvironment().run


class Ground:
    """One stage with its stores, its API, and the log of who called."""

    def __init__(self, aws: Aws) -> None:
        name = f"t{uuid.uuid4().hex[:8]}"
        self.parameter = f"/sst/app/{name}/ApiKeys"
        self.ssm = aws.ssm
        self.old = [new_api_key() for _ in range(3)]
        self.put(",".join(self.old))
        self.live = list(self.old)
        self.deployed: list[str] = []
        self.uses: tuple[KeyUse, ...] = ()
        self.staged = StagedSecrets(aws.secretsmanager)
        resolver = SecretResolver(aws.ssm, aws.secretsmanager)
        self.store = f"app/{name}/ApiKeys"
        self.keys = ApiKeys(
            self.staged,
            ApiSecrets(resolver, aws.functions),
            resolver,
            httpx.Client(transport=httpx.MockTransport(self.answer)),
            self,  # type: ignore[arg-type]  # of deployments it needs to deploy again
            self,  # type: ignore[arg-type]  # and of the log who called
        )
        secret = RotatedSecret(name="ApiKeys", store=self.store, ref=f"ssm:{self.parameter}")
        own = ApiClient(name="runbooks", owner="us", key="internal")
        self.stage = Stage(
            name=name,
            function="f",
            url="http://api",
            api_key=f"secretsmanager:{self.store}/internal",
            log_group="g",
            gateway=GatewayFacts(name="g", stage=name),
            database=DatabaseFacts(uri="env:NONE", name="d"),
            deploy=DeployPolicy(engine="cloudformation"),
            rotation=RotationPolicy(api_keys=secret, clients=(own,)),
        )
        self.order = KeyOrder(stage=self.stage, rotation="rotation-1")
        self.seen = run(self.keys.look, self.stage)
        self.began = datetime.now(UTC)

    def put(self, value: str) -> None:
        self.ssm.put_parameter(Name=self.parameter, Value=value, Type="SecureString", Overwrite=True)

    def stored(self) -> list[str]:
        return split(self.ssm.get_parameter(Name=self.parameter, WithDecryption=True)["Parameter"]["Value"])

    def answer(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if request.headers["X-Api-Key"] in self.live else 401)

    def again(self, order: DeployAgain) -> None:
        self.deployed.append(order.deployment_id.rpartition("/")[2])
        self.live = self.stored()

    def look(self, _asked: UsageQuery) -> KeyUsage:
        return KeyUsage(summary="as told", uses=self.uses, named=1)

    def create(self) -> dict[str, str]:
        return dict(run(self.keys.create, self.order).new)

    def accept(self, *, keep_old: bool) -> Any:
        order = AcceptKeys(**self.order.model_dump(), old=self.seen.accepted, keep_old=keep_old)
        found = run(self.keys.accept, order)
        self.live = self.stored()
        return found

    def verify(self, *, old_accepted: bool) -> bool:
        order = VerifyKeys(
            **self.order.model_dump(), old=self.seen.accepted, old_accepted=old_accepted, patience=timedelta(0)
        )
        return bool(run(self.keys.verify, order).ok)

    def put_back(self) -> Any:
        given = {"labels": self.seen.labels, "old": self.seen.accepted, "since": self.began}
        return run(self.keys.put_back, PutKeysBack(**self.order.model_dump(), **given))


@pytest.fixture
def ground(aws: Aws) -> Ground:
    return Ground(aws)


def test_from_the_old_keys_to_the_new_ones(ground: Ground) -> None:
    new = ground.create()
    assert ground.stored() == ground.old, "made and stored, not set"
    ground.accept(keep_old=True)
    assert ground.verify(old_accepted=True)
    assert not ground.verify(old_accepted=False)
    run(ground.keys.promote, PromoteKeys(**ground.order.model_dump(), keep_old=True))
    for role in ROLES:
        assert fingerprint(str(ground.staged.value(f"{ground.store}/{role}"))) == new[role]
    ground.accept(keep_old=False)
    assert ground.verify(old_accepted=False)
    assert [fingerprint(key) for key in ground.stored()] == [new[role] for role in ROLES]


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_repeated_after_a_death_it_makes_one_set_of_keys(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed between 'created' and 'stored', after the copy of the old list or any of the three keys."""
    real, left = ground.staged.stage, after

    def dying(*given: Any, **named: Any) -> str:
        nonlocal left
        value = real(*given, **named)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return value

    with monkeypatch.context() as patch:
        patch.setattr(ground.staged, "stage", dying)
        with pytest.raises(KeyboardInterrupt):
            ground.create()
    new = ground.create()
    assert len(set(new.values())) == 3
    assert ground.create() == new
    for _ in range(2):  # and killed between 'stored' and 'deployed': it sets the same list
        ground.accept(keep_old=True)
    assert [fingerprint(key) for key in ground.stored()] == [*new.values(), *ground.seen.accepted]


@pytest.mark.parametrize("died_after", ["write", "deploy"])
def test_the_way_back_is_whole_though_the_worker_dies_on_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, died_after: str
) -> None:
    ground.create()
    ground.accept(keep_old=True)

    def dying(*_given: Any) -> Any:
        raise KeyboardInterrupt

    place = {"write": (ground, "again"), "deploy": (ground.staged, "restore")}[died_after]
    with monkeypatch.context() as patch:
        patch.setattr(*place, dying)
        with pytest.raises(KeyboardInterrupt):
            ground.put_back()
    ground.put_back()
    assert (ground.stored(), ground.live) == (ground.old, ground.old), "in the store and in the deployment"
    for labels in ground.seen.labels:
        assert ground.staged.labels(labels.name) == labels, "none of the new keys is left"


def test_the_way_back_leaves_what_somebody_else_added(ground: Ground) -> None:
    ground.create()
    ground.accept(keep_old=True)
    foreign = new_api_key()
    ground.put(",".join([*ground.stored(), foreign]))
    ground.put_back()
    assert ground.stored() == [*ground.old, foreign]


def test_a_client_on_a_new_key_is_not_locked_out(ground: Ground) -> None:
    new = ground.create()
    ground.accept(keep_old=True)
    before = ground.stored()
    ground.uses = (KeyUse(key=new["primary"], client="web", uses=1, last=datetime.now(UTC)),)
    with pytest.raises(ApplicationError, match="web already use") as refused:
        ground.put_back()
    assert (refused.value.type, ground.stored()) == ("NewKeysInUse", before)
    ground.uses = (KeyUse(key=new["internal"], client="runbooks", uses=1, last=datetime.now(UTC)),)
    ground.put_back()
    assert ground.stored() == ground.old, "our own use is no reason"


def test_the_old_keys_are_accepted_again_when_their_removal_fails(ground: Ground) -> None:
    new = ground.create()
    for keep_old in (True, False):
        ground.accept(keep_old=keep_old)
    run(ground.keys.accept_again, AcceptAgain(**ground.order.model_dump(), old=ground.seen.accepted))
    assert {fingerprint(key) for key in ground.live} == {*new.values(), *ground.seen.accepted}
    assert ground.deployed == ["accept-again"]


def test_a_key_that_somebody_added_in_the_grace_survives_a_removal_and_its_undo(ground: Ground) -> None:
    new = ground.create()
    ground.accept(keep_old=True)
    foreign = new_api_key()
    ground.put(",".join([*ground.stored(), foreign]))
    assert ground.accept(keep_old=True).foreign == (fingerprint(foreign),), "also when the list is only set again"
    assert ground.accept(keep_old=False).foreign == (fingerprint(foreign),)
    assert {fingerprint(key) for key in ground.stored()} == {*new.values(), fingerprint(foreign)}
    late = new_api_key()
    ground.put(",".join([*ground.stored(), late]))
    ground.accept(keep_old=False)
    assert ground.stored()[-1] == late, "a repeated attempt keeps what came since the first"
    run(ground.keys.accept_again, AcceptAgain(**ground.order.model_dump(), old=ground.seen.accepted))
    everybody = {*new.values(), *ground.seen.accepted, fingerprint(foreign), fingerprint(late)}
    assert {fingerprint(key) for key in ground.live} == everybody


def test_published_examples_among_the_accepted_keys_are_told(ground: Ground) -> None:
    ground.put(f"{ground.old[0]},550e8400-e29b-41d4-a716-446655440000")
    (problem,) = run(ground.keys.look, ground.stage).problems
    assert "published example" in problem
    assert "550e8400" not in problem
