"""CloudWatch Logs Insights: a question is started, then asked after until it is answered."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from activities.errors import lasting, passing
from activities.progress import pause

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

Row = dict[str, str]
"""One row of an answer; a field that a row has not is absent."""

MOST_ROWS = 10_000
"""As many as Insights gives."""


class Insights:
    def __init__(self, logs: CloudWatchLogsClient, poll: float = 0.5) -> None:
        """``poll`` is the time between two looks at a running query, in seconds."""
        self._logs = logs
        self._poll = poll

    def ask(self, group: str, query: str, start: datetime, end: datetime) -> list[Row] | None:
        """The rows of the answer; None where the log group does not exist.

        Insights counts in whole seconds and takes both ends in, so the last second is left out: windows that follow
        one another count no line twice.

        Raises:
            InsightsBusy: too many queries run at this moment; retryable.
            InsightsFailed: CloudWatch gave up; retryable.
        """
        first, last = int(start.timestamp()), int(end.timestamp()) - 1
        try:
            query_id = self._logs.start_query(
                logGroupName=group, startTime=first, endTime=max(first, last), queryString=query, limit=MOST_ROWS
            )["queryId"]
        except self._logs.exceptions.ResourceNotFoundException:
            return None
        except self._logs.exceptions.LimitExceededException:
            raise passing("too many Insights queries run in this account just now", type="InsightsBusy") from None
        answered = False
        try:
            while True:
                answer = self._logs.get_query_results(queryId=query_id)
                status = answer["status"]
                if status == "Complete":
                    answered = True
                    return [
                        {field["field"]: field["value"] for field in row if "field" in field and "value" in field}
                        for row in answer["results"]
                    ]
                if status not in ("Scheduled", "Running"):
                    answered = True
                    raise passing(f"the Insights query of {group} ended as {status}", type="InsightsFailed")
                pause(self._poll, f"asking {group}")
        finally:
            if not answered:
                self._give_up(query_id)

    def _give_up(self, query_id: str) -> None:
        """Ended early: the query is not left running, for it counts against the account's limit."""
        try:
            self._logs.stop_query(queryId=query_id)
        except Exception:  # whatever it says, the reason for giving up is the one to report
            return


def whole(row: Row, name: str) -> int:
    """A count of a row.

    Raises:
        ApplicationError: it is no figure.
    """
    return round(figure(row, name) or 0)


def figure(row: Row, name: str) -> float | None:
    """A figure of a row; None where it has none."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except ValueError:
        raise lasting(f"Insights gave no figure for {name!r}", type="BadAnswer") from None
