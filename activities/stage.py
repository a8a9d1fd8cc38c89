"""What a stage is: the facts and policies of one deployed copy of the API, as plain data.

A workflow resolves its stage once, at its start, and works from that recorded fact until it ends. These models stand in
histories for years: fields are only ever added, always with a default. No field holds a secret; secrets are
:data:`SecretRef` strings that the worker resolves at the moment of use.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from activities.facts import Facts as Facts
from activities.incident_policy import IncidentPolicy
from activities.windows import MaintenancePolicy as MaintenancePolicy
from activities.windows import MaintenanceWindow as MaintenanceWindow

SecretRef = Annotated[
    str,
    StringConstraints(
        pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|ssm:/?[\w./-]+|secretsmanager:[\w/+=.@:-]+(#[\w.-]+)?)$"
    ),
]
"""Where a secret is: ``env:NAME``, ``file:/path``, ``ssm:/parameter/path``, ``secretsmanager:name-or-arn#field``."""


PublicKey = Annotated[str, StringConstraints(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$")]
"""An approver's public key as ``runbooks keys`` prints it: ``ed25519:`` and 32 bytes in base64. It is no secret."""


class GatePolicy(Facts):
    """Who has to say yes, and what happens when nobody does."""

    approvals: int = Field(1, ge=0, le=10, description="Distinct people who must approve; 0 waives the gate")
    approvers: tuple[str, ...] = Field((), description="Who may answer; empty means anybody")
    requester_may_approve: bool = Field(
        True, description="Whether who asked for the run may approve it; unset, everywhere but in production"
    )
    remind_every: timedelta = Field(timedelta(minutes=15), description="Reminder interval while the gate waits")
    time_limit: timedelta = Field(
        timedelta(hours=24), description="After this long without an answer, on_timeout holds"
    )
    on_timeout: Literal["reject", "approve"] = Field("reject", description="The stated outcome of the time limit")


class GatewayFacts(Facts):
    """The API Gateway REST API in front of the function."""

    name: str = Field(description="Name of the REST API, as in the ApiName dimension of its metrics")
    stage: str = Field(description="Stage of the REST API")
    api_id: str | None = Field(None, description="Id of the REST API; looked up by name when absent")
    log_group: str | None = None
    variable: str = Field(
        "lambdaAlias", description="Stage variable by which the integration names the alias; for traffic = 'gateway'"
    )


class DatabaseFacts(Facts):
    uri: SecretRef = Field(description="Reference to the connection string")
    name: str = Field(description="Database within the cluster")
    operator_uri: SecretRef | None = Field(
        None, description="Connection string of a user who may profile the database; the API's own when absent"
    )
    most_connections: int | None = Field(
        None, ge=1, description="Connections that the cluster takes, where the server itself does not say"
    )


FieldPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_@][\w.@]*$", max_length=100)]
"""A field of a JSON log line as Logs Insights names it, such as ``error.type``."""


class LogFields(Facts):
    """What the API calls the fields of its log lines, and the gateway those of its access log."""

    status: FieldPath = "statusCode"
    method: FieldPath = "method"
    route: FieldPath = Field("route", description="Route or path")
    client: FieldPath = Field("apiKeyId", description="Id or fingerprint of the client's key, never the key")
    duration: FieldPath = "durationMs"
    error: FieldPath = Field("error", description="Text of an error")
    error_type: FieldPath = "errorType"
    gateway_status: FieldPath = "status"
    gateway_method: FieldPath = "method"
    gateway_path: FieldPath = "path"
    gateway_client: FieldPath = "ip"
    gateway_latency: FieldPath = "latency"


class DeployPolicy(Facts):
    """How this stage is deployed, so that it can be deployed again."""

    engine: Literal["sst", "sst-v2", "cloudformation", "command"] = "sst"
    app: str = Field("state-api", description="Name of the application in the deploy ledger")
    directory: str | None = Field(None, description="Checkout that the engine runs in (a git repository)")
    releases: str | None = Field(None, description="Folder of saved builds, one per release id; used instead of git")
    command: tuple[str, ...] = Field(
        (), description="For engine 'command' and the 'command' strategy: argv with {stage}, {release}, {version}"
    )
    prepare: tuple[str, ...] = Field(
        (), description="argv run in a fresh git checkout before SST deploys it, such as npm ci; no shell"
    )
    timeout: timedelta = timedelta(minutes=30)


class SourceFacts(Facts):
    """Where in the repository the capacity of the function is decided."""

    config: str = Field("sst.config.ts", description="File with memory and provisioned concurrency")
    pool: str = Field("src/app.module.ts", description="File with maxPoolSize and minPoolSize")
    pool_variable: str | None = Field(
        None,
        pattern=r"^[A-Z][A-Z0-9_]*$",
        description="Environment variable by which the code takes its maxPoolSize; absent: a deployment changes it",
    )
    pool_size: int = Field(100, ge=1, description="maxPoolSize without that variable; 100 is the driver's own")


class RollbackPolicy(Facts):
    strategy: Literal["redeploy", "alias", "cloudformation", "command"] = "redeploy"
    health_checks: int = Field(5, ge=1, le=100, description="Consecutive good answers of /health that count as healthy")
    health_interval: timedelta = timedelta(seconds=2)
    health_patience: timedelta = Field(timedelta(minutes=5), description="How long to wait for that many in a row")
    error_rate_below: float = Field(0.001, gt=0, lt=1, description="The document: errors below 0.1 %")
    error_window: timedelta = Field(timedelta(minutes=10), description="The document: logs of the last 10 minutes")
    metrics_delay: timedelta = Field(
        timedelta(minutes=1), description="How far CloudWatch is behind: added to the wait, left out of the window"
    )


class CanaryPolicy(Facts):
    """What a version has to keep to while it gets traffic back step by step; errors as in ``rollback``."""

    max_latency_ms: float = Field(2000, gt=1, le=29000, description="Slower than this is a slow answer: degraded")
    min_sample: int = Field(50, ge=1, description="Fewest invocations of each version before it is judged good")
    migration: Literal["refuse", "gate"] = Field(
        "refuse", description="What a rollback does while a database migration of the same stage is in flight"
    )


class AtlasFacts(Facts):
    """The cluster of this stage in MongoDB Atlas, and who may work on it through the Administration API v2."""

    group: str = Field(pattern=r"^[\w-]+$", description="Id of the project (the API calls it a group)")
    cluster: str = Field(pattern=r"^[A-Za-z0-9][\w-]*$", description="Name of the cluster")
    url: str = Field("https://cloud.mongodb.com", description="Base URL, without a trailing slash")
    auth: Literal["service_account", "digest"] = Field(
        "service_account", description="A service account (client id and secret), or an API key pair over HTTP digest"
    )
    id: SecretRef = Field(description="Reference to the client id, or to the public key")
    secret: SecretRef = Field(description="Reference to the client secret, or to the private key")
    retention_days: int = Field(7, ge=1, le=365, description="How long Atlas keeps a snapshot taken on demand")
    scratch_cluster: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][\w-]*$",
        description="Existing cluster of the project to restore into first. A restore deletes everything in it",
    )
    scratch_uri: SecretRef | None = Field(None, description="Reference to the connection string of that cluster")


