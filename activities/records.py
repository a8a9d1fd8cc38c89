"""The records store: one S3 bucket for the deploy ledger, saved templates, logs and reports.

It is independent of the database, which may be the thing that is down. Every key is derived from what it holds (an id,
a time, a hash), so that writing the same thing again changes nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING, TypeVar

import botocore.exceptions
from pydantic import BaseModel, ValidationError

from activities.errors import lasting
from activities.releases import LedgerEntry
from activities.settings import Settings
from activities.stage import Facts, Stage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

M = TypeVar("M", bound=BaseModel)

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_NO_BUCKET = "NoSuchBucket"


class Ledger(Facts):
    """A page of the deploy ledger, newest first."""

    entries: tuple[LedgerEntry, ...] = ()
    problems: tuple[str, ...] = ()


class Records:
    """Objects by key in the records bucket, and objects by ``s3://`` location in any other."""

    def __init__(self, s3: S3Client, settings: Settings) -> None:
        self._s3 = s3
        self._bucket = settings.records.bucket
        self._prefix = settings.records.prefix.strip("/")

    def location(self, key: str) -> str:
        """The ``s3://`` location of a key of this store."""
        return f"s3://{self._bucket}/{self._full(key)}"

    def store(self, key: str, content: bytes, content_type: str) -> str:
        """Write an object, replacing what the key held; returns its location."""
        try:
            self._s3.put_object(Bucket=self._bucket, Key=self._full(key), Body=content, ContentType=content_type)
        except botocore.exceptions.ClientError as error:
            raise self._explained(error) from None
        return self.location(key)

    def store_json(self, key: str, model: BaseModel) -> str:
        return self.store(key, model.model_dump_json(indent=2).encode(), "application/json")

    def fetch(self, location: str) -> bytes | None:
        """The object at an ``s3://`` location; ``None`` when there is none."""
        bucket, key = split(location)
        try:
            return self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except botocore.exceptions.ClientError as error:
            if _code(error) in _MISSING or (_code(error) == _NO_BUCKET and bucket != self._bucket):
                return None
            raise self._explained(error) from None

    def fetch_json(self, key: str, model: type[M]) -> M | None:
        """The model stored under a key; ``None`` when there is none.

        Raises:
            CorruptRecord: the object is not what it should be; the message names its location.
        """
        content = self.fetch(self.location(key))
        if content is None:
            return None
        try:
            return model.model_validate_json(content)
        except ValidationError:
            raise lasting(
                f"{self.location(key)} does not hold a {model.__name__}. Restore or delete it", type="CorruptRecord"
            ) from None

    def digest(self, location: str) -> bytes | None:
        """SHA-256 of the object at an ``s3://`` location, read piece by piece; ``None`` when there is none."""
        bucket, key = split(location)
        try:
            body = self._s3.get_object(Bucket=bucket, Key=key)["Body"]
        except botocore.exceptions.ClientError as error:
            if _code(error) in _MISSING | {_NO_BUCKET}:
                return None
            raise
        digest = hashlib.sha256()
        for piece in body.iter_chunks(1 << 20):
            digest.update(piece)
        return digest.digest()

    def url(self, location: str) -> str:
        """The HTTPS address of a location, as CloudFormation's ``TemplateURL`` takes it."""
        bucket, key = split(location)
        return f"{self._s3.meta.endpoint_url}/{bucket}/{key}"

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys of this store under a prefix, in alphabetical order, listed as they are asked for."""
        start = len(self._full(""))
        try:
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._full(prefix))
            for page in pages:
                for item in page.get("Contents", []):
                    yield item["Key"][start:]
        except botocore.exceptions.ClientError as error:
            raise self._explained(error) from None

    def _full(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    def _explained(self, error: botocore.exceptions.ClientError) -> Exception:
        if _code(error) == _NO_BUCKET:
            return lasting(
                f"the records bucket {self._bucket!r} does not exist. Create it, or name another as records.bucket",
                type=_NO_BUCKET,
            )
        return error


class DeployLedger:
    """The history of deployments that neither SST nor CloudFormation keeps."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def append(self, entry: LedgerEntry) -> str:
        """Add a deployment; the same entry again changes nothing. Returns its location."""
        return self._records.store_json(ledger_key(entry), entry)

    def list(self, stage: Stage, limit: int = 50) -> Ledger:
        """The newest ``limit`` deployments of the stage's application.

        An entry that cannot be read never hides the others: it is left out and named in ``problems``.
        """
        entries: dict[str, LedgerEntry] = {}
        problems: dict[str, str] = {}
        for key in self._records.keys(f"ledger/{stage.name}/"):
            if len(entries) == limit:
                break
            content = self._records.fetch(self._records.location(key))
            if content is None:
                continue
            try:
                entry = LedgerEntry.model_validate_json(content)
            except ValidationError:
                problems[key] = f"deploy ledger: {key} cannot be read and is left out"
                continue
            if entry.app == stage.deploy.app:
                entries[key] = entry
            else:
                problems[entry.app] = f"deploy ledger: entries of application {entry.app!r} are left out"
        return Ledger(entries=tuple(entries.values()), problems=tuple(problems.values()))


def ledger_key(entry: LedgerEntry) -> str:
    """Where an entry is kept: S3 lists keys in ascending order, so the time counts down to put the newest first."""
    moment = entry.deployed_at.astimezone(UTC)
    countdown = 10**13 - round(moment.timestamp() * 1000)
    name = re.sub(r"[^\w.-]+", "-", entry.id or entry.release)
    return f"ledger/{entry.stage}/{countdown:013d}-{moment:%Y%m%dT%H%M%S}-{name}.json"


def split(location: str) -> tuple[str, str]:
    """Bucket and key of an ``s3://`` location."""
    bucket, _, key = location.removeprefix("s3://").partition("/")
    if not location.startswith("s3://") or not bucket or not key:
        raise lasting(
            f"{location!r} is no s3://bucket/key location. Correct it in the deploy ledger", type="BadLocation"
        )
    return bucket, key


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
