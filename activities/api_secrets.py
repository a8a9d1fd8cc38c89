"""A secret as the API reads it: where the deploy engine keeps it.

SST v3 and v4 keep secrets themselves; their command takes a value from its standard input and prints all of them when
asked. The other engines have none of their own: there the settings say where the API reads it (``ref``). SST v2's own
commands are not used: ``secrets set`` wants the value on its command line, and ``secrets load`` cuts a value off at its
second ``=``, which every connection string has. It keeps secrets as SSM parameters, which ``ref`` names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from activities import commands
from activities.errors import RENEWAL, lasting, passing
from activities.functions import Functions
from activities.secret_refs import SecretResolver
from activities.stage import RotatedSecret, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

_NONE_YET = "No secrets found"  # all that sst says, with exit code 1, of a stage that never had one


class ApiSecrets:
    def __init__(
        self,
        resolver: SecretResolver,
        functions: LambdaClient,
        poll: float = 0.5,
    ) -> None:
        self._resolver = resolver
        self._functions = Functions(functions)
        self._poll = poll

    def read(self, stage: Stage, secret: RotatedSecret) -> str:
        """The value that the next deployment gives to the API.

        Raises:
            SecretUnusable: there is none; or, retryable, because sst could not be asked.
        """
        if stage.deploy.engine != "sst":
            ref = _ref(stage, secret)
            self._resolver.forget(ref)
            return self._resolver.resolve(ref)
        directory = self._checkout(stage)
        code, output, complaint = commands.private(
            [commands.program("sst", directory), "secret", "list", "--stage", stage.name], directory
        )
        asked = f"'sst secret list --stage {stage.name}'"
        if code != 0 and _NONE_YET not in complaint:  # its credentials, or the network
            ended = "gave no answer" if code is None else f"failed with exit code {code}"
            raise passing(
                f"{asked} {ended}. Try it by hand, and renew the worker's AWS credentials",
                type="SecretUnusable",
                retry_after=RENEWAL,
            )
        found = dict(line.partition("=")[::2] for line in output.splitlines() if not line.startswith("#"))
        value = found.get(secret.name, "").strip()
        if not value:
            raise lasting(
                f"{asked} shows no value of {secret.name}. Set it once by hand, or correct its name in the settings",
                type="SecretUnusable",
            )
        return value

    def write(self, stage: Stage, secret: RotatedSecret, value: str) -> bool:
        """Set the value for the next deployment; false when it is set already.

        Raises:
            EmptySecret: sst would store it and report success.
            SecretNotSet: the command failed; retryable.
        """
        if not value.strip():
            raise lasting(f"an empty value for {secret.name} is refused", type="EmptySecret")
        if stage.deploy.engine != "sst":
            return self._write_ref(stage, secret, value)
        directory = self._checkout(stage)
        workspace = commands.Workspace(stage, self._poll)
        with workspace.alone():
            if self.read(stage, secret) == value:
                return False
            argv = [commands.program("sst", directory), "secret", "set", secret.name, "--stage", stage.name]
            ended = workspace.run(argv, directory, stage.deploy.timeout, f"setting {secret.name}", given=value)
        if ended.code != 0:
            raise passing(
                f"'sst secret set {secret.name} --stage {stage.name}' failed with exit code {ended.code}. "
                "Try it by hand with a value from standard input",
                type="SecretNotSet",
                retry_after=RENEWAL,
            )
        return True

    def _write_ref(self, stage: Stage, secret: RotatedSecret, value: str) -> bool:
        ref = _ref(stage, secret)
        self._resolver.forget(ref)
        if self._resolver.resolve(ref) == value:
            return False
        self._resolver.store(ref, value)
        return True

    def _checkout(self, stage: Stage) -> Path:
        """A folder with the application's sst.config.ts in it."""
        if stage.deploy.directory:
            return Path(stage.deploy.directory)
        release = self._functions.live(stage).release or ""
        problem = commands.missing(stage, release)
        if problem or not stage.deploy.releases:
            raise lasting(problem or "no checkout for sst", type="MissingArtifact")
        return Path(stage.deploy.releases) / release


def _ref(stage: Stage, secret: RotatedSecret) -> str:
    if secret.ref is None:
        raise lasting(
            f"the engine {stage.deploy.engine!r} of stage {stage.name} keeps no secrets. Say where the API reads "
            f"{secret.name}: 'ref' of the rotated secret",
            type="NotConfigured",
        )
    return secret.ref
