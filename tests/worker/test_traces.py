"""Traces of a real worker, as a collector receives them."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio.client import Client

from activities.redaction import HIDDEN, never_print
from activities.settings import ConfigError
from tests.patience import eventually
from tests.worker.test_process import SETTINGS, environment
from worker.traces import ENDPOINT, interceptors, scrubbing

SECRET = "hunter2-hunter2-hunter2"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    """An OTLP receiver on loopback, and the spans that it has received."""
    spans: list[Any] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans.extend(span for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()


async def test_a_run_and_its_steps_are_spans_of_one_trace(
    client: Client, collector: tuple[str, list[Any]], tmp_path: Path
) -> None:
    url, spans = collector
    queue = f"traces-{uuid.uuid4()}"
    settings = tmp_path / "runbooks.toml"
    settings.write_text(f'task_queue = "{queue}"\n{SETTINGS}')
    more = {ENDPOINT: url, "OTEL_BSP_SCHEDULE_DELAY": "60000", "RUNBOOKS_AWS__ENDPOINT_URL": "http://127.0.0.1:1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", env=environment(client, settings, **more), stderr=subprocess.PIPE
    )
    try:
        handle = await client.start_workflow(
            "QuickRollback", {"stage": "nowhere", "reason": "traced"}, id=f"traced-{uuid.uuid4()}", task_queue=queue
        )

        async def tried_again() -> bool:  # the report has nowhere to go, so its step is tried for an hour
            pending = (await handle.describe()).raw_description.pending_activities
            return any(one.activity_id == "record" and one.attempt > 1 for one in pending)

        await eventually(tried_again, "the second try of the second step")
    finally:
        process.send_signal(signal.SIGTERM)  # the spans are sent at the end, if not before
        await asyncio.wait_for(process.communicate(), 180)
        await handle.terminate()
    found = {span.name: span for span in spans}
    step, record = found["RunActivity:stages.resolve"], found["RunActivity:reports.write"]
    assert step.trace_id == record.trace_id, "a run is one trace"
    attributes = {pair.key: pair.value.string_value for pair in step.attributes}
    assert (attributes["temporalWorkflowID"], attributes["temporalActivityID"]) == (handle.id, "resolve-stage")
    assert all(pair.key != "exception.stacktrace" for event in step.events for pair in event.attributes)


def test_no_secret_and_no_stack_trace_leaves_the_process() -> None:
    never_print(SECRET)
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(scrubbing(memory)))
    with provider.get_tracer("t").start_as_current_span("step") as span:
        span.set_attribute("what", f"used {SECRET}")
        span.record_exception(RuntimeError(f"cannot use {SECRET}"))
    (seen,) = memory.get_finished_spans()
    assert SECRET not in seen.to_json()
    assert seen.attributes == {"what": f"used {HIDDEN}"}
    assert set(seen.events[0].attributes or {}) == {"exception.type", "exception.message"}


def test_they_are_off_unless_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interceptors({}) == []
    assert interceptors({ENDPOINT: ""}) == []
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"is not installed. Run: pip install 'operational-runbooks\[otel\]'"):
        interceptors({ENDPOINT: "http://127.0.0.1:4318"})
