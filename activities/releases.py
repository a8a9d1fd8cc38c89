"""Which release is live and which was good before it: the facts and the choice, without any I/O.

A release is what was built from one commit (or one saved build). SST and CloudFormation keep no history that can be
deployed again, so the choice rests on the project's own deploy ledger, and on the published versions of the function
where the ledger knows nothing.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from activities.stage import Facts

LATEST = "$LATEST"
"""What Lambda calls the unpublished code of a function."""


def _as_lambda_shows_it(digest: str) -> str:
    if re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        return base64.b64encode(bytes.fromhex(digest)).decode()
    return digest


CodeSha256 = Annotated[str, AfterValidator(_as_lambda_shows_it)]
"""SHA-256 of a code package, Base64 as Lambda's ``CodeSha256``; the hexadecimal form is understood too."""

Strategy = Literal["redeploy", "alias", "cloudformation", "command"]


class ReleaseFacts(Facts):
    """What is known of one release. What nobody recorded is absent, never guessed."""

    release: str | None = Field(None, description="Commit or build id")
    label: str | None = Field(None, description="Name for people, such as a tag")
    version: str | None = Field(None, description="Published Lambda version that ran it")
    code_sha256: CodeSha256 | None = None
    code_location: str | None = Field(None, description="s3:// location of the code package")
    template_sha256: str | None = Field(None, description="Hexadecimal SHA-256 of the template's text")
    template_location: str | None = Field(None, description="s3:// location of the saved template")
    started_at: AwareDatetime | None = Field(None, description="When its deployment began")
    deployed_at: AwareDatetime | None = Field(None, description="When its deployment was finished")

    @property
    def name(self) -> str:
        """The name to show a person."""
        shown = self.label or (self.release[:12] if self.release else None)
        if shown and self.version:
            return f"{shown} (version {self.version})"
        return shown or (f"version {self.version}" if self.version else "an unknown release")


class LedgerEntry(Facts):
    """One deployment, as it stands in the deploy ledger. Entries are only ever added."""

    app: str
    stage: str
    release: str = Field(description="Commit or build id")
    id: str | None = Field(None, description="Id of the deployment; the release where there is none")
    label: str | None = None
    version: str | None = Field(None, description="Published Lambda version that the alias pointed at afterwards")
    code_sha256: CodeSha256 | None = None
    code_location: str | None = Field(None, description="s3:// location of the code package")
    template_sha256: str | None = None
    template_location: str | None = Field(None, description="s3:// location of the template that was deployed")
    stack: str | None = None
    engine: str
    started_at: AwareDatetime | None = Field(
        None, description="When the deployment began: traffic moves to the release before it is finished"
    )
    deployed_at: AwareDatetime = Field(description="When the deployment was finished")
    deployed_by: str
    run: str | None = Field(None, description="Id of the workflow that deployed it")
    status: Literal["succeeded", "failed", "rolled_back"] = "succeeded"
    kind: Literal["deploy", "rollback"] = "deploy"
    replaced: str | None = Field(None, description="For a rollback: the release that it took out of service")

    def facts(self) -> ReleaseFacts:
        return ReleaseFacts.model_validate(self.model_dump())


class PublishedVersion(Facts):
    """One published version of the function."""

    version: str
    code_sha256: CodeSha256
    release: str | None = Field(None, description="Its RELEASE environment variable")
    published_at: datetime | None = None

    def facts(self) -> ReleaseFacts:
        return ReleaseFacts(release=self.release, version=self.version, code_sha256=self.code_sha256)


class Choice(Facts):
    """A release with where the knowledge of it comes from."""

    release: ReleaseFacts
    source: str
    recorded_good: bool | None = Field(None, description="What the ledger says of its deployment; absent if nothing")


def same_release(one: str | None, other: str | None) -> bool:
    """Whether two release ids are the same; an abbreviated commit (7 characters or more) equals the full one."""
    if not one or not other:
        return False
    short, full = sorted((one.lower(), other.lower()), key=len)
    return short == full or (re.fullmatch(r"[0-9a-f]{7,}", short) is not None and full.startswith(short))


def is_live(wanted: ReleaseFacts, live: ReleaseFacts, *, trust_name: bool = False) -> bool:
    """Whether ``wanted`` is what runs now.

    Equal code is proof unless the names differ (a release may change configuration only). Different code under the same
    name is not the release (somebody changed the function by hand), unless ``trust_name``: builds are not always
    reproducible, so after a deployment of our own the name decides.
    """
    if wanted.release and live.release and not same_release(wanted.release, live.release):
        return False
    if wanted.code_sha256 and live.code_sha256 and wanted.code_sha256 != live.code_sha256:
        return trust_name and same_release(wanted.release, live.release)
    if wanted.code_sha256 and live.code_sha256:
        return True
    return same_release(wanted.release, live.release)


