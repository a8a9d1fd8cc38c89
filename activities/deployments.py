"""Deploying, going back, and knowing what is live.

Every change is absolute and safe to repeat: a worker that dies in the middle leaves a deployment that the next attempt
finds, waits for, and does not make a second time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from temporalio import activity

from activities.deployment_models import (
    AliasPointed,
    CheckTarget,
    Continued,
    DeployAgain,
    Deployed,
    DeployInput,
    FindTarget,
    Former,
    PointAlias,
    Recorded,
    RollbackTarget,
    TargetCheck,
)
from activities.engines import CloudFormation, Command, Engine
from activities.errors import classified, lasting
from activities.functions import Functions, Live
from activities.progress import earlier
from activities.records import DeployLedger, Records
from activities.releases import (
    LATEST,
    Choice,
    LedgerEntry,
    PublishedVersion,
    ReleaseFacts,
    Strategy,
    contradicts,
    is_live,
    named,
    previous_good,
    same_release,
)
from activities.stacks import HEALTHY, WORKING, Stacks, continuable
from activities.stage import Stage

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_lambda import LambdaClient

_CLOCK_SKEW = timedelta(seconds=5)


class Deployments:
    def __init__(
        self,
        cloudformation: CloudFormationClient,
        functions: LambdaClient,
        records: Records,
        poll: float = 2.0,
    ) -> None:
        """``poll`` is the time between two looks at something that is changing, in seconds."""
        self._cf = cloudformation
        self._poll = poll
        self._records = records
        self._ledger = DeployLedger(records)
        self._functions = Functions(functions)
        self._stacks = Stacks(cloudformation, poll)
        self._cloudformation = CloudFormation(cloudformation, self._stacks, records, self._functions, poll)

    @activity.defn(name="deployments.find_target")
    @classified("find the release to go back to")
    def find_target(self, wanted: FindTarget) -> RollbackTarget:
        """What is live now, and the release to go back to: the last good one before it, or the one that was named.

        The strategy ``cloudformation`` chooses nothing: CloudFormation itself goes back to what the stack had before
        the update that failed.

        Raises:
            NoTarget: there is no such release. The message says what to do.
            AlreadyLive: it is what runs now.
            NothingToContinue: strategy ``cloudformation`` and the stack is in no state to continue from.
        """
        stage = wanted.stage
        live = self._functions.live(stage)
        page = self._ledger.list(stage)
        current = self._known(live, page.entries)
        sources = {
            "current": f"alias {live.routing.alias}" if live.routing else f"{LATEST}: the function has no such alias",
        }
        notes = list(page.problems)
        if live.routing and live.routing.weights:
            notes.append(f"alias {live.routing.alias} splits its traffic: {live.routing.described()}")
        newest = next((entry for entry in page.entries if entry.status == "succeeded"), None)
        if newest and not is_live(newest.facts(), current, trust_name=True):
            notes.append(
                f"the deploy ledger says {newest.facts().name}, but {current.name} is live: "
                "it was changed outside of what records here"
            )
        if wanted.strategy == "cloudformation":
            status = self._stacks.get(stage)["StackStatus"]
            continuable(stage, status)
            target = newest.facts() if newest else ReleaseFacts()
            sources["target"] = "what the stack had before the update that failed"
        else:
            chosen = self._choose(wanted, current, page.entries)
            target, sources["target"] = chosen.release, chosen.source
            if chosen.recorded_good is False:
                notes.append(f"the deploy ledger does not record {target.name} as good")
        return RollbackTarget(
            summary=f"from {current.name} back to {target.name} ({sources['target']})",
            strategy=wanted.strategy,
            current=current,
            target=target,
            sources=sources,
            notes=tuple(notes),
        )

    @activity.defn(name="deployments.check_target")
    @classified("check the release to go back to")
    def check_target(self, asked: CheckTarget) -> TargetCheck:
        """Whether the release still exists, is unaltered, and was good when it was deployed. A "no" is no error."""
        stage, target = asked.stage, asked.target
        problems: list[str] = []
        if asked.strategy == "cloudformation":
            return TargetCheck(summary="CloudFormation keeps what it goes back to: nothing to check", ok=True)
        if asked.strategy == "alias":
            problems += self._version_problems(stage, target)
        else:
            problems += self._engine(stage, asked.strategy).problems(stage, target)
        if target.release:
            recorded = [e for e in self._ledger.list(stage).entries if same_release(e.release, target.release)]
            if recorded and not any(entry.status == "succeeded" for entry in recorded):
                problems.append(f"its deployment is recorded as {recorded[0].status.replace('_', ' ')}")
        if stage.stack and target.deployed_at:
            until = target.deployed_at + _CLOCK_SKEW
            ended = self._stacks.outcome_before(stage, until, within=stage.deploy.timeout)
            if ended and ended.status not in WORKING:
                problems.append(f"its deployment ended as {ended.status} ({ended.at:%Y-%m-%d %H:%M} UTC)")
        return TargetCheck(
            summary=f"{target.name}: " + ("; ".join(problems) if problems else "exists, unaltered, was good"),
            ok=not problems,
            problems=tuple(problems),
        )

    @activity.defn(name="deployments.capture")
    @classified("record what is live")
    def capture(self, stage: Stage) -> Former:
        """What is live now, in full. The stack's template goes to the records store, only its hash is in the result."""
        live = self._functions.live(stage)
        facts = self._known(live, self._ledger.list(stage).entries)
        status = None
        if stage.stack is not None:
            status = self._stacks.get(stage)["StackStatus"]
            digest, location = self._cloudformation.save(stage)
            facts = facts.model_copy(update={"template_sha256": digest, "template_location": location})
        routing = f", alias at {live.routing.described()}" if live.routing else ""
        return Former(summary=f"live is {facts.name}{routing}", live=facts, routing=live.routing, stack_status=status)

    @activity.defn(name="deployments.deploy", no_thread_cancel_exception=True)
    @classified("deploy")
    def deploy(self, order: DeployInput) -> Deployed:
        """Deploy one known release and say what is live afterwards.

        A deployment that has begun is waited for even when the run is cancelled: half of one is worse than either end.

        Raises:
            MissingArtifact, AlteredArtifact: what is to be deployed is gone or not what it was.
            DeployFailed: the engine failed; with its reason and the place of its whole output.
            DeployTimeout, StackTimeout: it took longer than ``deploy.timeout``.
            WrongRelease: the engine reports success, but another release is live.
        """
        return self._deployed(order)

    @activity.defn(name="deployments.again", no_thread_cancel_exception=True)
    @classified("deploy what is live once more")
    def again(self, order: DeployAgain) -> Deployed:
        """Deploy the live release once more, because its secrets have changed.

        Raises:
            CanaryUnderWay: traffic is split between two versions, and a deployment would end that.
            as for ``deploy``.
        """
        live = self._functions.live(order.stage)
        if live.routing is not None and live.routing.weights:
            raise lasting(
                f"alias {live.routing.alias} splits its traffic ({live.routing.described()}), and a deployment would "
                "end that. Promote the canary or take it back, then start again",
                type="CanaryUnderWay",
            )
        known = self._known(live, self._ledger.list(order.stage).entries)
        strategy: Strategy = "command" if order.stage.deploy.engine == "command" else "redeploy"
        return self._deployed(
            DeployInput(stage=order.stage, release=known, deployment_id=order.deployment_id, strategy=strategy),
            again=True,
        )

    def _deployed(self, order: DeployInput, *, again: bool = False) -> Deployed:
        stage = order.stage
        began = earlier().get("started_at")
        started = datetime.fromisoformat(began) if isinstance(began, str) else datetime.now(UTC)
        activity.heartbeat({"phase": "starting", **earlier(), "started_at": started.isoformat()})
        engine = self._engine(stage, order.strategy)
        outcome = (engine.again if again else engine.deploy)(stage, order.release, order.deployment_id)
        self._functions.settle(stage, self._poll)
        live = self._functions.live(stage)
        wanted = order.release
        if wanted.release and live.release and not same_release(wanted.release, live.release):
            raise lasting(
                f"{outcome.how}, but live is {live.facts().name} and not {wanted.name}. "
                "Look at the stage's alias, or use strategy 'alias'",
                type="WrongRelease",
            )
        as_recorded = live.code_sha256 == wanted.code_sha256 if wanted.code_sha256 else None
        finished = datetime.now(UTC)
        took = (finished - started).total_seconds()
        return Deployed(
            summary=f"{outcome.how}; live is {live.facts().name}, {took:.0f} s"
            + ("" if as_recorded is not False else "; its code differs from the recorded one"),
            changed=outcome.changed,
            release=live.release,
            version=live.version,
            code_sha256=live.code_sha256,
            as_recorded=as_recorded,
            stack_status=self._stacks.get(stage)["StackStatus"] if stage.stack else None,
            started_at=started,
            finished_at=finished,
            how=outcome.how,
            log_location=outcome.log_location,
        )

    @activity.defn(name="deployments.point_alias")
    @classified("point the alias at another version")
    def point_alias(self, order: PointAlias) -> AliasPointed:
        """Send the alias's traffic to exactly what is asked for. Weights that are not named are removed.

        Raises:
            NoAlias, NoVersion: it does not exist.
            AliasMoved: the alias points neither where it was expected nor where it is wanted.
            AliasBusy: somebody changed it between the look and the change (retryable: the next attempt looks again).
        """
        stage = order.stage
        routing = self._functions.routing(stage)
        if routing is None:
            raise lasting(
                f"{stage.function} has no alias {stage.alias!r}. "
                "Correct the stage's 'alias', or use strategy 'redeploy'",
                type="NoAlias",
            )
        versions = {order.version, *order.weights}
        found = {version: self._functions.version(stage, version) for version in versions}
        gone = sorted(version for version, known in found.items() if known is None)
        if gone:
            raise lasting(
                f"{stage.function} has no version {', '.join(gone)} (any more). "
                "Name another, or use strategy 'redeploy'",
                type="NoVersion",
            )
        wanted = routing.model_copy(update={"version": order.version, "weights": order.weights})
        target = found[order.version]
        release = target.release if target else None
        changed = wanted != routing
        if changed:
            if order.expect_version is not None and routing.version not in (order.expect_version, order.version):
                raise lasting(
                    f"alias {routing.alias} points at version {routing.version} and no longer at "
                    f"{order.expect_version}: somebody changed it. Look at it and start again",
                    type="AliasMoved",
                )
            self._functions.point(stage, wanted)
        return AliasPointed(
            summary=f"alias {routing.alias}: {wanted.described()}"
            + (f", before {routing.described()}" if changed else " already"),
            changed=changed,
            alias=routing.alias,
            version=order.version,
            former_version=routing.version,
            weights=order.weights,
            release=release,
        )

    @activity.defn(name="deployments.continue_rollback", no_thread_cancel_exception=True)
    @classified("continue the stack's roll-back")
    def continue_rollback(self, stage: Stage) -> Continued:
        """Let CloudFormation finish a roll-back that failed, and wait for it.

        CloudFormation continues only from ``UPDATE_ROLLBACK_FAILED``. No resource is skipped: that leaves the stack
        unlike its template, and is a person's decision.

        Raises:
            NothingToContinue: the stack is in another state; the message says what to use instead.
            DeployFailed: it failed again, with the resource and the reason.
        """
        timeout = stage.deploy.timeout
        status: str = self._stacks.get(stage)["StackStatus"]
        again = activity.info().attempt > 1
        if status.endswith("IN_PROGRESS"):
            continuable(stage, status)
            status = self._stacks.settle(stage, timeout, f"waiting for the roll-back under way on {stage.stack}")
            again = True
        if again and status == "UPDATE_ROLLBACK_COMPLETE":
            return Continued(summary=f"the roll-back of {stage.stack} is complete", status=status)
        continuable(stage, status)
        self._cf.continue_update_rollback(StackName=self._stacks.name(stage))
        status = self._stacks.settle(stage, timeout, f"continuing the roll-back of {stage.stack}")
        if status not in HEALTHY:
            reason = self._stacks.failure(stage, rolling_back=True)
            raise lasting(
                f"the roll-back of {stage.stack} failed again ({status}): {reason}. "
                "Mend that resource and start again, or skip it in the CloudFormation console",
                type="DeployFailed",
            )
        return Continued(summary=f"the roll-back of {stage.stack} is complete", status=status)

    @activity.defn(name="deployments.record")
    @classified("write to the deploy ledger")
    def record(self, entry: LedgerEntry) -> Recorded:
        """Add a deployment to the ledger; the same entry again changes nothing."""
        location = self._ledger.append(entry)
        return Recorded(
            summary=f"deploy ledger: {entry.kind} of {entry.facts().name} {entry.status}", location=location
        )

    def _engine(self, stage: Stage, strategy: Strategy) -> Engine:
        template = strategy == "command" or stage.deploy.engine == "command"
        if not template and stage.deploy.engine == "cloudformation":
            return self._cloudformation
        return Command(self._functions, self._stacks, self._records, self._poll, template=template)

    def _choose(self, wanted: FindTarget, current: ReleaseFacts, entries: tuple[LedgerEntry, ...]) -> Choice:
        versions = self._functions.published(wanted.stage)
        if wanted.to is None:
            chosen = previous_good(current, entries, versions, wanted.strategy)
            if chosen is None:
                raise lasting(
                    f"nothing is known to have been good before {current.name}: {len(entries)} deployments in the "
                    f"ledger, {len(versions)} published versions. Say where to go with 'to': a commit, a label or a "
                    "version",
                    type="NoTarget",
                )
            return chosen
        chosen = named(wanted.to, entries, versions, wanted.strategy)
        if chosen is None or (wanted.strategy == "alias" and chosen.release.version is None):
            known = ", ".join(version.version for version in versions[-10:]) or "none"
            raise lasting(
                f"no published version of {wanted.stage.function} is {wanted.to!r}. Published versions: {known}. "
                "Name one of them, or use strategy 'redeploy'",
                type="NoTarget",
            )
        same_version = chosen.release.version == current.version
        if is_live(chosen.release, current) and (same_version or wanted.strategy != "alias"):
            raise lasting(f"{chosen.release.name} is live already. Name another one", type="AlreadyLive")
        return chosen

    @staticmethod
    def _known(live: Live, entries: tuple[LedgerEntry, ...]) -> ReleaseFacts:
        """What is live, with what the ledger adds to it."""
        facts = live.facts()
        for entry in entries:
            if entry.status == "succeeded" and is_live(entry.facts(), facts, trust_name=True):
                recorded = entry.facts().model_dump()
                own = {name: value for name, value in facts.model_dump().items() if value is not None}
                return ReleaseFacts.model_validate({**recorded, **own})
        return facts

    def _version_problems(self, stage: Stage, target: ReleaseFacts) -> list[str]:
        if target.version is None:
            return ["it has no published version that an alias could point at"]
        found: PublishedVersion | None = self._functions.version(stage, target.version)
        if found is None:
            return [f"version {target.version} of {stage.function} is gone"]
        if contradicts(target, found.facts()):
            return [f"version {target.version} of {stage.function} runs other code than {target.name} did"]
        return []
