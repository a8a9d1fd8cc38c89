"""What the probes found, put together as the readings that the tree works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from activities.api import Confirmed
from activities.database import Connections
from activities.signs import GatewayLog, RecentDeployments, VitalLogs, VitalMetrics
from workflows.diagnosis_model import Readings

DATABASE_ERRORS = "Mongo"
"""What the types of errors begin with by which the database itself, or the way to it, is the finding."""


@dataclass
class Evidence:
    """One look at everything. A source that could not be read is absent, and stands in ``failed`` with the reason."""

    taken_at: datetime
    window: timedelta
    health: Confirmed | None = None
    ready: Confirmed | None = None
    metrics: VitalMetrics | None = None
    logs: VitalLogs | None = None
    gateway_log: GatewayLog | None = None
    database: Connections | None = None
    database_problem: str | None = None
    deployments: RecentDeployments | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def readings(self) -> Readings:
        given: dict[str, object] = {
            "taken_at": self.taken_at,
            "window": self.window,
            "failed_sources": self.failed,
            "database_problem": self.database_problem,
            "database_ok": False if self.database_problem else None,
        }
        if self.health is not None:
            given |= {
                "health_ok": self.health.ok,
                "health_status": self.health.status,
                "health_ms": self.health.latency_ms,
            }
        if self.ready is not None:
            given |= {"ready_ok": self.ready.ok, "ready_status": self.ready.status, "ready_ms": self.ready.latency_ms}
        if self.metrics is not None:
            given |= self.metrics.model_dump(exclude={"summary"})
        if self.logs is not None:
            given |= {
                "log_lines": self.logs.lines,
                "log_samples": self.logs.samples,
                "reports": self.logs.reports,
                "cold_starts": self.logs.cold_starts,
                "init_ms": self.logs.init_ms,
                "memory_used_mb": self.logs.memory_used_mb,
                "clients": self.logs.clients,
            }
        if self.gateway_log is not None:
            given["routes"] = self.gateway_log.routes
        if self.database is not None:
            given |= {
                "database_ok": True,
                "database_ping_ms": self.database.ping_ms,
                "connections": self.database.current,
                "connections_left": self.database.available,
            }
        if self.deployments is not None:
            given |= {
                "live": self.deployments.live,
                "live_since": self.deployments.live_since,
                "deployments": self.deployments.entries,
            }
        return Readings.model_validate(given)
