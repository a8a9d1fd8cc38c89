"""The signing secret's two slots: real Secrets Manager and SSM, and an API that verifies real tokens."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.api_secrets import ApiSecrets
from activities.clients import Aws
from activities.deployment_models import DeployAgain
from activities.secret_refs import SecretResolver, fingerprint
from activities.secret_values import new_signing_secret
from activities.signed_tokens import Keyring, parts, renewed, signed, signer
from activities.signing_keys import SigningKeys
from activities.signing_models import (
    AcceptOldAgain,
    KeyringSeen,
    ProbeTokens,
    PutSigningBack,
    SetSlots,
    SigningOrder,
)
from activities.stage import DatabaseFacts, DeployPolicy, GatewayFacts, RotatedSecret, RotationPolicy, Stage, TokenFacts
from activities.staged_secrets import StagedSecrets, version_of
from sandbox.api import tokens as of_the_api

run = ActivityEnvironment().run


class Api:
    """The API's own code for tokens, deployed by reading the parameter again."""

    def __init__(self, read: Callable[[], str], *, single: bool = False) -> None:
        self._read, self.single = read, single
        self.deployed: list[str] = []
        self.algorithm = "HS256"
        self.again(None)

    def again(self, order: DeployAgain | None) -> None:
        self.deployed += [order.deployment_id.rpartition("/")[2]] if order else []
        self.text = self._read()
        self.ring = of_the_api.Keyring.of(self.text, single=self.single)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/tokens":
            assert request.headers["X-Api-Key"] == "the-key"
            token = self.ring.issue(60)
            if self.algorithm != "HS256":
                token = signed({"alg": self.algorithm}, {}, "x")
            return httpx.Response(201, json={"token": token})
        try:
            return httpx.Response(200, json=self.ring.read(request.headers["Authorization"].partition(" ")[2]))
        except of_the_api.TokenError:
            return httpx.Response(401)


