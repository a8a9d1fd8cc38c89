"""The secret that signs the API's tokens: a second slot beside the old one, the switch, the removal, and the way back.

The API reads one secret, a keyring (see :mod:`activities.signed_tokens`). Each state of it is a version of one staged
secret in Secrets Manager, whose id belongs to the rotation: however often an activity is repeated, it sets the same.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import httpx
from temporalio import activity

from activities.api_secrets import ApiSecrets
from activities.deployment_models import DeployAgain
from activities.deployments import Deployments
from activities.errors import classified, lasting
from activities.key_usage import VERIFICATION
from activities.progress import pause
from activities.redaction import never_print
from activities.rotation_models import Promoted
from activities.secret_refs import SecretResolver, fingerprint
from activities.secret_values import new_signing_secret, weakness
from activities.signed_tokens import Keyring, parts, renewed, signed, signer
from activities.signing_models import (
    AcceptOldAgain,
    KeyId,
    KeyringSeen,
    ProbeTokens,
    PutBack,
    PutSigningBack,
    SetSlots,
    SigningKeyMade,
    SigningOrder,
    SlotsSet,
    TokensProbed,
)
from activities.stage import RotatedSecret, Stage
from activities.staged_secrets import StagedSecrets, version_of

_RETRY = 1.0
_LIFE = 120
"""Seconds that a token of ours is good for."""

_CLAIMS = {"sub": VERIFICATION}
"""What ours say where the API issues none that they could be like."""

Issued = tuple[int, str | None, dict[str, Any], dict[str, Any]]


class SigningKeys:
    def __init__(
        self,
        staged: StagedSecrets,
        secrets: ApiSecrets,
        resolver: SecretResolver,
        http: httpx.Client,
        deployments: Deployments,
    ) -> None:
        self._staged, self._secrets, self._resolver, self._http = staged, secrets, resolver, http
        self._deployments = deployments

    @activity.defn(name="signing.look")
    @classified("look at the signing secret")
    def look(self, stage: Stage) -> KeyringSeen:
        secret = _secret(stage)
        ring = Keyring.of(self._secrets.read(stage, secret))
        problems = tuple(f"key {kid}: {why}" for kid, key in ring.keys.items() if (why := weakness(key)) is not None)
        form = "one bare secret" if ring.bare else f"a keyring of {len(ring.keys)}"
        return KeyringSeen(
            summary=f"{form}, {ring.sign} signs" + ("; " + "; ".join(problems) if problems else ""),
            signs=ring.sign,
            accepted=tuple(ring.keys),
            slots=not ring.bare,
            problems=problems,
            labels=self._staged.labels(secret.store),
        )

    @activity.defn(name="signing.create")
    @classified("make a new signing secret")
    def create(self, order: SigningOrder) -> SigningKeyMade:
        """Make a key and store it, beside the present ones and as AWSPENDING; repeated, it finds the one it made."""
        secret = _secret(order.stage)
        former = version_of(order.rotation, "former")
        # As it is, whoever wrote it: an old key may be weak, that is why it is replaced.
        known = self._staged.value(secret.store, former)
        present = known or self._secrets.read(order.stage, secret)
        if known is None:
            self._staged.stage(secret.store, former, lambda: present, parts=lambda _value: [])
        self._staged.promote(secret.store, former)
        before = Keyring.of(present)

        def make() -> str:
            fresh = new_signing_secret()
            never_print(fresh)
            return before.with_key(fingerprint(fresh), fresh).text()

        made = Keyring.of(
            self._staged.stage(secret.store, _version(order, "accepted"), make, parts=lambda text: _new(text, before))
        )
        (new,) = set(made.keys) - set(before.keys)
        version = _version(order, "accepted")
        return SigningKeyMade(summary=f"made and stored key {new}, {before.sign} still signs", new=new, version=version)

    @activity.defn(name="signing.set")
    @classified("set the signing secret")
    def set_slots(self, order: SetSlots) -> SlotsSet:
        """Write the keyring for the next deployment. A key that somebody else added meanwhile stays and is told."""
        ring, changed = self._write(order)
        foreign = tuple(kid for kid in ring.keys if kid not in order.old and kid != order.new)
        return SlotsSet(
            summary=f"from the next deployment on {ring.sign} signs, accepted are {', '.join(ring.keys)}"
            + (f"; added by somebody else: {', '.join(foreign)}" if foreign else "")
            + ("" if changed else " (set already)"),
            signs=ring.sign,
            accepted=tuple(ring.keys),
            foreign=foreign,
            changed=changed,
        )

    @activity.defn(name="signing.probe")
    @classified("call the API with signed tokens")
    def probe(self, order: ProbeTokens) -> TokensProbed:
        """Until all is right: tokens of accepted keys are let in, others are not, and the right key signs new ones."""
        known = self._known(order)
        missing = [kid for kid in (*order.accepted, *order.refused) if kid not in known]
        if missing:
            raise lasting(
                f"the secret of key {', '.join(missing)} is not in the API's store nor in Secrets Manager (any more). "
                "Abort this rotation and start another",
                type="SecretGone",
            )
        give_up = time.monotonic() + order.stage.rotation.tokens.patience.total_seconds()
        while True:
            found = self._probed(order, known)
            if found.ok or time.monotonic() > give_up:
                return found
            pause(_RETRY, "calling the API with signed tokens", said=found.summary)

    @activity.defn(name="signing.promote")
    @classified("make the new signing secret the current one")
    def promote(self, order: SetSlots) -> Promoted:
        secret, version = _secret(order.stage), _version(order, order.to)
        self._staged.promote(secret.store, version)
        return Promoted(summary=f"version {version[:8]} is AWSCURRENT: {order.new} signs", version=version)

    @activity.defn(name="signing.put_back", no_thread_cancel_exception=True)
    @classified("put the former signing secret back")
    def put_back(self, order: PutSigningBack) -> PutBack:
        """The secret, the labels and a deployment as they were.

        Once the new key has been set to sign, tokens of it may be out. Then the old one signs again and the new one
        stays accepted, so that nobody is sent away.
        """
        stage, secret = order.stage, _secret(order.stage)
        former = self._staged.value(secret.store, version_of(order.rotation, "former"))
        made = self._staged.value(secret.store, _version(order, "accepted"))
        wanted, changed = self._secrets.read(stage, secret), False
        if former is not None and made is not None:
            wanted = self._as_before(order, former, made, wanted)
            changed = self._secrets.write(stage, secret, wanted)
            # Also when it was set already: an earlier attempt may have died before it deployed.
            self._deploy(order, "put-back")
        self._staged.restore(order.labels)
        ring = Keyring.of(wanted)
        return PutBack(
            summary=f"{ring.sign} signs, accepted are {', '.join(ring.keys)}",
            accepted=tuple(ring.keys),
            signs=ring.sign,
            changed=changed,
        )

    @activity.defn(name="signing.accept_again", no_thread_cancel_exception=True)
    @classified("accept the old signing secret again")
    def accept_again(self, order: AcceptOldAgain) -> PutBack:
        """The new key signs and the old one is accepted, and deployed: the state of the overlap."""
        both = SetSlots(stage=order.stage, rotation=order.rotation, to="signs", old=order.old, new=order.new)
        ring, changed = self._write(both)
        self._deploy(order, "accept-again")
        return PutBack(
            summary=f"{ring.sign} signs, accepted are {', '.join(ring.keys)}",
            accepted=tuple(ring.keys),
            signs=ring.sign,
            changed=changed,
        )

    # --- keyrings -----------------------------------------------------------------------------------------------

    def _write(self, order: SetSlots) -> tuple[Keyring, bool]:
        stage, secret = order.stage, _secret(order.stage)
        both = Keyring.of(self._staged.need(secret.store, _version(order, "accepted")))

        def make() -> str:
            ring = both.signing_with(order.new) if order.to != "accepted" else both
            return self._alone(order, ring).text() if order.to == "alone" else ring.text()

        version = _version(order, order.to)
        ring = Keyring.of(self._staged.stage(secret.store, version, make, parts=lambda _text: [both.keys[order.new]]))
        present = Keyring.of(self._secrets.read(stage, secret))
        foreign = {kid: key for kid, key in present.keys.items() if kid not in both.keys}
        if foreign:
            ring = Keyring(ring.sign, {**ring.keys, **foreign})
        return ring, self._secrets.write(stage, secret, ring.text())

    def _alone(self, order: SetSlots, ring: Keyring) -> Keyring:
        """The new key and no other; a bare secret again where the API has not been shown to know two slots."""
        secret = _secret(order.stage)
        former = self._staged.value(secret.store, version_of(order.rotation, "former"))
        shown = self._staged.value(secret.store, _version(order, "signs")) is not None
        bare = not shown and former is not None and Keyring.of(former).bare
        return Keyring(order.new, {order.new: ring.keys[order.new]}, bare=bare)

    def _as_before(self, order: PutSigningBack, former: str, made: str, present: str) -> str:
        """What the API reads after the way back: the former text itself, where nothing has to be added to it."""
        before, both = Keyring.of(former), Keyring.of(made)
        signs = _version(order, "signs")
        stays = dict(both.keys) if self._staged.value(_secret(order.stage).store, signs) is not None else {}
        foreign = {kid: key for kid, key in Keyring.of(present).keys.items() if kid not in both.keys}
        added = {kid: key for kid, key in (stays | foreign).items() if kid not in before.keys}
        return Keyring(before.sign, {**before.keys, **added}).text() if added else former

    def _known(self, order: ProbeTokens) -> dict[KeyId, str]:
        """The keys that are asked about, by id: those that this rotation holds, else those that the API reads."""
        secret = _secret(order.stage)
        made = self._staged.value(secret.store, _version(order, "accepted"))
        held = dict(Keyring.of(made).keys) if made else {}
        if held.keys() >= {*order.accepted, *order.refused}:
            return held
        return held | dict(Keyring.of(self._secrets.read(order.stage, secret)).keys)

    def _deploy(self, order: SigningOrder, step: str) -> None:
        self._deployments.again(DeployAgain(stage=order.stage, deployment_id=f"{order.rotation}/{step}"))

    # --- tokens -------------------------------------------------------------------------------------------------

    def _probed(self, order: ProbeTokens, known: dict[KeyId, str]) -> TokensProbed:
        issued, own, header, claims = self._issue(order.stage)
        by = signer(own, known) if own else None
        now = int(time.time())

        def status(kid: KeyId, key: str) -> int:
            head = {"alg": "HS256", "typ": "JWT", **header, "kid": kid}
            return self._check(order.stage, signed(head, renewed(claims or _CLAIMS, now, _LIFE), key))

        accepted = {kid: status(kid, known[kid]) for kid in order.accepted}
        refused = {kid: status(kid, known[kid]) for kid in order.refused}
        stranger = status(secrets.token_hex(6), new_signing_secret())
        ok = (
            all(_let_in(code) for code in (issued, *accepted.values()))
            and all(code in (401, 403) for code in (stranger, *refused.values()))
            and (order.signs is None or by == order.signs)
        )
        shown = [f"token of {kid} {code}" for kid, code in (accepted | refused).items()]
        shown += [f"of nobody's key {stranger}", f"the API's own, signed by {by or 'an unknown key'}, {issued}"]
        return TokensProbed(
            summary=f"{'as it should be' if ok else 'NOT as it should be'}: {', '.join(shown)}",
            ok=ok,
            accepted=accepted,
            refused=refused,
            stranger=stranger,
            issued_by=by,
            issued=issued,
            life_seconds=_life(claims),
        )

    def _issue(self, stage: Stage) -> Issued:
        """A token that the API gives out: its status where it is checked, itself, its header and its claims."""
        headers = {"X-Api-Key": self._resolver.resolve(stage.api_key), "X-Client-Name": VERIFICATION}
        try:
            answer = self._http.post(stage.url + stage.rotation.tokens.issue, headers=headers)
            token = answer.json().get("token") if answer.is_success else None
        except (httpx.TransportError, ValueError, AttributeError):
            return 0, None, {}, {}
        if not isinstance(token, str) or (found := parts(token)) is None:
            return answer.status_code if not answer.is_success else 0, None, {}, {}
        never_print(token)
        if (algorithm := found[0].get("alg")) != "HS256":
            raise lasting(
                f"the API signs with {algorithm!s:.10}, and this rotation knows HS256 only. Rotate it by hand",
                type="UnknownAlgorithm",
            )
        return self._check(stage, token), token, *found

    def _check(self, stage: Stage, token: str) -> int:
        """HTTP status of one call with a token; 0 when nothing answered."""
        activity.heartbeat({"phase": "calling the API with signed tokens"})
        try:
            headers = {"Authorization": f"Bearer {token}", "X-Client-Name": VERIFICATION}
            return self._http.get(stage.url + stage.rotation.tokens.check, headers=headers).status_code
        except httpx.TransportError:
            return 0


def _let_in(status: int) -> bool:
    return 200 <= status < 300


def _life(claims: dict[str, Any]) -> float | None:
    try:
        return float(claims["exp"]) - float(claims["iat"])
    except (KeyError, TypeError, ValueError):
        return None


def _new(text: str, before: Keyring) -> list[str]:
    return [key for kid, key in Keyring.of(text).keys.items() if kid not in before.keys]


def _version(order: SigningOrder, state: str) -> str:
    return version_of(order.rotation, state)


def _secret(stage: Stage) -> RotatedSecret:
    secret = stage.rotation.signing
    if secret is None:
        raise lasting(
            f"stage {stage.name} names no rotation.signing. Add name and store to the settings", type="NotConfigured"
        )
    return secret
