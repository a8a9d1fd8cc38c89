"""Who still uses which key of the API: counted in the API's own structured log, by the fingerprint of the key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from temporalio import activity

from activities.errors import classified, lasting
from activities.insights import MOST_ROWS, Insights, Row, whole
from activities.rotation_models import KeyUsage, KeyUse, UsageQuery

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

_SPAN = timedelta(days=1)
"""A span whose answer fills all the rows that Logs Insights gives is asked again in halves."""
_SHORTEST = timedelta(minutes=1)
_TO_THE_LAST = timedelta(seconds=2)
"""An end is often now, and Insights is asked for whole seconds before it: so much later, it has the last use too."""
_FINGERPRINT = re.compile(r"[0-9a-f]{12}")

VERIFICATION = "runbooks-verification"
"""What this project calls itself when it tries keys: that is no use of them."""


class KeyLog:
    def __init__(self, logs: CloudWatchLogsClient, poll: float = 0.3) -> None:
        self._insights = Insights(logs, poll)

    @activity.defn(name="key_usage.look")
    @classified("count the uses of the API's keys")
    def look(self, asked: UsageQuery) -> KeyUsage:
        """Accepted requests in that time with one of these keys, by key and client. Never searches for a key itself.

        Raises:
            NoLog: the log group does not exist, so nothing is known.
            InsightsBusy, InsightsFailed: see :meth:`activities.insights.Insights.ask`; retryable.
        """
        rules = asked.stage.rotation
        wrong = [key for key in asked.keys if not _FINGERPRINT.fullmatch(key)]
        if wrong:
            raise lasting("a key is looked for by its fingerprint: 12 hexadecimal digits", type="BadRequest")
        accepted = f"{rules.status_field} != 401 and {rules.status_field} != 403"
        names = ", ".join(f'"{key}"' for key in asked.keys)
        by = f"{rules.key_field}, {rules.client_field}"
        query = (
            f"filter {accepted} and {rules.key_field} in [{names}] "
            f"| stats count(*) as uses, latest(@timestamp) as last by {by}"
        )
        complete = True
        found: dict[tuple[str, str | None], KeyUse] = {}
        for rows, all_of_them in self._pages(asked, query):
            complete = complete and all_of_them
            for row in rows:
                if row.get(rules.client_field) == VERIFICATION:
                    continue
                use = KeyUse(
                    key=row[rules.key_field],
                    client=row.get(rules.client_field),
                    uses=whole(row, "uses"),
                    last=moment(row["last"]),
                )
                known = found.get((use.key, use.client))
                found[use.key, use.client] = merged(known, use) if known else use
        named = self._named(asked)
        uses = tuple(sorted(found.values(), key=lambda use: (use.key, use.client or "")))
        total = sum(use.uses for use in uses)
        clients = len({use.client for use in uses})
        return KeyUsage(
            summary=f"{total} requests of {clients} client(s) with {len(asked.keys)} key(s), of {named} that name one",
            uses=uses,
            named=named,
            complete=complete,
        )

    def _named(self, asked: UsageQuery) -> int:
        query = f"filter ispresent({asked.stage.rotation.key_field}) | stats count(*) as uses"
        return sum(whole(row, "uses") for row in self._ask(asked, query, asked.start, asked.end + _TO_THE_LAST))

    def _pages(self, asked: UsageQuery, query: str) -> Iterator[tuple[list[Row], bool]]:
        """The rows span by span, each with whether it was read whole."""
        starts = [asked.start + n * _SPAN for n in range(max(1, -(-(asked.end - asked.start) // _SPAN)))]
        spans = list(zip(starts, [*starts[1:], asked.end + _TO_THE_LAST], strict=True))
        while spans:
            start, end = spans.pop(0)
            rows = self._ask(asked, query, start, end)
            full = len(rows) >= MOST_ROWS
            if full and end - start > 2 * _SHORTEST:
                middle = start + (end - start) / 2
                spans[:0] = [(start, middle), (middle, end)]
                continue
            yield rows, not full

    def _ask(self, asked: UsageQuery, query: str, start: datetime, end: datetime) -> list[Row]:
        group = asked.stage.log_group
        rows = self._insights.ask(group, query, start, end)
        if rows is None:
            raise lasting(f"log group {group} does not exist, so who uses which key is not known", type="NoLog")
        return rows


def merged(one: KeyUse, other: KeyUse) -> KeyUse:
    return one.model_copy(update={"uses": one.uses + other.uses, "last": max(one.last, other.last)})


def moment(text: str) -> datetime:
    """Insights writes a time as text or, out of some functions, as milliseconds."""
    if re.fullmatch(r"[\d.]+(E\d+)?", text, re.IGNORECASE):
        return datetime.fromtimestamp(float(text) / 1000, UTC)
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
