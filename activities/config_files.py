"""What the repository says of the function's capacity: the change as a diff, and whether a commit has it.

Nothing is written into a repository: people merge. A change that was made beside it is recorded as drift.
"""

from __future__ import annotations

import difflib
import re
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field
from temporalio import activity

from activities import commands, config_edits
from activities.errors import classified, lasting
from activities.evidence import Finding
from activities.function_capacity import Setting
from activities.records import Records
from activities.stage import Facts, Stage

_MOST = 19_000
"""Longer files are not read: a command's output is kept in part only."""


class ConfigAt(Facts):
    """The file that decides this setting, at one commit or saved build."""

    stage: Stage
    setting: Setting
    release: str | None = Field(None, description="Commit or build id; absent when what is live has no name")


class Proposal(Finding):
    """The change as people would merge it."""

    path: str
    diff: str | None = Field(None, description="Unified diff; absent when the file cannot be read")
    before: Setting | None = None
    has_it: bool = Field(False, description="Whether the commit has the change already")


class Drift(Facts):
    """A change that was made beside the repository, until the repository has it or the change is taken back."""

    stage: str
    key: str = Field(description="Workflow id of the run that made it")
    path: str
    setting: Setting
    former: Setting
    diff: str | None = None
    by: str | None = None
    reason: str
    at: datetime
    state: Literal["open", "closed"] = "open"


class DriftRecorded(Finding):
    location: str


class ConfigFiles:
    def __init__(self, records: Records) -> None:
        self._records = records

    @activity.defn(name="config.propose")
    @classified("read the repository's configuration")
    def propose(self, asked: ConfigAt) -> Proposal:
        """The diff from what that commit says to the setting. A file that cannot be read or understood is said."""
        path, setting = path_of(asked.stage, asked.setting), asked.setting
        if asked.release is None:
            return Proposal(summary=f"{path}: the live release has no name, so its file is not known", path=path)
        text = _read(asked.stage, asked.release, path)
        if isinstance(text, Unread):
            return Proposal(summary=f"{path}: {text}", path=path)
        try:
            before = config_edits.read(text, setting)
            after = config_edits.write(text, setting)
        except config_edits.NotFoundError as error:
            return Proposal(summary=f"{path} at {asked.release[:12]} has {error}. Change it by hand", path=path)
        if before == setting:
            return Proposal(
                summary=f"{path} at {asked.release[:12]} says {setting.described()} already",
                path=path,
                before=before,
                has_it=True,
            )
        lines = difflib.unified_diff(
            text.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{path}", f"b/{path}"
        )
        return Proposal(
            summary=f"{path}: {before.described()} → {setting.described()}",
            path=path,
            diff="".join(lines),
            before=before,
        )

    @activity.defn(name="config.drift")
    @classified("record drift from the repository")
    def drift(self, drift: Drift) -> DriftRecorded:
        """Write it down under its key; the same again changes nothing, ``closed`` closes it."""
        name = re.sub(r"[^\w.-]+", "-", drift.key)
        location = self._records.store_json(f"drift/{drift.stage}/{name}.json", drift)
        said = "the repository has to catch up" if drift.state == "open" else "reconciled"
        return DriftRecorded(summary=f"drift of {drift.path}: {said} ({location})", location=location)


def path_of(stage: Stage, setting: Setting) -> str:
    """The file that decides this setting."""
    return stage.source.pool if setting.max_pool_size is not None else stage.source.config


class Unread(str):
    """Why a file could not be read."""


def _read(stage: Stage, release: str, path: str) -> str | Unread:
    problem = commands.missing(stage, release)
    if problem:
        return Unread(problem)
    if stage.deploy.releases:
        file = Path(stage.deploy.releases) / release / path
        try:
            return file.read_text()
        except OSError as error:
            return Unread(f"cannot be read in {release[:12]}: {error.strerror}")
    source = str(stage.deploy.directory)
    shown = commands.quick(
        [commands.program("git", Path(source)), "-C", source, "show", f"{release}:{path}"], Path(source)
    )
    if shown.code != 0:
        return Unread(f"git show: {shown.last_line}")
    if len(shown.output) > _MOST:
        raise lasting(f"{path} is too long to be read here. Change it by hand, and use way=direct", type="TooLong")
    return shown.output
