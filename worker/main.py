"""The worker process: connects, checks, runs workflows and activities, and stops without losing anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.client import Client
from temporalio.runtime import LoggingConfig, PrometheusConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.worker import Worker

from activities.settings import ConfigError, Settings, load_settings
from worker.activities import build_activities
from workflows.connection import ConnectionProblem, connect, require_search_attributes

ACTIVITY_THREADS = 64
"""Activities in flight at once. Most of them wait for the network."""

GRACE = timedelta(seconds=30)
"""On SIGTERM, how long activities in flight may take to finish or to hand over their cursor."""


def runtime() -> Runtime:
    """The SDK's runtime. ``RUNBOOKS_METRICS`` names an address, such as ``127.0.0.1:9464``, for Prometheus metrics."""
    address = os.environ.get("RUNBOOKS_METRICS")
    return Runtime(
        telemetry=TelemetryConfig(
            logging=LoggingConfig(filter=TelemetryFilter(core_level="WARN", other_level="ERROR")),
            metrics=PrometheusConfig(bind_address=address) if address else None,
        )
    )


def build_worker(client: Client, settings: Settings, threads: ThreadPoolExecutor) -> Worker:
    """The worker of one process; workflows, converter and sandbox come with the client's plugin."""
    return Worker(
        client,
        task_queue=settings.task_queue,
        activities=build_activities(settings, client),
        activity_executor=threads,
        max_concurrent_activities=ACTIVITY_THREADS,
        max_heartbeat_throttle_interval=timedelta(seconds=5),
        graceful_shutdown_timeout=GRACE,
    )


async def run() -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        ConfigError: the settings cannot be used.
        ConnectionProblem: Temporal cannot be used.
    """
    settings = load_settings()
    client = await connect(patience=30, runtime=runtime())
    await require_search_attributes(client)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    threads = ThreadPoolExecutor(max_workers=ACTIVITY_THREADS, thread_name_prefix="activity")
    worker = build_worker(client, settings, threads)
    serving = asyncio.create_task(worker.run())
    stopping = asyncio.create_task(stop.wait())
    logging.info("worker ready: task queue %s, namespace %s", settings.task_queue, client.namespace)
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        await serving  # a fatal error of the worker, such as a namespace that is gone
        return
    logging.info("worker stopping: activities in flight finish or hand over within %s s", int(GRACE.total_seconds()))
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(worker.shutdown(), GRACE.total_seconds() + 10)
    threads.shutdown(wait=False, cancel_futures=True)


def main() -> None:
    """Entry point of ``python -m worker``; exit code 2 when it refuses to start."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    code = 0
    try:
        asyncio.run(run())
    except (ConfigError, ConnectionProblem) as error:
        print(f"worker: {error}", file=sys.stderr)
        code = 2
    sys.stderr.flush()
    # A thread that is still inside a library call must not keep the stopped process alive.
    os._exit(code)
