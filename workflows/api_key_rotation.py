"""Rotating the API's keys: every 90 days, or at once when one has leaked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow

from activities.api_keys import ApiKeys
from activities.key_usage import KeyLog
from activities.rotation_models import (
    AcceptAgain,
    AcceptKeys,
    KeyOrder,
    KeysSeen,
    PromoteKeys,
    PutKeysBack,
    UsageQuery,
    VerifyKeys,
)
from workflows import policy
from workflows.api_key_grace import KeyGrace
from workflows.api_key_model import BEFORE, ApiKeyRotationInput, KeyProgress
from workflows.model import Kind, RunbookResult, Scalar, StepSpec
from workflows.rotation import CHECKLIST, FIRST, LAST
from workflows.rotation_rules import ClientState, noted
from workflows.runbook import RunbookSpec, Undo


@workflow.defn(name="ApiKeyRotation")
class ApiKeyRotation(KeyGrace):
    """Give the API three fresh keys, and take the old ones away when nobody uses them.

    Non-production first. Three keys (primary, backup, internal) are made and stored, put beside the old ones, deployed
    and each called. Every registered client is told where its key is and until when; the log tells daily who still
    uses an old one, and they are reminded. At the deadline unused keys are removed; for used ones people are asked:
    remove them all the same, or extend. Then new keys have to answer 200 and old ones 401. An abort within the grace
    puts the old keys back as they were, unless a client already uses a new one. An emergency skips the grace, behind a
    gate.
    """

    kind = "api_keys"
    every = timedelta(days=90)
    spec = RunbookSpec(
        input=ApiKeyRotationInput,
        when="Every 90 days, or at once when a key has leaked (emergency).",
        steps=(
            *FIRST[:1],
            StepSpec(id="look", title="See which keys are accepted", kind=Kind.LOOK),
            StepSpec(id="usage-before", title="See who uses them", kind=Kind.LOOK),
            *FIRST[1:],
            StepSpec(id="emergency", title="Approval, only in an emergency", kind=Kind.GATE),
            StepSpec(
                id="create",
                title="Make and store three new keys",
                kind=Kind.CHANGE,
                undo="list, labels and deployment as they were, unless clients use the new keys by then",
            ),
            StepSpec(id="add", title="Put the new keys beside the old", kind=Kind.CHANGE, undo="with the keys"),
            StepSpec(id="deploy-added", title="Deploy with both", kind=Kind.CHANGE, undo="with the keys"),
            StepSpec(id="verify-added", title="Call the API with each key", kind=Kind.LOOK),
            StepSpec(id="promote", title="Make the new keys the current ones", kind=Kind.CHANGE, undo="with the keys"),
            StepSpec(id="grace", title="Grace: old and new keys both work", kind=Kind.WAIT),
            StepSpec(id="usage", title="See who still uses old keys", kind=Kind.LOOK),
            StepSpec(id="remove", title="Take the old keys off", kind=Kind.CHANGE, undo="they are accepted again"),
            StepSpec(id="deploy-removed", title="Deploy without them", kind=Kind.CHANGE, undo="with the removal"),
            StepSpec(id="verify-removed", title="Call the API with each key, new and old", kind=Kind.LOOK),
            StepSpec(id="finish", title="Make the list without them the current one", kind=Kind.CHANGE, undo="nothing"),
            *LAST,
        ),
        checklist=CHECKLIST,
        gates=(
            ("emergency", "Only in an emergency: replace the keys now, locking out who has not changed?"),
            ("remove-in-use", "Only when old keys are in use at the deadline: remove them? No extends the grace"),
        ),
        example={"stage": "production", "reason": "quarterly rotation", "requested_by": "ann"},
    )

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def overlap(self, inp: ApiKeyRotationInput) -> timedelta:
        return inp.grace

    def rehearsal(self, inp: ApiKeyRotationInput) -> dict[str, Any]:
        return {"grace": inp.rehearsal_grace, "look_every": inp.look_every, "quiet": inp.quiet}

    async def procedure(self, inp: ApiKeyRotationInput) -> str:
        if self.cursor is None:
            await self._add(inp)
        if not inp.emergency:
            await self.grace(inp)
            await self.last_call(inp)
        return await self._remove(inp)

    # --- new keys beside the old --------------------------------------------------------------------------------

    async def _add(self, inp: ApiKeyRotationInput) -> None:
        seen = await self.look("look", ApiKeys.look, self.stage, policy.DEPLOY)
        for problem in seen.problems:
            self.say(f"an accepted key must go: {problem}", level="warning")
        now = workflow.now()
        since = UsageQuery(stage=self.stage, keys=seen.accepted, start=now - BEFORE, end=now)
        before = await self.observe("usage-before", KeyLog.look, since, policy.SEARCH)
        await self.open_entry(inp, seen.accepted)
        owners = {print_: role for role, print_ in seen.roles.items()}
        self.keys = KeyProgress(
            entry=self.entry,
            old=seen.accepted,
            new={},
            owners=owners,
            added_at=now,
            deadline=now + inp.grace,
            looked_until=now,
            clients={client.name: ClientState(name=client.name) for client in self.registry},
        )
        if inp.emergency:
            using = noted({}, before.uses if before else (), self.registry, owners, seen.accepted)
            await self._approve_emergency(seen, sorted(using), known=before is not None)
        else:
            self._skip("emergency", "no emergency")
        self.facts["old_keys"] = ", ".join(seen.accepted)
        await self._make_and_deploy(seen)
        self.keys.deadline = workflow.now() + (timedelta(0) if inp.emergency else inp.grace)
        self.facts |= {
            "new_keys": ", ".join(f"{role} {print_}" for role, print_ in self.keys.new.items()),
            "deadline": self.keys.deadline.isoformat(),
        }
        await self.tell_clients()

    async def _approve_emergency(self, seen: KeysSeen, users: list[str], *, known: bool) -> None:
        plan: dict[str, Scalar] = {
            "stage": self.stage.name,
            "removed at once": ", ".join(seen.accepted),
            "used within 7 days by": ", ".join(users) if known else "not known: the log could not be read",
        }
        question = f"Replace all keys of {self.stage.name} now? Clients get 401 until they use their new key"
        await self.gate("emergency", question, plan)

    async def _make_and_deploy(self, seen: KeysSeen) -> None:
        order = KeyOrder(stage=self.stage, rotation=self.rotation_id)
        back = PutKeysBack(
            stage=self.stage, rotation=self.rotation_id, labels=seen.labels, old=seen.accepted, since=workflow.now()
        )
        made = await self.change(
            "create",
            ApiKeys.create,
            order,
            policy.DEPLOY,
            would="make and store three new keys",
            undo=Undo("put the former keys back", ApiKeys.put_back, back),
        )
        if made is not None:
            self.progress_of_keys.new = made.new
        self.check("generated", made is not None, made.summary if made else "dry run")
        await self.change(
            "add",
            ApiKeys.accept,
            AcceptKeys(stage=self.stage, rotation=self.rotation_id, old=seen.accepted, keep_old=True),
            policy.DEPLOY,
            would=f"put them beside the {len(seen.accepted)} old keys",
            undo=None,
        )
        await self.deploy_again("deploy-added", "with old and new keys")
        await self._verify("verify-added", old_accepted=True)
        await self.change(
            "promote",
            ApiKeys.promote,
            PromoteKeys(stage=self.stage, rotation=self.rotation_id, keep_old=True),
            would="make the new keys the current ones in Secrets Manager",
            undo=None,
        )

    async def _verify(self, step_id: str, *, old_accepted: bool) -> None:
        if self.inp.dry_run:
            self._skip(step_id, "dry run: there are no new keys to call it with")
            return
        self.enter_verifying()
        order = VerifyKeys(
            stage=self.stage, rotation=self.rotation_id, old=self.progress_of_keys.old, old_accepted=old_accepted
        )
        found = await self.look(step_id, ApiKeys.verify, order, policy.WATCH)
        if not found.ok:
            raise self.stop(f"the keys are not accepted as they should be: {found.summary}", "KeysNotVerified")
        if old_accepted:
            self.check("staged", True, f"both work: {found.summary}")
            self.check("production", True, f"{self.stage.name}: {found.summary}")
        else:
            self.check("disabled", True, found.summary)

    # --- the end of the old keys --------------------------------------------------------------------------------

    async def _remove(self, inp: ApiKeyRotationInput) -> str:
        keys = self.progress_of_keys
        await self.have_stage_back()
        self.undone_by_design()  # clients use the new keys by now: from here the way back is that both work
        self.stands = "The new keys stay accepted"
        order = KeyOrder(stage=self.stage, rotation=self.rotation_id)
        again = AcceptAgain(**order.model_dump(), old=keys.old)
        await self.change(
            "remove",
            ApiKeys.accept,
            AcceptKeys(**order.model_dump(), old=keys.old, keep_old=False),
            policy.DEPLOY,
            would=f"take {len(keys.old)} old keys off the list",
            undo=None if inp.emergency else Undo("accept the old keys again", ApiKeys.accept_again, again),
        )
        await self.deploy_again("deploy-removed", "without the old keys")
        await self._verify("verify-removed", old_accepted=False)
        self.undone_by_design()
        self.stands = "The new keys are accepted, and the old ones are removed"
        await self.change(
            "finish",
            ApiKeys.promote,
            PromoteKeys(**order.model_dump(), keep_old=False),
            would="make the list without the old keys the current one",
            undo=None,
        )
        self.clients_checked(keys.clients, inp)
        done = f"{len(keys.new)} new keys, {len(keys.old)} old ones removed"
        if inp.dry_run:
            done = f"would make new keys and remove the {len(keys.old)} old ones"
        self.announce("removed", f"{self.stage.name}: the old API keys are removed", done)
        said = await self.document(inp, tuple(keys.new.values()), done)
        return f"{done}; {said}"
