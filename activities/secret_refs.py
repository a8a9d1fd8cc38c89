"""From the reference to a secret to its value, at the moment of use and only inside the worker."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import botocore.exceptions
from temporalio.exceptions import ApplicationError

from activities.errors import from_aws, lasting, passing
from activities.redaction import never_print
from activities.stage import SecretRef

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient
    from mypy_boto3_ssm import SSMClient

_KEEP_FOR = 60.0
"""Seconds that a value read from AWS is kept, so that a busy worker does not ask for it at every message."""


def fingerprint(value: str) -> str:
    """What may be shown of a secret: the first 12 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:12]


class SecretResolver:
    """Reads secrets by reference. Safe to share between threads.

    Values from AWS are kept in memory for a minute; ``env:`` and ``file:`` are read each time.
    """

    def __init__(self, ssm_client: SSMClient, secretsmanager_client: SecretsManagerClient) -> None:
        self._ssm = ssm_client
        self._secretsmanager = secretsmanager_client
        self._lock = threading.Lock()
        self._kept: dict[SecretRef, tuple[float, str]] = {}

    def resolve(self, ref: SecretRef) -> str:
        """The value that ``ref`` names, never empty. A trailing line break of a file is not part of it.

        Raises:
            ApplicationError: it is absent, empty or not readable (lasting), or AWS could not be asked (may pass).
                The message names the reference and never holds a value.
        """
        kind, _, place = ref.partition(":")
        match kind:
            case "env":
                value = os.environ.get(place)
                if value is None:
                    raise _unusable(ref, f"the worker's environment has no {place}. Set it and restart the worker")
            case "file":
                value = self._file(ref, Path(place))
            case "ssm" | "secretsmanager":
                value = self._from_aws(ref, kind, place)
            case _:
                raise _unusable(ref, "it begins with none of env:, file:, ssm:, secretsmanager:")
        if not value:
            raise _unusable(ref, "it is empty. Store a value there")
        never_print(value)
        return value

    def forget(self, ref: SecretRef) -> None:
        """Read it anew the next time, because it has just been changed."""
        with self._lock:
            self._kept.pop(ref, None)

    def store(self, ref: SecretRef, value: str) -> None:
        """Put a value where the reference leads, in place of the one there.

        Raises:
            NotWritable: it is in a file or variable, which this project does not write.
        """
        kind, _, place = ref.partition(":")
        try:
            if kind == "ssm":
                self._ssm.put_parameter(Name=place, Value=value, Type="SecureString", Overwrite=True)
            elif kind == "secretsmanager":
                name, _, field = place.partition("#")
                if field:
                    fields = json.loads(self._secretsmanager.get_secret_value(SecretId=name)["SecretString"])
                    value = json.dumps(fields | {field: value})
                self._secretsmanager.put_secret_value(SecretId=name, SecretString=value)
            else:
                raise lasting(
                    f"the secret is in {ref}, which only a person can change. Change it there, and deploy",
                    type="NotWritable",
                )
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise from_aws(error, f"store the secret {ref}") from None
        self.forget(ref)

    @staticmethod
    def _file(ref: SecretRef, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            raise _unusable(ref, f"{error.strerror}. Mount the file where the worker can read it") from None
        except UnicodeDecodeError:
            # The error itself quotes the bytes, so nothing of it is passed on.
            raise _unusable(ref, "the file is not UTF-8 text") from None

    def _from_aws(self, ref: SecretRef, kind: str, place: str) -> str:
        with self._lock:
            until, value = self._kept.get(ref, (0.0, ""))
        if time.monotonic() < until:
            return value
        try:
            value = self._parameter(place) if kind == "ssm" else self._secret(ref, place)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
            raise from_aws(error, f"read the secret {ref}") from None
        with self._lock:
            self._kept[ref] = (time.monotonic() + _KEEP_FOR, value)
        return value

    def _parameter(self, name: str) -> str:
        found = self._ssm.get_parameter(Name=name, WithDecryption=True).get("Parameter")
        if found is None:
            raise _strange(f"ssm:{name}")
        return found.get("Value", "")

    def _secret(self, ref: SecretRef, place: str) -> str:
        name, _, field = place.partition("#")
        found = self._secretsmanager.get_secret_value(SecretId=name)
        text = found.get("SecretString")
        if text is None and "SecretBinary" in found:
            raise _unusable(ref, "the secret is binary. Store it as text")
        if text is None:
            raise _strange(ref)
        if not field:
            return text
        try:
            fields = json.loads(text)
        except ValueError:
            raise _unusable(ref, f"the secret is not JSON, so it has no field {field}") from None
        if not isinstance(fields, dict) or not isinstance(fields.get(field), str):
            raise _unusable(ref, f"the secret has no text field {field}. Add it, or correct the reference")
        return str(fields[field])


def _strange(ref: SecretRef) -> ApplicationError:
    return passing(f"could not read the secret {ref}: AWS, or something in front of it, answered with no secret at all")


def _unusable(ref: SecretRef, why: str) -> ApplicationError:
    return lasting(f"could not read the secret {ref}: {why}", type="SecretUnusable")
