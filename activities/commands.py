"""Running a deploy command such as ``sst`` in a checkout of one release, so that it survives its worker.

The command runs in a session of its own and writes to a file, so a worker that is killed does not take the deployment
with it. It inherits a file lock, which the operating system frees when the command ends: the next attempt waits for
that before it looks at what is live, and never starts a second deployment beside the first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

from temporalio.exceptions import ApplicationError

from activities.errors import lasting
from activities.progress import pause
from activities.releases import ReleaseFacts
from activities.scrub import scrub
from activities.stage import Stage

_SAFE_RELEASE = re.compile(r"\w[\w.+/-]{0,199}")
_QUICK = 60.0
_LOOK = 0.1
_KILL_AFTER = 30.0
_TAIL = 20_000


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """Its exit code; ``None`` when it was ended because its time was over."""
    output: str
    """The end of what it printed, without secrets."""

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it printed nothing"


class Workspace:
    """The place on this machine where the commands of one stage run, one at a time."""

    def __init__(self, stage: Stage, poll: float) -> None:
        base = Path(tempfile.gettempdir()) / f"operational-runbooks-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.stat().st_uid != os.getuid():
            raise lasting(
                f"{base} belongs to another user. Remove it, or set TMPDIR for the worker", type="NoWorkspace"
            )
        self._stage = stage
        self._poll = poll
        self._folder = base / re.sub(r"[^\w.-]+", "-", f"{stage.deploy.app}-{stage.name}")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._lock: IO[bytes] | None = None
        self._running = False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no command of this stage runs on this machine, then keep others out."""
        with (self._folder / "lock").open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pause(self._poll, "waiting for a deployment of this stage that is still running")
            self._lock = lock
            try:
                yield
            finally:
                # A command that is left running keeps the lock through its own copy of the file. One that has ended
                # must not keep it through a process that it left behind.
                if not self._running:
                    fcntl.flock(lock, fcntl.LOCK_UN)
                self._lock = None

    @contextmanager
    def checkout(self, release: str) -> Iterator[Path]:
        """A folder with the release in it: its saved build, or a git worktree that is removed afterwards.

        Raises:
            MissingArtifact: neither is there.
        """
        policy = self._stage.deploy
        problem = missing(self._stage, release)
        if problem:
            raise lasting(problem, type="MissingArtifact")
        if policy.releases:
            yield Path(policy.releases) / release
            return
        source, tree = str(policy.directory), self._folder / "checkout"
        self._remove(source, tree)
        _git(source, "worktree", "add", "--quiet", "--force", "--detach", str(tree), f"{release}^{{commit}}")
        try:
            yield tree
        finally:
            if not self._running:
                self._remove(source, tree)

    def run(
        self, argv: list[str], directory: Path, timeout: timedelta, phase: str, *, given: str | None = None
    ) -> Ended:
        """Run a command to its end, with heartbeats.

        Args:
            given: what it reads from its standard input, such as a secret: handed over whole, in memory only.

        Raises:
            WorkerStopping: the worker stops; the command goes on without it.
        """
        assert self._lock is not None, "run() belongs inside alone()"  # noqa: S101
        log_path = self._folder / "output.log"
        with log_path.open("wb") as log, _in_memory(given) as source:
            process = subprocess.Popen(  # noqa: S603
                argv,
                cwd=directory,
                stdin=source,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self._lock.fileno(),),
            )
        self._running = True
        began = time.monotonic()
        while process.poll() is None:
            seconds = time.monotonic() - began
            if seconds > timeout.total_seconds():
                _end(process)
                self._running = False
                return Ended(code=None, output=_tail(log_path))
            pause(self._poll, phase, began=True, running_seconds=round(seconds))
        self._running = False
        return Ended(code=process.returncode, output=_tail(log_path))

    def _remove(self, source: str, tree: Path) -> None:
        shutil.rmtree(tree, ignore_errors=True)
        _git(source, "worktree", "prune")


