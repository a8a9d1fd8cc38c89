"""The connection string that the API reads: where it leads, and how it is made to lead elsewhere.

The string holds a password, so it never leaves this module: what travels is the address in it. A function reads its
secrets when an environment of it starts; so after a change every environment is started anew, by publishing the live
code once more with one variable changed.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote_plus

import pymongo
import pymongo.errors
from pydantic import Field
from temporalio import activity

from activities.errors import classified, from_mongo, lasting
from activities.evidence import Finding
from activities.functions import RESTARTED_VARIABLE, Functions
from activities.secret_refs import SecretResolver
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_lambda import LambdaClient

_URI = re.compile(
    r"(?P<scheme>mongodb(?:\+srv)?)://(?:(?P<user>[^@/]*)@)?(?P<hosts>[^/?]+)(?:/(?P<db>[^?]*))?(?:\?(?P<options>.*))?"
)


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
        functions: LambdaClient,
        poll: float = 1.0,
    ) -> None:
        self._resolver = resolver
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
            CodeDiffers, SettingsDiffer, TrafficSplit, VariablesHidden: what is live cannot be published once more,
                which is how its environments are started anew.
        """
        stage, ref = order.stage, order.stage.database.uri
        self._resolver.forget(ref)
        current = self._resolver.resolve(ref)
        wanted = leading_to(current, order.to)
        mark = hashlib.sha256(f"{order.key}/{order.to.hosts}/{order.to.database}".encode()).hexdigest()[:12]
        if problem := self._functions.reissue_problem(stage, self._functions.live(stage)):
            raise problem
        if wanted != current:
            _readable(wanted, order.to)
            self._resolver.store(ref, wanted)
        version, restarted = self._functions.reissue(stage, self._poll, variables={RESTARTED_VARIABLE: mark})
        return Repointed(
            summary=f"the API works on {order.to.database or order.to.hosts}, read by version {version}",
            changed=wanted != current or restarted,
            version=version,
        )


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


@dataclass(frozen=True)
class Login:
    """Who a connection string logs in as."""

    name: str
    source: str
    """Database in which the user is known."""


def user_of(uri: str) -> Login:
    """The user in a connection string.

    Raises:
        NoPassword: it logs in without one, so there is none to rotate.
    """
    found = _match(uri)
    name, _, password = (found["user"] or "").partition(":")
    if not name or not password:
        raise lasting(
            "the connection string has no user with a password. A login by certificate or role is rotated where it "
            "comes from",
            type="NoPassword",
        )
    options = {key.lower(): value for key, _, value in (o.partition("=") for o in (found["options"] or "").split("&"))}
    default = "admin" if found["scheme"] == "mongodb+srv" else found["db"] or "admin"
    return Login(unquote_plus(name), options.get("authsource") or default)


def with_login(uri: str, name: str, password: str) -> str:
    """The same connection string with another user and password."""
    found = _match(uri)
    tail = uri.strip()[found.start("hosts") :]
    return f"{found['scheme']}://{quote(name, safe='')}:{quote(password, safe='')}@{tail}"


def password_of(uri: str) -> str:
    return unquote_plus((_match(uri)["user"] or "").partition(":")[2])


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
