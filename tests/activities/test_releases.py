"""Which release a rollback goes to: the choice alone, as tables and as properties."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.releases import (
    LedgerEntry,
    PublishedVersion,
    ReleaseFacts,
    is_live,
    named,
    previous_good,
    same_release,
    taken_back,
)

NOON = datetime(2026, 1, 20, 12, tzinfo=UTC)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def history(*lines: str) -> list[LedgerEntry]:
    """Entries, newest first, of lines such as ``a``, ``b failed``, ``a rollback`` in the order they happened."""
    entries = []
    for number, line in enumerate(lines):
        release, *what = line.split()
        entries.append(
            LedgerEntry(
                app="api",
                stage="p",
                release=release,
                version=str(number + 1),
                code_sha256=sha(release),
                engine="sst",
                deployed_at=NOON + timedelta(minutes=number),
                deployed_by="ci",
                status=next((w for w in what if w in ("failed", "rolled_back")), "succeeded"),
                kind="rollback" if "rollback" in what else "deploy",
            )
        )
    return entries[::-1]


@pytest.mark.parametrize(
    ("lines", "live", "target"),
    [
        (("a", "b"), "b", "a"),
        (("a", "b", "c"), "c", "b"),
        (("a", "b failed", "c"), "c", "a"),
        (("a", "b", "b"), "b", "a"),  # the same release deployed twice
        (("a", "b", "c failed"), "b", "a"),  # the newest never went live
        (("a", "b", "a rollback"), "a", None),  # b was rolled back from: not good
        (("x", "a", "b", "a rollback"), "a", "x"),
        (("a", "b", "a rollback", "c"), "c", "a"),
        (("a", "b", "a rollback", "b", "c"), "c", "b"),  # b was deployed again since
        (("a", "b rolled_back", "c"), "c", "a"),
        (("a", "b"), "z", "b"),  # live is nothing that the ledger knows
        (("a",), "a", None),
        ((), "a", None),
    ],
)
def test_the_last_other_release_that_was_good(lines: tuple[str, ...], live: str, target: str | None) -> None:
    current = ReleaseFacts(release=live, code_sha256=sha(live))
    chosen = previous_good(current, history(*lines), [], "redeploy")
    assert (chosen.release.release if chosen else None) == target


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["", "failed", "rollback"])), max_size=12))
def test_a_choice_is_always_good_other_and_older_than_what_is_live(steps: list[tuple[str, str]]) -> None:
    entries = history(*(f"{release} {what}" for release, what in steps))
    live = next((entry for entry in entries if entry.status == "succeeded"), None)
    if live is None:
        return
    chosen = previous_good(live.facts(), entries, [], "redeploy")
    good = {e.release for e in entries if e.status == "succeeded"} - {live.release} - set(taken_back(entries))
    assert (chosen is not None) == bool(good)
    if chosen is not None:
        assert chosen.release.release in good
        assert chosen.release.deployed_at is not None
        assert chosen.release.deployed_at < live.deployed_at


def versions(*codes: str) -> list[PublishedVersion]:
    return [
        PublishedVersion(version=str(number), code_sha256=sha(code), release=code)
        for number, code in enumerate(codes, start=1)
    ]


def test_an_alias_needs_a_published_version_and_finds_it_by_its_code() -> None:
    current = ReleaseFacts(release="c", version="9", code_sha256=sha("c"))
    entries = history("a", "b", "c")
    chosen = previous_good(current, entries, versions("x", "a"), "alias")
    assert chosen is not None
    assert (chosen.release.release, chosen.release.version) == ("a", "2")  # b has no version any more
    assert previous_good(current, entries, [], "alias") is None


def test_versions_with_the_live_code_or_a_bad_release_are_passed_over() -> None:
    current = ReleaseFacts(release="d", version="5", code_sha256=sha("d"))
    entries = history("b failed")
    chosen = previous_good(current, entries, versions("a", "b", "d", "d", "d", "e"), "alias")
    assert chosen is not None
    assert chosen.release.version == "1"


def test_named_releases_by_commit_label_and_version() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    entries = [entry.model_copy(update={"release": commit, "label": "v1.2"}) for entry in history("a")]
    for name in (commit, commit[:8], "v1.2", "1"):
        chosen = named(name, entries, [], "alias")
        assert chosen is not None
        assert chosen.release.release == commit
    unknown = named("feedbeef", entries, [], "redeploy")
    assert unknown is not None
    assert unknown.release == ReleaseFacts(release="feedbeef")
    assert named("feedbeef", entries, [], "alias") is None
    failed = named("b", history("b", "b failed"), [], "redeploy")
    assert failed is not None
    assert failed.recorded_good


def test_hexadecimal_and_base64_hashes_are_the_same_hash() -> None:
    digest = hashlib.sha256(b"x")
    assert ReleaseFacts(code_sha256=digest.hexdigest()).code_sha256 == base64.b64encode(digest.digest()).decode()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("abcdef0", "abcdef0123", True),
        ("abcdef", "abcdef0123", False),  # too short to be a commit
        ("v1", "v1", True),
        ("v1", "v10", False),
        (None, None, False),
    ],
)
def test_abbreviated_commits(one: str | None, other: str | None, same: bool) -> None:
    assert same_release(one, other) is same


def test_equal_code_is_live_unless_the_names_differ() -> None:
    live = ReleaseFacts(release="a", code_sha256=sha("code"))
    assert is_live(ReleaseFacts(release="a", code_sha256=sha("code")), live)
    assert is_live(ReleaseFacts(code_sha256=sha("code")), live)
    assert not is_live(ReleaseFacts(release="b", code_sha256=sha("code")), live)
    changed_by_hand = ReleaseFacts(release="a", code_sha256=sha("other"))
    assert not is_live(changed_by_hand, live)
    assert is_live(changed_by_hand, live, trust_name=True)
    assert not is_live(ReleaseFacts(), ReleaseFacts())
