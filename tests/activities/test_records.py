"""The records store and the deploy ledger, in S3."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from temporalio.exceptions import ApplicationError

from activities.clients import Aws
from activities.records import Records, ledger_key
from activities.releases import LedgerEntry, ReleaseFacts
from activities.settings import RecordsStore, Settings
from tests.activities.site import Site

START = datetime(2026, 1, 20, 12, tzinfo=UTC)


def entry(site: Site, release: str, minutes: int = 0) -> LedgerEntry:
    return LedgerEntry(
        app=site.stage().deploy.app, stage=site.name, release=release, engine="sst", deployed_by="ci",
        deployed_at=START + timedelta(minutes=minutes),
    )  # fmt: skip


def test_the_ledger_is_newest_first_and_an_entry_twice_is_one(new_site: Callable[[], Site]) -> None:
    site = new_site()
    for number in (3, 1, 2, 3):
        site.ledger.append(entry(site, f"r{number}", number))
    assert [found.release for found in site.ledger.list(site.stage()).entries] == ["r3", "r2", "r1"]
    assert [found.release for found in site.ledger.list(site.stage(), limit=2).entries] == ["r3", "r2"]
    elsewhere = entry(site, "r1").model_copy(update={"deployed_at": START.astimezone(timezone(timedelta(hours=9)))})
    assert ledger_key(elsewhere) == ledger_key(entry(site, "r1"))


def test_a_damaged_or_foreign_entry_hides_no_other(new_site: Callable[[], Site]) -> None:
    site = new_site()
    site.ledger.append(entry(site, "r1"))
    newer = entry(site, "r2", 1).model_copy(update={"app": "billing"})
    site.ledger.append(newer)
    site.records.store(f"ledger/{site.name}/0000-damaged.json", b"{not json", "application/json")
    later = b'{"from_the_future": 1, ' + entry(site, "r3", 2).model_dump_json().encode()[1:]
    site.records.store(ledger_key(entry(site, "r3", 2)), later, "application/json")
    page = site.ledger.list(site.stage(), limit=2)
    assert [found.release for found in page.entries] == ["r3", "r1"]
    assert any("0000-damaged.json" in problem for problem in page.problems)
    assert any("'billing'" in problem for problem in page.problems)


def test_objects_by_key_and_by_location(new_site: Callable[[], Site], aws: Aws) -> None:
    records = new_site().records
    location = records.store("a/b.txt", b"content", "text/plain")
    assert location == "s3://test-records/team/a/b.txt"
    assert records.fetch(location) == b"content"
    assert list(records.keys("a/")) == ["a/b.txt"]
    assert records.fetch("s3://test-records/nothing") is None
    assert records.fetch("s3://no-such-bucket/nothing") is None
    assert records.digest("s3://no-such-bucket/nothing") is None
    facts = ReleaseFacts(release="r1")
    records.store_json("facts.json", facts)
    assert records.fetch_json("facts.json", ReleaseFacts) == facts
    assert records.fetch_json("nothing.json", ReleaseFacts) is None
    records.store("facts.json", b"[]", "application/json")
    with pytest.raises(ApplicationError, match="does not hold a ReleaseFacts"):
        records.fetch_json("facts.json", ReleaseFacts)
    with pytest.raises(ApplicationError, match="no s3://bucket/key location"):
        records.fetch("https://example.com/x")


def test_a_missing_bucket_names_the_setting(aws: Aws, settings: Settings) -> None:
    records = Records(aws.s3, settings.model_copy(update={"records": RecordsStore(bucket="no-such-bucket")}))
    with pytest.raises(ApplicationError, match=r"records\.bucket") as caught:
        records.store("key", b"", "text/plain")
    assert caught.value.non_retryable
    with pytest.raises(ApplicationError, match=r"records\.bucket"):
        list(records.keys("ledger/"))
