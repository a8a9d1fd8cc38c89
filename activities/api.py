"""The service's own HTTP interface, as a client sees it."""

from __future__ import annotations

import statistics
import time
from datetime import timedelta
from typing import Any

import httpx
from pydantic import Field
from temporalio import activity

from activities.errors import classified
from activities.evidence import Finding
from activities.progress import pause
from activities.secret_refs import SecretResolver
from activities.stage import Facts, Stage


class HealthCheck(Facts):
    stage: Stage
    path: str = Field("/health", pattern=r"^/[\w./-]*$")
    consecutive: int = Field(5, ge=1, le=100, description="Good answers in a row that count as healthy")
    interval: timedelta = Field(timedelta(seconds=2), description="Time between two checks")
    patience: timedelta = Field(timedelta(minutes=5), description="How long to go on without that many in a row")


class Health(Finding):
    """Whether the service answered well, so many times in a row."""

    ok: bool
    consecutive: int = Field(description="Good answers in a row at the end")
    checks: int = Field(description="How often it was asked")
    latency_p50_ms: float | None = Field(None, description="Of the answers, good or bad; absent if there was none")
    latency_max_ms: float | None = None
    release: str | None = Field(None, description="What the last good answer says it is")
    last_status: int | None = Field(None, description="HTTP status of the last check; absent if there was no answer")
    last_problem: str | None = None


class Confirm(Facts):
    """A question of a few seconds: does this path answer at all?"""

    stage: Stage
    path: str = Field("/health", pattern=r"^/[\w./-]*$")
    checks: int = Field(
        3, ge=1, le=10, description="Failures in a row that are believed; the first good answer ends it"
    )
    within: timedelta = Field(timedelta(seconds=7), description="How long all of it may take")


class Confirmed(Finding):
    """What the path answered just now. One good answer is enough to say that it responds."""

    path: str
    ok: bool
    status: int | None = Field(None, description="HTTP status of the last answer; absent when there was none")
    latency_ms: float = Field(description="Of the last try")
    failed: int = Field(description="Tries that failed before, or all of them")
    problem: str | None = None


class SampleCall(Finding):
    ok: bool
    status: int | None = None
    latency_ms: float
    problem: str | None = None


class Api:
    def __init__(self, http: httpx.Client, resolver: SecretResolver) -> None:
        self._http = http
        self._resolver = resolver

    @activity.defn(name="api.health")
    @classified("check the service's health")
    def health(self, check: HealthCheck) -> Health:
        """Ask until the answer was 200 so many times in a row, or patience is over. Not healthy is no error."""
        give_up = time.monotonic() + check.patience.total_seconds()
        latencies: list[float] = []
        row = checks = 0
        release: str | None = None
        while True:
            status, latency, problem, body = self._get(check.stage, check.path)
            checks += 1
            if status is not None:
                latencies.append(latency)
            row = row + 1 if problem is None else 0
            if problem is None and isinstance(body, dict) and isinstance(body.get("release"), str):
                release = body["release"]
            if row >= check.consecutive or time.monotonic() + check.interval.total_seconds() > give_up:
                break
            pause(check.interval.total_seconds(), f"checking {check.path}", consecutive=row, checks=checks)
        ok = row >= check.consecutive
        p50 = round(statistics.median(latencies), 1) if latencies else None
        figures = f", p50 {p50:.0f} ms, slowest {max(latencies):.0f} ms" if p50 is not None else ""
        state = (
            f"{row} good answers of {check.path} in a row"
            if ok
            else f"not healthy: last {problem or f'{row} in a row'}"
        )
        return Health(
            summary=f"{state} ({checks} checks{figures})" + (f", release {release}" if release else ""),
            ok=ok,
            consecutive=row,
            checks=checks,
            latency_p50_ms=p50,
            latency_max_ms=round(max(latencies), 1) if latencies else None,
            release=release,
            last_status=status,
            last_problem=problem,
        )

    @activity.defn(name="api.confirm")
    @classified("confirm whether the service answers")
    def confirm(self, asked: Confirm) -> Confirmed:
        """Ask until one answer is good, so many have failed, or the time is over. Not answering is no error."""
        give_up = time.monotonic() + asked.within.total_seconds()
        failed = 0
        while True:
            left = max(0.5, give_up - time.monotonic())
            status, latency, problem, _ = self._get(asked.stage, asked.path, left)
            failed += problem is not None
            if problem is None or failed >= asked.checks or time.monotonic() + 0.2 > give_up:
                break
            time.sleep(0.2)
        return Confirmed(
            summary=f"GET {asked.path}: {problem or 'HTTP 200'} in {latency:.0f} ms"
            + (f" ({failed} of {failed + (problem is None)} tries failed)" if failed else ""),
            path=asked.path,
            ok=problem is None,
            status=status,
            latency_ms=round(latency, 1),
            failed=failed,
            problem=problem,
        )

    @activity.defn(name="api.sample_calls")
    @classified("make a sample call")
    def sample_calls(self, stage: Stage) -> SampleCall:
        """One real read, ``GET /sessions`` with the stage's key: through the gateway, the function and the database."""
        status, latency, problem, _ = self._get(stage, "/sessions")
        return SampleCall(
            summary=f"GET /sessions: {problem or f'HTTP {status}'} in {latency:.0f} ms",
            ok=problem is None,
            status=status,
            latency_ms=round(latency, 1),
            problem=problem,
        )

    def _get(self, stage: Stage, path: str, timeout: float | None = None) -> tuple[int | None, float, str | None, Any]:
        """Status, milliseconds, what is wrong with the answer, and its JSON body."""
        headers = {"X-Api-Key": self._resolver.resolve(stage.api_key)}
        began = time.perf_counter()
        try:
            patience = httpx.USE_CLIENT_DEFAULT if timeout is None else timeout
            answer = self._http.get(stage.url + path, headers=headers, timeout=patience)
        except httpx.TransportError as error:
            return None, (time.perf_counter() - began) * 1000, f"no answer ({type(error).__name__})", None
        latency = (time.perf_counter() - began) * 1000
        if answer.status_code != 200:
            return answer.status_code, latency, f"HTTP {answer.status_code}", None
        try:
            return answer.status_code, latency, None, answer.json()
        except ValueError:
            return answer.status_code, latency, None, None
