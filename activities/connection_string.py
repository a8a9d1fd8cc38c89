"""The connection string that the API reads: where it leads, and how it is made to lead elsewhere.

The string holds a password, so it never leaves this module: what travels is the address in it. A function reads its
secrets when an environment of it starts; so after a change every environment is started anew, by publishing the live
code once more with one variable changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from typing import TYPE_CHECKING, Any, Literal

import pymongo
import pymongo.errors
from pydantic import Field
from temporalio import activity

from activities.errors import classified, from_mongo, lasting
from activities.evidence import Finding
from activities.functions import Functions
from activities.secret_refs import SecretResolver
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ssm import SSMClient

_URI = re.compile(
    r"(?P<scheme>mongodb(?:\+srv)?)://(?:(?P<user>[^@/]*)@)?(?P<hosts>[^/?]+)(?:/(?P<db>[^?]*))?(?:\?(?P<options>.*))?"
)
_RESTARTED = "RUNBOOKS_RESTARTED"
"""Environment variable whose change starts every environment of the function anew."""


class Address(Finding):
    """Where a connection string leads; no user, no password."""

    scheme: Literal["mongodb", "mongodb+srv"]
    hosts: str
    database: str = Field(description="Empty when the string names none")


class AddressOf(Facts):
    stage: Stage
    of: Literal["api", "scratch"] = "api"


class Repoint(Facts):
    """Let the API work at this address, with the user, password and options that it has."""

    stage: Stage
    to: Address
    key: str = Field(min_length=1, description="Workflow id and step: done once a key")


class Repointed(Finding):
    changed: bool
    version: str | None = Field(None, description="Version of the function that reads the new address")


class ConnectionString:
    def __init__(
        self,
        resolver: SecretResolver,
        ssm: SSMClient,
        secretsmanager: SecretsManagerClient,
        functions: LambdaClient,
        poll: float = 1.0,
    ) -> None:
        self._resolver, self._ssm, self._secretsmanager, self._lambda = resolver, ssm, secretsmanager, functions
        self._functions = Functions(functions)
        self._poll = poll

    @activity.defn(name="connection.address")
    @classified("read the address of the database")
    def address(self, asked: AddressOf) -> Address:
        """Where the API's connection string leads, or that of the scratch cluster."""
        atlas = asked.stage.backup.atlas
        if asked.of == "api":
            return address_of(self._resolver.resolve(asked.stage.database.uri))
        if atlas is None or atlas.scratch_uri is None:
            raise lasting(
                f"stage {asked.stage.name} names no backup.atlas.scratch_uri. Add it to the settings", type="NoScratch"
            )
        return address_of(self._resolver.resolve(atlas.scratch_uri))

    @activity.defn(name="connection.repoint")
    @classified("repoint the API's connection string")
    def repoint(self, order: Repoint) -> Repointed:
        """Change the address in the API's connection string and let every environment of the function read it.

        Before anything is changed the API's own user has to be able to read at the new address.

        Raises:
            NotReadable: it is not.
            NotWritable: the secret is in a file or variable that this project does not write.
            CodeDiffers: the function's unpublished code is not what is live, so publishing it would deploy it.
        """
        stage, ref = order.stage, order.stage.database.uri
        self._resolver.forget(ref)
        current = self._resolver.resolve(ref)
        wanted = leading_to(current, order.to)
        mark = hashlib.sha256(f"{order.key}/{order.to.hosts}/{order.to.database}".encode()).hexdigest()[:12]
        self._publishable(stage)
        if wanted != current:
            _readable(wanted, order.to)
            self._write(ref, wanted, mark)
            self._resolver.forget(ref)
        version, restarted = self._restart(stage, mark)
        return Repointed(
            summary=f"the API works on {order.to.database or order.to.hosts}, read by version {version}",
            changed=wanted != current or restarted,
            version=version,
        )

    def _write(self, ref: str, value: str, mark: str) -> None:
        kind, _, place = ref.partition(":")
        if kind == "ssm":
            self._ssm.put_parameter(Name=place, Value=value, Type="SecureString", Overwrite=True)
        elif kind == "secretsmanager":
            name, _, field = place.partition("#")
            if field:
                fields: dict[str, Any] = json.loads(
                    self._secretsmanager.get_secret_value(SecretId=name)["SecretString"]
                )
                value = json.dumps(fields | {field: value})
            self._secretsmanager.put_secret_value(
                SecretId=name,
                SecretString=value,
                ClientRequestToken=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{ref}/{mark}")),
            )
        else:
            raise lasting(
                f"the connection string is in {ref}, which only a person can change. Change it there, and deploy",
                type="NotWritable",
            )

    def _publishable(self, stage: Stage) -> None:
        live = self._functions.live(stage)
        newest = self._lambda.get_function_configuration(FunctionName=stage.function)
        if live.routing is not None and newest["CodeSha256"] != live.code_sha256:
            raise lasting(
                f"the unpublished code of {stage.function} is not what is live, so its environments cannot be started "
                "anew without deploying it. Deploy the live release, then start again",
                type="CodeDiffers",
            )

    def _restart(self, stage: Stage, mark: str) -> tuple[str, bool]:
        """Publish the live code once more with one variable changed. Returns the version, and whether it was needed."""
        routing = self._functions.routing(stage)
        version = routing.version if routing else "$LATEST"
        live = self._lambda.get_function_configuration(FunctionName=stage.function, Qualifier=version)
        if live.get("Environment", {}).get("Variables", {}).get(_RESTARTED) == mark:
            return version, False
        newest = self._lambda.get_function_configuration(FunctionName=stage.function)
        variables = newest.get("Environment", {}).get("Variables", {})
        if variables.get(_RESTARTED) != mark:
            self._lambda.update_function_configuration(
                FunctionName=stage.function,
                Environment={"Variables": variables | {_RESTARTED: mark}},
                RevisionId=newest["RevisionId"],
            )
        self._functions.settle(stage, self._poll)
        if routing is None:
            return version, True
        published = self._lambda.publish_version(FunctionName=stage.function, CodeSha256=live["CodeSha256"])["Version"]
        self._functions.point(stage, routing.model_copy(update={"version": published, "weights": {}}))
        return published, True


