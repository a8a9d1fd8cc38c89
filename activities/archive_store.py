"""Where archives lie: a local folder or an S3 prefix, written and read as streams with flat memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import botocore.exceptions

from activities.errors import lasting

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART = 8 * 1024 * 1024
"""Bytes of the first parts of an upload. S3 takes 10,000 parts of at least 5 MiB."""
_GROW_EVERY = 1000
_ABSENT = frozenset({"NoSuchKey", "404", "NotFound"})


class Writer(Protocol):
    def write(self, data: bytes, /) -> int: ...


class Folder(Protocol):
    """One archive's folder. Names have no slash."""

    reference: str

    def writing(self, name: str) -> AbstractContextManager[Writer]:
        """A stream into a file that appears, whole, only when the block ends well."""

    def reading(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A stream of a file.

        Raises:
            FileNotFoundError: there is none.
        """

    def get(self, name: str) -> bytes | None: ...

    def put(self, name: str, content: bytes) -> None: ...

    def names(self) -> list[str]: ...

    def delete(self, name: str) -> None: ...

    def below(self, name: str) -> Folder: ...

    def folders(self) -> list[str]:
        """Names of the folders in this one, in ascending order."""


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.reference = f"file://{path}"

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        with _explained(self._path):
            self._path.mkdir(parents=True, exist_ok=True)
            unfinished = self._path / f".{name}.unfinished"
            with unfinished.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._path / name)

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        with (self._path / name).open("rb") as file:
            yield file

    def get(self, name: str) -> bytes | None:
        try:
            return (self._path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, content: bytes) -> None:
        with self.writing(name) as file:
            file.write(content)

    def names(self) -> list[str]:
        return sorted(found.name for found in self._path.iterdir()) if self._path.is_dir() else []

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)
        if self._path.is_dir() and not any(self._path.iterdir()):
            self._path.rmdir()

    def below(self, name: str) -> LocalFolder:
        return LocalFolder(self._path / name)

    def folders(self) -> list[str]:
        return sorted(found.name for found in self._path.iterdir() if found.is_dir()) if self._path.is_dir() else []


class S3Folder:
    def __init__(self, s3: S3Client, bucket: str, prefix: str) -> None:
        self._s3, self._bucket = s3, bucket
        self._prefix = prefix.strip("/")
        self.reference = f"s3://{bucket}/{self._prefix}"

    @contextmanager
    def writing(self, name: str) -> Iterator[Writer]:
        upload = _Upload(self._s3, self._bucket, self._key(name))
        try:
            yield upload
            upload.complete()
        except BaseException:
            upload.abort()
            raise

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        try:
            body = self._s3.get_object(Bucket=self._bucket, Key=self._key(name))["Body"]
        except botocore.exceptions.ClientError as error:
            if _code(error) in _ABSENT:
                raise FileNotFoundError(name) from None
            raise
        with body:
            yield cast(BinaryIO, body)

    def get(self, name: str) -> bytes | None:
        try:
            with self.reading(name) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        self._s3.put_object(Bucket=self._bucket, Key=self._key(name), Body=content)

    def names(self) -> list[str]:
        start = len(self._key(""))
        return [item["Key"][start:] for page in self._pages("") for item in page.get("Contents", [])]

    def delete(self, name: str) -> None:
        self._s3.delete_object(Bucket=self._bucket, Key=self._key(name))

    def below(self, name: str) -> S3Folder:
        return S3Folder(self._s3, self._bucket, self._key(name))

    def folders(self) -> list[str]:
        start = len(self._key(""))
        found = [prefix["Prefix"] for page in self._pages("/") for prefix in page.get("CommonPrefixes", [])]
        return sorted(name[start:].rstrip("/") for name in found)

    def _pages(self, delimiter: str) -> Iterator[dict[str, list[dict[str, str]]]]:
        pages = self._s3.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=self._key(""), Delimiter=delimiter):
            yield cast("dict[str, list[dict[str, str]]]", page)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name


class _Upload:
    """A multipart upload that holds one part in memory. Parts grow, so that 440 GB fit into one object."""

    def __init__(self, s3: S3Client, bucket: str, key: str) -> None:
        self._s3, self._bucket, self._key = s3, bucket, key
        self._id = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        self._parts: list[CompletedPartTypeDef] = []
        self._buffer = bytearray()

    def write(self, data: bytes, /) -> int:
        self._buffer += data
        if len(self._buffer) >= PART * (1 + len(self._parts) // _GROW_EVERY):
            self._send()
        return len(data)

    def complete(self) -> None:
        if self._buffer or not self._parts:
            self._send()
        self._s3.complete_multipart_upload(
            Bucket=self._bucket, Key=self._key, UploadId=self._id, MultipartUpload={"Parts": self._parts}
        )

    def abort(self) -> None:
        # What failed first is the news; a lifecycle rule of the bucket removes unfinished uploads.
        with suppress(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            self._s3.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=self._id)

    def _send(self) -> None:
        number = len(self._parts) + 1
        answer = self._s3.upload_part(
            Bucket=self._bucket, Key=self._key, UploadId=self._id, PartNumber=number, Body=bytes(self._buffer)
        )
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._buffer.clear()


def folder(s3: S3Client, reference: str) -> Folder:
    """The folder that a reference or a location names."""
    scheme, _, place = reference.partition("://")
    if scheme == "file" and place.startswith("/"):
        return LocalFolder(Path(place))
    if scheme == "s3" and place:
        bucket, _, prefix = place.partition("/")
        return S3Folder(s3, bucket, prefix)
    raise lasting(f"{reference!r} is no archive: it begins with neither file:/// nor s3://", type="BadReference")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError:
        raise lasting(
            f"the worker may not write to {path}. Correct backup.location or its owner", type="NotWritable"
        ) from None
    except OSError as error:
        if error.errno == 28:
            raise lasting(f"no space is left at {path}. Make room, then start again", type="NoSpace") from None
        raise


def _code(error: botocore.exceptions.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
