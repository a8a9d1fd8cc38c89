"""The search attributes of every run: one list, registered by the sandbox and checked by the worker at its start.

They are never encrypted, so they hold names only. SQL visibility stores have few columns a type: keep the list short.
"""

from __future__ import annotations

from temporalio.common import SearchAttributeKey

STAGE = SearchAttributeKey.for_keyword("RunbookStage")
"""Stage that the run works on, such as ``production``."""

PHASE = SearchAttributeKey.for_keyword("RunbookPhase")
"""What the run is doing: a value of :class:`workflows.model.Phase`."""

GATE = SearchAttributeKey.for_keyword("RunbookGate")
"""Id of the gate that waits for a person; unset while none does."""

SEVERITY = SearchAttributeKey.for_keyword("RunbookSeverity")
"""Severity of the incident that the run belongs to, ``P1`` to ``P4``."""

ALL = (STAGE, PHASE, GATE, SEVERITY)

WAITING_FOR_PEOPLE = f'{GATE.name} IS NOT NULL AND ExecutionStatus = "Running"'
"""Visibility query of the saved view 'what waits for a human'."""
