"""Every activity of the product with its clients: the one place where they are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from temporalio.client import Client

from activities.alarms import AlarmSettings
from activities.api import Api
from activities.api_keys import ApiKeys
from activities.api_secrets import ApiSecrets
from activities.atlas_advisor import AtlasAdvisor
from activities.backups import Backups
from activities.batches import Batches
from activities.canary import Canary
from activities.client_limits import ClientLimits
from activities.clients import Aws, http_client
from activities.config_files import ConfigFiles
from activities.connection_string import ConnectionString
from activities.database import Database
from activities.database_credentials import DatabaseCredentials
from activities.deployments import Deployments
from activities.function_capacity import FunctionCapacity
from activities.in_flight import Runs
from activities.incidents import Incidents
from activities.indexes import Indexes
from activities.key_usage import KeyLog
from activities.load import Load
from activities.locks import Locks
from activities.logs import Logs
from activities.metrics import Metrics
from activities.migrations import Migrations
from activities.notifications import Notifications
from activities.post_mortem import PostMortems
from activities.profiler import Profiler
from activities.pulse import Pulses
from activities.records import Records
from activities.rehearsals import Case, Rehearsals
from activities.reports import Reports
from activities.rotation_log import RotationLog
from activities.schedules import Schedules
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.signing_keys import SigningKeys
from activities.signs import Signs
from activities.stacks import Stacks
from activities.staged_secrets import StagedSecrets
from activities.stages import Stages
from activities.symptom_logs import SymptomLogs
from activities.symptom_metrics import SymptomMetrics
from activities.tickets import Tickets
from activities.tier import ClusterTier
from activities.traffic import Traffic
from workflows.catalog import RUNBOOKS
from workflows.rehearsal import Rehearsal


def build_activities(settings: Settings, client: Client) -> list[Callable[..., Any]]:
    """The bound activity methods of one worker."""
    aws = Aws(settings)
    http = http_client()
    resolver = SecretResolver(aws.ssm, aws.secretsmanager)
    records = Records(aws.s3, settings)
    api = Api(http, resolver)
    signs = Signs(aws.cloudwatch, aws.logs, aws.functions, records)
    deployments = Deployments(aws.cloudformation, aws.functions, records)
    staged, secrets = StagedSecrets(aws.secretsmanager), ApiSecrets(resolver, aws.functions)
    key_log = KeyLog(aws.logs)
    hosts: list[object] = [
        Stages(settings),
        Locks(client, settings.task_queue),
        Schedules(client, settings.task_queue),
        Reports(records),
        deployments,
        ApiKeys(staged, secrets, resolver, http, deployments, key_log),
        key_log,
        DatabaseCredentials(staged, secrets, resolver, http, deployments),
        SigningKeys(staged, secrets, resolver, http, deployments),
        RotationLog(records, client),
        Stacks(aws.cloudformation),
        FunctionCapacity(aws.functions),
        AlarmSettings(aws.cloudwatch),
        ConfigFiles(records),
        ClusterTier(http, resolver),
        Traffic(aws.functions, aws.apigateway),
        Canary(aws.logs),
        Runs(client),
        Incidents(client, settings.task_queue),
        api,
        Metrics(aws.cloudwatch),
        Load(resolver),
        Logs(aws.logs),
        signs,
        Pulses(api, signs),
        PostMortems(records, settings.contacts),
        Database(resolver),
        Backups(settings, aws.s3, http, resolver),
        ConnectionString(resolver, aws.functions),
        Batches(resolver, Metrics(aws.cloudwatch)),
        Migrations(resolver, records),
        Indexes(resolver),
        SymptomMetrics(aws.cloudwatch),
        SymptomLogs(aws.logs),
        ClientLimits(aws.ssm),
        Profiler(resolver, AtlasAdvisor(http, resolver)),
        Notifications(settings, resolver, http, aws.ses),
        Rehearsals(settings, resolver, rehearsed()),
        Tickets(settings, resolver, http),
    ]
    return [method for host in hosts for method in activity_methods(host)]


def rehearsed() -> list[Case]:
    """Every runbook but the rehearsal itself, with the input that its own page gives as an example."""
    return [
        Case(runbook=runbook.__name__, input=runbook.spec.example) for runbook in RUNBOOKS if runbook is not Rehearsal
    ]


def activity_methods(host: object) -> list[Callable[..., Any]]:
    """The methods of ``host`` that are activities, in the order of their names."""
    methods = (getattr(host, name) for name in sorted(dir(type(host))))
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]