def missing(stage: Stage, release: str) -> str | None:
    """Why a release cannot be built on this machine, as one line; ``None`` when it can."""
    if not _SAFE_RELEASE.fullmatch(release) or ".." in release:
        return f"{release!r} is no commit and no build id"
    policy = stage.deploy
    if policy.releases:
        if (Path(policy.releases) / release).is_dir():
            return None
        return f"there is no saved build {release} in {policy.releases}"
    if not policy.directory:
        return f"stage {stage.name!r} names neither deploy.directory nor deploy.releases to build {release} from"
    try:
        _git(policy.directory, "cat-file", "-e", f"{release}^{{commit}}")
    except ApplicationError:
        return f"there is no commit {release} in {policy.directory}. Fetch it there"
    return None


def quick(argv: list[str], directory: Path) -> Ended:
    """Run a command that answers soon, such as ``sst version``, with heartbeats while it does not."""
    give_up = time.monotonic() + _QUICK
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                if time.monotonic() > give_up:
                    return Ended(code=None, output=f"no answer within {_QUICK:.0f} s")
                pause(_LOOK, f"asking {Path(argv[0]).name}")
        finally:
            process.kill()
            process.wait()
        output.seek(max(0, output.seek(0, 2) - _TAIL))
        return Ended(code=process.returncode, output=scrub(output.read().decode(errors="replace")))


def private(argv: list[str], directory: Path) -> tuple[int | None, str, str]:
    """Run a command that prints secrets: its exit code, output and standard error, which went through memory only.

    The exit code is None after a minute.
    """
    give_up = time.monotonic() + _QUICK
    with _in_memory("") as output, _in_memory("") as error:
        process = subprocess.Popen(  # noqa: S603
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=error
        )
        try:
            while process.poll() is None:
                if time.monotonic() > give_up:
                    return None, "", ""
                pause(_LOOK, f"asking {Path(argv[0]).name}")
        finally:
            process.kill()
            process.wait()
        return process.returncode, _content(output), _content(error)


def _content(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(os.dup(handle), "rb") as stream:
        return stream.read().decode(errors="replace")


@contextmanager
def _in_memory(content: str | None) -> Iterator[int]:
    """A file without a name or place on disk, readable to whoever inherits it; without content it is /dev/null.

    Not a pipe: should this process be killed half-way, its reader would take the half for the whole.
    """
    if content is None:
        yield subprocess.DEVNULL
        return
    handle = os.memfd_create("operational-runbooks")
    try:
        os.fchmod(handle, 0o600)
        os.write(handle, content.encode())
        os.lseek(handle, 0, os.SEEK_SET)
        yield handle
    finally:
        os.close(handle)


def program(name: str, directory: Path) -> str:
    """The path of a command: the one that the release brings along, else the one on the worker's PATH.

    Raises:
        MissingEngine: there is neither.
    """
    local = directory / "node_modules" / ".bin" / name
    found = str(local) if local.exists() else shutil.which(name)
    if found is None:
        raise lasting(f"there is no command {name!r} on the worker's PATH. Install it there", type="MissingEngine")
    return found


def filled(template: tuple[str, ...], stage: Stage, release: ReleaseFacts) -> list[str]:
    """The argv of a command template. Each placeholder stays within its argument; no shell sees it.

    Raises:
        BadCommand: the template is empty, or names what is unknown here.
    """
    values: Mapping[str, str | None] = {"stage": stage.name, "release": release.release, "version": release.version}

    def value(found: re.Match[str]) -> str:
        known = values.get(found[1])
        if known is None:
            raise lasting(
                f"the command template of stage {stage.name!r} has {{{found[1]}}}, which is not known for "
                f"{release.name}. Placeholders are {{stage}}, {{release}} and {{version}}",
                type="BadCommand",
            )
        return known

    if not template:
        raise lasting(f"stage {stage.name!r} has no deploy.command. Name one as a list of arguments", type="BadCommand")
    return [re.sub(r"\{(\w+)\}", value, argument) for argument in template]


def _git(source: str, *arguments: str) -> None:
    done = quick(
        [program("git", Path(source)), "-C", source, *arguments], Path(source) if Path(source).is_dir() else Path()
    )
    if done.code != 0:
        raise lasting(f"git {arguments[0]} in {source} failed: {done.last_line}", type="GitFailed")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all it started: politely first, so that it can free its own lock."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_AFTER)
    with contextlib.suppress(ProcessLookupError):  # what ignored that, or was left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _TAIL))
        return scrub(log.read().decode(errors="replace"))
