"""The API's keys: three fresh ones beside the old, the old ones removed later, and the way back.

The API reads one secret, a list of keys with commas between them. Each key also has a staged secret of its own, beneath
the list's name in Secrets Manager (``<store>/primary``), so that a client can be given the right to read just its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime

import httpx
from temporalio import activity

from activities.api_secrets import ApiSecrets
from activities.deployment_models import DeployAgain
from activities.deployments import Deployments
from activities.errors import classified, lasting
from activities.key_usage import VERIFICATION, KeyLog
from activities.progress import pause
from activities.rotation_models import (
    ROLES,
    AcceptAgain,
    AcceptKeys,
    Fingerprint,
    KeyOrder,
    KeysMade,
    KeysSeen,
    KeysSet,
    KeysVerified,
    Promoted,
    PromoteKeys,
    PutKeysBack,
    UsageQuery,
    VerifyKeys,
)
from activities.secret_refs import SecretResolver, fingerprint
from activities.secret_values import new_api_key, weakness
from activities.stage import Role, RotatedSecret, Stage
from activities.staged_secrets import StagedSecrets, version_of

_RETRY = 1.0


class ApiKeys:
    def __init__(
        self,
        staged: StagedSecrets,
        secrets: ApiSecrets,
        resolver: SecretResolver,
        http: httpx.Client,
        deployments: Deployments,
        usage: KeyLog,
    ) -> None:
        self._staged, self._secrets, self._resolver, self._http = staged, secrets, resolver, http
        self._deployments, self._usage = deployments, usage

    @activity.defn(name="api_keys.look")
    @classified("look which keys the API accepts")
    def look(self, stage: Stage) -> KeysSeen:
        secret = _secret(stage)
        accepted = split(self._secrets.read(stage, secret))
        prints = [fingerprint(key) for key in accepted]
        roles: dict[Role, Fingerprint] = {}
        for role in ROLES:
            held = self._staged.value(_store(secret, role))
            if held is not None and held in accepted:
                roles[role] = fingerprint(held)
        problems = tuple(f"key {fingerprint(key)}: {why}" for key in accepted if (why := weakness(key)) is not None)
        known = f", of which {', '.join(f'{role} {print_}' for role, print_ in roles.items())}" if roles else ""
        return KeysSeen(
            summary=f"{len(prints)} keys are accepted: {', '.join(prints)}{known}"
            + ("; " + "; ".join(problems) if problems else ""),
            accepted=tuple(prints),
            roles=roles,
            problems=problems,
            labels=tuple(self._staged.labels(name) for name in _stores(secret)),
        )

    @activity.defn(name="api_keys.create")
    @classified("make new keys")
    def create(self, order: KeyOrder) -> KeysMade:
        """Make three keys and store them, as AWSPENDING; repeated, it finds those it made. The present list is kept."""
        secret = _secret(order.stage)
        present = self._secrets.read(order.stage, secret)
        former = version_of(order.rotation, "former")
        if self._staged.value(secret.store) != present and self._staged.value(secret.store, former) is None:
            # The list as it is, whoever wrote it: old keys may be weak, that is why they are replaced.
            self._staged.stage(secret.store, former, lambda: present, parts=lambda _value: [])
            self._staged.promote(secret.store, former)
        version = version_of(order.rotation)
        new = {
            role: fingerprint(self._staged.stage(_store(secret, role), version, new_api_key, parts=lambda v: [v]))
            for role in ROLES
        }
        return KeysMade(
            summary="made and stored " + ", ".join(f"{role} {print_}" for role, print_ in new.items()),
            new=new,
            version=version,
        )

    @activity.defn(name="api_keys.accept")
    @classified("set the list of accepted keys")
    def accept(self, order: AcceptKeys) -> KeysSet:
        """Write the list for the next deployment: the new keys first, then the old ones or none of them.

        A key that somebody else added meanwhile stays on the list and is told.
        """
        value, changed = self._write(order, order.old, keep_old=order.keep_old)
        prints = tuple(fingerprint(key) for key in split(value))
        foreign = tuple(p for p in prints if p not in order.old and p not in self._new_prints(order))
        return KeysSet(
            summary=f"{len(prints)} keys from the next deployment on: {', '.join(prints)}"
            + (f"; added by somebody else: {', '.join(foreign)}" if foreign else "")
            + ("" if changed else " (set already)"),
            accepted=prints,
            foreign=foreign,
            changed=changed,
        )

    @activity.defn(name="api_keys.verify")
    @classified("call the API with every key")
    def verify(self, order: VerifyKeys) -> KeysVerified:
        """``GET /sessions`` with each key until all is right: 200, and 401 for an old key after its removal."""
        stage, secret = order.stage, _secret(order.stage)
        new = {role: self._staged.need(_store(secret, role), version_of(order.rotation)) for role in ROLES}
        overlap = split(self._staged.need(secret.store, version_of(order.rotation, "overlap")))
        old = {fingerprint(key): key for key in overlap if fingerprint(key) in order.old}
        give_up = time.monotonic() + order.patience.total_seconds()
        while True:
            new_status = {role: self._status(stage, key) for role, key in new.items()}
            old_status = {name: self._status(stage, key) for name, key in old.items()}
            wanted = 200 if order.old_accepted else 401
            ok = all(s == 200 for s in new_status.values()) and all(s == wanted for s in old_status.values())
            if ok or time.monotonic() > give_up:
                break
            pause(_RETRY, "calling the API with every key", new=new_status, old=old_status)
        shown = [f"new {role} {status}" for role, status in new_status.items()]
        shown += [f"old {name} {status}" for name, status in old_status.items()]
        return KeysVerified(
            summary=f"{'as it should be' if ok else 'NOT as it should be'}: {', '.join(shown)}",
            ok=ok,
            new=new_status,
            old=old_status,
        )

    @activity.defn(name="api_keys.promote")
    @classified("make the new keys the current ones")
    def promote(self, order: PromoteKeys) -> Promoted:
        """AWSPENDING becomes AWSCURRENT: whoever reads a key's secret gets the new key from now on."""
        secret = _secret(order.stage)
        version = version_of(order.rotation)
        for role in ROLES:
            self._staged.promote(_store(secret, role), version)
        self._staged.promote(secret.store, version_of(order.rotation, "overlap" if order.keep_old else "new"))
        self._resolver.forget(order.stage.api_key)
        return Promoted(summary=f"version {version[:8]} of each key is AWSCURRENT", version=version)

    @activity.defn(name="api_keys.put_back", no_thread_cancel_exception=True)
    @classified("put the former keys back")
    def put_back(self, order: PutKeysBack) -> KeysSet:
        """The list, then the labels, then a deployment. Changes nothing when clients have already changed their key.

        Raises:
            NewKeysInUse: a client uses a new key: taking it away would lock that client out.
        """
        stage, secret = order.stage, _secret(order.stage)
        present = self._secrets.read(stage, secret)
        new = self._new_prints(order)
        published = any(fingerprint(key) in new for key in split(present))
        if published:
            self._require_unused(order, new)
            self._secrets.write(stage, secret, self._former(order, present, new))
        if self._staged.value(secret.store, version_of(order.rotation, "overlap")) is not None:
            # Also when the list is as before: an earlier attempt may have died before it deployed.
            self._deploy(order, "put-back")
        for labels in order.labels:
            self._staged.restore(labels)
        self._resolver.forget(stage.api_key)
        accepted = tuple(fingerprint(key) for key in split(self._secrets.read(stage, secret)))
        return KeysSet(summary=f"accepted again: {', '.join(accepted)}", accepted=accepted, changed=published)

    @activity.defn(name="api_keys.accept_again", no_thread_cancel_exception=True)
    @classified("accept the old keys again")
    def accept_again(self, order: AcceptAgain) -> KeysSet:
        """Both old and new on the list, and deployed: the state of the grace period."""
        value, changed = self._write(order, order.old, keep_old=True)
        self._deploy(order, "accept-again")
        prints = tuple(fingerprint(key) for key in split(value))
        return KeysSet(summary=f"accepted again: {', '.join(prints)}", accepted=prints, changed=changed)

    # --- parts --------------------------------------------------------------------------------------------------

    def _write(self, order: KeyOrder, old: tuple[Fingerprint, ...], *, keep_old: bool) -> tuple[str, bool]:
        stage, secret = order.stage, _secret(order.stage)
        new = [self._staged.need(_store(secret, role), version_of(order.rotation)) for role in ROLES]
        present = split(self._secrets.read(stage, secret))
        if keep_old:  # they may be off the list already
            overlap = self._staged.value(secret.store, version_of(order.rotation, "overlap"))
            present += [key for key in split(overlap or "") if fingerprint(key) in old]
        rest = [key for key in present if key not in new and (keep_old or fingerprint(key) not in old)]
        wanted = ",".join(dict.fromkeys(new + rest))
        version = version_of(order.rotation, "overlap" if keep_old else "new")
        value = self._staged.stage(secret.store, version, lambda: wanted, parts=lambda _value: new)
        staged = split(value)  # perhaps weeks ago
        value = ",".join([value, *(key for key in rest if key not in staged)])
        return value, self._secrets.write(stage, secret, value)

    def _former(self, order: PutKeysBack, present: str, new: set[Fingerprint]) -> str:
        """The list as it was before the rotation, and whatever somebody else added since."""
        secret = _secret(order.stage)
        kept = next(labels.versions.get("AWSCURRENT") for labels in order.labels if labels.name == secret.store)
        former = self._staged.value(secret.store, version_of(order.rotation, "former")) or (
            self._staged.value(secret.store, kept) if kept else None
        )
        if former is None:
            raise lasting(
                f"the former value of {secret.name} is not in Secrets Manager (any more). Old and new keys both stay "
                "accepted",
                type="SecretGone",
            )
        known = split(former)
        added = [key for key in split(present) if key not in known and fingerprint(key) not in new]
        return ",".join([former, *added])

    def _new_prints(self, order: KeyOrder) -> set[Fingerprint]:
        secret, version = _secret(order.stage), version_of(order.rotation)
        made = (self._staged.value(_store(secret, role), version) for role in ROLES)
        return {fingerprint(key) for key in made if key}

    def _require_unused(self, order: PutKeysBack, new: set[Fingerprint]) -> None:
        query = UsageQuery(stage=order.stage, keys=tuple(sorted(new)), start=order.since, end=datetime.now(UTC))
        own = {client.name for client in order.stage.rotation.clients if client.key == "internal"}
        users = {use.client or "somebody" for use in self._usage.look(query).uses} - own
        if users:
            raise lasting(
                f"{', '.join(sorted(users))} already use(s) a new key and would be locked out. Old and new keys both "
                "stay accepted; the next rotation removes them. A leaked key is removed by a rotation with emergency",
                type="NewKeysInUse",
            )

    def _deploy(self, order: KeyOrder, step: str) -> None:
        self._deployments.again(DeployAgain(stage=order.stage, deployment_id=f"{order.rotation}/{step}"))

    def _status(self, stage: Stage, key: str) -> int:
        """HTTP status of one call with a key; 0 when nothing answered."""
        activity.heartbeat({"phase": "calling the API with every key"})
        try:
            headers = {"X-Api-Key": key, "X-Client-Name": VERIFICATION}
            return self._http.get(f"{stage.url}/sessions?limit=1", headers=headers).status_code
        except httpx.TransportError:
            return 0


def split(value: str) -> list[str]:
    """The keys in a list, in order, each once."""
    return list(dict.fromkeys(key.strip() for key in value.split(",") if key.strip()))


def _secret(stage: Stage) -> RotatedSecret:
    secret = stage.rotation.api_keys
    if secret is None:
        raise lasting(
            f"stage {stage.name} names no rotation.api_keys. Add name and store to the settings", type="NotConfigured"
        )
    return secret


def _store(secret: RotatedSecret, role: Role) -> str:
    return f"{secret.store}/{role}"


def _stores(secret: RotatedSecret) -> Iterable[str]:
    return (secret.store, *(_store(secret, role) for role in ROLES))