class BackupPolicy(Facts):
    """How the stage's database is backed up, and where the backups lie."""

    provider: Literal["archive", "atlas"] = Field(
        "archive", description="archive: a logical dump that this project makes; atlas: snapshots of Atlas"
    )
    location: str | None = Field(
        None,
        pattern=r"^(s3://[\w.-]+(/[\w./=-]+)?|file:///[\w./ -]+)$",
        description="s3://bucket/prefix or file:///folder of the archives; the records bucket when absent",
    )
    uri: SecretRef | None = Field(
        None,
        description=(
            "Connection string of a user who may read the database, fill it, and do the same to databases named after "
            "it with _scratch and _restored; the API's own when absent"
        ),
    )
    atlas: AtlasFacts | None = Field(None, description="Needed for provider 'atlas'")


Role = Literal["primary", "backup", "internal"]
"""What a key of the API is for: clients, clients in need, the team's own services."""


class ApiClient(Facts):
    """One client of the API: which key it has, who answers for it, and how that person is reached."""

    name: str = Field(pattern=r"^[\w .@-]{1,40}$", description="As it calls itself in X-Client-Name or its user agent")
    owner: str = Field(description="Who answers for it")
    key: Role = "primary"
    mail: tuple[str, ...] = Field((), description="Addresses that its notices go to")
    chat: tuple[str, ...] = Field((), description="Chat providers, tried in order, that its notices go to")


class RotatedSecret(Facts):
    """A secret that is rotated: what the deploy engine calls it, and where its versions are kept."""

    name: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$", description="As the deploy engine knows it, such as ApiKeys")
    store: str = Field(
        pattern=r"^[\w+=.@-]+(/[\w+=.@-]+)*$",
        description="Name in Secrets Manager under which its versions are staged; parts of it are beneath that name",
    )
    ref: SecretRef | None = Field(
        None,
        description="Where the API reads it; needed where the engine is not SST v3 or v4, which keep it themselves",
    )
    every: timedelta | None = Field(None, description="From one rotation to the next; the document's own when absent")
    pair: str | None = Field(
        None, description="Secrets of the same pair, on any stage, never rotate within one overlap of each other"
    )


UrlPath = Annotated[str, StringConstraints(pattern=r"^/[\w./-]*$")]


class TokenFacts(Facts):
    """How the API gives out and takes the tokens that its signing secret signs: JSON Web Tokens with HS256."""

    issue: UrlPath = Field("/tokens", description="POST with the stage's API key answers JSON with a field 'token'")
    check: UrlPath = Field("/tokens/self", description="GET with 'Authorization: Bearer' is let in by a token alone")
    life: timedelta = Field(
        timedelta(days=1), gt=timedelta(0), description="Longest life of a token; a longer one that is seen counts"
    )
    patience: timedelta = Field(
        timedelta(seconds=30), description="How long after a deployment some answer may still be the former release's"
    )