class Ground:
    """One stage with its stores and its API."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch, first: str, *, single: bool = False) -> None:
        name = f"t{uuid.uuid4().hex[:8]}"
        self.first, self.parameter = first, f"/sst/app/{name}/JwtSecret"
        self.ssm = aws.ssm
        self.ssm.put_parameter(Name=self.parameter, Value=first, Type="SecureString")
        monkeypatch.setenv("TEST_API_KEY", "the-key")
        self.api = Api(self.stored, single=single)
        self.staged = StagedSecrets(aws.secretsmanager)
        resolver = SecretResolver(aws.ssm, aws.secretsmanager)
        http = httpx.Client(transport=httpx.MockTransport(self.api.answer))
        self.keys = SigningKeys(
            self.staged,
            ApiSecrets(resolver, aws.functions),
            resolver,
            http,
            self.api,  # type: ignore[arg-type]  # of deployments it needs to deploy again
        )
        self.store = f"app/{name}/JwtSecret"
        secret = RotatedSecret(name="JwtSecret", store=self.store, ref=f"ssm:{self.parameter}")
        self.stage = Stage(
            name=name,
            function="f",
            url="http://api",
            api_key="env:TEST_API_KEY",
            log_group="g",
            gateway=GatewayFacts(name="g", stage=name),
            database=DatabaseFacts(uri="env:NONE", name="d"),
            deploy=DeployPolicy(engine="cloudformation"),
            rotation=RotationPolicy(signing=secret, tokens=TokenFacts(patience=timedelta(0))),
        )
        self.order = SigningOrder(stage=self.stage, rotation="rotation-1")
        self.seen: KeyringSeen = run(self.keys.look, self.stage)
        self.new = ""

    def stored(self) -> str:
        return self.ssm.get_parameter(Name=self.parameter, WithDecryption=True)["Parameter"]["Value"]

    def create(self) -> None:
        self.new = run(self.keys.create, self.order).new

    def set(self, to: str, *, deploy: bool = True) -> None:
        run(self.keys.set_slots, SetSlots(**self.given(), to=to))  # type: ignore[arg-type]
        if deploy:
            self.api.again(None)

    def given(self) -> dict[str, Any]:
        return {**self.order.model_dump(), "old": self.seen.accepted, "new": self.new}

    def probe(self, accepted: tuple[str, ...], **order: Any) -> Any:
        given = {**self.order.model_dump(), "accepted": accepted, **order}
        return run(self.keys.probe, ProbeTokens.model_validate(given))

    def put_back(self) -> Any:
        order = PutSigningBack(**self.order.model_dump(), labels=self.seen.labels, old=self.seen.accepted)
        return run(self.keys.put_back, order)


@pytest.fixture(params=["bare", "keyring"])
def first(request: pytest.FixtureRequest) -> str:
    secret = new_signing_secret()
    if request.param == "bare":
        return secret
    return json.dumps({"keys": {"2025": secret}, "sign": "2025"}, indent=None)


@pytest.fixture
def ground(aws: Aws, monkeypatch: pytest.MonkeyPatch, first: str) -> Ground:
    return Ground(aws, monkeypatch, first)


def test_from_the_old_key_to_the_new_one(ground: Ground) -> None:
    (old,) = ground.seen.accepted
    assert ground.probe((old,), signs=old).ok
    ground.create()
    assert ground.stored() == ground.first, "made and stored, not set"
    ground.set("accepted")
    both = ground.probe((old, ground.new), signs=old)
    assert (both.ok, both.stranger, both.issued_by, both.life_seconds) == (True, 401, old, 60)
    ground.set("signs")
    assert ground.probe((old, ground.new), signs=ground.new).ok
    run(ground.keys.promote, SetSlots(**ground.given(), to="signs"))
    assert ground.staged.labels(ground.store).versions["AWSPREVIOUS"] == version_of("rotation-1", "former")
    ground.set("alone")
    ended = ground.probe((ground.new,), signs=ground.new, refused=(old,))
    assert (ended.ok, ended.refused) == (True, {old: 401})
    run(ground.keys.promote, SetSlots(**ground.given(), to="alone"))
    assert ground.staged.value(ground.store) == ground.stored()
    assert set(Keyring.of(ground.stored()).keys) == {ground.new}


def test_a_release_that_verifies_with_one_key_is_seen(aws: Aws, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    ground = Ground(aws, monkeypatch, first, single=True)
    (old,) = ground.seen.accepted
    ground.create()
    ground.set("accepted")
    found = ground.probe((old, ground.new), signs=old)
    assert (found.ok, found.accepted) == (False, {old: 200, ground.new: 401})
    ground.put_back()
    assert (ground.stored(), ground.api.text) == (ground.first, ground.first), "byte for byte"


def test_repeated_after_a_death_it_makes_one_key(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ground.staged._sm.put_secret_value
    puts = 0

    def dying(**given: Any) -> Any:
        nonlocal puts
        real(**given)
        puts += 1
        raise KeyboardInterrupt  # the worker is gone after it was stored, before anybody knows

    monkeypatch.setattr(ground.staged._sm, "put_secret_value", dying)
    for _ in range(2):  # once for the copy of the old one, once for the new key
        with pytest.raises(KeyboardInterrupt):
            ground.create()
    monkeypatch.undo()
    monkeypatch.setenv("TEST_API_KEY", "the-key")
    ground.create()
    first = ground.new
    ground.create()
    assert (ground.new, puts) == (first, 2)
    assert set(Keyring.of(ground.staged.need(ground.store, version_of("rotation-1", "accepted"))).keys) == {
        *ground.seen.accepted,
        first,
    }
    for to in ("accepted", "accepted", "signs", "signs"):
        ground.set(to)
    assert ground.api.ring.sign == first


@pytest.mark.parametrize("died_after", ["write", "deploy", "labels"])
def test_the_way_back_is_whole_though_the_worker_dies_on_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, died_after: str
) -> None:
    ground.create()
    ground.set("accepted")

    def dying(*_given: Any) -> Any:
        raise KeyboardInterrupt

    place = {
        "write": (ground.api, "again"),
        "deploy": (ground.staged, "restore"),
        "labels": (ground.staged, "labels"),
    }[died_after]
    with monkeypatch.context() as patch:
        patch.setattr(*place, dying)
        with pytest.raises(KeyboardInterrupt):
            ground.put_back()
    ground.put_back()
    assert (ground.stored(), ground.api.text) == (ground.first, ground.first)
    assert ground.staged.labels(ground.store) == ground.seen.labels, "and nothing is left of the new key"


def test_once_the_new_key_has_signed_it_stays_accepted(ground: Ground) -> None:
    (old,) = ground.seen.accepted
    ground.create()
    ground.set("accepted")
    ground.set("signs")
    token = ground.api.ring.issue(60)
    back = ground.put_back()
    assert (back.signs, set(back.accepted)) == (old, {old, ground.new})
    assert ground.api.ring.read(token), "who holds a token of the new key is not sent away"
    assert signer(ground.api.ring.issue(60), Keyring.of(ground.stored()).keys) == old


def test_the_old_key_is_accepted_again_when_its_removal_fails(ground: Ground) -> None:
    (old,) = ground.seen.accepted
    ground.create()
    for to in ("accepted", "signs", "alone"):
        ground.set(to)
    run(ground.keys.accept_again, AcceptOldAgain(**ground.given()))
    assert ground.probe((old, ground.new), signs=ground.new).ok
    assert ground.api.deployed == ["accept-again"]


def test_a_key_that_somebody_adds_meanwhile_stays(ground: Ground) -> None:
    ground.create()
    ground.set("accepted")
    ring = Keyring.of(ground.stored()).with_key("partner", new_signing_secret())
    ground.ssm.put_parameter(Name=ground.parameter, Value=ring.text(), Type="SecureString", Overwrite=True)
    for to in ("signs", "alone"):
        ground.set(to)
    assert set(Keyring.of(ground.stored()).keys) == {ground.new, "partner"}


def test_straight_to_the_new_key_keeps_the_form_that_the_api_knows(ground: Ground) -> None:
    ground.create()
    ground.set("alone")
    ring = Keyring.of(ground.stored())
    assert (set(ring.keys), ring.bare) == ({ground.new}, not ground.seen.slots)
    assert ground.probe((ground.new,), signs=ground.new, refused=ground.seen.accepted).ok


def test_what_is_no_keyring_is_said_without_being_shown(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ('{"keys": {"a": "hush-hush"}}', '{"sign": "b", "keys": {"a": "hush-hush"}}', '{"sign": 1, "keys": 2}'):
        with pytest.raises(ApplicationError, match="no keyring") as refused:
            Keyring.of(bad)
        assert "hush" not in str(refused.value)


def test_another_algorithm_is_refused(ground: Ground) -> None:
    ground.api.algorithm = "RS256"
    with pytest.raises(ApplicationError, match="HS256 only") as refused:
        ground.probe(ground.seen.accepted)
    assert refused.value.non_retryable


def test_tokens_are_those_of_the_api() -> None:
    secret = new_signing_secret()
    ring = of_the_api.Keyring.of(secret)
    token = ring.issue(60)
    found = parts(token)
    assert found is not None
    ours = signed({**found[0], "kid": fingerprint(secret)}, renewed(found[1], int(time.time()), 30), secret)
    assert ring.read(ours)["sub"] == found[1]["sub"]
    assert signer(ours, {"a": "other", "b": secret}) == "b"
    for nonsense in ("", "a.b", "a.b.c", "....", "é.é.é"):
        assert parts(nonsense) is None
        assert signer(nonsense, {"a": "other"}) is None
    assert secret not in repr(Keyring.of(secret))


@given(st.text(max_size=60))
def test_nothing_that_is_sent_as_a_token_breaks_the_reader(text: str) -> None:
    found = parts(text)
    assert found is None or all(isinstance(part, dict) for part in found)
    assert signer(text, {"a": "secret"}) is None
