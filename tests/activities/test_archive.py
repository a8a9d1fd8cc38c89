"""Archives of a real server: everything comes back, and nothing damaged is ever restored."""

from __future__ import annotations

import gzip
import json
import os
import secrets
import signal
import subprocess
import sys
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pymongo
import pytest
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.archive_dump import check, dump
from activities.archive_format import MANIFEST, Content, Damaged, Manifest, documents, split
from activities.archive_load import Difference, compare, discard, load
from activities.archive_store import PART, Folder, LocalFolder, S3Folder, folder
from activities.clients import Aws

Client = pymongo.MongoClient[dict[str, Any]]
NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


def still(_: str) -> None:
    """Heartbeats go nowhere here."""


@pytest.fixture
def mongo(wire_database: str) -> Iterator[Client]:
    with pymongo.MongoClient[dict[str, Any]](wire_database) as client:
        yield client


@pytest.fixture
def name(mongo: Client) -> Iterator[str]:
    """A database of this test, and those named after it."""
    made = f"t{secrets.token_hex(4)}"
    yield made
    for found in mongo.list_database_names():
        if found.startswith(made):
            mongo.drop_database(found)


def base(database: str) -> Manifest:
    return Manifest(
        id="a", stage="s", database=database, server="", started_at=NOW, finished_at=NOW, consistency="", collections=()
    )


def archived(mongo: Client, name: str, into: Folder, wanted: tuple[str, ...] | None = None) -> Manifest:
    return dump(mongo, into, base(name), wanted, still)


def compared(mongo: Client, into: str, manifest: Manifest) -> Difference:
    return ActivityEnvironment().run(lambda: compare(mongo, into, manifest, still))


def restored(mongo: Client, into: str, source: Folder, *, replace: bool = False, key: str = "k") -> Manifest:
    """Loading heartbeats while it builds indexes, so it runs as an activity does."""
    found = ActivityEnvironment().run(
        lambda: load(mongo, into, source, "ref", key, still, scratch=into.endswith("_scratch"), replace=replace)
    )
    assert isinstance(found, Manifest)
    return found


EVERY_TYPE = {
    "double": 1.5,
    "nan": float("nan"),
    "negative zero": -0.0,
    "string": "ä€\u0000𝄞",
    "object": {"a": {"b": []}},
    "array": [1, "two", None, [3.0]],
    "binary": bson.Binary(b"\x00\xff", 0),
    "user binary": bson.Binary(b"x", 128),
    "uuid": bson.Binary.from_uuid(uuid.UUID(int=5)),
    "legacy uuid": bson.Binary(bytes(16), 3),
    "objectid": bson.ObjectId("65a000000000000000000000"),
    "true": True,
    "date": datetime(1969, 7, 20, tzinfo=UTC),
    "null": None,
    "regex": bson.Regex("^a.*b$", "imx"),
    "dbref": bson.DBRef("other", 5, "elsewhere"),
    "code": bson.Code("function() {}"),
    "scoped code": bson.Code("f(x)", {"x": 1}),
    "int": 7,
    "long": bson.Int64(7),
    "timestamp": bson.Timestamp(5, 6),
    "decimal": bson.Decimal128("1E-6176"),
    "decimal nan": bson.Decimal128("NaN"),
    "min": bson.MinKey(),
    "max": bson.MaxKey(),
}


