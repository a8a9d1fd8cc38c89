"""Every activity of the product with its clients: the one place where they are put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from temporalio.client import Client

from activities.api import Api
from activities.backups import Backups
from activities.batches import Batches
from activities.canary import Canary
from activities.clients import Aws, http_client
from activities.connection_string import ConnectionString
from activities.database import Database
from activities.deployments import Deployments
from activities.in_flight import Runs
from activities.incidents import Incidents
from activities.indexes import Indexes
from activities.locks import Locks
from activities.logs import Logs
from activities.metrics import Metrics
from activities.migrations import Migrations
from activities.notifications import Notifications
from activities.records import Records
from activities.reports import Reports
from activities.schedules import Schedules
from activities.secret_refs import SecretResolver
from activities.settings import Settings
from activities.stacks import Stacks
from activities.stages import Stages
from activities.tickets import Tickets
from activities.traffic import Traffic


def build_activities(settings: Settings, client: Client) -> list[Callable[..., Any]]:
    """The bound activity methods of one worker."""
    aws = Aws(settings)
    http = http_client()
    resolver = SecretResolver(aws.ssm, aws.secretsmanager)
    records = Records(aws.s3, settings)
    hosts: list[object] = [
        Stages(settings),
        Locks(client, settings.task_queue),
        Schedules(client, settings.task_queue),
        Reports(records),
        Deployments(aws.cloudformation, aws.functions, records),
        Stacks(aws.cloudformation),
        Traffic(aws.functions, aws.apigateway),
        Canary(aws.logs),
        Runs(client),
        Incidents(client, settings.task_queue),
        Api(http, resolver),
        Metrics(aws.cloudwatch),
        Logs(aws.logs),
        Database(resolver),
        Backups(settings, aws.s3, http, resolver),
        ConnectionString(resolver, aws.ssm, aws.secretsmanager, aws.functions),
        Batches(resolver, Metrics(aws.cloudwatch)),
        Migrations(resolver, records),
        Indexes(resolver),
        Notifications(settings, resolver, http, aws.ses),
        Tickets(settings, resolver, http),
    ]
    return [method for host in hosts for method in activity_methods(host)]


def activity_methods(host: object) -> list[Callable[..., Any]]:
    """The methods of ``host`` that are activities, in the order of their names."""
    methods = (getattr(host, name) for name in sorted(dir(type(host))))
    return [method for method in methods if hasattr(method, "__temporal_activity_definition")]
