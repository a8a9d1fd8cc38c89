"""Lambda execution environments: one process each, kept warm, measured, and logged line by line.

ministack's worker kills its process after an error, adds its own start to the duration, stamps all output with the end
of the invocation and reports the memory of whichever child used most. On AWS an error leaves the environment warm,
``Duration`` excludes ``Init Duration``, and each environment writes its own log stream.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ministack.core import lambda_runtime as runtime

from sandbox.aws import forking


@dataclass(frozen=True)
class Failure:
    """Why an invocation failed, as the caller reads it in the payload."""

    type: str
    message: str
    trace: str = ""


@dataclass
class Outcome:
    """One invocation. Times are epoch seconds, durations milliseconds."""

    started: float
    duration_ms: float = 0.0
    init_ms: float | None = None
    memory_mb: int = 0
    value: Any = None
    failure: Failure | None = None
    output: list[tuple[int, str]] | None = None
    """What the function wrote, with the epoch milliseconds of each line."""


class Environment(runtime.Worker):  # type: ignore[misc]  # ministack is untyped
    """One process that runs one version of one function, an invocation at a time."""

    _proc: subprocess.Popen[str] | None
    provisioned = False
    """It was started for provisioned concurrency: it stays, however long nobody calls."""

    def __init__(self, func_name: str, config: dict[str, Any], code_zip: bytes) -> None:
        super().__init__(func_name, config, code_zip)
        today = datetime.now(UTC).strftime("%Y/%m/%d")
        self.log_stream = f"{today}/[{config.get('Version', '$LATEST')}]{uuid.uuid4().hex}"
        self.retired = False
        """The function was updated meanwhile: finish the invocation, then stop."""
        self.ready = False
        """Its process has started and is initialised. ministack's ``_proc`` is set long before that."""
        self._output: list[tuple[float, bytes]] = []
        self._output_lock = threading.Lock()

    @property
    def last_used(self) -> float:
        """By this ministack takes environments away that have stood idle."""
        return time.time() if self.provisioned else self._last_used

    @last_used.setter
    def last_used(self, at: float) -> None:
        self._last_used = at

    def start(self) -> None:
        """Start the process before there is a call for it. Whoever calls first then waits for no start.

        Raises:
            RuntimeError: the function's own start failed.
        """
        with self._lock:
            self._spawn()
            self.ready = True

    def run(self, event: Any, context: dict[str, Any]) -> Outcome:
        """Run one invocation, starting the process first when there is none."""
        with self._lock:
            outcome = Outcome(started=time.time())
            if self._proc is None or self._proc.poll() is not None:
                self.ready = False
                begin = time.monotonic()
                try:
                    self._spawn()
                except RuntimeError as error:
                    outcome.failure = Failure("Runtime.ImportModuleError", str(error))
                    outcome.output = self._lines()
                    self._stop()
                    return outcome
                outcome.init_ms = (time.monotonic() - begin) * 1000
                self.ready = True
                with _changed:
                    _changed.notify_all()
            self._exchange(self._process(), {"event": event, "ctx": context}, outcome)
            self._judge_memory(self._process().pid, outcome)
            outcome.output = self._lines()
            if outcome.failure and outcome.failure.type in ("Sandbox.Timedout", "Runtime.ExitError"):
                self._stop()
            return outcome

    def _process(self) -> subprocess.Popen[str]:
        assert self._proc is not None  # started by _spawn()
        return self._proc

    def _exchange(self, process: subprocess.Popen[str], envelope: dict[str, Any], outcome: Outcome) -> None:
        assert process.stdin is not None
        timeout, overdue = float(self.config.get("Timeout", 3)), threading.Event()

        def end() -> None:
            overdue.set()
            process.kill()

        killer = threading.Timer(timeout, end)
        killer.daemon = True
        begin = time.monotonic()
        killer.start()
        try:
            process.stdin.write(json.dumps(envelope) + "\n")
            process.stdin.flush()
            answer = self._answer(process)
        except OSError:
            answer = None
        finally:
            killer.cancel()
        elapsed = time.monotonic() - begin
        outcome.duration_ms = elapsed * 1000
        if answer is None and overdue.is_set():
            outcome.duration_ms = timeout * 1000
            outcome.failure = Failure("Sandbox.Timedout", f"Task timed out after {timeout:.2f} seconds")
        elif answer is None:
            outcome.failure = Failure("Runtime.ExitError", "Runtime exited without providing a reason")
        elif answer["status"] == "ok":
            outcome.value = answer.get("result")
        else:
            trace = answer.get("trace", "")
            last_line = trace.strip().rsplit("\n", 1)[-1]
            error_type = last_line.split(":", 1)[0].rsplit(".", 1)[-1] or "Exception"
            outcome.failure = Failure(error_type, str(answer.get("error", "")), trace)

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> dict[str, Any] | None:
        """The worker's one line of JSON; None when the process ends first. Other lines are not the worker's."""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if answer.get("status") in ("ok", "error"):
                    return dict(answer)
        return None

    def _judge_memory(self, pid: int, outcome: Outcome) -> None:
        """Lambda ends an environment that outgrows its memory. Here that is seen after the invocation."""
        limit = int(self.config.get("MemorySize", 128))
        used = _peak_memory_mb(pid)
        outcome.memory_mb = min(used, limit)
        if used > limit and outcome.failure is None:
            outcome.value = None
            outcome.failure = Failure("Runtime.ExitError", "Runtime exited with error: signal: killed")

    def _stop(self) -> None:
        process, self._proc = self._proc, None
        if process is not None:
            process.kill()
            process.wait()

    # --- output ---

    def _read_stderr(self) -> None:
        """Runs on a thread of its own for as long as the process lives, so that a full pipe never blocks it."""
        descriptor = self._stderr()
        while _readable(descriptor, None) and self._take(descriptor):
            pass

    def _stderr(self) -> int:
        stderr = self._process().stderr
        assert stderr is not None
        return stderr.fileno()

    def _take(self, descriptor: int) -> bool:
        with self._output_lock:
            if not _readable(descriptor, 0):
                return True  # the other thread was faster
            data = os.read(descriptor, 65536)
            if data:
                self._output.append((time.time(), data))
            return bool(data)

    def _lines(self) -> list[tuple[int, str]]:
        """What was written since the last call. All of it: what the function wrote is in the pipe by now."""
        if self._proc is not None:
            descriptor = self._stderr()
            while _readable(descriptor, 0) and self._take(descriptor):
                pass
        with self._output_lock:
            chunks, self._output = self._output, []
        lines: list[tuple[int, str]] = []
        rest = b""
        for at, data in chunks:
            *whole, rest = (rest + data).split(b"\n")
            lines += [(int(at * 1000), line.decode(errors="replace")) for line in whole]
        if rest:
            lines.append((int(chunks[-1][0] * 1000), rest.decode(errors="replace")))
        return [(at, line) for at, line in lines if line.strip()]


