"""The load generator against a small real server: what it counts, when it ends, and whom it refuses to load."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError

from activities.load import Load
from activities.load_figures import percentile, percentile_bounds, with_omitted
from activities.load_models import LoadOrder, LoadPlan, LoadReport
from activities.secret_refs import SecretResolver
from activities.stage import Stage
from tests.activities.site import environment


class Server:
    """Answers every GET with the status and after the seconds that ``behaviour`` says for its number."""

    def __init__(self, behaviour: Callable[[int], tuple[int, float]]) -> None:
        self.behaviour, self.asked, self.keys = behaviour, 0, set[str]()
        self.at_once = self.most_at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                status, seconds = self.behaviour(self.asked)
                lines = head.decode().splitlines()
                self.keys |= {line.partition(": ")[2] for line in lines if line.lower().startswith("x-api-key")}
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                await asyncio.sleep(seconds)
                self.at_once -= 1
                if status == 0:
                    break
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(behaviour: Callable[[int], tuple[int, float]]) -> AsyncIterator[tuple[Server, Stage]]:
    server = Server(behaviour)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield server, stage(f"http://127.0.0.1:{port}")
    finally:
        listening.close()


def stage(url: str, **more: Any) -> Stage:
    given = {"name": "staging", "function": "f", "url": url, "api_key": "env:LOAD_KEY", "log_group": "g"}
    return Stage.model_validate(
        {**given, "gateway": {"name": "a", "stage": "s"}, "database": {"uri": "env:X", "name": "d"}, **more}
    )


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setenv("LOAD_KEY", "the-key")
    return Load(SecretResolver(None, None))  # type: ignore[arg-type]


async def run(load: Load, at: Stage, **plan: Any) -> LoadReport:
    order = LoadOrder(stage=at, plan=LoadPlan.model_validate(plan))
    return LoadReport.model_validate(await environment().run(load.run, order))


async def test_a_closed_test_asks_exactly_so_often_with_so_many_clients(load: Load) -> None:
    async with serving(lambda n: (500 if n % 10 == 0 else 200, 0.005)) as (server, at):
        found = await run(load, at, requests=200, concurrency=8)
    assert server.asked == 200
    assert server.most_at_once <= 8
    assert server.keys == {"the-key"}
    assert (found.sent, found.answered, found.failed, found.error_rate) == (200, 200, 20, 0.1)
    assert found.statuses == {"200": 180, "500": 20}
    assert found.p50_ms
    assert found.p99_ms
    assert found.p50_ms >= 5
    assert sum(second.answered for second in found.seconds) == 200
    assert "the-key" not in found.model_dump_json()


async def test_an_open_test_keeps_its_times_while_the_service_stalls(load: Load) -> None:
    """The server stands still once for a second. ab's way of counting sees few slow answers; clients saw many."""
    stalled: list[float] = []

    def behaviour(number: int) -> tuple[int, float]:
        now = time.monotonic()
        if number == 50:
            stalled.append(now + 1.0)
        return 200, max(0.0, stalled[0] - now) if stalled else 0.0

    async with serving(behaviour) as (server, at):
        found = await run(load, at, arrivals="open", requests=200, rate=100, concurrency=500)
    assert server.asked == 200
    assert found.dropped == 0
    assert found.p90_ms
    assert found.p90_ms > 300, "a hundred requests were due in the second in which nothing was answered"


async def test_the_closed_model_adds_what_its_clients_left_out(load: Load) -> None:
    async with serving(lambda n: (200, 1.0 if n == 100 else 0.001)) as (_, at):
        found = await run(load, at, requests=400, concurrency=1)
    assert found.service_p95_ms
    assert found.p95_ms
    assert found.service_p95_ms < 500 < found.p95_ms


async def test_more_than_may_be_under_way_is_dropped_and_counts_as_bad(load: Load) -> None:
    async with serving(lambda _n: (200, 0.5)) as (server, at):
        found = await run(load, at, arrivals="open", requests=60, rate=200, concurrency=10)
    assert server.most_at_once <= 10
    assert found.dropped == 60 - found.sent > 0
    assert found.failed == found.dropped
    assert "dropped" in found.summary


async def test_at_most_ends_it(load: Load) -> None:
    async with serving(lambda _n: (200, 0.05)) as (_, at):
        found = await run(load, at, requests=100_000, concurrency=2, at_most="PT1S")
    assert found.cut_short
    assert found.sent < 100


async def test_no_answer_is_counted_and_none_at_all_is_an_error(load: Load) -> None:
    async with serving(lambda n: (0 if n % 2 else 200, 0.0)) as (_, at):
        found = await run(load, at, requests=20, concurrency=1)
    assert found.statuses["none"] == found.failed > 0
    with pytest.raises(ApplicationError) as failed:
        await run(load, stage("http://127.0.0.1:9"), requests=3, concurrency=1)
    assert failed.value.type == "NoAnswerAtAll"
    assert not failed.value.non_retryable


@pytest.mark.parametrize(
    "at",
    [
        stage("https://staging.example.com"),
        stage("https://localhost.example.com", load_hosts=["other.example.com"]),
        stage("http://127.0.0.1:9", production=True),
    ],
)
async def test_what_may_not_be_loaded_is_not(load: Load, at: Stage) -> None:
    with pytest.raises(ApplicationError) as refused:
        await run(load, at, requests=1)
    assert (refused.value.type, refused.value.non_retryable) == ("TargetRefused", True)


async def test_an_attempt_that_died_is_told(load: Load) -> None:
    async with serving(lambda _n: (200, 0.0)) as (_, at):
        order = LoadOrder(stage=at, plan=LoadPlan(requests=5, concurrency=1))
        found = await environment(2, [{"asked": 40, "interrupted": 2}]).run(load.run, order)
    assert found.interrupted == 42
    assert found.sent == 5


@given(st.lists(st.floats(0.1, 10_000), min_size=1, max_size=50))
def test_the_correction_only_ever_adds(times: list[float]) -> None:
    interval = sorted(times)[len(times) // 2]
    found = with_omitted(times, interval)
    assert found == sorted(found)
    assert max(found) == max(times)
    assert len(found) >= len(times)
    for percent in (50.0, 90.0, 99.0, 100.0):
        value = percentile(found, percent)
        assert value is not None
        assert sum(time <= value for time in found) >= len(found) * percent / 100 - 1e-6


def test_percentiles_of_nothing_are_not_known() -> None:
    assert percentile([], 95) is None
    assert percentile([7.0], 1) == 7.0


def test_the_bounds_of_a_percentile_hold_it_as_often_as_they_say() -> None:
    chance = random.Random(20)
    held = 0
    for _ in range(400):
        times = sorted(chance.lognormvariate(5, 0.6) for _ in range(300))
        low, high = percentile_bounds(times, 95, 300)
        assert low is not None
        assert high is not None
        held += low <= math.exp(5 + 0.6 * 1.6449) <= high
    assert 0.92 <= held / 400 <= 0.99


def test_thirty_requests_say_nothing_of_the_most_that_p95_is() -> None:
    low, high = percentile_bounds([float(ms) for ms in range(30)], 95, 30)
    assert low is not None
    assert high is None
    assert percentile_bounds([], 95, 0) == (None, None)
