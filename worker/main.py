"""The worker process: connects, checks, runs workflows and activities, and stops without losing anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.client import Client, Interceptor
from temporalio.runtime import LoggingConfig, PrometheusConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.worker import Worker

from activities.settings import ConfigError, Settings, load_settings
from worker import logs, observing, traces
from worker.activities import build_activities
from worker.queues import ACTIVITY_THREADS, MIGRATION_SLOTS, Queue, served
from worker.receiver import receive
from worker.versioning import deployment, to_make_current
from workflows.connection import ConnectionProblem, connect, require_search_attributes

GRACE = timedelta(seconds=30)
"""On SIGTERM, how long activities in flight may take to finish or to hand over their cursor."""

RETRY = 5.0
"""Seconds until a worker that takes alerts, and so goes on without Temporal, tries again to reach it."""


def runtime() -> Runtime:
    """The SDK's runtime. ``RUNBOOKS_METRICS`` names an address, such as ``127.0.0.1:9464``, for Prometheus metrics.

    Raises:
        ConfigError: nothing can be served at that address.
    """
    address = os.environ.get("RUNBOOKS_METRICS")
    metrics = (
        PrometheusConfig(bind_address=address, counters_total_suffix=True, durations_as_seconds=True)
        if address
        else None
    )
    logging_of_core = LoggingConfig(filter=TelemetryFilter(core_level="WARN", other_level="ERROR"))
    try:
        return Runtime(telemetry=TelemetryConfig(logging=logging_of_core, metrics=metrics))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"RUNBOOKS_METRICS={address} cannot be served: {error}") from None


def build_workers(
    client: Client, settings: Settings, queues: Sequence[Queue], threads: ThreadPoolExecutor
) -> list[Worker]:
    """A worker for each queue, over one set of activities; workflows, converter and sandbox come with the client."""
    activities = build_activities(settings, client)
    return [
        Worker(
            client,
            task_queue=queue.name,
            activities=activities,
            activity_executor=threads,
            max_concurrent_activities=queue.slots,
            max_heartbeat_throttle_interval=timedelta(seconds=5),
            graceful_shutdown_timeout=GRACE,
            deployment_config=deployment(os.environ),
        )
        for queue in queues
    ]


async def run() -> None:
    """Run until SIGINT or SIGTERM.

    Raises:
        ConfigError: the settings cannot be used.
        ConnectionProblem: Temporal cannot be used.
    """
    settings = load_settings()
    queues, version = served(settings, os.environ), deployment(os.environ)
    telemetry, interceptors = runtime(), traces.interceptors(os.environ)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    # Before Temporal is reached: what arrives meanwhile is kept.
    receiving = asyncio.create_task(receive(settings)) if settings.receiver and settings.receiver.with_worker else None
    beside = [receiving] if receiving else []
    connecting = asyncio.create_task(_connected(settings, telemetry, interceptors, for_ever=receiving is not None))
    await asyncio.wait({connecting, stopping, *beside}, return_when=asyncio.FIRST_COMPLETED)
    for task in beside:
        if task.done():
            await task  # a fatal error, such as a port that is taken
    if not connecting.done():
        return
    client = await connecting
    threads = ThreadPoolExecutor(max_workers=ACTIVITY_THREADS + MIGRATION_SLOTS, thread_name_prefix="activity")
    workers = build_workers(client, settings, queues, threads)
    serving = [asyncio.create_task(worker.run()) for worker in workers]
    watching = asyncio.create_task(observing.watch(client, telemetry.metric_meter)) if _observed() else None
    names = ", ".join(queue.name for queue in queues)
    logging.info("worker ready: task queues %s, namespace %s", names, client.namespace)
    if version is not None:
        logging.info(
            "version %s takes no run before: %s", version.version.to_canonical_string(), to_make_current(os.environ)
        )
    running = [*serving, *beside]
    await asyncio.wait({*running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        if task.done():
            await task  # a fatal error, such as a namespace that is gone
            return
    logging.info("worker stopping: activities in flight finish or hand over within %s s", int(GRACE.total_seconds()))
    for task in (*beside, *([watching] if watching else [])):
        task.cancel()
    with contextlib.suppress(asyncio.TimeoutError):
        shutdown = asyncio.gather(*(worker.shutdown() for worker in workers))
        await asyncio.wait_for(shutdown, GRACE.total_seconds() + 10)
    traces.flush()
    threads.shutdown(wait=False, cancel_futures=True)


async def _connected(
    settings: Settings, telemetry: Runtime, interceptors: Sequence[Interceptor], *, for_ever: bool
) -> Client:
    """A client of a Temporal that has what runs need.

    Args:
        settings: Of the worker.
        telemetry: The SDK's runtime.
        interceptors: Of the client.
        for_ever: Try until it is there, because a door for alerts would close with this process.

    Raises:
        ConfigError: the keys of histories cannot be read.
        ConnectionProblem: Temporal cannot be used.
    """
    while True:
        try:
            client = await connect(settings, patience=30, runtime=telemetry, interceptors=interceptors)
            await require_search_attributes(client)
        except (ConfigError, ConnectionProblem) as error:
            if not for_ever:
                raise
            logging.error("no run is worked on, alerts are kept meanwhile: %s", error)
            await asyncio.sleep(RETRY)
        else:
            return client


def _observed() -> bool:
    return bool(os.environ.get("RUNBOOKS_METRICS"))


def main() -> None:
    """Entry point of ``python -m worker``; exit code 2 when it refuses to start."""
    code = 0
    try:
        logs.set_up(os.environ)
        asyncio.run(run())
    except (ConfigError, ConnectionProblem) as error:
        print(f"worker: {error}", file=sys.stderr)
        code = 2
    sys.stderr.flush()
    # A thread that is still inside a library call must not keep the stopped process alive.
    os._exit(code)
