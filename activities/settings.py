"""``runbooks.toml``: what the worker knows of the stages, providers and stores it works on.

Every key can be overridden by an environment variable: ``RUNBOOKS_AWS__REGION``, ``RUNBOOKS_STAGES__PRODUCTION__URL``.
The file is named by ``RUNBOOKS_CONFIG`` (default ``runbooks.toml`` in the working directory). It holds references to
secrets (:data:`~activities.stage.SecretRef`), never a secret.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from activities.contacts import Contacts
from activities.stage import PublicKey, SecretRef, Stage


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Aws(Part):
    region: str = "us-east-1"
    endpoint_url: str | None = Field(None, description="Only for an emulator; absent means AWS itself")


class RecordsStore(Part):
    """Where reports, ledgers and logs are kept: a bucket, independent of the database that may be down."""

    bucket: str = "operational-runbooks"
    prefix: str = ""


class Slack(Part):
    webhook: SecretRef
    channel: str | None = None


class PagerDuty(Part):
    routing_key: SecretRef
    url: str = "https://events.pagerduty.com/v2/enqueue"


class Webhook(Part):
    """A plain HTTP receiver for pages or messages: POST of one JSON object."""

    url: str
    token: SecretRef | None = None


class Ses(Part):
    sender: str


class GitHubIssues(Part):
    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    token: SecretRef
    url: str = "https://api.github.com"


class Jira(Part):
    url: str
    project: str
    user: str
    token: SecretRef
    issue_type: str = "Task"


class Providers(Part):
    """Providers by the name that a stage's channels use."""

    slack: dict[str, Slack] = Field(default_factory=dict)
    pagerduty: dict[str, PagerDuty] = Field(default_factory=dict)
    webhook: dict[str, Webhook] = Field(default_factory=dict)
    ses: dict[str, Ses] = Field(default_factory=dict)
    github: dict[str, GitHubIssues] = Field(default_factory=dict)
    jira: dict[str, Jira] = Field(default_factory=dict)


class Ui(Part):
    url: str = Field("http://localhost:8233", description="Base URL of the Temporal UI, for links in messages")


class AlarmRule(Part):
    """Which incident an alarm opens. The first rule whose pattern fits the alarm's name holds."""

    alarm: str = Field(description="Name of the alarm, with * for anything", min_length=1)
    stage: str
    severity: Literal["P1", "P2", "P3", "P4"] | None = Field(
        None, description="Worked out from the evidence when absent"
    )
    key: str | None = Field(None, description="Name of the problem; the alarm's name when absent")


class Receiver(Part):
    """Takes alerts over HTTP and opens incidents; what arrives while Temporal is away is kept on disk."""

    listen: str = Field("127.0.0.1:8085", pattern=r"^[\w.:\[\]-]+:\d+$", description="Address and port")
    spool: Path = Field(description="Folder on a disk that outlives the process")
    token: SecretRef | None = Field(None, description="Bearer token of POST /alerts; closed when absent")
    topics: tuple[str, ...] = Field((), description="ARNs of the SNS topics that POST /sns takes; closed when empty")
    alarms: tuple[AlarmRule, ...] = Field((), description="Which alarm opens what")
    with_worker: bool = Field(True, description="Whether the worker runs it too; else python -m worker.receiver")
    certificates: str | None = Field(
        None, description="Only for an emulator: where SNS's certificates come from instead of AWS"
    )


class CodecServer(Part):
    """Decrypts for people: the Temporal UI and the ``temporal`` command ask it."""

    listen: str = Field("127.0.0.1:8086", pattern=r"^[\w.:\[\]-]+:\d+$", description="Address and port")
    origin: str = Field(
        pattern=r"^https?://[\w.:\[\]-]+$",
        description="The Temporal UI as browsers have it in their address line, without a path",
    )
    token: SecretRef = Field(description="What people show that they may read: at its sign-in page, or as bearer token")


class Encryption(Part):
    """Encrypts what Temporal stores of the runs. What stays readable: docs/encryption.md."""

    keys: SecretRef = Field(description="The keyring: runbooks codec new FILE")
    decrypt_only: bool = Field(False, description="To begin and to end with: read what is encrypted, encrypt nothing")
    server: CodecServer | None = Field(None, description="For runbooks codec serve")


class Rehearsal(Part):
    """What the monthly rehearsal goes through, where the examples of the runbooks do not fit the team."""

    inputs: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Input of a runbook by its name; stage, reason and dry_run are filled in"
    )
    skip: tuple[str, ...] = Field((), description="Names of runbooks that this team does not use")


class Settings(BaseSettings):
    """The whole of ``runbooks.toml``."""

    model_config = SettingsConfigDict(
        env_prefix="RUNBOOKS_", env_nested_delimiter="__", extra="forbid", hide_input_in_errors=True
    )

    aws: Aws = Aws()
    records: RecordsStore = RecordsStore()
    providers: Providers = Providers()
    ui: Ui = Ui()
    rehearsal: Rehearsal = Rehearsal()
    encryption: Encryption | None = Field(None, description="Of histories; they are readable when absent")
    receiver: Receiver | None = Field(None, description="Takes alerts over HTTP; none does when absent")
    contacts: Contacts = Field(default_factory=Contacts, description="Who to call, for 'runbooks contacts'")
    task_queue: str = "runbooks"
    stages: dict[str, Stage] = Field(default_factory=dict)
    approvers: dict[str, PublicKey] = Field(
        default_factory=dict, description="Public keys by approver, for stages with signed_approvals"
    )

    @model_validator(mode="after")
    def _somebody_can_sign(self) -> Settings:
        for name, stage in self.stages.items():
            if stage.signed_approvals and not self.approvers:
                raise ValueError(
                    f"stage {name} takes only signed approvals, and [approvers] names nobody's key. "
                    "Have each approver run 'runbooks keys new' and put the line that it prints there"
                )
        return self

    @model_validator(mode="after")
    def _alarms_have_stages(self) -> Settings:
        for rule in self.receiver.alarms if self.receiver else ():
            if rule.stage not in self.stages:
                raise ValueError(
                    f"receiver.alarms: the rule for {rule.alarm!r} names a stage {rule.stage!r}, which there is not; "
                    f"stages: {', '.join(sorted(self.stages)) or 'none'}"
                )
        return self

    @property
    def migrations_queue(self) -> str:
        """Task queue of the long work on databases, which must not keep anything else waiting."""
        return f"{self.task_queue}-migrations"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        toml = TomlConfigSettingsSource(settings_cls, toml_file=config_file())
        return (init_settings, env_settings, toml)


class ConfigError(Exception):
    """The settings cannot be used; the message is one line and names the key."""


def config_file() -> Path:
    return Path(os.environ.get("RUNBOOKS_CONFIG", "runbooks.toml"))


def load_settings(**overrides: Any) -> Settings:
    """Read the settings.

    Raises:
        ConfigError: the file is missing, is not TOML, or has a wrong value. One line, naming file and key.
    """
    path = config_file()
    if not path.exists():
        raise ConfigError(f"{path} does not exist. Name the settings file with RUNBOOKS_CONFIG")
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = "; ".join(
            ": ".join(
                part for part in (".".join(str(p) for p in e["loc"]), e["msg"].removeprefix("Value error, ")) if part
            )
            for e in error.errors()
        )
        raise ConfigError(f"{path}: {problems}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
