"""What a rehearsal of all runbooks needs to know: which there are, and whether the stage's secrets can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.evidence import Finding
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stage import Facts, SecretRef, Stage

_REFERENCE = re.compile(get_args(SecretRef)[1].pattern)


class Case(Facts):
    """One runbook and the input that it is rehearsed with."""

    runbook: str
    input: dict[str, Any]


class CasesOf(Facts):
    stage: str
    only: tuple[str, ...] = ()


class Cases(Finding):
    cases: tuple[Case, ...]
    left_out: tuple[str, ...] = ()


class SecretsRead(Finding):
    read: int
    unreadable: tuple[str, ...] = ()


class Rehearsals:
    """``cases`` are the runbooks of this worker with the inputs of their examples."""

    def __init__(self, settings: Settings, resolver: SecretResolver, cases: Sequence[Case]) -> None:
        self._settings = settings
        self._resolver = resolver
        self._cases = cases

    @activity.defn(name="rehearsal.cases")
    def cases(self, asked: CasesOf) -> Cases:
        """The runbooks to go through, as a fact of the run: a later worker may know others."""
        own = self._settings.rehearsal
        wanted = [case for case in self._cases if not asked.only or case.runbook in asked.only]
        left_out = tuple(case.runbook for case in wanted if case.runbook in own.skip)
        chosen = tuple(
            Case(runbook=case.runbook, input=own.inputs.get(case.runbook, case.input))
            for case in wanted
            if case.runbook not in left_out
        )
        without = f", without {', '.join(left_out)}" if left_out else ""
        return Cases(summary=f"{len(chosen)} runbooks{without}", cases=chosen, left_out=left_out)

    @activity.defn(name="rehearsal.secrets")
    def secrets(self, stage: Stage) -> SecretsRead:
        """Read every secret that the stage and its providers refer to, and forget it again.

        One that cannot be read is a finding, not an error; an AWS that does not answer is an error that may pass.
        """
        read, unreadable = 0, []
        for reference in sorted(set(references(stage)) | set(self._of_providers(stage))):
            try:
                self._resolver.resolve(reference)
                read += 1
            except ApplicationError as error:
                if not error.non_retryable:
                    raise
                unreadable.append(error.message)
        said = f"{read} secrets can be read" + (f", {len(unreadable)} cannot" if unreadable else "")
        return SecretsRead(summary=said, read=read, unreadable=tuple(unreadable))

    def _of_providers(self, stage: Stage) -> Iterator[str]:
        channels = stage.channels
        named = {*channels.chat, *channels.page, *channels.mail, *channels.ticket}
        providers = self._settings.providers
        for kind in type(providers).model_fields:
            for name, provider in getattr(providers, kind).items():
                if name in named:
                    yield from references(provider)


def references(value: Any) -> Iterator[str]:
    """Every reference to a secret within a model."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from references(inner)
    elif isinstance(value, str) and _REFERENCE.match(value) and not value.startswith("file:///"):
        yield value
