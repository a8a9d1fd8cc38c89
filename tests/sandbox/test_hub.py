"""The hub answers like the services it stands in for, fails as told, and keeps what it received."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.running_hub import ATLAS_SECRET, WEBHOOK_TOKEN, RunningHub

pytest_plugins = ("tests.hub_fixture",)

ROUTING_KEY = "0123456789abcdef0123456789abcdef"
VERSIONED = {"Accept": "application/vnd.atlas.2023-01-01+json"}


def trigger(key: str = "k1", **payload: str) -> dict[str, object]:
    body = {"summary": "API down", "source": "production", "severity": "critical"} | payload
    return {"routing_key": ROUTING_KEY, "event_action": "trigger", "dedup_key": key, "payload": body}


# -- chat and webhook


def test_slack_takes_a_message_and_refuses_others_in_slacks_words(hub: RunningHub) -> None:
    good = hub.client.post("/slack/ops", json={"text": "hello"})
    assert (good.status_code, good.text) == (200, "ok")
    assert hub.client.post("/slack/ops", content=b"{not json").text == "invalid_payload"
    assert hub.client.post("/slack/ops", json=[1]).status_code == 400
    assert hub.client.post("/slack/ops", json={}).text == "no_text"
    assert [event["body"] for event in hub.received("slack")] == [{"text": "hello"}]
    assert hub.received("slack/ops")[0]["received_at"]
    assert hub.received("slack/other") == []


def test_webhook_checks_the_token_and_never_keeps_it(hub: RunningHub) -> None:
    assert hub.client.post("/webhook/pager", json={"a": 1}).status_code == 401
    wrong = {b"Authorization": "Bearer wrong-é".encode()}
    assert hub.client.post("/webhook/pager", json={"a": 1}, headers=wrong).status_code == 401
    right = {"Authorization": f"Bearer {WEBHOOK_TOKEN}"}
    assert hub.client.post("/webhook/pager", json={"a": 1}, headers=right).status_code == 200
    assert [event["body"] for event in hub.received("webhook/pager")] == [{"a": 1}]
    assert WEBHOOK_TOKEN not in hub.client.get("/_control/received").text


# -- pager


def test_pagerduty_folds_events_of_one_key_into_one_alert(hub: RunningHub) -> None:
    enqueue = "/pagerduty/v2/enqueue"
    first = hub.client.post(enqueue, json=trigger())
    assert first.status_code == 202
    assert first.json() == {"status": "success", "message": "Event processed", "dedup_key": "k1"}
    hub.client.post(enqueue, json=trigger(summary="API still down"))
    end = {"routing_key": ROUTING_KEY, "dedup_key": "k1"}
    hub.client.post(enqueue, json=end | {"event_action": "acknowledge"})
    [alert] = hub.client.get("/_control/alerts").json()
    assert alert == {
        "dedup_key": "k1",
        "summary": "API still down",
        "severity": "critical",
        "status": "acknowledged",
        "events": 3,
    }
    hub.client.post(enqueue, json=end | {"event_action": "resolve"})
    # Resolving what is not open is taken and changes nothing.
    assert hub.client.post(enqueue, json=end | {"event_action": "resolve"}).status_code == 202
    hub.client.post(enqueue, json=trigger())
    assert [alert["status"] for alert in hub.client.get("/_control/alerts").json()] == ["resolved", "triggered"]


def test_pagerduty_makes_a_key_when_none_is_given(hub: RunningHub) -> None:
    event = trigger()
    del event["dedup_key"]
    keys = {hub.client.post("/pagerduty/v2/enqueue", json=event).json()["dedup_key"] for _ in range(2)}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"routing_key": "short"}, "Length of 'routing_key'"),
        ({"routing_key": None}, "'routing_key' is missing"),
        ({"event_action": "explode"}, "'event_action'"),
        ({"event_action": "resolve", "dedup_key": None}, "'dedup_key'"),
        ({"dedup_key": "x" * 256}, "'dedup_key'"),
        ({"payload": "x"}, "'payload'"),
        ({"payload": {"source": "s", "severity": "error"}}, "'payload.summary'"),
        ({"payload": {"summary": "s", "severity": "error"}}, "'payload.source'"),
        ({"payload": {"summary": "s", "source": "s", "severity": "P1"}}, "'payload.severity'"),
        ({"payload": {"summary": "s" * 1025, "source": "s", "severity": "info"}}, "too long"),
        ({"links": [{"text": "no address"}]}, "'links'"),
    ],
)
def test_pagerduty_refuses_invalid_events(hub: RunningHub, change: dict[str, object], problem: str) -> None:
    refused = hub.client.post("/pagerduty/v2/enqueue", json=trigger() | change)
    assert refused.status_code == 400
    assert refused.json()["status"] == "invalid event"
    assert problem in " ".join(refused.json()["errors"])
    assert hub.received("pagerduty") == []


def test_pagerduty_keeps_no_routing_key(hub: RunningHub) -> None:
    hub.client.post("/pagerduty/v2/enqueue", json=trigger())
    assert ROUTING_KEY not in hub.client.get("/_control/received").text
    assert ROUTING_KEY not in hub.client.get("/").text


# -- tickets


def test_github_issue_from_opening_to_closing(hub: RunningHub) -> None:
    issues = "/github/repos/acme/state-api/issues"
    assert hub.client.post(issues, json={"title": "t"}).status_code == 401
    hub.client.headers["Authorization"] = "Bearer anything"
    assert hub.client.post(issues, json={"body": "no title"}).status_code == 422
    made = hub.client.post(issues, json={"title": "First", "body": "see\nkey: abc", "labels": ["incident"]})
    assert made.status_code == 201
    assert made.json()["number"] == 1
    assert made.json()["labels"] == [{"name": "incident"}]
    hub.client.post(issues, json={"title": "Second"})
    assert [issue["number"] for issue in hub.client.get(issues).json()] == [2, 1]
    assert [issue["number"] for issue in hub.client.get(issues, params={"per_page": 1, "page": 2}).json()] == [1]
    assert [issue["number"] for issue in hub.client.get(issues, params={"labels": "incident"}).json()] == [1]
    found = hub.client.get("/github/search/issues", params={"q": 'repo:acme/state-api in:body "key: abc"'}).json()
    assert [issue["number"] for issue in found["items"]] == [1]
    assert hub.client.post(f"{issues}/1/comments", json={"body": "on it"}).status_code == 201
    closed = hub.client.patch(f"{issues}/1", json={"state": "closed"}).json()
    assert (closed["state"], closed["comments"]) == ("closed", 1)
    assert [issue["number"] for issue in hub.client.get(issues).json()] == [2]
    assert len(hub.client.get(issues, params={"state": "all"}).json()) == 2
    assert hub.client.get(f"{issues}/9").status_code == 404
    assert hub.client.get(made.json()["html_url"]).headers["Location"] == "/#e1"


def test_jira_creates_finds_and_refuses(hub: RunningHub) -> None:
    issue = "/jira/rest/api/2/issue"
    fields = {"project": {"key": "OPS"}, "issuetype": {"name": "Task"}, "summary": "S", "labels": ["runbook-1"]}
    assert hub.client.post(issue, json={"fields": fields}).status_code == 401
    hub.client.auth = httpx.BasicAuth("me", "token")
    made = hub.client.post(issue, json={"fields": fields})
    assert (made.status_code, made.json()["key"]) == (201, "OPS-1")
    hub.client.post(issue, json={"fields": fields | {"labels": []}})
    search = "/jira/rest/api/2/search/jql"
    query = {"jql": 'project = "OPS" AND labels = "runbook-1" ORDER BY created', "fields": "summary"}
    [found] = hub.client.get(search, params=query).json()["issues"]
    assert (found["key"], found["fields"]) == ("OPS-1", {"summary": "S"})
    assert hub.client.get(search, params={"jql": "text ~ x"}).status_code == 400
    assert hub.client.get("/jira/rest/api/2/search", params=query).status_code == 410
    assert "summary" in hub.client.post(issue, json={"fields": fields | {"summary": ""}}).json()["errors"]
    assert "labels" in hub.client.post(issue, json={"fields": fields | {"labels": ["a b"]}}).json()["errors"]
    assert hub.client.get("/jira/browse/OPS-1").headers["Location"] == "/#e1"


# -- Atlas


def atlas(hub: RunningHub) -> httpx.Client:
    """A client with a service account's token, at the project's address."""
    answered = hub.client.post(
        "/atlas/api/oauth/token", data={"grant_type": "client_credentials"}, auth=("mdb_sa_id", ATLAS_SECRET)
    ).raise_for_status()
    headers = VERSIONED | {"Authorization": f"Bearer {answered.json()['access_token']}"}
    return httpx.Client(base_url=f"{hub.url}/atlas/api/atlas/v2/groups/g1", headers=headers)


def test_atlas_asks_who_is_there_and_for_which_version(hub: RunningHub) -> None:
    path = "/atlas/api/atlas/v2/groups/g1/databaseUsers"
    refused = hub.client.get(path, headers=VERSIONED)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Digest ")
    assert hub.client.get(path, headers=VERSIONED, auth=httpx.DigestAuth("pub", ATLAS_SECRET)).status_code == 200
    assert hub.client.get(path, headers=VERSIONED, auth=httpx.DigestAuth("pub", "wrong")).status_code == 401
    token = "/atlas/api/oauth/token"
    grant = {"grant_type": "client_credentials"}
    assert hub.client.post(token, data=grant, auth=("id", "wrong")).status_code == 401
    assert hub.client.post(token, data={}, auth=("id", ATLAS_SECRET)).status_code == 400
    with atlas(hub) as client:
        unversioned = client.get("/databaseUsers", headers={"Accept": "application/json"})
    assert unversioned.status_code == 406
    assert unversioned.json() == {
        "detail": "Invalid accept header or version date.",
        "error": 406,
        "errorCode": "INVALID_VERSION_DATE",
        "parameters": [],
        "reason": "Not Acceptable",
    }


def test_atlas_snapshot_and_restore_pass_through_their_states(hub: RunningHub) -> None:
    with atlas(hub) as client:
        snapshots, restores = "/clusters/c1/backup/snapshots", "/clusters/c1/backup/restoreJobs"
        assert client.post(snapshots, json={"description": "x"}).json()["errorCode"] == "INVALID_ATTRIBUTE"
        made = client.post(snapshots, json={"retentionInDays": 1, "description": "before"}).json()
        restore = {
            "deliveryType": "automated",
            "snapshotId": made["id"],
            "targetClusterName": "scratch",
            "targetGroupId": "g1",
        }
        assert client.post(restores, json=restore).status_code == 400, "an unfinished snapshot cannot be restored"
        seen = [made["status"]]
        deadline = time.monotonic() + 5
        while seen[-1] != "completed" and time.monotonic() < deadline:
            status = client.get(f"{snapshots}/{made['id']}").json()["status"]
            seen += [status] if status != seen[-1] else []
            time.sleep(0.02)
        assert seen == ["queued", "inProgress", "completed"]
        assert client.get("/clusters/other/backup/snapshots").json()["totalCount"] == 0
        job = client.post(restores, json=restore).json()
        assert "finishedAt" not in job
        second = client.post(restores, json=restore).json()
        assert client.delete(f"{restores}/{second['id']}").status_code == 200
        while "finishedAt" not in (job := client.get(f"{restores}/{job['id']}").json()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert (job["failed"], job["cancelled"]) == (False, False)
        cancelled = client.get(f"{restores}/{second['id']}").json()
        assert cancelled["cancelled"]
        assert "finishedAt" not in cancelled
        assert client.delete(f"{restores}/{job['id']}").status_code == 400
        assert client.get(f"{restores}/nothing").json()["errorCode"] == "RESOURCE_NOT_FOUND"


def test_atlas_database_users_and_who_logged_in(hub: RunningHub) -> None:
    with atlas(hub) as client:
        user = {
            "databaseName": "admin",
            "username": "app-2",
            "password": "s3cr3t-password",
            "roles": [{"roleName": "readWrite", "databaseName": "state"}],
        }
        made = client.post("/databaseUsers", json=user)
        assert made.status_code == 201
        assert "password" not in made.json()
        assert client.post("/databaseUsers", json=user).status_code == 409
        late = (datetime.now(UTC) + timedelta(days=8)).isoformat()
        assert client.post("/databaseUsers", json=user | {"username": "x", "deleteAfterDate": late}).status_code == 400
        assert client.get("/databaseUsers/admin/app-2").json()["roles"] == user["roles"]
        login = {"group": "g1", "cluster": "c1", "username": "app-1"}
        hub.client.post("/_control/atlas/login", json=login).raise_for_status()
        history = "/dbAccessHistory/clusters/c1"
        [entry] = client.get(history).json()["accessLogs"]
        assert (entry["username"], entry["authResult"]) == ("app-1", True)
        assert re.fullmatch(r"[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d GMT \d{4}", entry["timestamp"])
        assert client.get(history, params={"nLogs": 0}).json()["accessLogs"] == []
        assert client.get(history, params={"nLogs": 20_001}).status_code == 400
        later = int(time.time() * 1000) + 60_000
        assert client.get(history, params={"start": later}).json()["accessLogs"] == []
        assert client.delete("/databaseUsers/admin/app-2").status_code == 204
        assert client.get("/databaseUsers/admin/app-2").json()["errorCode"] == "USERNAME_NOT_FOUND"
    assert "s3cr3t-password" not in hub.client.get("/_control/received").text


# -- failure switches


def test_http_fault_carries_retry_after_and_ends_by_itself(hub: RunningHub) -> None:
    hub.fail("slack", "http", status=503, retry_after=2, times=2)
    for _ in range(2):
        refused = hub.client.post("/slack/ops", json={"text": "x"})
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    assert hub.client.post("/slack/ops", json={"text": "x"}).status_code == 200
    assert len(hub.received("slack")) == 1


def test_fault_of_one_name_leaves_the_others_alone(hub: RunningHub) -> None:
    hub.fail("slack/a", "http")
    assert hub.client.post("/slack/a", json={"text": "x"}).status_code == 503
    assert hub.client.post("/slack/b", json={"text": "x"}).status_code == 200
    hub.heal("slack/a")
    assert hub.client.post("/slack/a", json={"text": "x"}).status_code == 200


def test_timeout_reset_and_garbage_take_nothing(hub: RunningHub) -> None:
    hub.fail("slack", "timeout")
    with pytest.raises(httpx.ReadTimeout):
        hub.client.post("/slack/a", json={"text": "x"}, timeout=0.2)
    hub.fail("slack", "reset")
    with pytest.raises(httpx.ReadError, match="reset"):
        hub.client.post("/slack/a", json={"text": "x"})
    hub.fail("slack", "garbage")
    garbage = hub.client.post("/slack/a", json={"text": "x"})
    assert garbage.status_code == 200
    with pytest.raises(ValueError, match="Expecting value"):
        garbage.json()
    assert hub.received("slack") == []


def test_slow_takes_the_message_and_answers_late(hub: RunningHub) -> None:
    hub.fail("slack", "slow", seconds=0.4)
    begun = time.monotonic()
    assert hub.client.post("/slack/a", json={"text": "1"}).status_code == 200
    assert time.monotonic() - begun >= 0.35
    with pytest.raises(httpx.ReadTimeout):
        hub.client.post("/slack/a", json={"text": "2"}, timeout=0.1)
    assert [event["body"]["text"] for event in hub.received("slack")] == ["1", "2"]


@pytest.mark.parametrize(
    "switch",
    [{}, {"target": "slack"}, {"target": "slack", "mode": "x"}, {"target": "fax", "mode": "http"}, {"target": 1}],
)
def test_bad_switches_are_refused(hub: RunningHub, switch: dict[str, object]) -> None:
    refused = hub.client.post("/_control/fail", json=switch)
    assert refused.status_code == 400
    assert refused.json()["error"]
    assert hub.client.get("/_control/fail").json() == []


# -- bad input, many callers, the page


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"POST /slack/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /slack/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /slack/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /slack/a HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\ncut off",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"POST /slack/a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\xff\xfe\x00\x01",
        b"GET /%ff%fe?%ff=%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_broken_requests_leave_the_hub_alive(hub: RunningHub, raw: bytes) -> None:
    port = httpx.URL(hub.url).port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert hub.client.post("/slack/a", json={"text": "still here"}).text == "ok"


def test_odd_json_is_answered(hub: RunningHub) -> None:
    hub.client.headers["Authorization"] = "Bearer x"
    odd = [b"[" * 100_000, b'{"text": "\\ud800", "attachments": [1]}', b'{"text": NaN}', b"null", b'{"links": 3}', b""]
    for path in ("/slack/a", "/pagerduty/v2/enqueue", "/github/repos/o/r/issues", "/jira/rest/api/2/issue"):
        for body in odd:
            assert hub.client.post(path, content=body).status_code < 500, (path, body[:20])
    assert hub.client.get("/").status_code == 200


def test_many_callers_at_once_lose_nothing(hub: RunningHub) -> None:
    def talk(number: int) -> None:
        with httpx.Client(base_url=hub.url) as client:
            for count in range(20):
                client.post(f"/slack/{number}", json={"text": str(count)}).raise_for_status()

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = hub.received("slack")
    assert [event["id"] for event in events] == list(range(1, 161))
    for number in range(8):
        assert [e["body"]["text"] for e in hub.received(f"slack/{number}")] == [str(count) for count in range(20)]


def test_page_shows_everything_and_runs_nothing(hub: RunningHub) -> None:
    hub.client.post("/slack/ops", json={"text": "*Rolled back* <https://run.example|the run> &lt;!channel&gt;"})
    hub.client.post("/slack/ops", json={"text": "<script>alert(1)</script> <!channel> <javascript:x|y>"})
    event = trigger() | {"links": [{"href": "javascript:alert(2)", "text": "bad"}]}
    hub.client.post("/pagerduty/v2/enqueue", json=event)
    hub.fail("jira", "http", status=502)
    page = hub.client.get("/").text
    assert '<b>Rolled back</b> <a href="https://run.example">the run</a> &lt;!channel&gt;' in page
    assert "<mark>@channel</mark>" in page
    assert "<script" not in page
    assert 'href="javascript' not in page
    assert "API down" in page
    assert "Switched to fail: <b>jira</b>" in page
    assert page.index("alert(1)") < page.index("Rolled back"), "newest first"
    assert 'http-equiv="refresh"' in page


# -- the process


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    running = subprocess.Popen(
        [sys.executable, "-m", "sandbox.hub", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    try:
        assert running.stdout is not None
        yield running, running.stdout.readline().strip()
    finally:
        running.kill()
        running.wait()
        running.stdout.close()  # type: ignore[union-attr]


def test_state_outlives_the_process(tmp_path: Path) -> None:
    state = str(tmp_path / "received.jsonl")
    issues = "/github/repos/o/r/issues"
    token = {"Authorization": "Bearer ghp_never-kept"}
    with process("--state", state, HUB_WEBHOOK_TOKEN="hidden") as (running, url):
        httpx.post(f"{url}/pagerduty/v2/enqueue", json=trigger()).raise_for_status()
        httpx.post(f"{url}{issues}", json={"title": "kept"}, headers=token).raise_for_status()
        assert httpx.post(f"{url}/webhook/x", json={}).status_code == 401
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=5) == 0
    text = Path(state).read_text()
    assert ROUTING_KEY not in text
    assert "ghp_never-kept" not in text
    # A crash in the middle of a write leaves half a line.
    Path(state).write_text(text + '{"id": 3, "recei')
    with process("--state", state) as (_, url):
        end = {"routing_key": ROUTING_KEY, "event_action": "resolve", "dedup_key": "k1"}
        httpx.post(f"{url}/pagerduty/v2/enqueue", json=end).raise_for_status()
        assert [alert["status"] for alert in httpx.get(f"{url}/_control/alerts").json()] == ["resolved"]
        assert [issue["title"] for issue in httpx.get(f"{url}{issues}", headers=token).json()] == ["kept"]
    with process("--state", state) as (_, url):
        assert [event["id"] for event in httpx.get(f"{url}/_control/received").json()] == [1, 2, 3]


def test_taken_port_is_one_readable_line(hub: RunningHub) -> None:
    port = str(httpx.URL(hub.url).port)
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.hub", "--port", port], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "cannot start" in done.stderr
