"""Decisions that prove who made them: what is signed, and whether a signature holds. Pure functions.

The private key stays with its owner (``starters/keys.py`` signs); a workflow sees public keys only, and comes to the
same verdict at every replay.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from workflows.model import Decision, Gate

PREFIX = "ed25519:"
_HEADER = b"operational-runbooks decision v1\n"
"""Keeps a signature made here from being one of anything else that the same key signs."""


def digest(plan: dict[str, Any]) -> str:
    """SHA-256 of exactly this plan: same facts, same digest, whatever their order."""
    canonical = json.dumps(plan, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def statement(gate: Gate, decision: Decision, nonce: str) -> bytes:
    """What a decision says, as the bytes that are signed: this answer, of this person, to this plan, asked by this run.

    The whole digest of the plan stands in it: the twelve digits that people read would be too few against a forger.
    """
    if gate.signing is None:
        raise ValueError(f"gate {gate.id} asks for no signature")
    said = {
        "workflow": gate.signing.workflow_id,
        "run": gate.signing.run,
        "gate": gate.id,
        "asked": gate.signing.asked_before + gate.asked,
        "plan": digest(gate.plan),
        "decision": decision.decision,
        "by": decision.by,
        "reason": decision.reason,
        "nonce": nonce,
    }
    return _HEADER + json.dumps(said, sort_keys=True, separators=(",", ":")).encode()


def nonce_of(proof: str) -> str:
    """What makes every signed decision another one. It is signed too; base64 itself can be written in several ways."""
    return proof.partition(".")[0]


def holds(key: str, gate: Gate, decision: Decision) -> bool:
    """Whether the decision's proof was made with the private half of ``key`` for this gate as it is asked now."""
    nonce, _, signature = (decision.proof or "").partition(".")
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.removeprefix(PREFIX)))
        public.verify(base64.b64decode(signature), statement(gate, decision, nonce))
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint(key: str) -> str:
    """What names a public key in records and on screens: twelve hexadecimal digits of its SHA-256."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]