def fill(mongo: Client, name: str) -> None:
    """One of everything that a database can hold, as far as the server takes it."""
    database = mongo[name]
    database["types"].insert_one({"_id": 1, **EVERY_TYPE})
    database["types"].insert_many([{"_id": value} for value in ("a", 2.5, bson.Int64(3), None, b"x", {"k": 1})])
    database.create_collection("empty")
    rule = {"$jsonSchema": {"required": ["email"]}}
    database.create_collection("users", validator=rule, validationLevel="moderate", collation={"locale": "en"})
    database["users"].insert_many([{"email": f"{n}@example.com", "n": n, "at": NOW} for n in range(500)])
    database["users"].insert_one({"legacy": True}, bypass_document_validation=True)
    database["users"].create_index("email", unique=True, sparse=True)
    database["users"].create_index([("n", -1), ("email", 1)], partialFilterExpression={"n": {"$gt": 5}}, name="part")
    database["users"].create_index("at", expireAfterSeconds=10**8)
    database.create_collection("log", capped=True, size=100_000, max=50)
    database["log"].insert_many([{"line": n} for n in range(80)])
    database.create_collection("grown", viewOn="users", pipeline=[{"$match": {"n": {"$gt": 5}}}])
    database.create_collection("weather", timeseries={"timeField": "t", "metaField": "m", "granularity": "seconds"})
    database["weather"].insert_many([{"t": NOW + timedelta(seconds=n), "m": n % 3, "v": n} for n in range(100)])


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "local":
        return LocalFolder(tmp_path / "archive")
    aws: Aws = request.getfixturevalue("aws")
    return S3Folder(aws.s3, "test-records", f"backups/{secrets.token_hex(4)}")


def raw(mongo: Client, database: str, name: str) -> list[bytes]:
    batches: Any = mongo[database][name].find_raw_batches()
    return sorted(split(b"".join(batches)))


def test_everything_comes_back(mongo: Client, name: str, place: Folder) -> None:
    fill(mongo, name)
    before = {c: raw(mongo, name, c) for c in ("types", "users")}
    manifest = archived(mongo, name, place)
    entries = {entry.name: entry for entry in manifest.collections}
    assert entries.keys() == {"types", "empty", "users", "log", "grown", "weather"}
    assert (entries["users"].documents, entries["empty"].documents) == (501, 0)
    assert entries["log"].documents == mongo[name]["log"].count_documents({})
    assert manifest.consistency.startswith("not point in time: ")
    assert manifest.whole
    assert sorted(place.names()) == sorted([MANIFEST, *(e.file for e in entries.values() if e.file)])
    assert check(place, still) == (manifest, [])

    into = f"{name}_scratch"
    mongo[into]["old"].insert_one({"of": "an earlier drill"})
    restored(mongo, into, folder_of(place))
    found = compared(mongo, into, manifest)
    assert found.differences == []
    assert (found.collections, found.indexes) == (6, 3)
    after = {c: raw(mongo, into, c) for c in before}
    assert after == before, "byte for byte"
    assert mongo[into]["grown"].count_documents({}) == mongo[name]["grown"].count_documents({}) == 494
    assert mongo[into]["weather"].count_documents({}) == 100
    with pytest.raises(pymongo.errors.WriteError):
        mongo[into]["users"].insert_one({"no": "email"})
    with pytest.raises(pymongo.errors.DuplicateKeyError):
        mongo[into]["users"].insert_one({"email": "5@example.com"})


def folder_of(place: Folder) -> Folder:
    return place


def test_a_comparison_finds_each_kind_of_difference(mongo: Client, name: str, tmp_path: Path) -> None:
    fill(mongo, name)
    store = LocalFolder(tmp_path)
    manifest = archived(mongo, name, store)
    into = f"{name}_scratch"
    restored(mongo, into, store)
    database = mongo[into]
    database["types"].update_one({"_id": 1}, {"$set": {"int": bson.Int64(7)}})
    database["users"].drop_index("part")
    database["users"].create_index("n")
    database["users"].delete_one({"n": 3})
    database.drop_collection("empty")
    database["extra"].insert_one({})
    database.drop_collection("grown")
    database.create_collection("grown", viewOn="users", pipeline=[])
    found = "\n".join(compared(mongo, into, manifest).differences)
    for expected in (
        "types: 7 documents as in the backup, but other contents",
        "users: index part is missing",
        "users: index n_1 is not in the backup",
        "empty is missing",
        "extra is not in the backup",
        "grown: other options",
    ):
        assert expected in found, found


