"""How a release is deployed: one adapter an engine, chosen by the stage's settings.

No engine has a command that goes back by itself: ``sst deploy --prior-deployment`` exists in no version (v3 and v4
print their usage, v2 ignores the flag and deploys whatever is checked out), and CloudFormation keeps no earlier
template. So each adapter deploys a *known* release, and deploying the same one twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict

import botocore.exceptions
from temporalio import activity

from activities import commands
from activities.errors import lasting, passing
from activities.functions import RESTARTED_VARIABLE, Functions
from activities.progress import earlier
from activities.records import Records
from activities.releases import ReleaseFacts, is_live
from activities.stacks import WORKING, Stacks
from activities.stage import Stage

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_cloudformation.type_defs import ParameterTypeDef

_BODY_LIMIT = 51_200
"""Bytes of a template that fit into the call itself; a longer one is read by CloudFormation from S3."""

_MASKED = "****"
"""What CloudFormation shows instead of the value of a NoEcho parameter."""


class _Source(TypedDict, total=False):
    TemplateBody: str
    TemplateURL: str


@dataclass(frozen=True)
class Outcome:
    """What a deployment did."""

    changed: bool
    how: str
    log_location: str | None = None


class Engine(Protocol):
    def problems(self, stage: Stage, release: ReleaseFacts) -> list[str]:
        """Why the release cannot be deployed now, one line each; empty when it can."""

    def deploy(self, stage: Stage, release: ReleaseFacts, deployment_id: str) -> Outcome:
        """Deploy the release; safe to repeat with the same ``deployment_id``."""

    def again(self, stage: Stage, release: ReleaseFacts, deployment_id: str) -> Outcome:
        """Deploy what is live once more, so that every environment reads its secrets anew; safe to repeat."""


class CloudFormation:
    """Updates the stack with the template that was saved when the release was deployed."""

    def __init__(
        self,
        cloudformation: CloudFormationClient,
        stacks: Stacks,
        records: Records,
        functions: Functions,
        poll: float,
    ) -> None:
        self._cf = cloudformation
        self._stacks = stacks
        self._records = records
        self._functions = functions
        self._poll = poll

    def again(self, stage: Stage, _release: ReleaseFacts, deployment_id: str) -> Outcome:
        # The same template is no update, so it is the function itself that is started anew.
        if problem := self._functions.reissue_problem(stage, self._functions.live(stage)):
            raise problem
        mark: dict[str, str | None] = {RESTARTED_VARIABLE: client_token(deployment_id)}
        version, changed = self._functions.reissue(stage, self._poll, variables=mark)
        return Outcome(changed=changed, how=f"started {stage.function} anew as version {version}")

    def problems(self, stage: Stage, release: ReleaseFacts) -> list[str]:
        found: list[str] = []
        if release.template_location is None:
            found.append("its template was not saved, and CloudFormation keeps no earlier one")
        else:
            found += altered(self._records, "template", release.template_location, release.template_sha256)
        if release.code_location is not None:
            found += altered(self._records, "code package", release.code_location, release.code_sha256)
        return found

    def deploy(self, stage: Stage, release: ReleaseFacts, deployment_id: str) -> Outcome:
        name, timeout, token = self._stacks.name(stage), stage.deploy.timeout, client_token(deployment_id)
        state = self._stacks.settle(stage, timeout, f"waiting for the operation under way on {name}")
        if any(event.token == token for event in self._stacks.events(stage)):
            self._must_work(stage, state, token)
            return Outcome(changed=True, how=f"updated stack {name} (begun by an earlier attempt)")
        if state == "UPDATE_ROLLBACK_FAILED":
            raise lasting(
                f"{name} is UPDATE_ROLLBACK_FAILED and takes no update. Finish its roll-back first: "
                "strategy 'cloudformation'",
                type="StackRollbackFailed",
            )
        body = self._template(release)
        try:
            self._cf.update_stack(
                StackName=name,
                **self._source(release, body),
                Parameters=self._parameters(stage, release, body),
                Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND"],
                ClientRequestToken=token,
            )
        except botocore.exceptions.ClientError as error:
            text = str(error)
            if "No updates are to be performed" in text:
                return Outcome(changed=False, how=f"stack {name} is as this template says already")
            if "_IN_PROGRESS" in text:
                raise passing(f"somebody began another operation on {name}; waiting for it", type="StackBusy") from None
            raise
        state = self._stacks.settle(stage, timeout, f"updating stack {name}")
        self._must_work(stage, state, token)
        return Outcome(changed=True, how=f"updated stack {name} with the template of {release.name}")

    def save(self, stage: Stage) -> tuple[str, str]:
        """Keep the stack's template and parameters in the records store; returns the hash and the location."""
        body = self._stacks.template(stage).encode()
        values = {
            parameter["ParameterKey"]: parameter["ParameterValue"]
            for parameter in self._stacks.get(stage).get("Parameters", [])
            if parameter.get("ParameterValue", _MASKED) != _MASKED
        }
        parameters = json.dumps(values, sort_keys=True).encode()
        digest = hashlib.sha256(body + b"\0" + parameters).hexdigest()
        self._records.store(f"stacks/{stage.name}/{digest}/parameters.json", parameters, "application/json")
        location = self._records.store(f"stacks/{stage.name}/{digest}/template", body, "text/plain")
        return hashlib.sha256(body).hexdigest(), location

    def _template(self, release: ReleaseFacts) -> str:
        if release.template_location is None:
            raise lasting(
                f"the template of {release.name} was not saved and CloudFormation keeps no earlier one. "
                "Name another release, or use strategy 'alias'",
                type="MissingArtifact",
            )
        body = self._records.fetch(release.template_location)
        if body is None:
            raise lasting(
                f"the template of {release.name} is gone: {release.template_location}", type="MissingArtifact"
            )
        if release.template_sha256 and hashlib.sha256(body).hexdigest() != release.template_sha256:
            raise lasting(
                f"the template of {release.name} was altered since it was saved: {release.template_location}. "
                "Name another release, or restore the object",
                type="AlteredArtifact",
            )
        return body.decode()

    def _source(self, release: ReleaseFacts, body: str) -> _Source:
        if len(body.encode()) <= _BODY_LIMIT:
            return {"TemplateBody": body}
        return {"TemplateURL": self._records.url(str(release.template_location))}

    def _values(self, release: ReleaseFacts) -> dict[str, str]:
        """Parameter values that were saved with the template. They stay in the store: a value may be private."""
        location = str(release.template_location)
        if not location.startswith(self._records.location("stacks/")):
            return {}
        content = self._records.fetch(location.rpartition("/")[0] + "/parameters.json")
        return dict(json.loads(content)) if content else {}

    def _parameters(self, stage: Stage, release: ReleaseFacts, body: str) -> list[ParameterTypeDef]:
        """Saved values first, then what the stack has now, then the template's own defaults."""
        saved = self._values(release)
        present = {parameter["ParameterKey"] for parameter in self._stacks.get(stage).get("Parameters", [])}
        if not saved and not present:
            return []
        declared = self._cf.get_template_summary(**self._source(release, body))
        chosen: list[ParameterTypeDef] = []
        for parameter in declared.get("Parameters", []):
            key = parameter["ParameterKey"]
            if key in saved:
                chosen.append({"ParameterKey": key, "ParameterValue": saved[key]})
            elif key in present:
                chosen.append({"ParameterKey": key, "UsePreviousValue": True})
        return chosen

    def _must_work(self, stage: Stage, state: str, token: str) -> None:
        if state in WORKING:
            return
        remedy = (
            "Its roll-back failed too: mend the resource, then use strategy 'cloudformation'"
            if state == "UPDATE_ROLLBACK_FAILED"
            else "CloudFormation put everything back as it was. Mend the cause and start again"
        )
        raise lasting(
            f"the update of {stage.stack} failed ({state}): {self._stacks.failure(stage, token)}. {remedy}",
            type="DeployFailed",
        )