class RotationPolicy(Facts):
    """Which secrets of the stage are rotated, and whom that concerns."""

    api_keys: RotatedSecret | None = None
    database: RotatedSecret | None = None
    signing: RotatedSecret | None = None
    clients: tuple[ApiClient, ...] = Field((), description="Who has which key of the API")
    guide: str | None = Field(None, description="URL of the guide that clients follow to change their key")
    rehearse_on: str | None = Field(None, description="Stage that is rotated first; a production stage needs one")
    key_field: str = Field("apiKeyId", pattern=r"^[\w.@]+$", description="Field of the API's log lines: id of the key")
    client_field: str = Field("client", pattern=r"^[\w.@]+$", description="Field of the log lines: name of the client")
    status_field: str = Field("statusCode", pattern=r"^[\w.@]+$", description="Field of the log lines: HTTP status")
    tokens: TokenFacts = TokenFacts()
    users: Literal["mongodb", "atlas"] = Field(
        "mongodb", description="How database users are made: by command, or by the Administration API (Atlas)"
    )
    users_uri: SecretRef | None = Field(
        None, description="Connection string of a user who may make and drop users; needed for users = 'mongodb'"
    )


class Channels(Facts):
    """Where announcements of this stage go. Each names a provider configured for the worker."""

    chat: tuple[str, ...] = Field(("slack",), description="Chat providers, tried in order until one takes the message")
    page: tuple[str, ...] = Field(("pagerduty", "webhook"), description="Pagers, tried in order until one takes it")
    mail: tuple[str, ...] = ("ses",)
    ticket: tuple[str, ...] = Field(("tickets",), description="Ticket systems, tried in order until one takes it")
    stakeholders: tuple[str, ...] = Field((), description="Mail addresses told about the outcome")


class Stage(Facts):
    """One deployed copy of the API."""

    name: str
    production: bool = False
    region: str = "us-east-1"
    function: str = Field(description="Lambda function name")
    alias: str = Field("live", description="Alias that the gateway calls")
    stack: str | None = Field(None, description="CloudFormation stack; absent for Pulumi-based engines")
    url: str = Field(description="Base URL of the API, without a trailing slash")
    api_key: SecretRef = Field(description="Reference to a key that may call the API")
    log_group: str = Field(description="Log group of the function")
    log_fields: LogFields = LogFields()
    limits_parameter: str | None = Field(
        None,
        pattern=r"^/[\w./-]+$",
        description="SSM parameter in which the API reads limits by client: JSON, key id to per_minute and until",
    )
    gateway: GatewayFacts
    database: DatabaseFacts
    deploy: DeployPolicy = DeployPolicy()
    rollback: RollbackPolicy = RollbackPolicy()
    backup: BackupPolicy = BackupPolicy()
    traffic: Literal["alias", "gateway"] = Field(
        "alias", description="How traffic is split between two versions: weighted alias, or canary of the REST API"
    )
    canary: CanaryPolicy = CanaryPolicy()
    gates: dict[str, GatePolicy] = Field(default_factory=dict, description="Policy a gate id; 'default' for the rest")
    signed_approvals: bool = Field(
        False, description="Whether gates take only decisions signed with the key that is registered for the approver"
    )
    maintenance: MaintenancePolicy | None = Field(None, description="When it may be migrated; absent means always")
    rotation: RotationPolicy = RotationPolicy()
    channels: Channels = Channels()
    incidents: IncidentPolicy | None = Field(
        None, description="Severities, clocks and who is called; the document's table when absent"
    )
    source: SourceFacts = SourceFacts()
    load_hosts: tuple[str, ...] = Field(
        (), description="Hosts that a load test of this stage may be pointed at, besides this machine"
    )
    ui_url: str | None = Field(None, description="Base URL of the Temporal UI; filled in from the settings")
    migrations_queue: str | None = Field(
        None, description="Task queue of long database work; filled in from the settings. Absent means the run's own"
    )
    waive_gates_in_incident: bool = Field(
        False, description="Whether a run that names an ongoing incident skips the approval of a rollback"
    )

    @field_validator("gates")
    @classmethod
    def _who_asked(cls, gates: dict[str, GatePolicy], info: ValidationInfo) -> dict[str, GatePolicy]:
        """A policy that is written for something else does not let who asks for a production run approve it.

        Decided here, where settings are read: what an older run has recorded says it either way, and stays as it is.
        """
        if not info.data.get("production"):
            return gates
        unset = {key: policy for key, policy in gates.items() if "requester_may_approve" not in policy.model_fields_set}
        return gates | {
            key: policy.model_copy(update={"requester_may_approve": False}) for key, policy in unset.items()
        }

    @property
    def incident_policy(self) -> IncidentPolicy:
        """What holds for incidents here."""
        return self.incidents or IncidentPolicy()

    def gate(self, gate_id: str) -> GatePolicy:
        """The policy of one gate, falling back to this stage's default and then to the built-in one."""
        return (
            self.gates.get(gate_id)
            or self.gates.get("default")
            or GatePolicy(requester_may_approve=not self.production)
        )
