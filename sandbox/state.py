"""What the sandbox keeps on disk: where everything lies, what runs, and the secrets made at its first start."""

from __future__ import annotations

import fcntl
import os
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sandbox.processes import Identity

STAGES = ("staging", "production")


class Layout:
    """The files of one sandbox, all below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.state = self.root / "house.json"
        self.vault = self.root / "secrets.json"
        self.settings = self.root / "runbooks.toml"
        self.env = self.root / "env"
        self.bin = self.root / "bin"
        self.data = self.root / "data"
        self.logs = self.root / "logs"
        self.references = self.root / "secrets"
        self.releases = self.root / "releases"
        """Checkouts by release id: a rollback deploys an old one again."""

    def create(self) -> None:
        for directory in (self.root, self.bin, self.data, self.logs, self.references, self.releases):
            directory.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o700)  # the emulator's and the database's data hold secrets, too

    def log(self, part: str) -> Path:
        return self.logs / f"{part}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One start, repair or stop at a time; others wait. The lock goes with the process that holds it."""
        with (self.root / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


class State(BaseModel):
    """``house.json``: the parts that were started and not yet stopped."""

    boot: str
    started_at: datetime
    owner: Identity | None = Field(description="Process whose end ends every part; none for a detached sandbox")
    ports: dict[str, int] = Field(default_factory=dict)
    parts: dict[str, Identity] = Field(default_factory=dict, description="Guard of each part, by the part's name")
    furnished_aws: Identity | None = Field(None, description="AWS part that has the stages; a new one has nothing")
    furnished_mongodb: int | None = Field(None, description="Port of MongoDB that the stages were told")

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The recorded state; ``None`` when there is none or it is damaged (then nothing in it can be trusted)."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, path: Path) -> None:
        _replace(path, self.model_dump_json(indent=2), 0o600)


class StageSecrets(BaseModel):
    model_config = ConfigDict(frozen=True)

    api_keys: tuple[str, ...] = Field(default_factory=lambda: tuple(str(uuid.uuid4()) for _ in range(3)))
    """Keys that the API accepts at first: the primary, the backup and the internal one."""
    signing_secret: str = Field(default_factory=lambda: secrets.token_urlsafe(32))
    api_password: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    operator_password: str = Field(default_factory=lambda: secrets.token_urlsafe(24))


class Vault(BaseModel):
    """``secrets.json``, readable by its owner only: the secrets of the sandbox, made once.

    Nobody shows them and no command line carries them: parts get them by environment, the product by reference.
    """

    model_config = ConfigDict(frozen=True)

    mongodb_admin_password: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    slack_path: str = Field(default_factory=lambda: secrets.token_hex(12))
    pagerduty_routing_key: str = Field(default_factory=lambda: secrets.token_hex(16))
    webhook_token: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    github_token: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    receiver_token: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    atlas_secret: str = Field(default_factory=lambda: secrets.token_urlsafe(24))
    stages: dict[str, StageSecrets] = Field(default_factory=lambda: {stage: StageSecrets() for stage in STAGES})

    @classmethod
    def open(cls, path: Path) -> Vault:
        if path.exists():
            return cls.model_validate_json(path.read_bytes())
        vault = cls()
        write_secret(path, vault.model_dump_json(indent=2))
        return vault


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at no moment otherwise."""
    _replace(path, text, 0o600)


def _replace(path: Path, text: str, mode: int) -> None:
    """Write whole or not at all: a reader, or a start after a crash, never sees half a file."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)