DAMAGE: dict[str, Callable[[Path, str], object]] = {
    "cut off": lambda path, name: (path / name).write_bytes((path / name).read_bytes()[:-40]),
    "one bit": lambda path, name: flip(path / name),
    "missing": lambda path, name: (path / name).unlink(),
    "emptied": lambda path, name: (path / name).write_bytes(b""),
    "something appended": lambda path, name: (path / name).write_bytes((path / name).read_bytes() + b"\x00"),
    "another document": lambda path, name: (path / name).write_bytes(gzip.compress(bson.encode({"_id": 1}))),
    "manifest edited": lambda path, _: (path / MANIFEST).write_text(
        (path / MANIFEST).read_text().replace('"documents": 500', '"documents": 499')
    ),
    "manifest gone": lambda path, _: (path / MANIFEST).unlink(),
    "manifest cut off": lambda path, _: (path / MANIFEST).write_text((path / MANIFEST).read_text()[:-20]),
    "a later format": lambda path, _: (path / MANIFEST).write_text(
        (path / MANIFEST).read_text().replace('"format": 1', '"format": 2')
    ),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_refused_before_anything_is_dropped(
    mongo: Client, name: str, tmp_path: Path, kind: str
) -> None:
    mongo[name]["a"].insert_many([{"n": n} for n in range(500)])
    mongo[name]["b"].insert_one({"n": 1})
    store = LocalFolder(tmp_path)
    manifest = archived(mongo, name, store)
    entry = next(e for e in manifest.collections if e.name == "a")
    assert entry.file is not None
    DAMAGE[kind](tmp_path, entry.file)
    assert check(store, still)[1]
    into = f"{name}_scratch"
    mongo[into]["kept"].insert_one({"_id": "still here"})
    for target, replace in ((into, False), (name, True)):
        with pytest.raises(ApplicationError) as refused:
            restored(mongo, target, store, replace=replace)
        assert refused.value.type == "DamagedBackup"
        assert refused.value.non_retryable
    assert mongo[into].list_collection_names() == ["kept"]
    assert mongo[name]["a"].count_documents({}) == 500


def test_replacing_leaves_the_old_contents_until_the_new_are_verified(mongo: Client, name: str, tmp_path: Path) -> None:
    mongo[name]["a"].insert_many([{"_id": n} for n in range(2000)])
    mongo[name]["a"].create_index("x")
    store = LocalFolder(tmp_path)
    manifest = archived(mongo, name, store)
    mongo[name]["a"].delete_many({"_id": {"$gte": 100}})
    mongo[name]["later"].insert_one({})
    seen: list[int] = []

    def watch(_: str) -> None:
        seen.append(mongo[name]["a"].count_documents({}))

    ActivityEnvironment().run(lambda: load(mongo, name, store, "r", "k", watch, scratch=False, replace=True))
    assert set(seen) == {100}, "readers never met an empty or half-filled collection"
    assert sorted(mongo[name].list_collection_names()) == ["a", "later"], "what the backup does not know is left alone"
    assert mongo[name]["a"].count_documents({}) == 2000
    assert "x_1" in mongo[name]["a"].index_information()
    assert compared(mongo, name, manifest).differences == ["later is not in the backup"]


def test_a_filled_database_is_no_target(mongo: Client, name: str, tmp_path: Path) -> None:
    mongo[name]["a"].insert_one({})
    store = LocalFolder(tmp_path)
    archived(mongo, name, store)
    into = f"{name}_restored"
    mongo[into]["precious"].insert_one({})
    with pytest.raises(ApplicationError, match="is not empty"):
        restored(mongo, into, store)
    assert mongo[into].list_collection_names() == ["precious"]
    mongo.drop_database(into)
    restored(mongo, into, store)
    assert sorted(mongo[into].list_collection_names()) == ["__restoring.mark", "a"]
    assert not discard(mongo, into, key="of another run", copy=True)
    assert discard(mongo, into, key="k", copy=True)
    assert mongo[into].list_collection_names() == []


def test_an_order_repeated_finds_the_archive_it_made(mongo: Client, name: str, tmp_path: Path) -> None:
    mongo[name]["a"].insert_one({})
    store = LocalFolder(tmp_path)
    first = archived(mongo, name, store)
    mongo[name]["a"].insert_one({})
    assert archived(mongo, name, store) == first


def test_only_some_collections(mongo: Client, name: str, tmp_path: Path) -> None:
    fill(mongo, name)
    manifest = archived(mongo, name, LocalFolder(tmp_path / "some"), ("users", "empty"))
    assert [entry.name for entry in manifest.collections] == ["empty", "users"]
    assert not manifest.whole
    with pytest.raises(ApplicationError, match="no collection nothing"):
        archived(mongo, name, LocalFolder(tmp_path / "none"), ("nothing",))
    with pytest.raises(ApplicationError, match="nothing in database"):
        archived(mongo, f"{name}_absent", LocalFolder(tmp_path / "absent"))


def test_documents_of_sixteen_megabytes(mongo: Client, name: str, place: Folder) -> None:
    largest = 16 * 1024 * 1024 - 40
    # One that does not compress, so that the upload takes several parts.
    for number, blob in enumerate((secrets.token_bytes(largest), bytes(largest))):
        mongo[name]["big"].insert_many([RawBSONDocument(bson.encode({"_id": number, "b": blob}))])
    manifest = archived(mongo, name, place)
    assert manifest.stored_bytes > PART
    assert manifest.size > 2 * largest
    restored(mongo, f"{name}_scratch", place)
    assert compared(mongo, f"{name}_scratch", manifest).differences == []


def test_memory_stays_flat(mongo: Client, name: str, tmp_path: Path) -> None:
    """Eight times the documents do not take more memory, in neither direction."""
    peaks = []
    for number, count in enumerate((2_500, 20_000)):
        source, into = f"{name}_{number}", f"{name}_{number}_scratch"
        mongo[source]["a"].insert_many([{"_id": n, "text": "x" * 900} for n in range(count)])
        store = LocalFolder(tmp_path / str(number))
        tracemalloc.start()
        manifest = archived(mongo, source, store)
        restored(mongo, into, store)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert manifest.documents == count
    assert peaks[1] < 1.5 * peaks[0] < 18_000_000, "the larger collection has 18 MB"


CHILD = """
import sys, pymongo
from pathlib import Path
from temporalio.testing import ActivityEnvironment
from activities.archive_dump import dump
from activities.archive_format import Manifest
from activities.archive_load import load
from activities.archive_store import LocalFolder
what, uri, name, place, where = sys.argv[1:]
def beat(phase):
    if where in phase:
        print("HERE", flush=True)
        sys.stdin.read()  # never comes back: it is killed here
client = pymongo.MongoClient(uri)
store = LocalFolder(Path(place))
if what == "dump":
    now = "2026-01-20T12:00:00Z"
    base = Manifest(id="a", stage="s", database=name, server="", started_at=now, finished_at=now, consistency="",
                    collections=())
    dump(client, store, base, None, beat)
else:
    ActivityEnvironment().run(lambda: load(client, name, store, "ref", "k", beat, scratch=name.endswith("_scratch"),
                                           replace=what == "replace"))
"""


def killed(what: str, uri: str, name: str, place: Path, where: str) -> None:
    """Do it in a process of its own, and kill that with SIGKILL when it says what is in ``where``."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, what, uri, name, str(place), where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "HERE\n"
        child.send_signal(signal.SIGKILL)


def test_a_worker_killed_within_a_dump(mongo: Client, wire_database: str, name: str, tmp_path: Path) -> None:
    for letter in "abc":
        mongo[name][letter].insert_many([{"_id": n, "letter": letter} for n in range(300)])
    killed("dump", wire_database, name, tmp_path, "dumping b")
    store = LocalFolder(tmp_path)
    assert check(store, still)[0] is None, "unfinished"
    assert any(file.endswith(".unfinished") for file in store.names())
    first = next(file for file in store.names() if file.startswith("0001-"))
    dumped: list[str] = []
    manifest = dump(mongo, store, base(name), None, dumped.append)
    assert not any("dumping a" in phase for phase in dumped), "a was finished and is not read again"
    assert manifest.collections[0].file == first
    assert check(store, still) == (manifest, [])
    assert len(store.names()) == 4, "no remains of the killed one"
    assert manifest.documents == 900


@pytest.mark.parametrize("what", ["restore", "replace"])
def test_a_worker_killed_within_a_restore(
    mongo: Client, wire_database: str, name: str, tmp_path: Path, what: str
) -> None:
    for letter in "abc":
        mongo[name][letter].insert_many([{"_id": n, "letter": letter} for n in range(300)])
        mongo[name][letter].create_index("letter")
    store = LocalFolder(tmp_path)
    manifest = archived(mongo, name, store)
    into = name if what == "replace" else f"{name}_scratch"
    if what == "replace":
        mongo[name]["a"].delete_many({})
    killed(what, wire_database, into, tmp_path, "restoring b")
    if what == "replace":
        assert mongo[name]["a"].count_documents({}) == 0, "nothing is swapped yet"
        assert mongo[name]["b"].count_documents({}) == 300
    phases: list[str] = []
    scratch = what == "restore"
    ActivityEnvironment().run(
        lambda: load(mongo, into, store, "ref", "k", phases.append, scratch=scratch, replace=not scratch)
    )
    assert not any("restoring a" in phase for phase in phases), "a was there and is not loaded again"
    assert any("restoring b" in phase for phase in phases)
    assert compared(mongo, into, manifest).differences == []
    # Another restore does not go on with what this one left half-done.
    mongo[into].drop_collection("__restoring.mark")
    killed(what, wire_database, into, tmp_path, "restoring c")
    phases.clear()
    ActivityEnvironment().run(
        lambda: load(mongo, into, store, "ref", "another", phases.append, scratch=scratch, replace=not scratch)
    )
    assert any("restoring a" in phase for phase in phases)
    assert compared(mongo, into, manifest).differences == []


def test_a_write_whose_answer_was_lost_is_made_again(
    mongo: Client, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the driver, on a server that was killed in between: that one may know no more of it than the documents."""
    fill(mongo, name)
    store = LocalFolder(tmp_path)
    manifest = archived(mongo, name, store)
    once = Collection.insert_many

    def again(self: Any, documents: Any, *args: Any, **options: Any) -> Any:
        batch = list(documents)
        if self.name in ("types", "users"):
            once(self, batch[: len(batch) // 2 + 1], *args, **options)
        return once(self, batch, *args, **options)

    monkeypatch.setattr(Collection, "insert_many", again)
    restored(mongo, f"{name}_scratch", store)
    assert compared(mongo, f"{name}_scratch", manifest).differences == []


def test_streams_that_are_no_documents() -> None:
    from io import BytesIO

    whole = bson.encode({"a": 1})
    assert list(documents(BytesIO(whole * 3))) == [whole] * 3
    for broken in (whole[:-1], whole + b"\x05", b"\x04\x00\x00\x00", b"\xff\xff\xff\x7f" + whole):
        with pytest.raises(Damaged):
            list(documents(BytesIO(broken)))


def test_contents_do_not_depend_on_order_but_on_each_document() -> None:
    one, two = bson.encode({"a": 1}), bson.encode({"a": 2})

    def digest(*given: bytes) -> str:
        content = Content()
        for document in given:
            content.add(document)
        return content.digest()

    assert digest(one, two) == digest(two, one) != digest(one, one)
    assert digest(one, one, two, two) != digest(one, two), "doubles do not cancel each other out"


def test_a_reference_that_is_none(aws: Aws) -> None:
    with pytest.raises(ApplicationError, match="is no archive"):
        folder(aws.s3, "ftp://x/y")


def test_manifest_is_plain_json(mongo: Client, name: str, tmp_path: Path) -> None:
    mongo[name]["a"].insert_one({"_id": 1})
    archived(mongo, name, LocalFolder(tmp_path))
    found = json.loads((tmp_path / MANIFEST).read_text())
    assert (found["database"], found["collections"][0]["documents"]) == (name, 1)
    assert "not MongoDB" in found["server"]
