"""Diagnosis: the document's decision tree over evidence that is taken in one look."""

from __future__ import annotations

import json
from typing import Any

from temporalio import workflow

from workflows.diagnosis_model import Branch, Conclusion, DiagnosisInput
from workflows.diagnosis_remedies import Context
from workflows.diagnosis_tree import diagnose
from workflows.model import Kind, RunbookResult, State, StepSpec
from workflows.probing import PROBES, Probing
from workflows.runbook import RunbookSpec


@workflow.defn(name="Diagnosis")
class Diagnosis(Probing[DiagnosisInput]):
    """Find out what is wrong, without changing anything.

    Look at health, metrics, logs, database and recent deployments, all at once; set aside what cannot be; walk the
    document's tree (not responding, errors above 5 %, latency above 5 s, throttling); rank the likely causes by the
    evidence for and against each; name the runbook to start next with its input filled in, and those that cannot help.
    """

    spec = RunbookSpec(
        input=DiagnosisInput,
        when="Something is wrong and you want to know what, with evidence, before you do anything.",
        steps=(*PROBES, StepSpec(id="tree", title="Walk the decision tree", kind=Kind.LOOK)),
        checklist=(),
        gates=(),
        example={"stage": "production", "reason": "the API is slow since noon", "requested_by": "ann"},
        changes=False,
    )

    def __init__(self) -> None:
        super().__init__()
        self._conclusion: Conclusion | None = None

    @workflow.run
    async def run(self, *payload: Any) -> RunbookResult:
        return await self.conduct(payload)

    @workflow.query(description="What the diagnosis concluded: branch, causes with evidence, what to start next")
    def verdict(self, *_ignored: Any) -> Conclusion | dict[str, str]:
        return self._conclusion or {"summary": "still looking"}

    async def procedure(self, inp: DiagnosisInput) -> str:
        evidence = await self.look_everywhere(inp.window, inp.deployments_within)
        context = Context(inp.stage, inp.reason, inp.incident, inp.severity, inp.requested_by)
        self._conclusion = found = diagnose(evidence.readings(), context)
        tell(self, found)
        return found.summary


def tell(run: Probing[Any], found: Conclusion, step_id: str = "tree") -> None:
    """Put a conclusion on the run's page, timeline and facts."""
    step = run.state.step(step_id)
    if step is not None:
        step.state, step.summary = State.DONE, found.summary
        step.started_at = step.ended_at = workflow.now()
        step.evidence = {
            f"{cause.score:.2f} {cause.text}": _sides(cause.supports, cause.against) for cause in found.causes
        }
    for text in found.impossible:
        run.say(f"a data problem: {text}", level="warning")
    for text in found.deployments:
        run.say(f"deployed: {text}")
    for text, seen in found.checks.items():
        run.say(f"{text}: {seen}")
    for cause in found.causes:
        if cause.supports:
            run.say(f"likely {cause.score:.0%}: {cause.text} ({_sides(cause.supports, cause.against)})")
    for refused in found.refused:
        run.say(f"{refused.runbook} cannot help: {refused.why}")
    if found.next is not None:
        run.say(f"next: runbooks start {found.next.runbook} --input '{json.dumps(found.next.input)}'")
    elif found.branch not in (Branch.HEALTHY, Branch.UNKNOWN):
        run.say(f"no runbook is known to cure this: {by_hand(found)}", level="warning")
    run.facts |= {
        "branch": found.branch.value,
        "likely cause": found.causes[0].text if found.causes else None,
        "next": found.next.runbook if found.next else None,
        "next input": json.dumps(found.next.input) if found.next else None,
        "sources not read": "; ".join(found.failed) or None,
        "data problems": "; ".join(found.impossible) or None,
    }


def by_hand(found: Conclusion) -> str:
    """What a person does: about the likeliest cause of which something is known."""
    return next((c.by_hand for c in found.causes if c.supports and c.by_hand), "a person has to look")


def _sides(supports: tuple[str, ...], against: tuple[str, ...]) -> str:
    pro = "; ".join(supports) or "nothing for it"
    return f"{pro}; against: {'; '.join(against)}" if against else pro