def address_of(uri: str) -> Address:
    """The address in a connection string.

    Raises:
        BadConnectionString: it is none. The message does not repeat it.
    """
    found = _match(uri)
    database = found["db"] or ""
    return Address(
        summary=f"{database or 'no database'} on {found['hosts']}",
        scheme=found["scheme"],
        hosts=found["hosts"],
        database=database,
    )


def leading_to(uri: str, to: Address) -> str:
    """The same connection string with another address."""
    found = _match(uri)
    options = found["options"] or ""
    if found["user"] and found["scheme"] == "mongodb" and "authsource=" not in options.lower():
        # Unsaid, users are looked up in the database that the string names: that must not change with the name.
        options = "&".join(filter(None, [options, f"authSource={found['db'] or 'admin'}"]))
    user = f"{found['user']}@" if found["user"] else ""
    tail = f"?{options}" if options else ""
    return f"{to.scheme}://{user}{to.hosts}/{to.database}{tail}"


def _match(uri: str) -> re.Match[str]:
    found = _URI.fullmatch(uri.strip())
    if found is None:
        raise lasting(
            "the secret is no connection string of MongoDB (mongodb://...). Correct it", type="BadConnectionString"
        )
    return found


def _readable(uri: str, to: Address) -> None:
    try:
        with pymongo.MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=5000, connectTimeoutMS=3000) as client:
            database = client[to.database] if to.database else client["admin"]
            names = database.list_collection_names(authorizedCollections=True, nameOnly=True) if to.database else []
            if to.database and not names:
                raise lasting(f"the API's user finds nothing in {to.database!r} at its new address", type="NotReadable")
            if names:
                database[names[0]].find_one({}, projection=["_id"])
    except pymongo.errors.OperationFailure as error:
        if error.code in (13, 18):
            raise lasting(
                f"the API's own user may not read {to.database!r} at its new address. Grant it its role there first",
                type="NotReadable",
            ) from None
        raise from_mongo(error, "read at the new address") from None
