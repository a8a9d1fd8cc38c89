"""All of a sandbox that a runbook could leave changed, so that 'everything undone' is a comparison and no opinion."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pymongo

from sandbox import mongodb
from sandbox.state import Vault
from tests.chaos.ground import Ground
from tests.chaos.scenario import at, live, mongodb_port

STAGES = ("staging", "production")
SYSTEM = {"admin", "local", "config"}


def surroundings(ground: Ground) -> dict[str, Any]:
    """What each stage runs, with which capacity, secrets, users and indexes. Of secrets, fingerprints.

    What keeps a record of the run itself, such as versions of a function, a ledger or a message, is not among it.
    """
    stages = (fact for stage in STAGES for fact in _stage(ground, stage))
    return dict(itertools.chain(stages, _database(ground), _secrets(ground)))


def _stage(ground: Ground, stage: str) -> Iterator[tuple[str, Any]]:
    site = at(ground, stage)
    functions, name = site.aws("lambda"), site.stack
    for key, value in live(ground, stage).items():
        yield f"{stage} {key}", value
    config = functions.get_function_configuration(FunctionName=name, Qualifier="live")
    yield f"{stage} memory", config["MemorySize"]
    yield f"{stage} time-out", config["Timeout"]
    yield f"{stage} pool", config["Environment"]["Variables"].get("MONGODB_MAX_POOL_SIZE")
    limit = functions.get_function_concurrency(FunctionName=name)
    yield f"{stage} limit", limit.get("ReservedConcurrentExecutions")
    provisioned = functions.list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"]
    yield f"{stage} provisioned", [one["RequestedProvisionedConcurrentExecutions"] for one in provisioned]


def _database(ground: Ground) -> Iterator[tuple[str, Any]]:
    uri = mongodb.admin_uri(mongodb_port(ground), Vault.open(ground.house.layout.vault))
    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        users = client["admin"].command("usersInfo", {"forAllDBs": True})["users"]
        yield "users", sorted(f"{user['db']}.{user['user']}" for user in users)
        for name in sorted(set(client.list_database_names()) - SYSTEM):
            for collection in client[name].list_collection_names():
                yield f"indexes of {name}.{collection}", sorted(client[name][collection].index_information())


def _secrets(ground: Ground) -> Iterator[tuple[str, str]]:
    parameters = ground.site.aws("ssm")
    for page in parameters.get_paginator("describe_parameters").paginate():
        for one in page["Parameters"]:
            value = parameters.get_parameter(Name=one["Name"], WithDecryption=True)["Parameter"]["Value"]
            yield one["Name"], _fingerprint(value)
    secrets = ground.site.aws("secretsmanager")
    for page in secrets.get_paginator("list_secrets").paginate():
        for one in page["SecretList"]:
            with suppress(secrets.exceptions.ResourceNotFoundException):  # made, and without a value yet
                yield one["Name"], _fingerprint(secrets.get_secret_value(SecretId=one["Name"])["SecretString"])


def _fingerprint(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()[:12]
