"""Ticket systems: the parts of GitHub Issues and Jira Cloud that creating and finding a ticket needs."""

from __future__ import annotations

import re
import shlex
from typing import Any

from sandbox.hub.exchange import Reply, Request, answer, text_of
from sandbox.hub.journal import Event, Journal, Json


def _labels(value: Any) -> list[str]:
    return [label for label in value if isinstance(label, str)] if isinstance(value, list) else []


def _number(text: str | None, default: int, most: int) -> int:
    """A page number or size out of a query, kept between 1 and ``most``."""
    return min(max(int(text), 1), most) if text and text.isdigit() and len(text) < 10 else default


class GitHub:
    """``/github/repos/{owner}/{repo}/issues`` and ``/github/search/issues``. Any credential will do, none will not."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._issues: dict[str, list[Json]] = {}
        journal.follow(self._apply)

    def handle(self, request: Request) -> Reply:
        match request.route:
            case ("GET", owner, repo, "issues", number):
                # What a person opens; the API's own paths begin with "repos".
                issue = self._find(f"{owner}/{repo}", number)
                return Reply(302, headers={"Location": f"/#e{issue['event']}"}) if issue else _github(404, "Not Found")
        if not (request.authorization("Bearer") or request.authorization("token")):
            return _github(401, "Requires authentication")
        match request.route:
            case ("POST", "repos", owner, repo, "issues"):
                return self._open(request, f"{owner}/{repo}")
            case ("GET", "repos", owner, repo, "issues"):
                return self._list(request, f"{owner}/{repo}")
            case ("GET", "search", "issues"):
                return self._search(request)
            case (method, "repos", owner, repo, "issues", number, *rest):
                issue = self._find(f"{owner}/{repo}", number)
                if issue is None:
                    return _github(404, "Not Found")
                match (method, *rest):
                    case ("GET",):
                        return answer(200, self._shown(issue, request))
                    case ("PATCH",):
                        return self._change(request, issue)
                    case ("POST", "comments"):
                        return self._comment(request, issue)
        return _github(404, "Not Found")

    def _open(self, request: Request, repo: str) -> Reply:
        sent = request.json_object()
        if sent is None:
            return _github(400, "Problems parsing JSON")
        if not text_of(sent.get("title")).strip():
            return _github(422, 'Invalid request.\n\n"title" wasn\'t supplied.')
        kept = {"title": sent["title"], "body": text_of(sent.get("body")), "labels": _labels(sent.get("labels"))}
        self._journal.append("github", repo, "opened", kept)
        return answer(201, self._shown(self._issues[repo][-1], request))

    def _list(self, request: Request, repo: str) -> Reply:
        state = request.query.get("state", "open")
        wanted = {label for label in request.query.get("labels", "").split(",") if label}
        found = [
            self._shown(issue, request)
            for issue in reversed(self._issues.get(repo, []))
            if state in ("all", issue["state"]) and wanted <= set(issue["labels"])
        ]
        size = _number(request.query.get("per_page"), 30, 100)
        start = (_number(request.query.get("page"), 1, 10**6) - 1) * size
        return answer(200, found[start : start + size])

    def _search(self, request: Request) -> Reply:
        try:
            terms = shlex.split(request.query.get("q", ""))
        except ValueError:
            return _github(422, "Validation Failed")
        if not terms:
            return _github(422, "Validation Failed")
        found = [
            self._shown(issue, request)
            for issues in self._issues.values()
            for issue in reversed(issues)
            if all(_matches(issue, term) for term in terms)
        ]
        return answer(200, {"total_count": len(found), "incomplete_results": False, "items": found})

    def _change(self, request: Request, issue: Json) -> Reply:
        sent = request.json_object()
        if sent is None:
            return _github(400, "Problems parsing JSON")
        if sent.get("state", "open") not in ("open", "closed"):
            return _github(422, "Validation Failed")
        changes = {name: sent[name] for name in ("title", "body", "state") if isinstance(sent.get(name), str)}
        self._journal.append("github", issue["repo"], "changed", {"number": issue["number"], **changes})
        return answer(200, self._shown(issue, request))

    def _comment(self, request: Request, issue: Json) -> Reply:
        sent = request.json_object()
        if sent is None:
            return _github(400, "Problems parsing JSON")
        if not text_of(sent.get("body")).strip():
            return _github(422, "Validation Failed")
        kept = {"number": issue["number"], "body": sent["body"]}
        event = self._journal.append("github", issue["repo"], "commented", kept)
        return answer(201, {"id": event.id, "body": sent["body"], "html_url": f"{request.base_url}/#e{event.id}"})

    def _find(self, repo: str, number: str) -> Json | None:
        issues = self._issues.get(repo, [])
        position = int(number) if number.isdigit() and len(number) < 10 else 0
        return issues[position - 1] if 1 <= position <= len(issues) else None

    def _apply(self, event: Event) -> None:
        if event.channel != "github":
            return
        issues = self._issues.setdefault(event.name, [])
        if event.action == "opened":
            issue = {"number": len(issues) + 1, "state": "open", "comments": 0, "repo": event.name, "event": event.id}
            issues.append(issue | {"created_at": event.received_at} | event.body)
            return
        issue = issues[event.body["number"] - 1]
        if event.action == "commented":
            issue["comments"] += 1
        else:
            issue |= event.body

    @staticmethod
    def _shown(issue: Json, request: Request) -> Json:
        shown = {name: value for name, value in issue.items() if name not in ("repo", "event", "labels")}
        path = f"{issue['repo']}/issues/{issue['number']}"
        return shown | {
            "id": issue["event"],
            "labels": [{"name": label} for label in issue["labels"]],
            "url": f"{request.base_url}/github/repos/{path}",
            "html_url": f"{request.base_url}/github/{path}",
        }


def _github(status: int, message: str) -> Reply:
    return answer(
        status, {"message": message, "documentation_url": "https://docs.github.com/rest", "status": str(status)}
    )


def _matches(issue: Json, term: str) -> bool:
    name, colon, value = term.partition(":")
    if colon and name == "repo":
        return bool(issue["repo"] == value)
    if colon and name in ("is", "state"):
        return value in ("issue", issue["state"])
    if colon and name == "label":
        return value in issue["labels"]
    if colon and name == "in":
        return True
    return term.lower() in f"{issue['title']}\n{issue['body']}".lower()


_CLAUSE = re.compile(r"""^\s*(project|labels)\s*=\s*(?:"([^"]*)"|([\w.-]+))\s*$""", re.IGNORECASE)


