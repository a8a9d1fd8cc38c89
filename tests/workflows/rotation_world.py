"""A scripted world for ApiKeyRotation: an API with keys, clients that change theirs or do not, a log of who called."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from activities.deployment_models import DeployAgain, Deployed
from activities.locks import Locks
from activities.messages import Announcement, Attempt, Delivery, Mail
from activities.reports import RunRecord
from activities.rotation_models import (
    AcceptAgain,
    AcceptKeys,
    Entered,
    KeyOrder,
    KeysMade,
    KeysSeen,
    KeysSet,
    KeysVerified,
    KeyUsage,
    KeyUse,
    LastQuery,
    LastRotation,
    PairFound,
    PairQuery,
    Promoted,
    PromoteKeys,
    PutKeysBack,
    RotationEntry,
    UsageQuery,
    VerifyKeys,
)
from activities.schedules import NextRun, Scheduled, runs_of, schedule_id
from activities.stage import Role, Stage
from tests.workflows.bare_stage import bare_stage
from workflows.api_key_rotation import ApiKeyRotation
from workflows.model import RunbookResult

OLD: dict[Role, str] = {"primary": "aaaaaaaaaaa1", "backup": "aaaaaaaaaaa2", "internal": "aaaaaaaaaaa3"}
NEW: dict[Role, str] = {"primary": "bbbbbbbbbbb1", "backup": "bbbbbbbbbbb2", "internal": "bbbbbbbbbbb3"}
CLIENTS: dict[str, Role] = {"web": "primary", "app": "primary", "cron": "backup"}
NEVER = timedelta(days=1000)


@workflow.defn(name="ShortKeyHistories")
class ShortHistories(ApiKeyRotation):
    """A rotation that thinks its history long very soon."""

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    @property
    def history_is_long(self) -> bool:
        return workflow.info().get_current_history_length() > 60


class World:
    """Keys are known here by their fingerprints only.

    Args:
        moves: how long after the new keys are accepted each client begins to use its own; before, it uses the old one.
        every: how often a client calls.
    """

    def __init__(
        self,
        moves: Mapping[str, timedelta],
        *,
        production: bool = False,
        every: timedelta = timedelta(hours=6),
        **policies: Any,
    ) -> None:
        self.moves, self.every, self.production, self.policies = dict(moves), every, production, policies
        self.listed = list(OLD.values())
        """The list as it is set; ``live`` is the one that the API was last deployed with."""
        self.live = list(OLD.values())
        self.current = dict(OLD)
        self.accepted_at: datetime | None = None
        self.mails: list[tuple[datetime, str, str]] = []
        self.told: list[str] = []
        self.entries: dict[str, RotationEntry] = {}
        self.next: list[NextRun] = []
        self.looks: list[UsageQuery] = []
        self.deploys = 0
        self.registered = set(CLIENTS)
        self.blind = False
        self.unnamed = False
        self.deaf = False
        """Whether no mail is taken."""
        self.failing_deploy: int | None = None
        self.blocked: str | None = None
        self.blocked_for: timedelta | None = None
        self.seen: set[str] = set()
        self.answers: list[str] = []
        """What Bob answers at the gates, in order; after that nobody answers."""
        self.fail_after: str | None = None
        self.chat_held: asyncio.Event | None = None
        """Where set, the chat takes nothing until this is."""

    def did(self, name: str) -> None:
        if self.fail_after == name:
            self.fail_after = None
            raise ApplicationError(f"the worker died after {name}", type="Died")

    # --- keys ---------------------------------------------------------------------------------------------------

    @activity.defn(name="stages.resolve")
    async def resolve(self, name: str) -> Stage:
        return bare_stage(
            name,
            {
                "production": self.production and name != "staging",
                "rotation": {
                    "api_keys": {"name": "ApiKeys", "store": f"app/{name}/ApiKeys"},
                    "database": {"name": "MongoDBUri", "store": f"app/{name}/MongoDBUri"},
                    "signing": {"name": "JwtSecret", "store": f"app/{name}/JwtSecret"},
                    "tokens": {"life": "PT12H"},
                    "rehearse_on": "staging",
                    "guide": "https://guide",
                    "clients": [
                        {"name": client, "owner": f"owner of {client}", "key": role, "mail": [f"{client}@example.com"]}
                        for client, role in CLIENTS.items()
                        if client in self.registered
                    ],
                },
                "gates": {"default": {"approvals": 1, "remind_every": "PT12H"}},
                **self.policies,
            },
        )

    @activity.defn(name="api_keys.look")
    async def look(self, stage: Stage) -> KeysSeen:
        if stage.name not in self.seen:  # each stage has an API and keys of its own; they are rotated in turn
            self.seen.add(stage.name)
            self.listed, self.live, self.current = list(OLD.values()), list(OLD.values()), dict(OLD)
            self.accepted_at = None
        return KeysSeen(summary="3 keys", accepted=tuple(self.listed), roles=self.current)

    @activity.defn(name="api_keys.create")
    async def create(self, order: KeyOrder) -> KeysMade:
        self.did("api_keys.create")
        return KeysMade(summary="made", new=NEW, version="v")

    @activity.defn(name="api_keys.accept")
    async def accept(self, order: AcceptKeys) -> KeysSet:
        self.listed = [*NEW.values(), *(order.old if order.keep_old else ())]
        self.did("api_keys.accept")
        return KeysSet(summary=f"{len(self.listed)} keys", accepted=tuple(self.listed), changed=True)

    @activity.defn(name="deployments.again")
    async def again(self, order: DeployAgain) -> Deployed:
        self.deploys += 1
        if self.failing_deploy == self.deploys:
            raise ApplicationError("sst deploy failed with exit code 1", type="DeployFailed", non_retryable=True)
        self._deploy()
        self.did("deployments.again")
        return Deployed(
            summary="deployed",
            changed=True,
            version="2",
            code_sha256="x",
            started_at=_now(),
            finished_at=_now(),
            how="sst",
        )

    def _deploy(self) -> None:
        self.live = list(self.listed)
        if NEW["primary"] in self.live and self.accepted_at is None:
            self.accepted_at = _now()

    @activity.defn(name="api_keys.verify")
    async def verify(self, order: VerifyKeys) -> KeysVerified:
        new = {role: 200 if key in self.live else 401 for role, key in NEW.items()}
        old = {key: 200 if key in self.live else 401 for key in order.old}
        wanted = 200 if order.old_accepted else 401
        ok = set(new.values()) == {200} and set(old.values()) == {wanted}
        return KeysVerified(summary=f"{new} {old}", ok=ok, new=new, old=old)

    @activity.defn(name="api_keys.promote")
    async def promote(self, order: PromoteKeys) -> Promoted:
        self.current = dict(NEW)
        return Promoted(summary="current", version="v")

    @activity.defn(name="api_keys.put_back")
    async def put_back(self, order: PutKeysBack) -> KeysSet:
        self.listed, self.current = list(order.old), dict(OLD)
        self._deploy()
        self.did("api_keys.put_back")
        return KeysSet(summary="as before", accepted=tuple(self.listed), changed=True)

    @activity.defn(name="api_keys.accept_again")
    async def accept_again(self, order: AcceptAgain) -> KeysSet:
        self.listed = [*NEW.values(), *order.old]
        self._deploy()
        return KeysSet(summary="both", accepted=tuple(self.listed), changed=True)

    # --- who calls ----------------------------------------------------------------------------------------------

    @activity.defn(name="key_usage.look")
    async def usage(self, asked: UsageQuery) -> KeyUsage:
        self.looks.append(asked)
        if self.blind:
            raise ApplicationError("log group g does not exist", type="NoLog", non_retryable=True)
        if self.unnamed:
            return KeyUsage(summary="no line names a key")
        uses: dict[tuple[str, str], KeyUse] = {}
        for client, role in CLIENTS.items():
            change = self.accepted_at + self.moves.get(client, timedelta(0)) if self.accepted_at else None
            at = _first_call(asked.start, self.every)
            while at <= asked.end:
                key = NEW[role] if change and at >= change else OLD[role]
                if key in asked.keys:
                    known = uses.get((client, key))
                    uses[client, key] = KeyUse(key=key, client=client, uses=(known.uses if known else 0) + 1, last=at)
                at += self.every
        return KeyUsage(summary=f"{len(uses)} uses", uses=tuple(uses.values()), named=len(uses) + 1)

    # --- log, calendar, people ----------------------------------------------------------------------------------

    @activity.defn(name="rotation_log.enter")
    async def enter(self, entry: RotationEntry) -> Entered:
        self.entries[entry.run] = entry
        return Entered(summary=entry.status, location=f"s3://rotations/{entry.run}.json")

    @activity.defn(name="rotation_log.last")
    async def last(self, asked: LastQuery) -> LastRotation:
        done = [e for e in self.entries.values() if e.stage == asked.stage and e.status == "completed"]
        return LastRotation(summary="found" if done else "none", entry=done[-1] if done else None)

    @activity.defn(name="rotation_log.pair")
    async def pair(self, asked: PairQuery) -> PairFound:
        until = _now() + self.blocked_for if self.blocked_for else None
        return PairFound(summary=self.blocked or "free", blocked=self.blocked is not None, until=until)

    @activity.defn(name="schedules.next_run")
    async def next_run(self, wanted: NextRun) -> Scheduled:
        self.next.append(wanted)
        return Scheduled(summary="set", schedule=wanted.schedule, at=wanted.at)

    @activity.defn(name="notifications.announce")
    async def announce(self, message: Announcement) -> Delivery:
        self.told.append(message.title)
        if self.chat_held is not None:
            await self.chat_held.wait()
        if message.title.startswith("Waits for you") and self.answers:
            # Answered from here, because while an activity runs no time is skipped.
            run = activity.client().get_workflow_handle(activity.info().workflow_id or "")
            await run.signal(self.answers.pop(0), {"by": "bob", "reason": "as it was decided"})
        return Delivery(delivered_by="slack", attempts=(Attempt(provider="slack", ok=True, detail="HTTP 200"),))

    @activity.defn(name="notifications.mail")
    async def mail(self, mail: Mail) -> Delivery:
        if self.deaf:
            raise ApplicationError("nobody took it", type="NobodyTookIt")
        self.mails.append((_now(), mail.to[0], mail.title))
        return Delivery(delivered_by="ses", attempts=(Attempt(provider="ses", ok=True, detail="sent"),))

    @activity.defn(name="reports.write")
    async def write(self, record: RunRecord) -> dict[str, str]:
        return {"html": "s3://records/report.html"}


@contextlib.asynccontextmanager
async def working(client: Client, world: World, *extra: type) -> AsyncIterator[str]:
    queue = f"rotation-{uuid.uuid4()}"
    hosts: tuple[object, ...] = (world, Locks(client, queue))
    methods = [getattr(host, name) for host in hosts for name in dir(host)]
    activities = [method for method in methods if hasattr(method, "__temporal_activity_definition")]
    # The plugin of the client brings every other workflow with it.
    async with Worker(client, task_queue=queue, activities=activities, workflows=[ShortHistories, *extra]):
        yield queue


async def begin(client: Client, queue: str, runbook: str = "ApiKeyRotation", **inp: Any) -> WorkflowHandle[Any, Any]:
    given = {"stage": f"stage-{uuid.uuid4().hex[:8]}", "reason": "quarterly", "requested_by": "ann", **inp}
    return await client.start_workflow(runbook, given, id=f"keys-{uuid.uuid4()}", task_queue=queue)


async def begin_by_schedule(
    client: Client, queue: str, runbook: str = "ApiKeyRotation", **inp: Any
) -> WorkflowHandle[Any, Any]:
    """A run as the schedule of a stage of its own starts it."""
    stage = f"stage-{uuid.uuid4().hex[:8]}"
    given = {"stage": stage, "reason": "every 90 days", "requested_by": "schedule", **inp}
    name = f"{runs_of(schedule_id(runbook, stage))}-2026-03-01T09:00:00Z"
    return await client.start_workflow(runbook, given, id=name, task_queue=queue)


def _first_call(start: datetime, every: timedelta) -> datetime:
    seconds = every.total_seconds()
    return datetime.fromtimestamp(-(-start.timestamp() // seconds) * seconds, start.tzinfo)


def _now() -> datetime:
    """Server time: with time being skipped it is not this machine's."""
    return activity.info().started_time
