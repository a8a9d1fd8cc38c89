"""From the calls that runbooks make to the permissions they need: IAM policies, MongoDB and Atlas roles.

All pure functions. The policies are templates: ``${Function}`` and the like stand for the names of one stage, see
``deploy/README.md``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from activities.calls import Calls, System
from activities.stage import Stage

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "rollback": ("QuickRollback", "CanaryRollback"),
    "database": ("DatabaseMigration", "BatchedUpdate", "DatabaseBackup", "DatabaseRestore", "RestoreDrill"),
    "rotation": ("ApiKeyRotation", "DatabaseCredentialRotation", "SigningSecretRotation"),
    "incident": ("Incident", "Diagnosis"),
    "performance": ("PerformanceDegradation", "HighMemoryUsage", "HighErrorRate", "ClientRateLimit"),
    "scaling": (
        "VerticalScaling",
        "ConnectionPoolScaling",
        "ProvisionedConcurrency",
        "ScalingExpiry",
        "LoadTest",
        "ServiceRestart",
        "ServiceRestartWatchdog",
    ),
}
"""Which workflows share a policy: the chapters of the operational document."""

EVERY = tuple(FAMILIES)


@dataclass(frozen=True)
class Rare:
    """Calls that the tests of real procedures do not reach: they need another configuration, or something that fails.

    Attributes:
        when: Whether a stage needs them.
    """

    why: str
    families: tuple[str, ...]
    when: Callable[[Stage], bool] = lambda _stage: True
    aws: tuple[str, ...] = ()
    mongodb: tuple[str, ...] = ()
    atlas: tuple[str, ...] = ()


RARE = (
    Rare(
        "a canary of the REST API instead of a weighted alias",
        ("rollback",),
        lambda stage: stage.traffic == "gateway",
        aws=("apigateway:GET", "apigateway:PATCH", "apigateway:POST", "apigateway:DELETE", "lambda:AddPermission"),
    ),
    Rare(
        "the stage's deployments are updates of its stack",
        EVERY,
        lambda stage: stage.deploy.engine == "cloudformation",
        aws=("cloudformation:UpdateStack", "cloudformation:GetTemplateSummary"),
    ),
    Rare(
        "an alarm stands on what is scaled, or environments are provisioned and get theirs",
        ("scaling",),
        aws=(
            *("cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"),
            *("lambda:PutProvisionedConcurrencyConfig", "lambda:DeleteProvisionedConcurrencyConfig"),
        ),
    ),
    Rare(
        "secrets in Secrets Manager",
        EVERY,
        lambda stage: "secretsmanager:" in stage.model_dump_json(),
        aws=("secretsmanager:GetSecretValue",),
    ),
    Rare(
        "the connection string is in Secrets Manager, and a restore or a rotation changes it",
        ("database", "rotation"),
        lambda stage: stage.database.uri.startswith("secretsmanager:"),
        aws=("secretsmanager:PutSecretValue",),
    ),
    Rare(
        "mail to stakeholders and responders, with an invitation",
        EVERY,
        lambda stage: bool(stage.channels.mail),
        aws=("ses:SendEmail", "ses:SendRawEmail"),
    ),
    Rare(
        "looks into the log that take a query",
        ("incident", "performance"),
        aws=("logs:StartQuery", "logs:GetQueryResults", "logs:StopQuery"),
    ),
    Rare(
        "a rotation that is undone or repeated",
        ("rotation",),
        aws=("secretsmanager:DeleteSecret",),
        mongodb=("admin updateUser",),
    ),
    Rare(
        "rotated secrets that the API reads from SSM, because its engine keeps none",
        ("rotation",),
        lambda stage: '"ref":"ssm:' in stage.rotation.model_dump_json(),
        aws=("ssm:GetParameter", "ssm:PutParameter"),
    ),
    Rare(
        "database users of Atlas",
        ("rotation",),
        lambda stage: stage.rotation.users == "atlas",
        atlas=(
            "POST /databaseUsers",
            "GET /databaseUsers/{id}/{id}",
            "PATCH /databaseUsers/{id}/{id}",
            "DELETE /databaseUsers/{id}/{id}",
            "GET /dbAccessHistory/clusters/{id}",
        ),
    ),
    Rare("an archive whose upload fails half-way", ("database",), aws=("s3:AbortMultipartUpload",)),
    Rare("a migration that is undone, or whose progress is looked at", ("database",), mongodb=("stage dropIndexes",)),
    Rare("the progress of an index build that takes its time", ("database",), mongodb=("admin $currentOp",)),
    Rare("a restore over what is there", ("database",), mongodb=("stage renameCollection", "scratch dropDatabase")),
    Rare(
        "a restore of a collection with a validator, whose older documents may not keep to it",
        ("database",),
        mongodb=("stage insertUnchecked", "scratch insertUnchecked"),
    ),
    Rare(
        "a restore from Atlas",
        ("database",),
        lambda stage: stage.backup.provider == "atlas",
        atlas=(
            "POST /clusters/{id}/backup/restoreJobs",
            "GET /clusters/{id}/backup/restoreJobs",
            "GET /clusters/{id}/backup/restoreJobs/{id}",
            "DELETE /clusters/{id}/backup/restoreJobs/{id}",
        ),
    ),
)

_FUNCTION = "arn:${Partition}:lambda:${Region}:${Account}:function:${Function}"
_API = "arn:${Partition}:apigateway:${Region}::/restapis"
_LOG = "arn:${Partition}:logs:${Region}:${Account}:log-group"
_BUCKET = "arn:${Partition}:s3:::${Records}"
_RESOURCES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # The first pattern that fits an action. '*' where AWS has no resources for it.
    (r"lambda:(List(Functions|Layers)|GetAccountSettings)", ("*",)),
    (r"lambda:", (_FUNCTION, f"{_FUNCTION}:*")),
    (r"cloudformation:(GetTemplateSummary|ListStacks|ValidateTemplate)", ("*",)),
    (r"cloudformation:", ("arn:${Partition}:cloudformation:${Region}:${Account}:stack/${Stack}/*",)),
    (r"logs:(GetQueryResults|StopQuery|DescribeLogGroups|DescribeQueries)", ("*",)),
    (r"logs:", tuple(f"{_LOG}:{group}:*" for group in ("${LogGroup}", "${GatewayLogGroup}"))),
    (r"s3:(ListAllMyBuckets)", ("*",)),
    (r"s3:(ListBucket|GetBucket)", (_BUCKET,)),
    (r"s3:", (f"{_BUCKET}/*",)),
    (r"apigateway:", (_API, f"{_API}/${{RestApi}}/*")),
    (r"ssm:", ("arn:${Partition}:ssm:${Region}:${Account}:parameter${Parameters}*",)),
    (r"secretsmanager:(ListSecrets|GetRandomPassword|BatchGetSecretValue)", ("*",)),
    (r"secretsmanager:", ("arn:${Partition}:secretsmanager:${Region}:${Account}:secret:${Secrets}*",)),
    (r"ses:Send", ("arn:${Partition}:ses:${Region}:${Account}:identity/*",)),
    (
        r"cloudwatch:(Put|Delete|Set|Enable|Disable)\w*Alarm",
        ("arn:${Partition}:cloudwatch:${Region}:${Account}:alarm:*",),
    ),
    (r"", ("*",)),
)

_ACTIONS_OF: Mapping[str, tuple[str, ...]] = {
    # MongoDB's commands by the privilege actions they need. A command that is missing here needs the one of its name.
    "count": ("find",),
    "aggregate": ("find",),
    "distinct": ("find",),
    "explain": ("find",),
    "findAndModify": ("find", "update"),
    "update": ("update", "find"),
    "upsert": ("update", "find", "insert"),
    "insertUnchecked": ("insert", "bypassDocumentValidation"),
    "$currentOp": ("inprog",),
    "$collStats": ("collStats",),
    "$indexStats": ("indexStats",),
    "$out": ("find", "insert", "remove"),
    "$merge": ("find", "insert", "update"),
    "delete": ("remove", "find"),
    "bulkWrite": ("insert", "update", "remove"),
    "createIndexes": ("createIndex",),
    "dropIndexes": ("dropIndex",),
    "create": ("createCollection",),
    "drop": ("dropCollection",),
    "renameCollection": ("renameCollectionSameDB",),
    "currentOp": ("inprog",),
    "killOp": ("killop",),
    "usersInfo": ("viewUser",),
    "rolesInfo": ("viewRole",),
    "grantRolesToUser": ("grantRole",),
    "updateUser": ("changePassword", "grantRole"),
    "createUser": ("createUser", "grantRole"),
    "profile": ("enableProfiler",),
    "connectionStatus": (),
    "commitTransaction": (),
    "abortTransaction": (),
}
_OF_CLUSTER = {
    "getLog",
    "serverStatus",
    "currentOp",
    "$currentOp",
    "killOp",
    "replSetGetStatus",
    "listDatabases",
    "getParameter",
    "top",
}

_ATLAS_ROLES: tuple[tuple[str, str, str], ...] = (
    # Method, path, and the role that the Administration API asks for, least first.
    (r"GET", r"/clusters/\{id\}/backup/", "GROUP_READ_ONLY"),
    (r"POST|DELETE", r"/clusters/\{id\}/backup/", "GROUP_BACKUP_MANAGER"),
    (r"GET", r"/dbAccessHistory", "GROUP_DATABASE_ACCESS_ADMIN"),
    (r"GET", r"", "GROUP_READ_ONLY"),
    (r"POST|PATCH|DELETE", r"/databaseUsers", "GROUP_DATABASE_ACCESS_ADMIN"),
    (r"PATCH", r"/clusters/\{id\}$", "GROUP_CLUSTER_MANAGER"),
    (r"", r"", "GROUP_OWNER"),
)


def family_of(workflow: str) -> str:
    """The family of a workflow; one that is in none has its own."""
    named = next((family for family, workflows in FAMILIES.items() if workflow in workflows), None)
    return named or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", workflow).lower()


def by_family(calls: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Calls of each family. Those that no workflow asked for are everybody's."""
    found: dict[str, set[str]] = {}
    for workflow, made in calls.items():
        found.setdefault(family_of(workflow), set()).update(made)
    everybody = found.pop("worker", set())
    return {family: sorted(made | everybody) for family, made in sorted(found.items())}


