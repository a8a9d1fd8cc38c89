"""The grace of an ApiKeyRotation: clients are told, looked after and reminded, until the old keys can go."""

from __future__ import annotations

import re
from typing import Any

from temporalio import workflow

from activities.key_usage import KeyLog
from activities.messages import Announcement, Delivery, Mail
from activities.notifications import Notifications
from activities.rotation_models import UsageQuery
from activities.stage import ApiClient
from workflows import gates, policy, rotation_notices
from workflows.api_key_model import LATE_LINES, Acknowledge, ApiKeyRotationInput, KeyProgress
from workflows.details import length
from workflows.model import Kind, Scalar, State
from workflows.rotation import Rotation
from workflows.rotation_rules import (
    Clients,
    ClientState,
    due_reminder,
    moved,
    noted,
    reminded,
    stragglers,
    usage_known,
)
from workflows.runbook import Stopped


class KeyGrace(Rotation[ApiKeyRotationInput]):
    """The part of the rotation in which time passes and people act."""

    @workflow.init
    def __init__(self, *payload: Any) -> None:
        super().__init__(*payload)
        self.keys: KeyProgress | None = None
        if self.cursor is not None:
            self.keys = KeyProgress.model_validate(self.cursor)
            self.entry = self.keys.entry

    # --- clients ------------------------------------------------------------------------------------------------

    @property
    def registry(self) -> tuple[ApiClient, ...]:
        return self.stage.rotation.clients

    @property
    def progress_of_keys(self) -> KeyProgress:
        assert self.keys is not None, "the new keys come first"  # noqa: S101
        return self.keys

    async def tell_clients(self) -> None:
        keys = self.progress_of_keys
        for client in self.registry:
            new = keys.new.get(client.key, "?")
            title, text = rotation_notices.notice(
                self.stage.rotation, client, self.stage.name, new, keys.deadline, self.state.workflow_id
            )
            told = await self._tell(f"tell-{_slug(client.name)}", client, title, text)
            state = keys.clients.get(client.name) or ClientState(name=client.name)
            keys.clients[client.name] = state.model_copy(update={"told": told})
        self.announce(
            "new-keys",
            f"{self.stage.name} has new API keys; the old ones work until {keys.deadline:%Y-%m-%d %H:%M} UTC",
            "\n".join(f"• {client.name} ({client.owner}): {client.key}" for client in self.registry),
        )

    async def _tell(self, step_id: str, client: ApiClient, title: str, text: str) -> str | None:
        """By mail and in the client's own chat; returns who took it."""
        channels = self.stage.channels.model_copy(update={"chat": client.chat or self.stage.channels.chat})
        common = {"channels": channels, "title": title, "text": text, "links": self.links()}
        taken: list[str] = []
        who = f"Tell {client.owner}"
        if client.mail:
            mail = Mail(key=self.key(step_id), to=client.mail, **common)
            would = f"mail {client.owner}: {title}"
            taken += _took(await self.tell(step_id, Notifications.mail, mail, would=would, title=f"{who} by mail"))
        if client.chat or not client.mail:
            said = Announcement(key=self.key(f"{step_id}-chat"), **common)
            would = f"tell {client.owner} in chat: {title}"
            taken += _took(
                await self.tell(f"{step_id}-chat", Notifications.announce, said, would=would, title=f"{who} in chat")
            )
        if not taken and not self.inp.dry_run:
            self.say(f"{client.owner} could not be told about {client.name}'s key", level="warning")
        return ", ".join(taken) or None

    @workflow.signal(
        description='A client uses its new key now. Input: {"by": "your name", "client": "its registered name"}'
    )
    def acknowledge(self, *payload: Any) -> None:
        self._take("acknowledge", Acknowledge, payload, self._acknowledge)

    def _acknowledge(self, message: Acknowledge) -> None:
        clients = self.keys.clients if self.keys is not None else {}
        known = clients.get(message.client)
        if known is None or not known.registered:
            names = ", ".join(name for name, state in clients.items() if state.registered) or "none yet"
            raise gates.Refused(f"no registered client '{message.client}'; registered: {names}")
        clients[message.client] = known.model_copy(update={"acknowledged_by": message.by})
        self.say(f"acknowledges the new key of {message.client}", who=message.by, source="person")

    # --- the grace ----------------------------------------------------------------------------------------------

    async def grace(self, inp: ApiKeyRotationInput) -> None:
        keys = self.progress_of_keys
        await self.lend_stage()
        while inp.dry_run or keys.deadline > workflow.now():
            by_hand = await self.wait(
                "grace",
                keys.deadline - workflow.now(),
                "Grace: old and new keys both work",
                every=inp.look_every,
                watch=self._daily_look,
            )
            if by_hand or inp.dry_run:
                return
            if self.history_is_long and keys.deadline > workflow.now():
                keys.entry = self.entry
                await self.continue_as_new(lambda: keys.model_dump(mode="json"))

    async def _daily_look(self) -> bool:
        keys, inp = self.progress_of_keys, self.inp
        keys.deadline = next((wait.until for wait in self.state.waits if wait.id == "grace"), keys.deadline)
        before = stragglers(keys.clients, workflow.now(), inp.quiet)
        await self._look_at_usage()
        now = stragglers(keys.clients, workflow.now(), inp.quiet)
        if now != before:
            self.say(f"on old keys: {', '.join(now)}" if now else "nobody is on an old key any more")
        await self._remind()
        return self.history_is_long

    async def _look_at_usage(self) -> bool:
        """Read the log since the last look. False when it could not be read."""
        keys, now = self.progress_of_keys, workflow.now()
        every = (*keys.old, *keys.new.values())
        start = max(keys.added_at, keys.looked_until - LATE_LINES)
        asked = UsageQuery(stage=self.stage, keys=every, start=start, end=now)
        found = await self.observe("usage", KeyLog.look, asked, policy.SEARCH)
        if found is None:
            return False
        owners = keys.owners | {print_: role for role, print_ in keys.new.items()}
        keys.clients = noted(keys.clients, found.uses, self.registry, owners, keys.old)
        keys.looked_until, keys.named, keys.complete = now, keys.named + found.named, keys.complete and found.complete
        return True

    async def _remind(self) -> None:
        keys, inp = self.progress_of_keys, self.inp
        for name, state in list(keys.clients.items()):
            due = due_reminder(state, keys.deadline, workflow.now(), inp.reminders, inp.quiet)
            if due is None or state.last_old is None:
                continue
            left = keys.deadline - workflow.now()
            client = next((one for one in self.registry if one.name == name), None)
            known = client or ApiClient(name="unknown", owner="the team")
            title, text = rotation_notices.reminder(
                self.stage.rotation, known, self.stage.name, left, state.last_old, keys.deadline
            )
            if client is None:
                self.announce(
                    f"remind-{length(due)}", f"Who is {name}? It uses an old API key", text, severity="warning"
                )
            else:
                await self._tell(f"remind-{_slug(name)}-{length(due).replace(' ', '')}", client, title, text)
            self.say(f"reminded {name}, {length(left)} before the deadline")
            keys.clients[name] = reminded(keys.clients[name], due, inp.reminders)

    # --- the deadline -------------------------------------------------------------------------------------------

    async def last_call(self, inp: ApiKeyRotationInput) -> None:
        """Go on when the old keys are unused, or when people say that they go all the same."""
        keys = self.progress_of_keys
        while not inp.dry_run:
            read = await self._look_at_usage()
            behind = stragglers(keys.clients, workflow.now(), inp.quiet)
            if read and not behind and usage_known(keys.named, complete=keys.complete):
                self.say("nobody is on an old key: they are removed")
                return
            if await self._ask_to_remove(inp, behind, read):
                return
            await self.grace(inp)

    def _removal(self, behind: list[str], read: bool) -> dict[str, Scalar]:
        keys = self.progress_of_keys
        silent = not usage_known(keys.named, complete=keys.complete)
        unknown = "not known: " + ("no log line names a key" if read and silent else "the log could not be read")
        return {
            "stage": self.stage.name,
            "old keys": ", ".join(keys.old),
            "on old keys": ", ".join(behind) if behind else unknown if silent or not read else "nobody",
        }

    async def _ask_to_remove(self, inp: ApiKeyRotationInput, behind: list[str], read: bool) -> bool:
        """True when the old keys go; False when the grace is extended."""
        keys = self.progress_of_keys
        plan = self._removal(behind, read)

        async def look_again() -> dict[str, Scalar]:
            again = await self._look_at_usage()
            now = stragglers(keys.clients, workflow.now(), inp.quiet)
            return plan if set(now) <= set(behind) else self._removal(sorted({*behind, *now}), again)

        last = keys.extensions >= inp.max_extensions
        no = "No ends the run, both keys working" if last else f"No extends the grace by {length(inp.extension)}"
        question = f"Remove the old keys of {self.stage.name}, though they are in use? {no}"
        gate = "remove-in-use" if keys.extensions == 0 else f"remove-in-use-{keys.extensions + 1}"
        try:
            await self.gate(gate, question, plan, recheck=look_again, fallback=self.stage.gate("remove-in-use"))
            return True
        except Stopped as answer:
            if answer.type not in ("Rejected", "GateExpired"):
                raise
            if last:
                self.undone_by_design()
                self.stands = "Old and new keys both stay accepted; the next rotation removes them"
                raise self.stop(answer.message, "Rejected") from None
        keys.extensions += 1
        keys.deadline = workflow.now() + inp.extension
        step = self._find_step(gate, question, Kind.GATE)
        step.state, step.summary = State.DONE, f"no: extended until {keys.deadline:%Y-%m-%d %H:%M} UTC"
        self.facts |= {"deadline": keys.deadline.isoformat(), "extensions": keys.extensions}
        for name in behind:  # a later deadline, so the reminders count anew
            keys.clients[name] = keys.clients[name].model_copy(update={"reminded": ()})
        self.say(f"the grace is extended by {length(inp.extension)}, {keys.extensions} of {inp.max_extensions}")
        return False

    def clients_checked(self, clients: Clients, inp: ApiKeyRotationInput) -> None:
        behind = stragglers(clients, workflow.now(), inp.quiet)
        seen = {name for name, state in clients.items() if state.last_new and name not in behind}
        using = sorted({*moved(clients, workflow.now(), inp.quiet), *seen})
        missing = sorted(name for name, state in clients.items() if state.registered and name not in using)
        others = [name for name in behind if name not in missing]
        note = f"on their new key: {', '.join(using) or 'nobody'}"
        note += f"; not seen with it: {', '.join(missing)}" if missing else ""
        note += f"; removed by decision from {', '.join(others)}" if others else ""
        self.check("clients", bool(using) and not missing and not behind, note)
        self.facts["clients_moved"] = ", ".join(using)


def _took(delivery: Delivery | None) -> list[str]:
    return [delivery.delivered_by] if delivery and delivery.delivered_by else []


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:40] or "client"