STARTING_AT_ONCE = 2
"""Environments of one version that start at the same time. This is one machine: more would slow each other, and
everything else, down. What arrives meanwhile takes the first that is free."""

MOST = 12
"""Environments of one version. AWS has a thousand; here a database that hangs would fill the machine with processes."""

PROVISIONED = "provisioned-concurrency"
"""What Lambda tells an environment that was started before there was a call."""

PATIENCE_S = 0.3
"""How long an invocation waits for a warm environment to be free before one is started for it."""

_changed = threading.Condition()
"""Notified when an environment has started or is free again."""


def lease(name: str, config: dict[str, Any], code: bytes, version: str) -> Any:
    """A free environment of this version, or a new one; waits while enough of them are starting."""
    began = time.monotonic()
    with _changed:
        while True:
            with runtime._lock:
                pool = list(runtime._workers.get(runtime._worker_key(name, config, version), []))
            free = any(not one.in_use for one in pool)
            starting = sum(one.in_use and not one.ready for one in pool)
            patient = len(pool) > starting and time.monotonic() - began < PATIENCE_S
            if free or (starting < STARTING_AT_ONCE and len(pool) < MOST and not patient):
                environment, _ = runtime.acquire_worker(name, config, code, qualifier=version)
                return environment
            _changed.wait(PATIENCE_S)