def contradicts(one: ReleaseFacts, other: ReleaseFacts) -> bool:
    """Whether two accounts of one release can't both be true."""
    if one.release and other.release and not same_release(one.release, other.release):
        return True
    return bool(one.code_sha256 and other.code_sha256 and one.code_sha256 != other.code_sha256)


def taken_back(newest_first: Sequence[LedgerEntry]) -> list[str]:
    """Releases that were rolled back from and not deployed again since: not to be chosen by themselves."""
    bad: list[str] = []
    running: str | None = None
    for entry in reversed(newest_first):
        if entry.status == "rolled_back":
            bad.append(entry.release)
        elif entry.status == "succeeded":
            left = entry.replaced or running
            if entry.kind == "rollback" and left and not same_release(left, entry.release):
                bad.append(left)
            bad = [release for release in bad if not same_release(release, entry.release)]
            running = entry.release
    return bad


def _differs(candidate: ReleaseFacts, current: ReleaseFacts) -> bool:
    if is_live(candidate, current):
        return False
    if candidate.version and candidate.version == current.version:
        return False
    same_code = candidate.code_sha256 is not None and candidate.code_sha256 == current.code_sha256
    same_template = candidate.template_sha256 == current.template_sha256
    return not (same_code and same_template)


def previous_good(
    current: ReleaseFacts, newest_first: Sequence[LedgerEntry], versions: Sequence[PublishedVersion], strategy: Strategy
) -> Choice | None:
    """The last release before the current one that was good and is a different one.

    The ledger decides; an ``alias`` strategy needs a published version too. Where the ledger knows no candidate, the
    newest published version below the live one with other code is taken.
    """
    bad = taken_back(newest_first)
    index = next((i for i, e in enumerate(newest_first) if _is_entry_of(e, current)), None)
    older = newest_first if index is None else newest_first[index + 1 :]
    for entry in older:
        good = entry.status == "succeeded" and not any(same_release(entry.release, b) for b in bad)
        if good and _differs(entry.facts(), current):
            facts = with_version(entry.facts(), versions)
            if strategy == "alias" and facts.version is None:
                continue
            return Choice(
                release=facts,
                source=f"deploy ledger, entry of {_when(entry)}",
                recorded_good=True,
            )
    ceiling = int(current.version) if current.version and current.version.isdigit() else None
    for published in sorted(versions, key=lambda v: int(v.version), reverse=True):
        below = ceiling is None or int(published.version) < ceiling
        known_bad = any(same_release(published.release, release) for release in bad) or any(
            same_release(published.release, entry.release) and entry.status != "succeeded" for entry in newest_first
        )
        usable = strategy == "alias" or published.release is not None
        if below and usable and not known_bad and _differs(published.facts(), current):
            return Choice(release=published.facts(), source=f"published version {published.version} of the function")
    return None


def named(
    wanted: str, newest_first: Sequence[LedgerEntry], versions: Sequence[PublishedVersion], strategy: Strategy
) -> Choice | None:
    """The release that an operator named by commit, label or Lambda version."""
    matching = [e for e in newest_first if same_release(e.release, wanted) or wanted in (e.label, e.version, e.release)]
    matching.sort(key=lambda entry: entry.status != "succeeded")
    if matching:
        entry = matching[0]
        return Choice(
            release=with_version(entry.facts(), versions),
            source=f"named by the operator; deploy ledger, entry of {_when(entry)}",
            recorded_good=entry.status == "succeeded",
        )
    for published in sorted(versions, key=lambda v: int(v.version), reverse=True):
        if published.version == wanted or same_release(published.release, wanted):
            return Choice(
                release=published.facts(),
                source=f"named by the operator; published version {published.version} of the function",
            )
    if strategy in ("redeploy", "command"):
        return Choice(release=ReleaseFacts(release=wanted), source="named by the operator; not in the deploy ledger")
    return None


def with_version(facts: ReleaseFacts, versions: Sequence[PublishedVersion]) -> ReleaseFacts:
    """The facts with the published version that has this code; without one if there is none (any more).

    The recorded number alone proves nothing: the numbers start again when a function is made anew.
    """
    newest_first = sorted(versions, key=lambda v: int(v.version), reverse=True)
    recorded = next((v for v in newest_first if v.version == facts.version and not contradicts(facts, v.facts())), None)
    found = recorded or next((v for v in newest_first if is_live(facts, v.facts())), None)
    return facts.model_copy(update={"version": found.version if found else None})


def _when(entry: LedgerEntry) -> str:
    return f"{entry.deployed_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _is_entry_of(entry: LedgerEntry, current: ReleaseFacts) -> bool:
    return entry.status == "succeeded" and is_live(entry.facts(), current, trust_name=True)
