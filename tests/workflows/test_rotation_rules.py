"""Who is still on an old key, whom to remind, when the next rotation is: tables and properties."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.rotation_models import KeyUse
from activities.stage import ApiClient
from workflows.rotation_rules import (
    ClientState,
    due_reminder,
    moved,
    next_rotation,
    next_try,
    noted,
    on_old,
    reminded,
    stragglers,
    token_overlap,
    unused,
    usage_known,
    whose,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
REMINDERS = tuple(timedelta(days=days) for days in (14, 7, 3, 1))
REGISTRY = (
    ApiClient(name="web", owner="w", key="primary"),
    ApiClient(name="app", owner="a", key="primary"),
    ApiClient(name="cron", owner="c", key="backup"),
)
OWNERS = {"aaaaaaaaaaaa": "primary", "bbbbbbbbbbbb": "backup"}


def use(key: str, client: str | None, at: datetime = NOW) -> KeyUse:
    return KeyUse(key=key, client=client, uses=1, last=at)


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        (use("aaaaaaaaaaaa", "web"), "web"),
        (use("bbbbbbbbbbbb", None), "cron"),
        (use("bbbbbbbbbbbb", "curl"), "curl"),
        (use("aaaaaaaaaaaa", None), "somebody with key aaaaaaaaaaaa"),  # two clients have it
        (use("cccccccccccc", None), "somebody with key cccccccccccc"),
        (use("cccccccccccc", "app"), "app"),
    ],
)
def test_whose_a_use_is(seen: KeyUse, name: str) -> None:
    assert whose(seen, REGISTRY, OWNERS) == name


@pytest.mark.parametrize(
    ("last_old", "last_new", "expected"),
    [
        (None, None, False),
        (None, NOW, False),
        (NOW - HOUR, None, True),
        (NOW - HOUR, NOW, True),  # a second instance may still have the old one
        (NOW - 3 * DAY, NOW - 2 * DAY, False),
        (NOW - 3 * DAY, None, True),  # a job that runs once a week
        (NOW - 3 * DAY, NOW - 4 * DAY, True),
    ],
)
def test_on_an_old_key(last_old: datetime | None, last_new: datetime | None, expected: bool) -> None:
    client = ClientState(name="web", last_old=last_old, last_new=last_new)
    assert on_old(client, NOW, DAY) is expected
    assert (moved({"web": client}, NOW, DAY) == ["web"]) is (not expected and last_new is not None)


@pytest.mark.parametrize(
    ("left", "sent", "due"),
    [
        (timedelta(days=20), (), None),
        (timedelta(days=14), (), 14),
        (timedelta(days=10), (), 14),
        (timedelta(days=10), (14,), None),
        (timedelta(days=7), (14,), 7),
        (timedelta(days=2), (14,), 3),  # looks were missed: only the nearest is sent
        (timedelta(hours=5), (14, 7, 3), 1),
        (timedelta(hours=5), (14, 7, 3, 1), None),
        (timedelta(0), (14, 7, 3), None),
    ],
)
def test_reminders(left: timedelta, sent: tuple[int, ...], due: int | None) -> None:
    seconds = tuple(days * 86400 for days in sent)
    client = ClientState(name="web", last_old=NOW - HOUR, reminded=seconds)
    found = due_reminder(client, NOW + left, NOW, REMINDERS, DAY)
    assert found == (timedelta(days=due) if due else None)
    quiet = client.model_copy(update={"last_old": None})
    assert due_reminder(quiet, NOW + left, NOW, REMINDERS, DAY) is None


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60, unique=True), st.sets(st.integers(1, 30), max_size=6))
def test_each_reminder_is_sent_at_most_once_and_never_out_of_order(lefts: list[int], days: set[int]) -> None:
    before = tuple(timedelta(days=day) for day in days)
    client, sent = ClientState(name="web", last_old=NOW), list[timedelta]()
    for left in sorted(lefts, reverse=True):
        now = NOW + timedelta(days=40 - left)
        client = client.model_copy(update={"last_old": now})
        found = due_reminder(client, NOW + timedelta(days=40), now, before, DAY)
        if found is not None:
            assert timedelta(days=left) <= found
            sent.append(found)
            client = reminded(client, found, before)
    assert sent == sorted(set(sent), reverse=True)
    if any(left <= max(days, default=0) for left in lefts):
        assert sent


uses = st.lists(
    st.builds(
        use,
        st.sampled_from(["aaaaaaaaaaaa", "bbbbbbbbbbbb", "dddddddddddd"]),
        st.sampled_from(["web", "app", "cron", "curl", None]),
        st.integers(0, 10_000).map(lambda minutes: NOW - timedelta(minutes=minutes)),
    ),
    max_size=20,
)


@given(uses, uses)
def test_lines_may_be_seen_twice_and_in_any_order(first: list[KeyUse], second: list[KeyUse]) -> None:
    old = ("aaaaaaaaaaaa", "bbbbbbbbbbbb")
    start = {client.name: ClientState(name=client.name) for client in REGISTRY}
    once = noted(noted(start, first, REGISTRY, OWNERS, old), second, REGISTRY, OWNERS, old)
    again = noted(once, [*first, *second], REGISTRY, OWNERS, old)
    backwards = noted(noted(start, second, REGISTRY, OWNERS, old), first, REGISTRY, OWNERS, old)
    assert once == again
    assert once == backwards
    for name in stragglers(once, NOW, DAY):
        assert once[name].last_old is not None


def test_silence_of_a_log_that_names_no_key_tells_nothing() -> None:
    assert usage_known(10, complete=True)
    assert not usage_known(0, complete=True)
    assert not usage_known(10, complete=False)


@given(st.timedeltas(timedelta(0), 400 * DAY), st.timedeltas(timedelta(0), 60 * DAY))
def test_the_next_one_is_after_the_overlap_of_this_one(took: timedelta, overlap: timedelta) -> None:
    at = next_rotation(NOW, 90 * DAY, NOW + took, overlap)
    assert at >= NOW + took + overlap
    assert at >= NOW + 90 * DAY


@given(st.timedeltas(timedelta(0), 400 * DAY), st.timedeltas(DAY, 60 * DAY))
def test_a_new_try_is_a_pause_later_at_the_same_hour(took: timedelta, pause: timedelta) -> None:
    at = next_try(NOW, NOW + took, pause)
    assert (at - NOW) % DAY == timedelta(0)
    assert pause - 12 * HOUR <= at - (NOW + took) <= pause + 12 * HOUR


# --- tokens and users -----------------------------------------------------------------------------------------------

spans = st.timedeltas(timedelta(0), timedelta(days=400))


@given(spans, spans, spans, spans)
def test_no_token_of_the_old_key_outlives_the_overlap(
    life: timedelta, skew: timedelta, wanted: timedelta, issued: timedelta
) -> None:
    """Whenever before the switch a token was issued, by a clock that far ahead, it has expired at the end."""
    overlap = token_overlap(life, skew, wanted)
    assert NOW - issued + skew + life <= NOW + overlap
    assert overlap >= wanted


@pytest.mark.parametrize(
    ("last", "switched", "quiet", "over"),
    [
        (None, NOW - 2 * DAY, DAY, True),
        (None, NOW - HOUR, DAY, False),  # silence counts from the switch
        (NOW - 2 * HOUR, NOW - 9 * DAY, DAY, False),
        (NOW - DAY, NOW - 9 * DAY, DAY, True),
        (NOW - 9 * DAY, NOW - HOUR, DAY, False),  # what was before the switch is no use since
        (NOW, NOW - DAY, timedelta(0), True),
    ],
)
def test_a_user_is_unused_after_its_quiet_time(
    last: datetime | None, switched: datetime, quiet: timedelta, over: bool
) -> None:
    assert unused(last, switched, NOW, quiet) is over