def provide(name: str, config: dict[str, Any], code: bytes, version: str, wanted: int) -> bool:
    """Bring a version to so many provisioned environments (at most :data:`MOST`), one after the other.

    More than that exist on AWS; on this machine they would be slower than none. They are called first, and those that
    were started for calls are none of them.

    Returns:
        Whether one failed to start.
    """
    variables = {**config.get("Environment", {}).get("Variables", {}), "AWS_LAMBDA_INITIALIZATION_TYPE": PROVISIONED}
    settings = {**config, "Environment": {**config.get("Environment", {}), "Variables": variables}}
    key, most = runtime._worker_key(name, config, version), min(wanted, MOST)
    while True:
        with runtime._lock:
            there = [one for one in runtime._workers.setdefault(key, []) if one.provisioned]
            if len(there) < most:
                environment = environment_class(config)(name, settings, code)
                environment.in_use, environment.provisioned = True, True
                runtime._workers[key].insert(0, environment)
        if len(there) >= most:
            _end(key, there[most:])
            return False
        try:
            environment.start()
        except RuntimeError:
            retire(name, version)
            return True
        finally:
            release(environment)


def withdraw(name: str, config: dict[str, Any], version: str) -> None:
    """No environment of a version is provisioned any more."""
    key = runtime._worker_key(name, config, version)
    with runtime._lock:
        there = [one for one in runtime._workers.get(key, []) if one.provisioned]
    _end(key, there)


def _end(key: str, ended: list[Any]) -> None:
    """Stop these environments of a version. One that is busy finishes its invocation first."""
    with runtime._lock:
        if key in runtime._workers:
            runtime._workers[key] = [one for one in runtime._workers[key] if one not in ended]
        for environment in ended:
            environment.retired = True
        idle = [environment for environment in ended if not environment.in_use]
    runtime.kill_workers(idle)


def environment_class(config: dict[str, Any]) -> Any:
    """``provided.*`` runtimes keep ministack's own class; nothing in the sandbox uses them."""
    return runtime.ProvidedWorker if str(config.get("Runtime", "")).startswith("provided") else Environment


def retire(func_name: str, qualifier: str | None = None, account: str | None = None, region: str | None = None) -> None:
    """Stop the environments of a function (or one version). One that is busy finishes its invocation first."""

    def concerned(key: str) -> bool:
        parts = key.split(":")
        return all(
            wanted is None or wanted == part
            for wanted, part in zip((account, region, func_name, qualifier), parts, strict=True)
        )

    with runtime._lock:
        retired = [one for key in list(runtime._workers) if concerned(key) for one in runtime._workers.pop(key)]
        for environment in retired:
            environment.retired = True
        idle = [environment for environment in retired if not environment.in_use]
    runtime.kill_workers(idle)


def release(environment: Environment) -> None:
    runtime.release_worker(environment)
    with _changed:
        _changed.notify_all()
    if environment.retired:
        runtime.kill_workers([environment])


def _readable(descriptor: int, timeout_ms: int | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(timeout_ms))


def _peak_memory_mb(pid: int) -> int:
    """The most memory the process ever held, in MB. Where there is no /proc, what it holds now."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        kilobytes = status.split("VmHWM:", 1)[1].split()[0]
    except (OSError, IndexError):
        answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        kilobytes = answer.stdout.strip() or "0"
    return int(kilobytes) // 1024


def install() -> None:
    forking.install()
    runtime._worker_class_for = environment_class
    atexit.register(runtime.reset)  # stops the processes and removes their directories
