"""OpenTelemetry traces, for teams that collect them: a span a run, a step and a try, with nothing of what they work on.

On when ``OTEL_EXPORTER_OTLP_ENDPOINT`` names a collector (OTLP over HTTP); the other ``OTEL_`` variables hold as
everywhere. The packages are the extra ``otel``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from temporalio.client import Interceptor

from activities.redaction import redact
from activities.settings import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SERVICE = "OTEL_SERVICE_NAME"

_LAST_WORDS = 2000
"""Milliseconds for the spans that are left at the end."""

_SHOWN = ("exception.type", "exception.message")
"""What of an exception leaves the process. Its stack trace holds source lines, and with them whatever stands there."""


def interceptors(environment: Mapping[str, str]) -> list[Interceptor]:
    """What makes the spans; none where no collector is named.

    Raises:
        ConfigError: a collector is named and the packages are missing.
    """
    if not environment.get(ENDPOINT):
        # An empty variable, as compose files have them, would count as an address for the exporter.
        os.environ.pop(ENDPOINT, None)
        return []
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import set_tracer_provider
        from temporalio.contrib.opentelemetry import OpenTelemetryInterceptor, create_tracer_provider
    except ImportError as error:
        raise ConfigError(
            f"{ENDPOINT} is set and {error.name} is not installed. Run: pip install 'operational-runbooks[otel]'"
        ) from None
    resource = Resource.create({"service.name": environment.get(SERVICE) or "operational-runbooks"})
    # Ids of spans within a run come from the run itself, so that whichever worker goes on with it stays in its trace.
    provider = create_tracer_provider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(scrubbing(OTLPSpanExporter())))
    set_tracer_provider(provider)
    return [OpenTelemetryInterceptor(add_temporal_spans=True)]


def flush() -> None:
    """Send what is left, before the process leaves without ceremony. A collector that is away is not waited for."""
    if (api := sys.modules.get("opentelemetry.trace")) is not None:
        provider = api.get_tracer_provider()
        if hasattr(provider, "force_flush"):
            provider.force_flush(_LAST_WORDS)


def scrubbing(exporter: SpanExporter) -> SpanExporter:
    """An exporter that lets no secret and no stack trace through to ``exporter``."""
    from opentelemetry.sdk.trace.export import SpanExporter

    class Scrubbing(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return exporter.export([scrubbed(span) for span in spans])

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return exporter.force_flush(timeout_millis)

    return Scrubbing()


def scrubbed(span: ReadableSpan) -> ReadableSpan:
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.trace import Status

    events = [
        Event(
            event.name,
            {key: redact(str(value)) for key, value in (event.attributes or {}).items() if key in _SHOWN},
            event.timestamp,
        )
        for event in span.events
    ]
    told = span.status.description
    return ReadableSpan(
        name=span.name,
        context=span.get_span_context(),
        parent=span.parent,
        resource=span.resource,
        attributes={key: redact(v) if isinstance(v, str) else v for key, v in (span.attributes or {}).items()},
        events=events,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code, redact(told) if told else None),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
