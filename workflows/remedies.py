"""The runbooks that an incident may start as a recovery; all are registered, and all take what every runbook takes."""

from __future__ import annotations

REMEDIES = frozenset({"QuickRollback", "CanaryRollback", "ServiceRestart"})