class Command:
    """Runs the engine's own command in a checkout of the release: SST of any version, or a template of arguments."""

    def __init__(self, functions: Functions, stacks: Stacks, records: Records, poll: float, *, template: bool) -> None:
        """``template`` runs the stage's ``deploy.command``; otherwise ``sst deploy``."""
        self._functions = functions
        self._stacks = stacks
        self._records = records
        self._poll = poll
        self._template = template

    def problems(self, stage: Stage, release: ReleaseFacts) -> list[str]:
        policy = stage.deploy
        if self._template and not policy.releases:
            return []  # such a command fetches what it needs by itself
        if release.release is None:
            return ["its commit or build id is not known"]
        problem = commands.missing(stage, release.release)
        return [problem] if problem else []

    def deploy(self, stage: Stage, release: ReleaseFacts, deployment_id: str) -> Outcome:
        if self._template:
            commands.filled(stage.deploy.command, stage, release)  # refuse a bad template before anything else
        elif release.release is None:
            raise lasting(
                f"the commit of {release.name} is not known, so sst cannot build it. Name the release by its commit",
                type="MissingArtifact",
            )
        workspace = commands.Workspace(stage, self._poll)
        with workspace.alone():
            self._at_rest(stage)
            again = activity.info().attempt > 1
            live = self._functions.live(stage)
            split = live.routing is not None and bool(live.routing.weights)
            if is_live(release, live.facts(), trust_name=again) and not split:
                began = bool(earlier().get("began"))
                how = "deployed by an earlier attempt" if began else "it was live already"
                return Outcome(changed=began, how=how)
            return self._run(workspace, stage, release, deployment_id)

    def again(self, stage: Stage, release: ReleaseFacts, deployment_id: str) -> Outcome:
        workspace = commands.Workspace(stage, self._poll)
        with workspace.alone():
            self._at_rest(stage)
            return self._run(workspace, stage, release, deployment_id)

    def _run(self, workspace: commands.Workspace, stage: Stage, release: ReleaseFacts, deployment_id: str) -> Outcome:
        if self._template:
            outcome = self._run_template(workspace, stage, release, deployment_id)
        elif release.release is None:
            raise lasting(
                f"the commit of {release.name} is not known, so sst cannot build it. Name the release by its commit",
                type="MissingArtifact",
            )
        else:
            outcome = self._run_sst(workspace, stage, release.release, deployment_id)
        self._at_rest(stage)
        return outcome

    def _at_rest(self, stage: Stage) -> None:
        if stage.stack is not None:
            self._stacks.settle(stage, stage.deploy.timeout, f"waiting for the operation under way on {stage.stack}")
        self._functions.settle(stage, self._poll)

    def _run_sst(self, workspace: commands.Workspace, stage: Stage, release: str, deployment_id: str) -> Outcome:
        with workspace.checkout(release) as directory:
            if stage.deploy.prepare:
                argv = [commands.program(stage.deploy.prepare[0], directory), *stage.deploy.prepare[1:]]
                self._must_succeed(
                    workspace, argv, directory, stage, f"{deployment_id}-prepare", "preparing the checkout"
                )
            sst = commands.program("sst", directory)
            version = self._sst_version(sst, directory, stage)
            argv = [sst, "deploy", "--stage", stage.name]
            location = self._must_succeed(workspace, argv, directory, stage, deployment_id, "sst deploy")
        return Outcome(changed=True, how=f"sst {version} deploy of {release[:12]}", log_location=location)

    def _run_template(
        self, workspace: commands.Workspace, stage: Stage, release: ReleaseFacts, deployment_id: str
    ) -> Outcome:
        policy = stage.deploy
        name, *arguments = commands.filled(policy.command, stage, release)
        if "--prior-deployment" in arguments and "sst" in (Path(name).name, *arguments[:1]):
            raise lasting(
                "'sst deploy --prior-deployment' exists in no version of SST, and v2 would deploy what is checked out "
                "now. Use strategy 'redeploy', or name a wrapper of your own that is not called sst",
                type="BadCommand",
            )
        directory = Path(policy.directory or ".")
        if policy.releases and release.release:
            problem = commands.missing(stage, release.release)
            if problem:
                raise lasting(problem, type="MissingArtifact")
            directory = Path(policy.releases) / release.release
        argv = [commands.program(name, directory), *arguments]
        location = self._must_succeed(workspace, argv, directory, stage, deployment_id, f"running {Path(name).name}")
        return Outcome(changed=True, how=f"ran {Path(name).name} for {release.name}", log_location=location)

    def _sst_version(self, sst: str, directory: Path, stage: Stage) -> str:
        """Ask the engine which one it is, because the versions deploy in different ways to different places."""
        answer = commands.quick([sst, "version"], directory)
        found = re.search(r"(\d+)\.\d+\.\d+\S*", answer.output)
        if answer.code != 0 or found is None:
            raise lasting(
                f"'sst version' does not answer: {answer.last_line}. Mend SST on the worker", type="MissingEngine"
            )
        engine = "sst-v2" if int(found[1]) <= 2 else "sst"
        if engine != stage.deploy.engine:
            raise lasting(
                f"this is sst {found[0]}, but stage {stage.name!r} says engine {stage.deploy.engine!r}. "
                f"Set deploy.engine to {engine!r}, or install the right version",
                type="WrongEngine",
            )
        return found[0]

    def _must_succeed(
        self, workspace: commands.Workspace, argv: list[str], directory: Path, stage: Stage, log_id: str, phase: str
    ) -> str:
        """Run a command, keep its output in the records store, and let its exit code decide."""
        ended = workspace.run(argv, directory, stage.deploy.timeout, phase)
        key = f"deploys/{stage.name}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', log_id)}.log"
        location = self._records.store(key, ended.output.encode(), "text/plain; charset=utf-8")
        if ended.code is None:
            raise lasting(
                f"{phase} was ended after {stage.deploy.timeout}. Its output is in {location}", type="DeployTimeout"
            )
        if ended.code != 0:
            raise lasting(
                f"{phase} failed with exit code {ended.code}: {ended.last_line}. Its output is in {location}",
                type="DeployFailed",
            )
        return location


def altered(records: Records, what: str, location: str, recorded: str | None) -> list[str]:
    """Whether the object at a location is gone or is not what was recorded, as at most one line."""
    digest = records.digest(location)
    if digest is None:
        return [f"its {what} is gone: {location}"]
    if recorded is None:
        return []
    known = ReleaseFacts(code_sha256=digest.hex()).code_sha256
    if recorded not in (digest.hex(), known):
        return [f"its {what} was altered since it was deployed: {location}"]
    return []


def client_token(deployment_id: str) -> str:
    """CloudFormation's idempotence token for a deployment, from an id that may have any characters and length."""
    return "runbooks-" + hashlib.sha256(deployment_id.encode()).hexdigest()[:32]
