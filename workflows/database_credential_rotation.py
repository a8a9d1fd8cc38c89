"""Rotating the API's database user: every 6 months, or at once when its password has leaked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from temporalio import workflow

from activities.api import Api, HealthCheck
from activities.credential_models import CredentialOrder, LoginQuery, PutUserBack, SwitchUser, TestLogin, UserSeen
from activities.database_credentials import DatabaseCredentials
from workflows import policy
from workflows.database_credential_model import CredentialProgress, DatabaseCredentialRotationInput
from workflows.details import length
from workflows.model import Kind, RunbookResult, Scalar, State, StepSpec
from workflows.rotation import CHECKLIST, FIRST, LAST, Rotation
from workflows.rotation_rules import unused
from workflows.runbook import RunbookSpec, Stopped, Undo


@workflow.defn(name="DatabaseCredentialRotation")
class DatabaseCredentialRotation(Rotation[DatabaseCredentialRotationInput]):
    """Give the API a fresh database user with the old one's roles, and remove the old one when nobody logs in as it.

    Non-production first. A new login is made and stored, its user gets just the roles of the old one, and a direct
    login has to work before anything is switched. Then the connection string is set and deployed, and the API has to
    be ready. From then on it is looked who still logs in as the old user; when nobody has for the quiet time it is
    removed, and a direct login as it has to be refused. When it is still in use after the patience, or the database
    does not tell, people are asked: remove it all the same, or wait longer. An abort before the removal puts the
    connection string back as it was and removes the new user. An emergency does not wait, behind a gate.
    """

    kind = "database"
    every = timedelta(days=182)
    spec = RunbookSpec(
        input=DatabaseCredentialRotationInput,
        when="Every 6 months, or at once when the password has leaked (emergency).",
        steps=(
            *FIRST[:1],
            StepSpec(id="look", title="See which user the API logs in as, and what it may do", kind=Kind.LOOK),
            *FIRST[1:],
            StepSpec(id="emergency", title="Approval, only in an emergency", kind=Kind.GATE),
            StepSpec(
                id="create",
                title="Make and store a new login with the same roles",
                kind=Kind.CHANGE,
                undo="connection string, labels and deployment as they were; the new user is removed",
            ),
            StepSpec(id="login", title="Log in with it directly", kind=Kind.LOOK),
            StepSpec(id="switch", title="Set the connection string", kind=Kind.CHANGE, undo="with the login"),
            StepSpec(id="deploy", title="Deploy with the new user", kind=Kind.CHANGE, undo="with the login"),
            StepSpec(id="ready", title="See that the API reaches its database", kind=Kind.LOOK),
            StepSpec(id="promote", title="Make the new login the current one", kind=Kind.CHANGE, undo="with the login"),
            StepSpec(id="unused", title="Wait until nobody logs in as the old user", kind=Kind.WAIT),
            StepSpec(id="logins", title="See who logs in as the old user", kind=Kind.LOOK),
            StepSpec(id="remove", title="Remove the old user", kind=Kind.CHANGE, undo="it is made again"),
            StepSpec(id="refused", title="See that the old login is refused", kind=Kind.LOOK),
            StepSpec(id="ready-after", title="See that the API is ready without it", kind=Kind.LOOK),
            *LAST,
        ),
        checklist=CHECKLIST,
        gates=(
            ("emergency", "Only in an emergency: replace the user now, whoever else is logged in as it?"),
            ("remove-in-use", "Only when it is in use, or it cannot be told: remove the old user? No waits longer"),
        ),
        example={"stage": "production", "reason": "every 6 months", "requested_by": "ann"},
    )

    @workflow.init
    def __init__(self, *payload: Any) -> None:
        super().__init__(*payload)
        self.seen: CredentialProgress | None = None
        if self.cursor is not None:
            self.seen = CredentialProgress.model_validate(self.cursor)
            self.entry = self.seen.entry

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    def overlap(self, inp: DatabaseCredentialRotationInput) -> timedelta:
        return max(inp.quiet, inp.patience)

    def rehearsal(self, inp: DatabaseCredentialRotationInput) -> dict[str, Any]:
        return {
            "quiet": inp.rehearsal_quiet,
            "patience": inp.rehearsal_quiet,
            "look_every": inp.look_every,
            "max_extensions": inp.max_extensions,
        }

    @property
    def progress_of_users(self) -> CredentialProgress:
        assert self.seen is not None, "the new user comes first"  # noqa: S101
        return self.seen

    async def procedure(self, inp: DatabaseCredentialRotationInput) -> str:
        if self.cursor is None:
            await self._add(inp)
        if inp.emergency:
            self._skip("unused", "an emergency does not wait")
            self.check("clients", False, "an emergency: whoever else logs in as the old user is refused at once")
        else:
            await self._wait_until_unused(inp)
        return await self._remove(inp)

    # --- the new user -------------------------------------------------------------------------------------------

    async def _add(self, inp: DatabaseCredentialRotationInput) -> None:
        found = await self.look("look", DatabaseCredentials.look, self.stage, policy.DEPLOY)
        for holder in found.also_in:
            self.say(f"{holder} logs in as {found.user} too: give it another user meanwhile", level="warning")
        await self.open_entry(inp, (found.user,))
        if inp.emergency:
            plan: dict[str, Scalar] = {
                "stage": self.stage.name,
                "removed at once": found.user,
                "also used by": ", ".join(found.also_in) or "nobody that is known",
            }
            question = f"Replace the database user of {self.stage.name} now? Other logins as it are refused"
            await self.gate("emergency", question, plan)
        else:
            self._skip("emergency", "no emergency")
        new = await self._make(found)
        await self._switch(found, new)
        now = workflow.now()
        self.facts |= {"old_user": found.user, "new_user": new, "switched_at": now.isoformat()}
        self.seen = CredentialProgress(
            entry=self.entry,
            old=found.user,
            new=new,
            switched_at=now,
            deadline=now + max(inp.patience, inp.quiet),
            holders=found.also_in,
        )

    async def _make(self, found: UserSeen) -> str:
        order = CredentialOrder(stage=self.stage, rotation=self.rotation_id)
        back = PutUserBack(**order.model_dump(), old=found.user, labels=found.labels)
        made = await self.change(
            "create",
            DatabaseCredentials.create,
            order,
            policy.DEPLOY,
            would=f"make a user with the roles of {found.user}: {', '.join(found.roles)}",
            undo=Undo("put the former database user back", DatabaseCredentials.put_back, back),
        )
        self.check("generated", made is not None, f"{made.summary}; 256 bits" if made else "dry run")
        if made is None:
            self._skip("login", "dry run: there is no new user")
            return "dry run"
        tried = await self.look(
            "login", DatabaseCredentials.login, TestLogin(**order.model_dump(), old=found.user), policy.WATCH
        )
        if not tried.ok:
            raise self.stop(f"nothing was switched, because the new login does not work: {tried.summary}", "NoLogin")
        return made.user

    async def _switch(self, found: UserSeen, new: str) -> None:
        order = SwitchUser(stage=self.stage, rotation=self.rotation_id, old=found.user)
        await self.change(
            "switch",
            DatabaseCredentials.switch,
            order,
            policy.DEPLOY,
            would="set the connection string with the new user",
            undo=None,
        )
        await self.deploy_again("deploy", "with the new user")
        if self.inp.dry_run:
            self._skip("ready", "dry run")
        else:
            said = await self._ready("ready")
            self.check("staged", True, f"both users can log in; {said}")
            self.check("production", True, f"{self.stage.name} works as {new}: {said}")
        await self.change(
            "promote",
            DatabaseCredentials.promote,
            CredentialOrder(stage=self.stage, rotation=self.rotation_id),
            would="make the new login the current one in Secrets Manager",
            undo=None,
        )

    async def _ready(self, step_id: str) -> str:
        self.enter_verifying()
        rules = self.stage.rollback
        check = HealthCheck(
            stage=self.stage,
            path="/health/ready",
            consecutive=rules.health_checks,
            interval=rules.health_interval,
            patience=rules.health_patience,
        )
        found = await self.look(step_id, Api.health, check, policy.WATCH)
        if not found.ok:
            raise self.stop(f"the API is not ready with its new user: {found.summary}", "NotReady")
        return found.summary

    # --- until nobody is the old one ----------------------------------------------------------------------------

    async def _wait_until_unused(self, inp: DatabaseCredentialRotationInput) -> None:
        """Go on when nobody logs in as the old user, or when people say that it goes all the same."""
        users = self.progress_of_users
        title = f"Wait until nobody logs in as {users.old}"
        await self.lend_stage()
        if inp.dry_run:
            await self.wait("unused", max(inp.patience, inp.quiet), title)
        while not inp.dry_run:
            if users.deadline > workflow.now():
                pause = users.deadline - workflow.now()
                await self.wait("unused", pause, title, every=inp.look_every, watch=self._look_at_logins)
                users = self.progress_of_users
                if self.history_is_long and users.deadline > workflow.now() and not self._is_unused():
                    users.entry = self.entry
                    await self.continue_as_new(lambda: self.progress_of_users.model_dump(mode="json"))
            await self._look_at_logins()
            if self._is_unused():
                self.check("clients", True, f"nobody is {users.old} any more: {users.seen}")
                return
            if await self._ask_to_remove(inp):
                self.check("clients", False, f"removed by decision: {users.seen}")
                return

    async def _look_at_logins(self) -> bool:
        users = self.progress_of_users
        users.deadline = next((wait.until for wait in self.state.waits if wait.id == "unused"), users.deadline)
        asked = LoginQuery(
            stage=self.stage, rotation=self.rotation_id, old=users.old, since=users.old_last or users.switched_at
        )
        found = await self.observe("logins", DatabaseCredentials.logins, asked, policy.SEARCH)
        if found is None:
            users.known, users.seen = False, "not known: it could not be looked"
        else:
            users.known, users.holders, users.seen = found.known, found.holders, found.summary
            users.old_last = max(filter(None, (users.old_last, found.old_last)), default=None)
        return self._is_unused() or self.history_is_long

    def _is_unused(self) -> bool:
        users = self.progress_of_users
        quiet = unused(users.old_last, users.switched_at, workflow.now(), self.inp.quiet)
        return users.known and quiet and not users.holders

    def _removal(self) -> dict[str, Scalar]:
        users = self.progress_of_users
        quiet = unused(users.old_last, users.switched_at, workflow.now(), self.inp.quiet)
        return {
            "stage": self.stage.name,
            "old user": users.old,
            # Not the moment itself: of a user in use it is another one at every look.
            "in use": "yes" if not quiet else "no" if users.known else "not known",
            "still named by": ", ".join(users.holders) or "nothing that is known",
        }

    async def _ask_to_remove(self, inp: DatabaseCredentialRotationInput) -> bool:
        """True when the old user goes; False when it is waited longer."""
        users = self.progress_of_users

        plan = self._removal()

        async def look_again() -> dict[str, Scalar]:
            await self._look_at_logins()
            return plan if self._is_unused() else self._removal()

        last = users.extensions >= inp.max_extensions
        no = "No ends the run, both users able to log in" if last else f"No waits {length(inp.extension)} longer"
        why = "is still in use" if users.known else "may be in use: the database does not tell"
        question = f"Remove {users.old}, which {why}? {no}"
        gate = "remove-in-use" if users.extensions == 0 else f"remove-in-use-{users.extensions + 1}"
        try:
            await self.gate(gate, question, plan, recheck=look_again, fallback=self.stage.gate("remove-in-use"))
            return True
        except Stopped as answer:
            if answer.type not in ("Rejected", "GateExpired"):
                raise
            if last:
                self.undone_by_design()
                self.stands = f"The API works as {users.new}, and {users.old} can still log in"
                raise self.stop(answer.message, "Rejected") from None
        users.extensions += 1
        users.deadline = workflow.now() + inp.extension
        step = self._find_step(gate, question, Kind.GATE)
        step.state, step.summary = State.DONE, f"no: waits until {users.deadline:%Y-%m-%d %H:%M} UTC"
        self.say(f"waits {length(inp.extension)} longer, {users.extensions} of {inp.max_extensions}")
        return False

    # --- the end of the old user --------------------------------------------------------------------------------

    async def _remove(self, inp: DatabaseCredentialRotationInput) -> str:
        users = self.progress_of_users
        await self.have_stage_back()
        self.undone_by_design()  # the API has worked as the new user for the whole overlap
        self.stands = f"The API works as {users.new}"
        order = SwitchUser(stage=self.stage, rotation=self.rotation_id, old=users.old)
        again = Undo(f"make {users.old} again", DatabaseCredentials.restore, order)
        await self.change(
            "remove",
            DatabaseCredentials.remove,
            order,
            would=f"remove {users.old}",
            undo=None if inp.emergency else again,
        )
        if inp.dry_run:
            self._skip("refused", "dry run")
            self._skip("ready-after", "dry run")
        else:
            await self._see_it_gone(order)
        self.undone_by_design()
        self.stands = f"The API works as {users.new}, and {users.old} is removed"
        done = f"the API works as {users.new}, {users.old} removed"
        if inp.dry_run:
            done = f"would have the API work as a new user, and remove {users.old}"
        self.announce("removed", f"{self.stage.name}: database user {users.old} is removed", done)
        said = await self.document(inp, (users.new,), done)
        return f"{done}; {said}"

    async def _see_it_gone(self, order: SwitchUser) -> None:
        self.enter_verifying()
        former = TestLogin(**order.model_dump(), as_old=True, refused=True)
        tried = await self.look("refused", DatabaseCredentials.login, former, policy.WATCH)
        if not tried.ok:
            raise self.stop(f"the old login is not refused: {tried.summary}", "NotRefused")
        said = await self._ready("ready-after")
        self.check("disabled", True, f"{tried.summary}; {said}")