def with_rare(calls: Calls, system: System, stage: Stage | None = None) -> dict[str, list[str]]:
    """Calls of each family, with those that are rarely made; of these only what ``stage`` needs, when one is given."""
    found = by_family(getattr(calls, system))
    run = by_family(calls.aws).keys() | found.keys()
    for rare in RARE:
        if stage is None or rare.when(stage):
            for family in set(rare.families) & run:
                if made := {*found.get(family, ()), *getattr(rare, system)}:
                    found[family] = sorted(made)
    return dict(sorted(found.items()))


def resources_of(action: str) -> tuple[str, ...]:
    """The resources that an action is limited to, as templates."""
    return next(resources for pattern, resources in _RESOURCES if re.match(pattern, action))


def statements(actions: Iterable[str]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Actions grouped by the resources they are limited to."""
    grouped: dict[tuple[str, ...], list[str]] = {}
    for action in sorted(set(actions)):
        grouped.setdefault(resources_of(action), []).append(action)
    return sorted(grouped.items())


def policy(actions: Iterable[str]) -> dict[str, Any]:
    """An IAM policy document that allows these actions, and no more."""
    allowed = [
        {"Effect": "Allow", "Action": group, "Resource": list(resources)} for resources, group in statements(actions)
    ]
    return {"Version": "2012-10-17", "Statement": allowed}


def filled(template: str, names: Mapping[str, str]) -> str:
    """A resource with the names of one stage in it; what has no name there is any."""
    return re.sub(r"\$\{(\w+)\}", lambda found: names.get(found[1]) or "*", template)


def mongodb_role(family: str, commands: Iterable[str]) -> dict[str, Any]:
    """The ``createRole`` command of a family's own role."""
    needed: dict[str, set[str]] = {}
    for line in commands:
        place, _, command = line.partition(" ")
        where = "cluster" if command in _OF_CLUSTER else place
        for action in _ACTIONS_OF.get(command, (command,)):
            # A role is granted where it holds, and the users' roles hold in the stage's database.
            needed.setdefault("stage" if action == "grantRole" else where, set()).add(action)
    resources: dict[str, list[dict[str, Any]]] = {
        "cluster": [{"cluster": True}],
        "stage": [{"db": "${Database}", "collection": ""}],
        "scratch": [{"db": f"${{Database}}_{suffix}", "collection": ""} for suffix in ("scratch", "restored")],
        **{own: [{"db": own, "collection": ""}] for own in ("admin", "local", "config")},
    }
    privileges = [
        {"resource": resource, "actions": sorted(needed[where])}
        for where in sorted(needed)
        if needed[where]
        for resource in resources[where]
    ]
    return {"createRole": f"runbooks-{family}", "privileges": privileges, "roles": []}


def atlas_role(call: str) -> str:
    """The project role of Atlas that a call needs."""
    method, _, path = call.partition(" ")
    return next(role for m, p, role in _ATLAS_ROLES if re.match(m, method) and re.match(p, path))


def documents(calls: Calls) -> dict[str, Any]:
    """Every file under ``deploy/`` that is made of the calls, by its path."""
    aws = {f"iam/{family}.json": policy(actions) for family, actions in with_rare(calls, "aws").items()}
    mongodb = {
        f"mongodb/{family}.json": mongodb_role(family, commands)
        for family, commands in with_rare(calls, "mongodb").items()
    }
    atlas = {
        family: {role: [call for call in made if atlas_role(call) == role] for role in sorted({*map(atlas_role, made)})}
        for family, made in with_rare(calls, "atlas").items()
    }
    return {**aws, **mongodb, "atlas/roles.json": atlas}
