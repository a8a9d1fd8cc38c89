"""Rotating the secret that signs the API's tokens: two slots, so that no token is refused before its time."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import Field
from temporalio import workflow

from activities.api import Api, HealthCheck
from activities.signing_keys import SigningKeys
from activities.signing_models import (
    AcceptOldAgain,
    KeyId,
    KeyringSeen,
    ProbeTokens,
    PutSigningBack,
    SetSlots,
    SigningOrder,
    Slots,
    TokensProbed,
)
from workflows import policy
from workflows.details import length
from workflows.model import Kind, RunbookResult, Scalar, StepSpec
from workflows.rotation import CHECKLIST, FIRST, LAST, Rotation
from workflows.rotation_model import RotationInput
from workflows.rotation_rules import token_overlap
from workflows.runbook import RunbookSpec, Undo


class SigningSecretRotationInput(RotationInput):
    overlap: timedelta = Field(
        timedelta(0),
        ge=timedelta(0),
        le=timedelta(days=180),
        description="How long tokens of both keys are accepted; never shorter than the longest token life and the skew",
    )
    skew: timedelta = Field(timedelta(minutes=5), ge=timedelta(0), description="How far clocks may be apart")


@workflow.defn(name="SigningSecretRotation")
class SigningSecretRotation(Rotation[SigningSecretRotationInput]):
    """Give the API a fresh signing secret without refusing a token before its time.

    Non-production first. The stage has to verify with two keys: the running release is tried with real tokens against
    its own endpoint, and in production a person confirms what was seen. A new key is made, stored and accepted beside
    the old one; a token of each has to be let in, and one of nobody's key refused, before the new key signs anything.
    Then it signs, and the run waits at least the longest life of a token and the clocks' skew. The old key is removed:
    a token of it has to be refused and a new one let in. An abort before the new key signs puts everything back as it
    was; after that the old key signs again and the new one stays accepted. An emergency skips the wait, behind a gate.
    """

    kind = "signing"
    every = timedelta(days=182)  # the document names no time: as often as the database's credentials
    spec = RunbookSpec(
        input=SigningSecretRotationInput,
        when="Twice a year, or at once when the secret has leaked (emergency).",
        steps=(
            *FIRST[:1],
            StepSpec(id="look", title="See which keys sign and are accepted", kind=Kind.LOOK),
            StepSpec(id="alive", title="See which release is live", kind=Kind.LOOK),
            StepSpec(id="probe-before", title="Call the API with a token of each key", kind=Kind.LOOK),
            *FIRST[1:],
            StepSpec(id="dual-verification", title="Is dual verification deployed?", kind=Kind.GATE),
            StepSpec(id="emergency", title="Approval, only in an emergency", kind=Kind.GATE),
            StepSpec(
                id="create",
                title="Make and store a new key",
                kind=Kind.CHANGE,
                undo="secret, labels and deployment as they were; once the new key signs, it stays accepted",
            ),
            StepSpec(id="add", title="Accept the new key beside the old", kind=Kind.CHANGE, undo="with the key"),
            StepSpec(id="deploy-added", title="Deploy with both", kind=Kind.CHANGE, undo="with the key"),
            StepSpec(id="verify-added", title="Prove it: tokens of both keys are let in", kind=Kind.LOOK),
            StepSpec(id="sign", title="Sign with the new key", kind=Kind.CHANGE, undo="the old one signs again"),
            StepSpec(id="deploy-signing", title="Deploy so that it signs", kind=Kind.CHANGE, undo="with the key"),
            StepSpec(id="verify-signing", title="See that the API's tokens are signed with it", kind=Kind.LOOK),
            StepSpec(id="promote", title="Make the new secret the current one", kind=Kind.CHANGE, undo="with the key"),
            StepSpec(id="overlap", title="Wait until every old token has expired", kind=Kind.WAIT),
            StepSpec(id="remove", title="Take the old key off", kind=Kind.CHANGE, undo="it is accepted again"),
            StepSpec(id="deploy-removed", title="Deploy without it", kind=Kind.CHANGE, undo="with the removal"),
            StepSpec(id="verify-removed", title="See that an old token fails and a new one passes", kind=Kind.LOOK),
            StepSpec(id="finish", title="Make the secret without it the current one", kind=Kind.CHANGE, undo="nothing"),
            *LAST,
        ),
        checklist=CHECKLIST,
        gates=(
            ("dual-verification", "In production: is dual verification deployed? With what the tokens have shown"),
            ("emergency", "Only in an emergency: replace the secret now, refusing every token that is out?"),
        ),
        example={"stage": "production", "reason": "twice a year", "requested_by": "ann"},
    )

    def __init__(self) -> None:
        super().__init__()
        self.old: tuple[KeyId, ...] = ()
        self.new: KeyId = ""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def overlap(self, inp: SigningSecretRotationInput) -> timedelta:
        return token_overlap(self.stage.rotation.tokens.life, inp.skew, inp.overlap)

    def rehearsal(self, inp: SigningSecretRotationInput) -> dict[str, Any]:
        return {"skew": inp.skew}

    async def procedure(self, inp: SigningSecretRotationInput) -> str:
        seen = await self.look("look", SigningKeys.look, self.stage, policy.DEPLOY)
        for problem in seen.problems:
            self.say(f"a signing key must go: {problem}", level="warning")
        self.old = seen.accepted
        before = await self._probe("probe-before", seen.accepted, signs=None)
        await self.open_entry(inp, seen.accepted)
        await self._approve(inp, seen, before)
        await self._make(seen)
        if inp.emergency:
            self._straight_to_the_end()
        else:
            await self._add(seen)
            life = await self._sign(before)
            await self._wait_for_old_tokens(inp, life)
        return await self._remove(inp)

    # --- is it ready for two keys? ------------------------------------------------------------------------------

    async def _probe(
        self, step_id: str, accepted: tuple[KeyId, ...], *, signs: KeyId | None, refused: tuple[KeyId, ...] = ()
    ) -> TokensProbed:
        order = ProbeTokens(
            stage=self.stage, rotation=self.rotation_id, accepted=accepted, refused=refused, signs=signs
        )
        found = await self.look(step_id, SigningKeys.probe, order, policy.WATCH)
        if found.ok:
            return found
        unread = [kid for kid, status in found.accepted.items() if status in (401, 403)]
        if len(accepted) > 1 and unread and len(unread) < len(accepted):
            raise self.stop(
                f"dual verification is not deployed: a token of {', '.join(unread)} is refused beside those of "
                "the other key. Deploy a release that verifies with every key of the keyring, then start again",
                "NotDual",
            )
        raise self.stop(f"tokens are not taken as they should be: {found.summary}", "TokensNotVerified")

    async def _approve(self, inp: SigningSecretRotationInput, seen: KeyringSeen, before: TokensProbed) -> None:
        """In production a person says that the live release verifies with two keys; the proof follows in any case."""

        async def look_again() -> dict[str, Scalar]:
            return await self._plan(seen, await self._probe("probe-again", seen.accepted, signs=None))

        stage = self.stage.name
        if inp.emergency:
            self._skip("dual-verification", "in an emergency the question is another one")
            plan = await self._plan(seen, before) | {"refused at once": "every token that is out"}
            await self.gate("emergency", f"Replace the signing secret of {stage} now? Every token is refused", plan)
            return
        self._skip("emergency", "no emergency")
        if not self.stage.production:
            self._skip("dual-verification", f"{stage} is no production: the tokens tell")
            return
        question = f"Is dual verification deployed on {stage}, so that tokens of two keys are let in?"
        await self.gate("dual-verification", question, await self._plan(seen, before), recheck=look_again)

    async def _plan(self, seen: KeyringSeen, probed: TokensProbed) -> dict[str, Scalar]:
        health = await self.look("alive", Api.health, HealthCheck(stage=self.stage, consecutive=1), policy.VERIFY)
        proved = len(seen.accepted) > 1
        return {
            "stage": self.stage.name,
            "live release": health.release or "unknown",
            "keys now": ", ".join(seen.accepted),
            "a token of each is answered": ", ".join(str(status) for status in probed.accepted.values()),
            "a token of nobody's key": probed.stranger,
            "two keys at once": "seen" if proved else "seen when the new key is added, before it signs anything",
        }

    # --- the new key --------------------------------------------------------------------------------------------

    async def _make(self, seen: KeyringSeen) -> None:
        order = SigningOrder(stage=self.stage, rotation=self.rotation_id)
        back = PutSigningBack(**order.model_dump(), labels=seen.labels, old=seen.accepted)
        made = await self.change(
            "create",
            SigningKeys.create,
            order,
            policy.DEPLOY,
            would="make and store a new signing key",
            undo=Undo("put the former signing secret back", SigningKeys.put_back, back),
        )
        self.new = made.new if made is not None else ""
        self.check("generated", made is not None, made.summary if made else "dry run")
        self.facts |= {"old_keys": ", ".join(self.old), "new_key": self.new or "dry run"}

    def _straight_to_the_end(self) -> None:
        """A leaked secret is not accepted a minute longer, and the API may not know two slots at all."""
        for step_id in (
            *("add", "deploy-added", "verify-added", "sign", "deploy-signing", "verify-signing", "promote", "overlap"),
        ):
            self._skip(step_id, "an emergency: the old key is replaced at once")
        self.check("staged", False, "an emergency: no two keys at once")
        self.check("clients", False, "an emergency: every token of the old key is refused at once")

    async def _add(self, seen: KeyringSeen) -> None:
        await self._set("add", "accepted", would="accept it beside the old one")
        await self.deploy_again("deploy-added", "accepting both")
        both = await self._verify("verify-added", (*self.old, self.new), signs=seen.signs)
        if both is not None:
            self.check("staged", True, f"both are let in: {both.summary}")

    async def _sign(self, before: TokensProbed) -> timedelta:
        """Have the new key sign. Returns the longest life of a token."""
        if not self.inp.dry_run:
            self.stands = (
                "The old key signs again and the new one stays accepted, because its tokens may be out. The next "
                "rotation removes it"
            )
        await self._set("sign", "signs", would="sign with the new key")
        await self.deploy_again("deploy-signing", "signing with the new key")
        after = await self._verify("verify-signing", (*self.old, self.new), signs=self.new)
        if after is not None:
            self.check("production", True, f"{self.stage.name}: {after.summary}")
        await self._promote("promote", "signs", would="make the new secret the current one in Secrets Manager")
        seen = [probed.life_seconds for probed in (before, after) if probed is not None and probed.life_seconds]
        return max([self.stage.rotation.tokens.life, *(timedelta(seconds=life) for life in seen)])

    async def _wait_for_old_tokens(self, inp: SigningSecretRotationInput, life: timedelta) -> None:
        least = token_overlap(life, inp.skew, timedelta(0))
        span = token_overlap(life, inp.skew, inp.overlap)
        earliest = workflow.now() + least
        self.facts["longest_token_life"] = length(life)
        await self.lend_stage()
        title = "Wait until every token of the old key has expired"
        while await self.wait("overlap", span, title) and workflow.now() < earliest:
            span = earliest - workflow.now()
            self.say(f"tokens of the old key are good until {earliest:%Y-%m-%d %H:%M:%S} UTC", level="warning")
        if not inp.dry_run:
            self.check(
                "clients", True, f"all tokens before it have expired: {length(life)} and {length(inp.skew)} passed"
            )

    async def _set(self, step_id: str, to: Slots, *, would: str, undo: Undo | None = None) -> None:
        order = SetSlots(stage=self.stage, rotation=self.rotation_id, to=to, old=self.old, new=self.new)
        await self.change(step_id, SigningKeys.set_slots, order, policy.DEPLOY, would=would, undo=undo)

    async def _promote(self, step_id: str, to: Slots, *, would: str) -> None:
        order = SetSlots(stage=self.stage, rotation=self.rotation_id, to=to, old=self.old, new=self.new)
        await self.change(step_id, SigningKeys.promote, order, would=would, undo=None)

    async def _verify(
        self, step_id: str, accepted: tuple[KeyId, ...], *, signs: KeyId, refused: tuple[KeyId, ...] = ()
    ) -> TokensProbed | None:
        if self.inp.dry_run:
            self._skip(step_id, "dry run: there is no new key")
            return None
        self.enter_verifying()
        return await self._probe(step_id, accepted, signs=signs, refused=refused)

    # --- the end of the old key ---------------------------------------------------------------------------------

    async def _remove(self, inp: SigningSecretRotationInput) -> str:
        await self.have_stage_back()
        self.undone_by_design()  # tokens of the new key are out: from here the way back is that both are accepted
        self.stands = "The new key signs"
        if inp.emergency:
            self.stands = "A leaked secret is not put back: the API reads the new one from its next deployment on"
        again = AcceptOldAgain(stage=self.stage, rotation=self.rotation_id, old=self.old, new=self.new)
        undo = None if inp.emergency else Undo("accept the old key again", SigningKeys.accept_again, again)
        await self._set("remove", "alone", would="take the old key off", undo=undo)
        await self.deploy_again("deploy-removed", "without the old key")
        ended = await self._verify("verify-removed", (self.new,), signs=self.new, refused=self.old)
        if ended is not None:
            self.check("production", True, f"{self.stage.name}: {ended.summary}")
            self.check("disabled", True, ended.summary)
        self.undone_by_design()
        self.stands = "The new key signs, and the old one is removed"
        await self._promote("finish", "alone", would="make the secret without the old key the current one")
        done = f"key {self.new} signs, {', '.join(self.old)} removed"
        if inp.dry_run:
            done = f"would have a new key sign, and remove {', '.join(self.old)}"
        self.announce("removed", f"{self.stage.name}: the old signing secret is removed", done)
        said = await self.document(inp, (self.new,), done)
        return f"{done}; {said}"