class Jira:
    """``/jira/rest/api/2``: create an issue, find issues by project and label. Any Basic or Bearer credential will do.

    The search is the one Jira Cloud kept (``search/jql``); the removed one answers 410, as there.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._issues: list[Json] = []
        journal.follow(self._apply)

    def handle(self, request: Request) -> Reply:
        match request.route:
            case ("GET", "browse", key):
                found = [issue for issue in self._issues if issue["key"] == key]
                location = {"Location": f"/#e{found[0]['event']}"} if found else {}
                return Reply(302, headers=location) if found else _jira(404, "Issue does not exist")
        if not (request.authorization("Basic") or request.authorization("Bearer")):
            return _jira(401, "Client must be authenticated to access this resource.")
        match request.route:
            case ("POST", "rest", "api", "2", "issue"):
                return self._create(request)
            case ("GET", "rest", "api", "2", "search", "jql"):
                return self._search(request)
            case (_, "rest", "api", "2", "search"):
                return _jira(
                    410, "The requested API has been removed. Please migrate to the /rest/api/2/search/jql API."
                )
            case ("GET", "rest", "api", "2", "issue", key):
                for issue in self._issues:
                    if issue["key"] == key:
                        return answer(200, self._shown(issue, request))
                return _jira(404, "Issue does not exist or you do not have permission to see it.")
        return _jira(404, "null for uri")

    def _create(self, request: Request) -> Reply:
        sent = request.json_object()
        fields = sent.get("fields") if sent else None
        if not isinstance(fields, dict):
            return _jira(400, "Invalid request payload. Refer to the REST API documentation and try again.")
        project, kind = fields.get("project"), fields.get("issuetype")
        errors = {}
        if not (isinstance(project, dict) and re.fullmatch(r"[A-Z][A-Z0-9_]+", text_of(project.get("key")))):
            errors["project"] = "Specify a valid project ID or key"
        if not (isinstance(kind, dict) and text_of(kind.get("name"))):
            errors["issuetype"] = "Specify an issue type"
        if not text_of(fields.get("summary")).strip():
            errors["summary"] = "You must specify a summary of the issue."
        spaced = [label for label in _labels(fields.get("labels")) if " " in label]
        if spaced:
            errors["labels"] = f"The label '{spaced[0]}' contains spaces which is invalid."
        if errors:
            return answer(400, {"errorMessages": [], "errors": errors})
        kept = {
            "summary": fields["summary"],
            "description": text_of(fields.get("description")),
            "labels": _labels(fields.get("labels")),
            "type": fields["issuetype"]["name"],
        }
        self._journal.append("jira", fields["project"]["key"], "created", kept)
        shown = self._shown(self._issues[-1], request)
        return answer(201, {name: shown[name] for name in ("id", "key", "self")})

    def _search(self, request: Request) -> Reply:
        clauses = re.split(r"\s+ORDER\s+BY\s+", request.query.get("jql", ""), flags=re.IGNORECASE)[0]
        found = self._issues
        for clause in re.split(r"\s+AND\s+", clauses, flags=re.IGNORECASE):
            match = _CLAUSE.match(clause)
            if match is None:
                return _jira(400, f"Error in the JQL Query: '{clause}' is not understood here.")
            value = match[2] if match[2] is not None else match[3]
            if match[1].lower() == "project":
                found = [issue for issue in found if issue["project"] == value]
            else:
                found = [issue for issue in found if value in issue["labels"]]
        wanted = request.query.get("fields", "").split(",")
        shown = []
        for issue in reversed(found):
            full = self._shown(issue, request)
            picked = {name: text for name, text in full["fields"].items() if name in wanted or "*all" in wanted}
            # Without 'fields', the real service gives ids only.
            shown.append({**full, "fields": picked} if request.query.get("fields") else {"id": full["id"]})
        return answer(200, {"issues": shown, "isLast": True})

    def _apply(self, event: Event) -> None:
        if event.channel != "jira":
            return
        number = sum(issue["project"] == event.name for issue in self._issues) + 1
        place = {"project": event.name, "key": f"{event.name}-{number}", "event": event.id}
        self._issues.append(place | event.body)

    @staticmethod
    def _shown(issue: Json, request: Request) -> Json:
        return {
            "id": str(10000 + issue["event"]),
            "key": issue["key"],
            "self": f"{request.base_url}/jira/rest/api/2/issue/{10000 + issue['event']}",
            "fields": {
                "summary": issue["summary"],
                "description": issue["description"],
                "labels": issue["labels"],
                "issuetype": {"name": issue["type"]},
                "project": {"key": issue["project"]},
            },
        }


def _jira(status: int, message: str) -> Reply:
    return answer(status, {"errorMessages": [message], "errors": {}})
